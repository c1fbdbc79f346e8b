"""`rectrain explain`: what a field of the job means."""

import difflib
import textwrap
from collections.abc import Sequence

import click

from rectrain.api.errors import UserError
from rectrain.api.paths import parse_path
from rectrain.api.reference import FieldDoc, fields_of
from rectrain.api.schema import job_schema

_ROOT = "RecTrainingJob"


@click.command()
@click.argument("path", default="spec")
def explain(path: str) -> None:
    """Show what a field of the job means, its type and default, and the fields below it.

    PATH is a field such as training.checkpoint or features.kind; it begins below spec, or with spec, metadata or
    status. Without it, the parts of a job are listed.
    """
    schema = job_schema()
    try:
        parts = [part for part in parse_path(path) if not part.isdigit()]
    except ValueError as error:
        raise UserError(f"PATH {error}") from None
    top = fields_of(schema, _ROOT)
    if not parts or parts[0] not in {field.name for field in top}:
        parts.insert(0, "spec")
    siblings: Sequence[FieldDoc] = top
    field = top[0]
    for position, part in enumerate(parts):
        field = _find(siblings, part, ".".join(parts[:position]))
        siblings = fields_of(schema, field.section) if field.section else ()
    click.echo(_text(".".join(parts), field, siblings))


def _find(fields: Sequence[FieldDoc], name: str, parent: str) -> FieldDoc:
    for field in fields:
        if field.name == name:
            return field
    names = [field.name for field in fields]
    if not names:
        raise UserError(f"PATH {parent}.{name}: {parent} has no fields")
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"its fields are {', '.join(names)}"
    raise UserError(f"PATH {parent}.{name}: is not a field of {parent}; {hint}")


def _text(path: str, field: FieldDoc, below: Sequence[FieldDoc]) -> str:
    lines = [click.style(path, bold=True) + f"  {_facts(field)}", *_wrapped(field.description, "  ")]
    for child in below:
        lines += ["", "  " + click.style(child.name, bold=True) + f"  {_facts(child)}"]
        lines += _wrapped(child.description, "    ")
    return "\n".join(lines)


def _facts(field: FieldDoc) -> str:
    default = "required" if field.required else "optional" if field.default is None else f"default {field.default}"
    return f"({field.type.replace('`', '')}; {default})"


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, width=100, initial_indent=indent, subsequent_indent=indent)
