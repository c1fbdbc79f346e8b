"""What makes two runs runs of the same job."""

import json
from typing import Any

from rectrain.api.job import RecTrainingJob

_STATE_SECTIONS = {"model", "features", "labels", "data"}
_SECTIONS = _STATE_SECTIONS | {"training", "evaluation", "sharding"}


def identity_of(job: RecTrainingJob) -> dict[str, Any]:
    """Return what makes a run the same run: all of the spec that its result depends on."""
    return job.spec.model_dump(mode="json", include=_SECTIONS, exclude_defaults=True)


def state_identity_of(job: RecTrainingJob) -> dict[str, Any]:
    """Return what a checkpoint has to agree with: its tensors are of the model, its position is in the data."""
    return job.spec.model_dump(mode="json", include=_STATE_SECTIONS, exclude_defaults=True)


def first_difference(found: Any, wanted: Any, path: str = "spec") -> str | None:
    """Return in words the first field in which two identities differ, or None when they are the same."""
    if found == wanted:
        return None
    if isinstance(found, dict) and isinstance(wanted, dict):
        key = next(k for k in {**found, **wanted} if found.get(k) != wanted.get(k))
        return first_difference(found.get(key), wanted.get(key), f"{path}.{key}")
    return f"{path} was {json.dumps(found)}, and is {json.dumps(wanted)}"
