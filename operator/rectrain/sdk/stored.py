"""Jobs between Python and an API server: as it has them, and as it is asked to create them."""

import copy
from typing import Any

from pydantic import ValidationError

from rectrain.api.base import AS_IT_IS
from rectrain.api.job import GROUP, KIND, LAST_APPLIED, VERSION, RecTrainingJob
from rectrain.api.loading import format_problem, problems_of
from rectrain.sdk.errors import ClusterError

_SET_BY_THE_SERVER = {
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "generation",
    "managedFields",
    "resourceVersion",
    "selfLink",
    "uid",
}


def job_of(raw: dict[str, Any]) -> RecTrainingJob:
    """Return a job that an API server has, without the fields that only a newer version of rectrain knows.

    Raises:
        ClusterError: It has another form than this version knows.
    """
    try:
        return RecTrainingJob.model_validate(raw, context=AS_IT_IS)
    except ValidationError as error:
        unknown = [details["loc"] for details in error.errors() if details["type"] == "extra_forbidden"]
    try:
        return RecTrainingJob.model_validate(_without(raw, unknown), context=AS_IT_IS)
    except ValidationError as error:
        name = f"{KIND} {raw['metadata'].get('namespace')}/{raw['metadata'].get('name')}"
        problem = format_problem(problems_of(error)[0])
        raise ClusterError(f"{name}: is of another version of rectrain than this one: {problem}") from None


def body_of(job: RecTrainingJob, namespace: str) -> dict[str, Any]:
    """Return what an API server is asked to create for a job: also for one that came from a server."""
    body = job.model_dump(mode="json", exclude_unset=True, exclude={"status"})
    metadata = {name: value for name, value in body["metadata"].items() if name not in _SET_BY_THE_SERVER}
    annotations = {name: text for name, text in metadata.get("annotations", {}).items() if name != LAST_APPLIED}
    metadata |= {"namespace": namespace} | ({"annotations": annotations} if "annotations" in metadata else {})
    return {**body, "apiVersion": f"{GROUP}/{VERSION}", "kind": KIND, "metadata": metadata}


def _without(raw: dict[str, Any], places: list[tuple[str | int, ...]]) -> dict[str, Any]:
    stripped = copy.deepcopy(raw)
    for *path, last in places:
        node: Any = stripped
        for part in path:
            node = node[part]
        del node[last]
    return stripped
