"""Job files: read, overridden, validated, with every problem named."""

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from rectrain.api.base import RULES_ERROR
from rectrain.api.errors import UserError
from rectrain.api.job import RecTrainingJob
from rectrain.api.overrides import apply_override
from rectrain.api.paths import format_path, model_at
from rectrain.api.rules import Problem
from rectrain.api.yaml_text import dump_yaml, load_yaml


class InvalidJobError(UserError):
    """A job that does not validate, with every problem.

    Attributes:
        source: The file or other origin of the job.
        problems: What is wrong, each with its path from the job's root.
    """

    def __init__(self, source: str, problems: list[Problem]) -> None:
        """Hold the problems of the job that came from `source`."""
        self.source = source
        self.problems = problems
        super().__init__("\n".join(f"{source}: {format_problem(p)}" for p in problems))


def load_job(path: str | Path, overrides: Iterable[str] = ()) -> RecTrainingJob:
    """Read a job file, apply ``path=value`` overrides, and validate it.

    Args:
        path: A YAML or JSON file.
        overrides: Assignments such as ``training.maxSteps=50``; the path begins below ``spec``, or at the root with
            ``spec.`` or ``metadata.``.

    Raises:
        InvalidJobError: The job is not valid.
        UserError: The file cannot be read, is no YAML mapping, or an override is malformed.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"{path}: cannot be read: {reason}") from None
    return parse_job(text, source=str(path), overrides=overrides)


def parse_job(text: str, *, source: str, overrides: Iterable[str] = ()) -> RecTrainingJob:
    """Validate the YAML or JSON text of a job.

    Raises:
        InvalidJobError: The job is not valid.
        UserError: The text is no YAML mapping, or an override is malformed.
    """
    try:
        document = load_yaml(text)
    except ValueError as error:
        raise UserError(f"{source}: is not valid YAML: {error}") from None
    if not isinstance(document, dict):
        raise UserError(f"{source}: must hold one RecTrainingJob, a mapping with apiVersion, kind, metadata and spec")
    for assignment in overrides:
        apply_override(document, assignment)
    return validate_job(document, source=source)


def validate_job(document: Mapping[str, Any], *, source: str) -> RecTrainingJob:
    """Validate a job given as a mapping.

    Raises:
        InvalidJobError: The job is not valid.
    """
    problems = [
        Problem((field,), None, f"is required: {wanted!r}")
        for field, wanted in (("apiVersion", "rectrain.io/v1alpha1"), ("kind", "RecTrainingJob"))
        if field not in document
    ]
    try:
        # As strict as an API server with the job's schema: outer names only, no text or truth value for a number. That
        # a StrEnum is text and a time is text is known to pydantic's strict mode for JSON alone.
        text = json.dumps(document, default=str)
        job = RecTrainingJob.model_validate_json(text, strict=True, by_alias=True, by_name=False)
    except ValidationError as error:
        problems += problems_of(error)
    if problems:
        raise InvalidJobError(source, problems)
    return job


def problems_of(error: ValidationError, path: tuple[str | int, ...] = ()) -> list[Problem]:
    """Return what pydantic found wrong with a job, or with a part of one.

    Args:
        error: What it raised.
        path: Where the part is in a job, such as ``("spec", "data", "source")``; the problems' paths begin in the part.
    """
    found = [p for details in error.errors() for p in _problems_of(details, (*path, *details["loc"]))]
    return [problem._replace(path=problem.path[len(path) :]) for problem in found]


def format_problem(problem: Problem) -> str:
    """Return one line: path, what is wrong and what would be right, and the value that is there."""
    found = "" if problem.value is None else f" (got {_shorten(problem.value)})"
    return f"{format_path(problem.path)}: {problem.message}{found}"


def dump_job(job: RecTrainingJob) -> str:
    """Return the job as YAML with its fields' outer names; fields that have their defaults are left out."""
    document = job.model_dump(mode="json", exclude_defaults=True)
    document = {"apiVersion": job.api_version, "kind": job.kind, **document}
    return dump_yaml(document)


def _problems_of(error: ErrorDetails, path: tuple[str | int, ...]) -> list[Problem]:
    value = error["input"]
    context: dict[str, Any] = error.get("ctx") or {}
    if error["type"] == RULES_ERROR:
        return [Problem((*path, *p.path), p.value, p.message) for p in context["problems"]]
    if value is None and error["type"].endswith("_type"):
        return [Problem(path, None, f"must not be empty{_description(path)}")]
    match error["type"]:
        case "missing":
            return [Problem(path, None, f"is required{_description(path)}")]
        case "extra_forbidden":
            return [Problem(path, value, f"is not a field{_near_names(path)}")]
        case "enum" | "literal_error":
            return [Problem(path, value, f"must be {context['expected']}")]
        case "string_pattern_mismatch":
            return [Problem(path, value, f"must match {context['pattern']}{_description(path)}")]
        case "value_error":
            return [Problem(path, value, str(context["error"]))]
        case "model_type" | "dict_type":
            return [Problem(path, value, "must be a mapping")]
        case "list_type":
            return [Problem(path, value, "must be a list")]
    # Pydantic begins with what the value is: "Input should be ...", "List should have ...".
    said = error["msg"].replace(" after validation", "")
    return [Problem(path, value, re.sub(r"^\w+ should ", "must ", said))]


def _description(path: tuple[str | int, ...]) -> str:
    parent = model_at(RecTrainingJob, path[:-1])
    if parent is None or not isinstance(path[-1], str):
        return ""
    for name, field in parent.model_fields.items():
        if path[-1] in (name, field.alias) and field.description:
            return f": {' '.join(field.description.split())}"
    return ""


def _near_names(path: tuple[str | int, ...]) -> str:
    parent: type[BaseModel] | None = model_at(RecTrainingJob, path[:-1])
    if parent is None:
        return ""
    known = [field.alias or name for name, field in parent.model_fields.items()]
    near = difflib.get_close_matches(str(path[-1]), known, n=1, cutoff=0.6)
    return f" of {parent.__name__}; " + (f"did you mean {near[0]}?" if near else f"its fields are {', '.join(known)}")


def _shorten(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."
