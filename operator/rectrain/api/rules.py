"""Rules between the fields of an object: checked in Python when a job is read, and as CEL when it is applied.

A rule has one message for both. Python names the element of a list that is wrong; CEL, whose paths have no positions,
names the list. A rule that CEL cannot check within an API server's limits on cost has no CEL expression: the
controller, which reads jobs through these types, finds what it refuses.
"""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from string import Formatter
from typing import Any, NamedTuple

from pydantic import BaseModel
from pydantic.alias_generators import to_snake


class Problem(NamedTuple):
    """One thing that is wrong with a job."""

    path: tuple[str | int, ...]
    """Where: field names (camelCase) and list positions, from the object that was checked."""
    value: Any
    """What is there; None where something is missing."""
    message: str
    """What would be right: begins with "must" or "is"."""


Places = Iterable[tuple[str | int, ...]]
"""Where something is wrong, below the field that a rule is about."""


@dataclass(frozen=True)
class Rule:
    """What has to hold between the fields of an object.

    Attributes:
        field: The field that it is about: camelCase names with dots, from the object.
        message: What would be right: begins with "must" or "is". ``{kind}`` stands for the value of that field,
            which is text (what CEL makes of a number is too costly for an API server), and ``{{`` for a brace.
        broken: Tells of an object, whose fields each alone are right, whether it breaks the rule, or at which places
            below `field`.
        cel: Expression that is true of an object, `self`, that keeps the rule; None when CEL cannot say it.
    """

    field: str
    message: str
    broken: Callable[[Any], bool | Places]
    cel: str | None

    def problems(self, checked: BaseModel) -> list[Problem]:
        """Return what is wrong with an object."""
        found = self.broken(checked)
        if found is False:
            return []
        places: Places = ((),) if found is True else found
        return [self._problem(checked, (*self.field.split("."), *place)) for place in places]

    def validation(self) -> dict[str, Any] | None:
        """Return the rule as an entry of x-kubernetes-validations; None when CEL cannot say it."""
        if self.cel is None:
            return None
        parts = list(Formatter().parse(self.message))
        entry = {"rule": self.cel, "fieldPath": f".{self.field}", "reason": self._reason()}
        if all(name is None for _, name, _, _ in parts):
            return {**entry, "message": "".join(text for text, *_ in parts)}
        terms: list[str] = []
        for text, name, _, _ in parts:
            terms += ([cel_text(text)] if text else []) + ([f"self.{name}"] if name else [])
        return {**entry, "messageExpression": " + ".join(terms)}

    def _problem(self, checked: BaseModel, path: tuple[str | int, ...]) -> Problem:
        value = _value_at(checked, path)
        return Problem(path, value if _is_telling(value) else None, self._text(checked))

    def _text(self, checked: BaseModel) -> str:
        return "".join(
            text + (str(_value_at(checked, tuple(name.split(".")))) if name else "")
            for text, name, _, _ in Formatter().parse(self.message)
        )

    def _reason(self) -> str:
        if self.message.startswith("is required"):
            return "FieldValueRequired"
        forbidden = self.message.startswith(("is only for", "is not for", "must be left out"))
        return "FieldValueForbidden" if forbidden else "FieldValueInvalid"


@dataclass(frozen=True)
class Condition:
    """A condition on an object's fields, in both languages.

    Attributes:
        cel: The condition as CEL on `self`.
        test: The same in Python.
    """

    cel: str
    test: Callable[[Any], bool]

    def __and__(self, other: "Condition") -> "Condition":
        """Return the condition that both hold."""
        return Condition(f"({self.cel} && {other.cel})", lambda checked: self.test(checked) and other.test(checked))

    def __invert__(self) -> "Condition":
        """Return the condition that this one does not hold."""
        return Condition(f"!{self.cel}", lambda checked: not self.test(checked))


def given(field: str) -> Condition:
    """Return the condition that a field without a default is there."""
    name = to_snake(field)
    return Condition(f"has(self.{field})", lambda checked: getattr(checked, name) is not None)


def one_of(field: str, *values: str) -> Condition:
    """Return the condition that a field has one of some values; a field that is not there has none."""
    name, wanted = to_snake(field), frozenset(values)
    listed = ", ".join(cel_text(value) for value in values)
    return Condition(f"(has(self.{field}) && self.{field} in [{listed}])", lambda of: getattr(of, name) in wanted)


def required(field: str, when: Condition, message: str) -> Rule:
    """Return the rule that a field has to be there on a condition."""
    is_there = given(field)
    return Rule(
        field,
        message,
        broken=lambda checked: not is_there.test(checked) and when.test(checked),
        cel=f"{is_there.cel} || !{when.cel}",
    )


def forbidden(field: str, unless: Condition, message: str) -> Rule:
    """Return the rule that a field may be there on a condition alone."""
    is_there = given(field)
    return Rule(
        field,
        message,
        broken=lambda checked: is_there.test(checked) and not unless.test(checked),
        cel=f"!{is_there.cel} || {unless.cel}",
    )


_CREDENTIALS = "^https?://[^/]*@"


def without_credentials(field: str, instead: str) -> Rule:
    """Return the rule that the address of a server holds no user and password: what a job says, many can read.

    Args:
        field: The field with the address.
        instead: Where credentials belong.
    """
    name = to_snake(field)
    return Rule(
        field,
        f"must hold no user or password: {instead}",
        broken=lambda checked: re.match(_CREDENTIALS, getattr(checked, name) or "") is not None,
        cel=f"!has(self.{field}) || !self.{field}.matches({cel_text(_CREDENTIALS)})",
    )


def cel_text(text: str) -> str:
    """Return a text as a CEL literal."""
    return json.dumps(text, ensure_ascii=False)


def _is_telling(value: Any) -> bool:
    """Return whether a value is one for a message: there, and not a part of the job with fields of its own."""
    elements = value if isinstance(value, list) else [value]
    return value not in ([], {}) and not any(isinstance(element, BaseModel) for element in elements)


def _value_at(node: Any, path: tuple[str | int, ...]) -> Any:
    for part in path:
        if isinstance(node, BaseModel):
            node = getattr(node, to_snake(str(part)))
        elif isinstance(node, dict | list):
            elements: Any = node
            node = elements[part]
        else:
            return None
    return node
