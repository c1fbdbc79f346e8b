"""Paths of fields in a job: written, read, and followed through the types."""

import re
import types
import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

_PART = re.compile(r"([^.\[\]]+)|\[([^\[\]]+)\]")


def format_path(path: tuple[str | int, ...]) -> str:
    """Return a path the way people write it: ``spec.features[0].name``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def parse_path(text: str) -> list[str]:
    """Return the parts of ``spec.features[user_id].cardinality`` or ``features.0.name``.

    Raises:
        ValueError: The text is no path.
    """
    parts, position = [], 0
    while position < len(text):
        match = _PART.match(text, position)
        if match is None:
            raise ValueError(
                f"{text!r} is no path of fields such as training.maxSteps or features[user_id].cardinality"
            )
        parts.append(match[1] or match[2])
        position = match.end()
        if position < len(text) and text[position] == ".":
            position += 1
            if position == len(text):
                raise ValueError(f"{text!r} ends with a dot")
    if not parts:
        raise ValueError("a path of fields such as training.maxSteps is missing")
    return parts


def model_at(root: type[BaseModel], path: tuple[str | int, ...]) -> type[BaseModel] | None:
    """Return the type of the object at a path from a type, or None where there is no such object."""
    found: Any = root
    for part in path:
        if isinstance(part, int) or not (isinstance(found, type) and issubclass(found, BaseModel)):
            continue
        for name, field in found.model_fields.items():
            if part in (name, field.alias):
                found = _inner_model(field.annotation)
                break
        else:
            return None
    return found if isinstance(found, type) and issubclass(found, BaseModel) else None


def fields_with_models(root: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield every field below a type whose value has fields itself, with the type of that value."""
    for name, field in root.model_fields.items():
        inner = _inner_model(field.annotation)
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield name, inner
            yield from fields_with_models(inner)


def _inner_model(annotation: Any) -> Any:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation
    for argument in typing.get_args(annotation):
        found = _inner_model(argument)
        if isinstance(found, type) and issubclass(found, BaseModel):
            return found
    return None
