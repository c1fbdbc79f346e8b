"""The object store interface, its options and its errors."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from rectrain.api.errors import UserError


class StorageError(UserError):
    """An object store refused or could not be reached; the message is one line."""


class ObjectNotFoundError(StorageError):
    """The object named by a key does not exist, while the store itself answers."""


@dataclass(frozen=True)
class Storage:
    """How to reach S3.

    Credentials are never held here: they come from boto3's default chain (environment, shared files, pod identity).

    Attributes:
        endpoint_url: Server of an S3-compatible store such as MinIO; None means AWS.
        region: Signing region; None leaves it to boto3's configuration.
    """

    endpoint_url: str | None = None
    region: str | None = None


@dataclass(frozen=True)
class ObjectInfo:
    """What a store knows about an object.

    Attributes:
        key: Key relative to the store's URI, with `/` between folders.
        size: Bytes.
        modified: Time of the last write, seconds since the epoch.
    """

    key: str
    size: int
    modified: float


class ObjectStore(Protocol):
    """Objects under one URI, addressed by keys relative to it.

    Every method raises `StorageError` with a one-line message when the store cannot be reached or refuses, and
    `ObjectNotFoundError` when the object it needs is absent. Methods may be called from several threads at once.
    """

    @property
    def uri(self) -> str:
        """Where the store lies, without a trailing slash."""
        ...

    def uri_of(self, key: str) -> str:
        """Return the full URI of `key`, as used in messages."""
        ...

    def local_path(self, key: str) -> Path | None:
        """Return the object's file when the store is a local directory, else None."""
        ...

    def read_bytes(self, key: str) -> bytes:
        """Read a whole object."""
        ...

    def write_bytes(self, key: str, data: bytes) -> None:
        """Create or replace an object; a reader sees the old content or the new one, never a part."""
        ...

    def download(self, key: str, path: Path) -> None:
        """Copy an object to the file `path`, which appears only once it is complete."""
        ...

    def upload(self, path: Path, key: str) -> None:
        """Copy the file `path` to an object, which appears only once it is complete."""
        ...

    def stat(self, key: str) -> ObjectInfo:
        """Return an object's size and time of last write."""
        ...

    def exists(self, key: str) -> bool:
        """Tell whether an object exists."""
        ...

    def list(self, prefix: str = "") -> list[ObjectInfo]:
        """List the objects in the folder `prefix` and below, ordered by key; a missing folder is empty."""
        ...

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; those already absent are passed over."""
        ...

    def delete_prefix(self, prefix: str) -> None:
        """Delete every object in the folder `prefix` and below."""
        ...

    def exclusive(self, when_taken: Callable[[], None], below: Iterable[str] = ()) -> AbstractContextManager[None]:
        """Hold the store against other processes that ask for it, so that one writes at a time.

        In a local directory this also removes what killed writers left half-written, as nobody else is writing. S3
        has no locks: there nothing is held.

        Args:
            when_taken: Called once when another process holds the store; returns to wait for it, or raises.
            below: Folders of the store that its holder alone writes to, too; `*` in a name stands for any.
        """
        ...


def checked_key(key: str) -> str:
    """Return `key` if it names an object inside the store, whatever it was read from.

    Raises:
        StorageError: The key is empty, absolute or climbs out with `..`.
    """
    parts = PurePosixPath(key).parts
    if not parts or key.startswith("/") or ".." in parts:
        raise StorageError(f"object key {key!r} does not name an object inside the store; use a relative path")
    return "/".join(parts)


def folder_prefix(prefix: str) -> str:
    """Return `prefix` as a folder: empty for the whole store, otherwise ending in one slash."""
    return checked_key(prefix) + "/" if prefix.strip("/") else ""
