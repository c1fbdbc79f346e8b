"""An item index as files: FAISS, searched inside the process that loads it.

Below the store's URI, ``versions/<name>/`` has a version's index and ``version.json``, which is written last and makes
it complete; ``served.json`` names the version that is searched. Each is replaced as a whole.
"""

import hashlib
import uuid
from collections.abc import Sequence
from typing import TypeVar

from pydantic import ValidationError

from rectrain.api.base import ApiModel
from rectrain.api.errors import UserError
from rectrain_jobs.retrieval.base import Ids, IndexVersion, Vectors
from rectrain_jobs.retrieval.faiss_index import FaissIndex, build_index, check_width, load_index
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
        names = {key.split("/")[1] for key in self._keys() if key.endswith("/version.json")}
        return [self._stored(name).version for name in sorted(names)]

    def served(self) -> str | None:
        """Return the name of the version that searches go to."""
        try:
            return _parse(_Served, self._store.read_bytes(_SERVED), self._store.uri_of(_SERVED)).name
        except ObjectNotFoundError:
            return None

    def revision(self) -> str | None:
        """Return the served version and its file, which is another one when single items have changed."""
        name = self.served()
        return None if name is None else self._stored(name).file

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
        return load_index(version, data)

    def complete(self, version: IndexVersion) -> None:
        """Record that a version is whole and verified."""
        stored = self._built.pop(version.name).model_copy(update={"version": version})
        self._write_json(_manifest(version.name), stored)

    def serve(self, name: str) -> None:
        """Direct searches to a complete version, in one atomic step."""
        self._stored(name)
        self._write_json(_SERVED, _Served(name=name))

    def remove(self, names: Sequence[str]) -> None:
        """Remove versions, complete or not."""
        for name in names:
            self._store.delete([_manifest(name)])  # first, so that what is left of it is no version
            self._store.delete_prefix(f"versions/{name}")

    def clear(self) -> None:
        """Remove the index: first no version is served, then there are none."""
        self._store.delete([_SERVED])
        self.remove(sorted({key.split("/")[1] for key in self._keys()}))

    def unfinished(self) -> list[str]:
        """Return the names of versions that were begun and are not complete."""
        keys = self._keys()
        return sorted(
            {key.split("/")[1] for key in keys} - {k.split("/")[1] for k in keys if k.endswith("/version.json")}
        )

    def upsert(self, ids: Ids, vectors: Vectors) -> None:
        """Add items to the served version, or replace their vectors; who has it open sees it when opening it again."""
        index = self._open_served()
        check_width(vectors, index.version)
        index.upsert(ids, vectors)
        self._replace(index)

    def delete(self, ids: Ids) -> int:
        """Delete items from the served version; returns how many there were of them."""
        index = self._open_served()
        deleted = index.delete(ids)
        if deleted:
            self._replace(index)
        return deleted

    def _open_served(self) -> FaissIndex:
        name = self.served()
        if name is None:
            raise UserError(f"{self.uri}: has no served version yet; publish one first")
        return self.open(self._stored(name).version)

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

    def _stored(self, name: str) -> _Stored:
        key = _manifest(name)
        try:
            return _parse(_Stored, self._store.read_bytes(key), self._store.uri_of(key))
        except ObjectNotFoundError:
            known = ", ".join(sorted(k.split("/")[1] for k in self._keys() if k.endswith("/version.json"))) or "none"
            raise UserError(f"{self.uri}: has no version {name}; there are: {known}") from None

    def _keys(self) -> list[str]:
        return [info.key for info in self._store.list("versions")]


def _manifest(name: str) -> str:
    return f"versions/{name}/version.json"


def _parse(kind: type[_T], data: bytes, where: str) -> _T:
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise UserError(f"{where}: is damaged: {error.errors()[0]['msg']}") from None
