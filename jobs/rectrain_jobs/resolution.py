"""A job as a process sees it: relative paths made absolute, storage options, places for its output."""

from pathlib import Path
from typing import Any

from rectrain.api.errors import UserError
from rectrain.api.job import RecTrainingJob
from rectrain.api.quantities import parse_bytes
from rectrain_jobs.storage import Storage

_PATHS = (
    ("data", "source", "uri"),
    ("data", "source", "validation_uri"),
    ("data", "train", "uri"),
    ("data", "validation", "uri"),
    ("data", "cache", "directory"),
    ("training", "checkpoint", "uri"),
    ("output", "uri"),
    ("publish", "index", "uri"),
)


def resolve_paths(job: RecTrainingJob, base: Path) -> RecTrainingJob:
    """Return the job with its relative paths made absolute; they are relative to the folder of the job file.

    Args:
        job: The job.
        base: The folder of the job file.
    """
    spec: dict[str, Any] = job.spec.model_dump(by_alias=False, exclude_unset=True)
    for path in _PATHS:
        parent: Any = spec
        for part in path[:-1]:
            parent = parent.get(part) if isinstance(parent, dict) else None
        if isinstance(parent, dict) and isinstance(parent.get(path[-1]), str):
            parent[path[-1]] = absolute_uri(parent[path[-1]], base)
    return RecTrainingJob(metadata=job.metadata, spec=job.spec.model_validate(spec), status=job.status)


def absolute_uri(uri: str, base: Path) -> str:
    """Return a URI as it is, or a relative path as an absolute one below `base`.

    Raises:
        UserError: The path is not UTF-8, so that no job can hold it.
    """
    found = uri if "://" in uri else str((base / Path(uri).expanduser()).absolute())
    try:
        found.encode()
    except UnicodeEncodeError:
        raise UserError(f"{found!a}: is not UTF-8 text; give the folder another name") from None
    return found


def storage_options(job: RecTrainingJob) -> Storage:
    """Return how the job's s3:// URIs are reached."""
    storage = job.spec.data.storage
    return Storage(endpoint_url=storage.endpoint_url, region=storage.region)


def cache_limit_bytes(job: RecTrainingJob) -> int:
    """Return the most bytes that the cache of shards may take."""
    return parse_bytes(job.spec.data.cache.size_limit)
