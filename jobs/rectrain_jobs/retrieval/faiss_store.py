"""An item index as files: FAISS, searched inside the process that loads it.

Below the store's URI, ``versions/<name>/`` has a version's index and ``version.json``, which is written last and makes
it complete; ``served.json`` names the version that is searched. Each is replaced as a whole.
"""

import hashlib
import uuid
from collections.abc import Sequence
from typing import Any, TypeVar

import faiss
import numpy as np
from pydantic import ValidationError

from rectrain.api.base import ApiModel
from rectrain.api.errors import UserError
from rectrain_jobs.retrieval.base import (
    EXACT_UP_TO,
    TARGET_RECALL,
    Hits,
    Ids,
    IndexVersion,
    Mask,
    Vectors,
    no_hits,
    plain,
)
from rectrain_jobs.storage import ObjectNotFoundError, ObjectStore

_T = TypeVar("_T", bound=ApiModel)
_SERVED = "served.json"
_TUNING_QUERIES, _TUNING_K = 256, 50


class _Stored(ApiModel):
    """version.json."""

    version: IndexVersion
    file: str
    sha256: str


class _Served(ApiModel):
    """served.json."""

    name: str


class FaissIndex:
    """A version in memory."""

    is_local = True

    def __init__(self, version: IndexVersion, index: Any) -> None:
        """Hold the index."""
        self.version = version
        self._index = index

    def count(self) -> int:
        """Return the exact number of items."""
        return int(self._index.ntotal)

    def search(self, vectors: Vectors, k: int, allowed: Mask | None = None) -> Hits:
        """Find for each vector [queries, dim] the k items with the highest inner product, among the allowed ids."""
        _check_width(vectors, self.version)
        found = no_hits(len(vectors), k)
        most = min(k, self.count())
        if most and len(vectors):
            # Held here: the parameters point into the selector, and the selector into the bits.
            bits = None if allowed is None else np.packbits(allowed, bitorder="little")
            selector = None if bits is None else faiss.IDSelectorBitmap(len(bits) * 8, faiss.swig_ptr(bits))
            share = 1.0 if allowed is None else float(allowed.mean())
            scores, ids = self._index.search(plain(vectors), most, params=self._parameters(selector, share))
            found.ids[:, :most] = ids
            found.scores[:, :most] = np.where(ids < 0, -np.inf, scores)
        return found

    def contains(self, ids: Ids) -> Mask:
        """Tell for each id whether the index has the item."""
        return np.isin(ids, self._ids())

    def _parameters(self, selector: Any, share: float) -> Any:
        nprobe = self.version.parameters.get("nprobe")
        parameters: Any = faiss.SearchParameters() if nprobe is None else faiss.SearchParametersIVF()
        parameters.sel = selector
        if nprobe is not None:
            # Of few allowed items as many are to be looked at as of all: in so many more lists.
            parameters.nprobe = min(self._index.nlist, int(nprobe / max(share, 1e-9)))
        return parameters

    def _ids(self) -> Ids:
        if self.version.algorithm == "Flat":
            return np.asarray(faiss.vector_to_array(self._index.id_map), np.int64)
        lists = self._index.invlists
        parts = [faiss.rev_swig_ptr(lists.get_ids(n), lists.list_size(n)).copy() for n in range(lists.nlist)]
        held: Ids = np.concatenate(parts).astype(np.int64)
        return held

    def upsert(self, ids: Ids, vectors: Vectors) -> None:
        """Add items or replace their vectors, in memory."""
        self.delete(ids)
        self._index.add_with_ids(plain(vectors), ids)

    def delete(self, ids: Ids) -> int:
        """Delete items in memory; returns how many there were."""
        return int(self._index.remove_ids(faiss.IDSelectorBatch(ids)))

    def serialize(self) -> bytes:
        """Return FAISS's binary form of the index, which holds numbers alone."""
        return bytes(faiss.serialize_index(self._index).tobytes())


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
        """Write a version that nobody sees yet: flat for few items, inverted lists (IVF) for many."""
        index, algorithm, parameters = _build(plain(vectors), ids)
        version = version.model_copy(update={"algorithm": algorithm, "parameters": parameters})
        self._built[version.name] = self._write(FaissIndex(version, index))
        return version

    def open(self, version: IndexVersion) -> FaissIndex:
        """Load a version from where it is stored."""
        stored = self._built.get(version.name) or self._stored(version.name)
        data = self._store.read_bytes(stored.file)
        if hashlib.sha256(data).hexdigest() != stored.sha256:
            raise UserError(f"{self._store.uri_of(stored.file)}: is damaged: its SHA-256 is not that of version.json")
        return FaissIndex(version, faiss.deserialize_index(np.frombuffer(data, np.uint8)))

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
        _check_width(vectors, index.version)
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


def _check_width(vectors: Vectors, version: IndexVersion) -> None:
    if vectors.ndim != 2 or vectors.shape[1] != version.dim:
        raise UserError(
            f"vectors of shape {list(vectors.shape)}: must be [n, {version.dim}], as {version.name} has them"
        )


def _build(vectors: Vectors, ids: Ids) -> tuple[Any, str, dict[str, int]]:
    """Return an index of the vectors, what it is, and its settings."""
    items, dim = vectors.shape
    if items <= EXACT_UP_TO:
        flat = faiss.IndexIDMap2(faiss.IndexFlatIP(dim))
        flat.add_with_ids(vectors, ids)
        return flat, "Flat", {}
    lists = int(4 * items**0.5)
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.seed, index.cp.max_points_per_centroid = 1, 64
    index.train(vectors)
    index.add_with_ids(vectors, ids)
    return index, "IVF", {"nlist": lists, "nprobe": _nprobe(index, vectors, ids)}


def _nprobe(index: Any, vectors: Vectors, ids: Ids) -> int:
    """Return the fewest lists, in steps of a quarter more, whose search finds TARGET_RECALL of the exact neighbours.

    Queries are items, which lie where users do; they are drawn with a fixed seed.
    """
    rng = np.random.default_rng(0)
    queries = vectors[rng.choice(len(vectors), _TUNING_QUERIES, replace=False)]
    _, rows = faiss.knn(queries, vectors, _TUNING_K, metric=faiss.METRIC_INNER_PRODUCT)
    exact = ids[rows]
    nprobe = 8
    while nprobe < index.nlist:
        index.nprobe = nprobe
        found = index.search(queries, _TUNING_K)[1]
        # A margin, as other queries may find less.
        if np.mean([np.isin(e, f).mean() for e, f in zip(exact, found, strict=True)]) >= TARGET_RECALL + 0.005:
            break
        nprobe = min(index.nlist, nprobe + max(1, nprobe // 4))
    return nprobe
