"""An item index as files: FAISS, searched inside the process that loads it.

Below the store's URI, ``versions/<name>/`` has a version's index and ``version.json``, which is written last and makes
it complete; ``served.json`` names the version that is searched. Each is replaced as a whole.
"""

import hashlib
import json
import uuid
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from typing import TypeVar

from pydantic import ValidationError

from rectrain.api.base import ApiModel
from rectrain.api.errors import UserError
from rectrain_jobs.retrieval.base import (
    FORMAT_VERSION,
    VERSION_NAME,
    DamagedError,
    Ids,
    IndexVersion,
    Vectors,
    check_items,
)
from rectrain_jobs.retrieval.faiss_index import FaissIndex, build_index, load_index
from rectrain_jobs.retrieval.opening import served_version
from rectrain_jobs.storage import ObjectNotFoundError, ObjectStore

_T = TypeVar("_T", bound=ApiModel)
_SERVED = "served.json"


class _Stored(ApiModel):
    """version.json."""

    version: IndexVersion
    file: str
    sha256: str


class _Served(ApiModel):
    """served.json."""

    name: str


class FaissStore:
    """The versions of an index in a folder, local or in S3.

    Args:
        store: The folder.
    """

    def __init__(self, store: ObjectStore) -> None:
        """Open the store; nothing is read yet."""
        self._store = store
        self._built: dict[str, _Stored] = {}
        self.uri = store.uri

    def versions(self) -> list[IndexVersion]:
        """Return the complete versions, oldest first."""
        found = []
        for name in self._names():
            with suppress(ObjectNotFoundError, DamagedError):  # they are unfinished
                found.append(self._stored(name).version)
        return found

    def version(self, name: str) -> IndexVersion:
        """Return a complete version."""
        return self._complete(name).version

    def served(self) -> str | None:
        """Return the name of the version that searches go to."""
        try:
            data = self._store.read_bytes(_SERVED)
        except ObjectNotFoundError:
            return None
        where = self._store.uri_of(_SERVED)
        name = _parse(_Served, data, where).name
        if VERSION_NAME.fullmatch(name) is None:
            raise DamagedError(f"{where}: is damaged: {name!r:.80} is no name of a version")
        return name

    def changing(self) -> AbstractContextManager[None]:
        """Hold the folder; one in S3 cannot be held."""

        def refuse() -> None:
            raise UserError(f"{self.uri}: another process is changing the index; try again when it has ended")

        return self._store.exclusive(refuse, below=["versions/*"])

    def revision(self) -> str | None:
        """Return the served version and its file, which is another one when single items have changed."""
        name = self.served()
        return None if name is None else self._complete(name).file

    def build(self, version: IndexVersion, ids: Ids, vectors: Vectors) -> IndexVersion:
        """Write a version that nobody sees yet."""
        index = build_index(version, ids, vectors)
        self._built[version.name] = self._write(index)
        return index.version

    def open(self, version: IndexVersion) -> FaissIndex:
        """Load a version from where it is stored."""
        stored = self._built.get(version.name) or self._stored(version.name)
        data = self._store.read_bytes(stored.file)
        if hashlib.sha256(data).hexdigest() != stored.sha256:
            raise UserError(f"{self._store.uri_of(stored.file)}: is damaged: its SHA-256 is not that of version.json")
        return load_index(version, data, self._store.uri_of(stored.file))

    def complete(self, version: IndexVersion) -> None:
        """Record that a version is whole and verified."""
        stored = self._built.pop(version.name).model_copy(update={"version": version})
        self._write_json(_manifest(version.name), stored)
        if not self._store.exists(stored.file):
            self._store.delete([_manifest(version.name)])
            raise UserError(f"{self.uri}: another process removed {version.name} while it was built; let one publish")

    def serve(self, name: str) -> None:
        """Direct searches to a complete version, in one atomic step."""
        self.version(name)
        self._write_json(_SERVED, _Served(name=name))

    def remove(self, names: Sequence[str]) -> None:
        """Remove versions, complete or not."""
        for name in names:
            self._store.delete([_manifest(name)])  # first, so that what is left of it is no version
            self._store.delete_prefix(f"versions/{name}")

    def clear(self) -> None:
        """Remove the index: first no version is served, then there are none."""
        with self.changing():
            self._store.delete([_SERVED])
            self.remove(self._names())

    def unfinished(self) -> list[str]:
        """Return the names of versions that were begun and are not complete, or that cannot be read."""
        return sorted(set(self._names()) - {version.name for version in self.versions()})

    def upsert(self, ids: Ids, vectors: Vectors) -> None:
        """Add items to the served version, or replace their vectors; who has it open sees it when opening it again."""
        with self.changing():
            index = self._open_served()
            check_items(ids, vectors, index.version.dim, self.uri)
            index.upsert(ids, vectors)
            self._replace(index)

    def delete(self, ids: Ids) -> int:
        """Delete items from the served version; returns how many there were of them."""
        with self.changing():
            index = self._open_served()
            deleted = index.delete(ids)
            if deleted:
                self._replace(index)
            return deleted

    def _open_served(self) -> FaissIndex:
        return self.open(served_version(self))

    def _replace(self, index: FaissIndex) -> None:
        name = index.version.name
        before = self._stored(name)
        self._write_json(_manifest(name), self._write(index))
        self._store.delete([before.file])

    def _write(self, index: FaissIndex) -> _Stored:
        data = index.serialize()
        key = f"versions/{index.version.name}/{uuid.uuid4().hex}.faiss"
        self._store.write_bytes(key, data)
        return _Stored(version=index.version, file=key, sha256=hashlib.sha256(data).hexdigest())

    def _write_json(self, key: str, content: ApiModel) -> None:
        self._store.write_bytes(key, content.model_dump_json(indent=1).encode())

    def _complete(self, name: str) -> _Stored:
        """Return the description of a complete version; UserError where there is none of that name."""
        try:
            return self._stored(name)
        except ObjectNotFoundError:
            known = ", ".join(version.name for version in self.versions()) or "none"
            raise UserError(f"{self.uri}: has no version {name}; there are: {known}") from None

    def _stored(self, name: str) -> _Stored:
        key = _manifest(name)
        where = self._store.uri_of(key)
        data = self._store.read_bytes(key)
        _check_format(data, where)
        stored = _parse(_Stored, data, where)
        if stored.version.name != name:
            raise DamagedError(f"{where}: is damaged: it is of version {stored.version.name}")
        return stored

    def _names(self) -> list[str]:
        """Return the names of all versions, complete or not, oldest first."""
        parts = [info.key.split("/") for info in self._store.list("versions")]
        return sorted({part[1] for part in parts if len(part) > 2 and VERSION_NAME.fullmatch(part[1])})


def _manifest(name: str) -> str:
    return f"versions/{name}/version.json"


def _check_format(data: bytes, where: str) -> None:
    """Check before anything else that a description is of this format: a newer one may look damaged."""
    try:
        found = json.loads(data)["version"]["formatVersion"]
    except (ValueError, TypeError, KeyError):
        return  # what is wrong with it is said by who reads it whole
    if found != FORMAT_VERSION:
        raise UserError(f"{where}: has format version {found}; this rectrain reads {FORMAT_VERSION}")


def _parse(kind: type[_T], data: bytes, where: str) -> _T:
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise DamagedError(f"{where}: is damaged: {error.errors()[0]['msg']}") from None
