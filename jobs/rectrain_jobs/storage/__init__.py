"""Object storage: one interface over `s3://` buckets, `file://` URIs and plain paths."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from rectrain_jobs.storage.base import ObjectInfo, ObjectNotFoundError, ObjectStore, Storage, StorageError
from rectrain_jobs.storage.local import LocalStore
from rectrain_jobs.storage.s3 import S3Store

__all__ = [
    "LocalStore",
    "ObjectInfo",
    "ObjectNotFoundError",
    "ObjectStore",
    "S3Store",
    "Storage",
    "StorageError",
    "open_store",
    "store_at",
]


def open_store(uri: str, options: Storage | None = None) -> ObjectStore:
    """Open the store that holds the objects under `uri`.

    Nothing is contacted yet: a wrong endpoint, bucket or credential shows at the first operation.

    Args:
        uri: `s3://bucket/prefix`, `file:///path`, or a path.
        options: Where and how to reach S3; ignored for local paths.

    Returns:
        A store whose keys are relative to `uri`.

    Raises:
        StorageError: The URI names no bucket or path, or has another scheme.
    """
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise StorageError(f"storage URI {uri!r} is none: {error}") from None
    if "\0" in unquote(uri):
        raise StorageError(f"storage URI {uri!r} has a null character; a path has none")
    if parts.scheme == "s3":
        if not parts.netloc:
            raise StorageError(f"storage URI {uri!r} names no bucket; write s3://bucket/prefix")
        return S3Store(parts.netloc, parts.path.strip("/"), options or Storage())
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            raise StorageError(f"storage URI {uri!r} is not absolute; write file:///absolute/path or a plain path")
        return LocalStore(Path(unquote(parts.path)))
    if "://" in uri:
        raise StorageError(
            f"storage URI {uri!r} has the unsupported scheme {parts.scheme!r}; "
            "use s3://bucket/prefix, file:///path or a plain path"
        )
    if not uri:
        raise StorageError("storage URI is empty; use s3://bucket/prefix, file:///path or a plain path")
    try:
        return LocalStore(Path(uri).expanduser())
    except RuntimeError:
        raise StorageError(f"storage URI {uri!r} names the home of a user who is not there") from None


def store_at(place: ObjectStore | str | Path) -> ObjectStore:
    """Return a store as it is, or the one that a URI or path names."""
    return open_store(str(place)) if isinstance(place, str | Path) else place
