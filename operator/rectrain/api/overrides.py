"""``--set path=value``: change any field of a job before it is validated."""

from typing import Any

from rectrain.api.errors import UserError
from rectrain.api.paths import parse_path
from rectrain.api.yaml_text import load_yaml

_ROOTS = ("spec", "metadata", "apiVersion", "kind")


def apply_override(document: dict[str, Any], assignment: str) -> None:
    """Set one field of a job document in place.

    The path begins below ``spec`` unless it begins with ``spec`` or ``metadata``. Elements of a list are named by
    position or by their ``name``: ``features[user_id].cardinality``. The value is read as in a job file, so numbers,
    lists and ``{}`` have their types, and quotes make text of a number; whether it fits the field is checked when the
    job is validated.

    Raises:
        UserError: The assignment has no ``=``, the path is malformed, or it names no element of a list.
    """
    path, equals, text = assignment.partition("=")
    if not equals:
        raise UserError(f"--set {assignment}: must be path=value, for example training.maxSteps=50")
    try:
        parts = parse_path(path.strip())
    except ValueError as error:
        raise UserError(f"--set {assignment}: {error}") from None
    try:
        value = load_yaml(text)
    except ValueError as error:
        raise UserError(f"--set {assignment}: the value is not valid YAML: {error}") from None
    if parts[0] not in _ROOTS:
        parts.insert(0, "spec")
    target: Any = document
    for part in parts[:-1]:
        target = _step_into(target, part, assignment)
    _assign(target, parts[-1], value, assignment)


def _step_into(target: Any, part: str, assignment: str) -> Any:
    if isinstance(target, list):
        return target[_position(target, part, assignment)]
    if isinstance(target, dict):
        if target.get(part) is None:
            target[part] = {}
        return target[part]
    raise _no_fields(target, part, assignment)


def _assign(target: Any, part: str, value: Any, assignment: str) -> None:
    if isinstance(target, list):
        target[_position(target, part, assignment)] = value
    elif isinstance(target, dict):
        target[part] = value
    else:
        raise _no_fields(target, part, assignment)


def _no_fields(target: Any, part: str, assignment: str) -> UserError:
    return UserError(f"--set {assignment}: {part!r} is below {target!r}, which has no fields")


def _position(items: list[Any], part: str, assignment: str) -> int:
    if part.isdigit() and int(part) < len(items):
        return int(part)
    names = [item.get("name", item.get("table")) for item in items if isinstance(item, dict)]
    if part in names:
        return names.index(part)
    known = ", ".join(map(str, names)) if names else f"0 to {len(items) - 1}"
    raise UserError(f"--set {assignment}: {part!r} is none of the list's elements: {known}")
