"""RecTrainingJob objects as the API server has them, read into typed jobs."""

from collections import OrderedDict
from typing import Any

from pydantic import ValidationError

from rectrain.api.job import RecTrainingJob
from rectrain.api.loading import InvalidJobError, format_problem, validate_job
from rectrain.api.status import Status
from rectrain.controller.observed import Job, Key, Raw
from rectrain.manifests.metadata import QUEUE_LABEL

_KEPT_METADATA = ("name", "namespace", "uid", "labels", "annotations")
_MAX_DEFINITIONS = 256


class JobReader:
    """Reads jobs; a definition that was read lately is not validated again, which takes about a millisecond."""

    def __init__(self) -> None:
        """Begin with nothing read."""
        self._definitions: OrderedDict[tuple[Any, ...], RecTrainingJob | str] = OrderedDict()

    def read(self, raw: Raw) -> Job:
        """Return a job; one that is not valid has no definition, but says what the problem is."""
        metadata, definition = raw["metadata"], self._definition(raw)
        return Job(
            key=Key(metadata["namespace"], metadata["name"]),
            uid=metadata["uid"],
            generation=metadata.get("generation", 0),
            queue=(metadata.get("labels") or {}).get(QUEUE_LABEL),
            deleting="deletionTimestamp" in metadata,
            status=read_status(raw.get("status") or {}),
            definition=definition if not isinstance(definition, str) else None,
            problem=definition if isinstance(definition, str) else "",
        )

    def _definition(self, raw: Raw) -> RecTrainingJob | str:
        metadata = {name: raw["metadata"][name] for name in _KEPT_METADATA if name in raw["metadata"]}
        texts = [tuple(sorted((metadata.get(name) or {}).items())) for name in ("labels", "annotations")]
        identity = (metadata["uid"], raw["metadata"].get("generation"), *texts)
        if identity in self._definitions:
            self._definitions.move_to_end(identity)
            return self._definitions[identity]
        document = {name: raw.get(name) for name in ("apiVersion", "kind", "spec")} | {"metadata": metadata}
        found: RecTrainingJob | str
        try:
            found = validate_job(document, source="job")
        except InvalidJobError as error:
            found = "; ".join(map(format_problem, error.problems))[:2000]
        self._definitions[identity] = found
        if len(self._definitions) > _MAX_DEFINITIONS:
            self._definitions.popitem(last=False)
        return found


def read_status(raw: Raw) -> Status:
    """Return a job's status; what only a newer controller knows, or has written in another form, is left out.

    A condition that cannot be read takes no other with it: that a job has ended must not be forgotten.
    """
    known = known_status(raw)
    try:
        return Status.model_validate(known, extra="ignore")
    except ValidationError as error:
        wrong = {
            details["loc"][:2] if details["loc"][0] == "conditions" else details["loc"][:1]
            for details in error.errors()
        }
    conditions = known.get("conditions")
    if isinstance(conditions, list):
        known["conditions"] = [c for place, c in enumerate(conditions) if ("conditions", place) not in wrong]
    readable = {name: value for name, value in known.items() if (name,) not in wrong}
    return Status.model_validate(readable, extra="ignore")


def known_status(raw: Raw) -> dict[str, Any]:
    """Return the fields of a job's status that this version knows."""
    known = {field.alias or name for name, field in Status.model_fields.items()}
    return {name: value for name, value in raw.items() if name in known}


def written_status(status: Status) -> dict[str, Any]:
    """Return a status as it is written: without fields that are not set, times in whole seconds of UTC."""
    return status.model_dump(mode="json", exclude_none=True)


def merge_patch(before: Any, after: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON merge patch (RFC 7386) that makes one mapping another; empty where they are the same."""
    patch: dict[str, Any] = {}
    for name, value in after.items():
        old = before.get(name) if isinstance(before, dict) else None
        if isinstance(value, dict) and isinstance(old, dict):
            if changes := merge_patch(old, value):
                patch[name] = changes
        elif value != old:
            patch[name] = value
    for name in before:
        if name not in after:
            patch[name] = None
    return patch
