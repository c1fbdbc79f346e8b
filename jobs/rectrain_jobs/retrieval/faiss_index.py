"""A version of an item index in memory: FAISS, exhaustive for few items, approximate for many."""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import faiss
import numpy as np

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

_FLAT, _IVFPQ = "Flat", "IVFPQ"
_FEW_QUERIES = range(2, 33)
_SMALL_PRODUCT = 500_000
"""Multiplications in one matrix product; OpenBLAS makes products of up to a million without copying the matrices."""
_GROUPS_OF_ONE = 8
"""Groups for each item wanted, of which only the best are looked through."""
_TUNING_QUERIES, _TUNING_K = 256, 50
# A margin, as other queries may find less.
_TUNED_RECALL = TARGET_RECALL + 0.01
_REFINEMENTS = (4, 8, 16, 32)
_CODE_BITS = 4
_TRAINED_BY_LIST, _TRAINED_FOR_CODES = 64, 100_000


class FaissIndex(ABC):
    """A version in memory."""

    is_local = True

    def __init__(self, version: IndexVersion, index: Any) -> None:
        """Hold the index, an IndexIDMap2."""
        self.version = version
        self._index = index
        self._look_up()

    def _look_up(self) -> None:
        """Look up what searches need to know of the index; called whenever that has changed."""
        # Ids by position; -1 for what was deleted.
        self._names: Ids = np.asarray(faiss.vector_to_array(self._index.id_map), np.int64)

    @abstractmethod
    def count(self) -> int:
        """Return the exact number of items."""

    def search(self, vectors: Vectors, k: int, allowed: Mask | None = None) -> Hits:
        """Find for each vector [queries, dim] the k items with the highest inner product, among the allowed ids."""
        check_width(vectors, self.version)
        found = no_hits(len(vectors), k)
        most = min(k, self.count())
        if most and len(vectors):
            scores, ids = self._search(plain(vectors), most, allowed)
            found.ids[:, :most] = ids
            found.scores[:, :most] = np.where(ids < 0, -np.inf, scores)
        return found

    @abstractmethod
    def _search(self, vectors: Vectors, k: int, allowed: Mask | None) -> tuple[Vectors, Ids]:
        """Return scores and ids [queries, k]; -1 where there is nothing more."""

    def contains(self, ids: Ids) -> Mask:
        """Tell for each id whether the index has the item."""
        return np.isin(ids, self._names)

    def upsert(self, ids: Ids, vectors: Vectors) -> None:
        """Add items or replace their vectors."""
        self.delete(ids)
        self._index.add_with_ids(plain(vectors), ids)
        self._look_up()

    @abstractmethod
    def delete(self, ids: Ids) -> int:
        """Delete items; returns how many there were."""

    def serialize(self) -> bytes:
        """Return FAISS's binary form of the index, which holds numbers alone."""
        return bytes(faiss.serialize_index(self._index).tobytes())


class FlatIndex(FaissIndex):
    """Every item is looked at: exact."""

    def _look_up(self) -> None:
        super()._look_up()
        vectors: Any = faiss.downcast_index(self._index.index)
        # A view of FAISS's memory.
        self._vectors = faiss.rev_swig_ptr(vectors.get_xb(), self.count() * vectors.d).reshape(self.count(), vectors.d)

    def count(self) -> int:
        """Return the exact number of items."""
        return int(self._index.ntotal)

    def delete(self, ids: Ids) -> int:
        """Delete items; returns how many there were."""
        removed = int(self._index.remove_ids(faiss.IDSelectorBatch(ids)))
        self._look_up()
        return removed

    def _search(self, vectors: Vectors, k: int, allowed: Mask | None) -> tuple[Vectors, Ids]:
        if len(vectors) in _FEW_QUERIES:
            return self._search_few(vectors, k, allowed)
        parameters: Any = faiss.SearchParameters()
        selector = _Selector.of(allowed)
        parameters.sel = selector.handle
        scores, ids = self._index.search(vectors, k, params=parameters)
        return scores, ids

    def _search_few(self, queries: Vectors, k: int, allowed: Mask | None) -> tuple[Vectors, Ids]:
        """Search for the few vectors of a user: one way through the items for all, where FAISS goes once for each."""
        by_dimension = np.ascontiguousarray(queries.T)
        scores = np.empty((len(queries), len(self._vectors)), np.float32)
        rows = max(1, _SMALL_PRODUCT // queries.size)
        for first in range(0, len(self._vectors), rows):
            scores[:, first : first + rows] = (self._vectors[first : first + rows] @ by_dimension).T
        if allowed is not None:
            scores[:, ~_positions_of(self._names, allowed)] = -np.inf
        best = np.stack([highest(row, k) for row in scores])
        best_scores = np.take_along_axis(scores, best, axis=1)
        return best_scores, np.where(np.isneginf(best_scores), -1, self._names[best])


def highest(scores: Vectors, k: int) -> Ids:
    """Return the positions of the k highest of some scores, by falling score and then by position.

    Nothing below the k-th highest of the maxima of groups is among them, which leaves few to be sorted. Quicker by far
    than a partition of them all, for k well below their number.
    """
    groups = _GROUPS_OF_ONE * k
    of_group = len(scores) // groups
    if of_group > 1:
        maxima = scores[: of_group * groups].reshape(of_group, groups).max(axis=0)
        candidates = np.flatnonzero(scores >= np.partition(maxima, -k)[-k])
    else:
        candidates = np.arange(len(scores))
    found: Ids = candidates[np.argsort(-scores[candidates], kind="stable")[:k]]
    return found


class ApproximateIndex(FaissIndex):
    """Inverted lists, the nearest looked into by four bits for each dimension, the best compared whole.

    Jégou et al., "Product quantization for nearest neighbor search", TPAMI 2011, with the codes laid out for SIMD as in
    André et al., "Quicker ADC", TPAMI 2019. Scores are those of the whole vectors. What is deleted stays in the lists
    and is passed over, as FAISS cannot take it out of them.
    """

    def __init__(self, version: IndexVersion, index: Any) -> None:
        """Hold the index."""
        super().__init__(version, index)
        downcast: Any = faiss.downcast_index
        self._refined = downcast(index.index)
        self._lists = downcast(self._refined.base_index).nlist

    def _look_up(self) -> None:
        super()._look_up()
        self._alive = self._names >= 0
        self._count = int(self._alive.sum())
        self._are_positions = np.array_equal(self._names, np.arange(len(self._names)))

    def count(self) -> int:
        """Return the exact number of items."""
        return self._count

    def delete(self, ids: Ids) -> int:
        """Delete items; returns how many there were."""
        unwanted = np.isin(self._names, ids) & self._alive
        faiss.copy_array_to_vector(np.where(unwanted, -1, self._names), self._index.id_map)
        self._look_up()
        return int(unwanted.sum())

    def _search(self, vectors: Vectors, k: int, allowed: Mask | None) -> tuple[Vectors, Ids]:
        positions = self._positions(allowed)
        selector = _Selector.of(positions)
        settings = self.version.parameters
        # Of few allowed items as many are to be looked at as of all: in so many more lists.
        share = 1.0 if positions is None else max(float(positions.mean()), 1e-9)
        inner: Any = faiss.SearchParametersIVF()
        inner.sel, inner.nprobe = selector.handle, min(self._lists, int(settings["nprobe"] / share))
        outer: Any = faiss.IndexRefineSearchParameters()
        outer.k_factor, outer.base_index_params = float(settings["refine"]), inner
        scores, found = self._refined.search(vectors, k, params=outer)
        return scores, np.where(found < 0, -1, self._names[found])

    def _positions(self, allowed: Mask | None) -> Mask | None:
        """Return which positions may be found; None for all."""
        if allowed is None:
            return None if self._count == len(self._alive) else self._alive
        if self._are_positions and len(allowed) == len(self._names):
            return allowed
        return _positions_of(self._names, allowed)


def _positions_of(names: Ids, allowed: Mask) -> Mask:
    """Return at which positions allowed ids are; -1 is no id."""
    inside = (names >= 0) & (names < len(allowed))
    positions = np.zeros(len(names), bool)
    positions[inside] = allowed[names[inside]]
    return positions


class _Selector(NamedTuple):
    """FAISS's form of a mask, with the bits that it points into."""

    handle: Any
    bits: Any

    @classmethod
    def of(cls, mask: Mask | None) -> "_Selector":
        if mask is None:
            return cls(None, None)
        bits = np.packbits(mask, bitorder="little")
        return cls(faiss.IDSelectorBitmap(len(bits) * 8, faiss.swig_ptr(bits)), bits)


def load_index(version: IndexVersion, data: bytes, where: str) -> FaissIndex:
    """Return an index from its binary form.

    Args:
        version: What it is of.
        data: The binary form.
        where: The file that it is from, for messages.

    Raises:
        UserError: It is of an algorithm that is not known, or not what the version says.
    """
    if version.algorithm not in (_FLAT, _IVFPQ):
        raise UserError(
            f"index version {version.name} has algorithm {version.algorithm!r}; this rectrain knows {_FLAT} and "
            f"{_IVFPQ}: publish it again"
        )
    kind = FlatIndex if version.algorithm == _FLAT else ApproximateIndex
    try:
        index = faiss.deserialize_index(np.frombuffer(data, np.uint8))
        if index.d != version.dim:
            raise ValueError(f"its width is {index.d}, the version's {version.dim}")
        return kind(version, index)
    except (RuntimeError, AttributeError, ValueError, KeyError) as error:
        why = " ".join(str(error).split())[:200]
        raise UserError(f"{where}: is no {version.algorithm} index: {why}; publish it again") from None


def build_index(version: IndexVersion, ids: Ids, vectors: Vectors) -> FaissIndex:
    """Build an index: exhaustive up to EXACT_UP_TO items, approximate above.

    Args:
        version: What it is to be of; the index's own version says its algorithm and parameters, too.
        ids: int64 [items], distinct.
        vectors: float32 [items, dim].
    """
    vectors = plain(vectors)
    if len(vectors) <= EXACT_UP_TO:
        flat = faiss.IndexIDMap2(faiss.IndexFlatIP(version.dim))
        flat.add_with_ids(vectors, ids)
        return FlatIndex(version.model_copy(update={"algorithm": _FLAT, "parameters": {}}), flat)
    lists = int(4 * len(vectors) ** 0.5)
    nearest = faiss.IndexFlatIP(version.dim)
    coded = faiss.IndexIVFPQFastScan(nearest, version.dim, lists, version.dim, _CODE_BITS, faiss.METRIC_INNER_PRODUCT)
    coded.by_residual = True  # codes of the difference to a list's centre: several times the recall
    coded.cp.seed, coded.cp.max_points_per_centroid = 1, _TRAINED_BY_LIST
    coded.pq.cp.seed, coded.pq.cp.max_points_per_centroid = 1, _TRAINED_FOR_CODES >> _CODE_BITS
    coded.train(vectors)
    index = faiss.IndexIDMap2(faiss.IndexRefineFlat(coded))
    index.add_with_ids(vectors, ids)
    settings = {"nlist": lists, "nprobe": lists, "refine": _REFINEMENTS[0]}
    built = ApproximateIndex(version.model_copy(update={"algorithm": _IVFPQ, "parameters": settings}), index)
    built.version = _tuned(built, ids, vectors)
    return built


def _tuned(index: ApproximateIndex, ids: Ids, vectors: Vectors) -> IndexVersion:
    """Return the version with the least settings whose searches find TARGET_RECALL of the exact neighbours.

    Queries lie halfway between two items: a user's vector is made of several, and has its neighbours in more lists than
    an item has. They are drawn with a fixed seed.
    """
    rng = np.random.default_rng(0)
    one, other = (vectors[rng.choice(len(vectors), _TUNING_QUERIES, replace=False)] for _ in range(2))
    queries = one + other
    _, rows = faiss.knn(queries, vectors, _TUNING_K, metric=faiss.METRIC_INNER_PRODUCT)
    exact = ids[rows]

    def recall(refine: int, nprobe: int) -> float:
        settings = index.version.parameters | {"refine": refine, "nprobe": nprobe}
        index.version = index.version.model_copy(update={"parameters": settings})
        found = index.search(queries, _TUNING_K).ids
        return float(np.mean([np.isin(e, f).mean() for e, f in zip(exact, found, strict=True)]))

    lists = index.version.parameters["nlist"]
    # First with every list, where nothing but the codes loses.
    refine = next((r for r in _REFINEMENTS if recall(r, lists) >= (1 + _TUNED_RECALL) / 2), _REFINEMENTS[-1])
    nprobe = min(8, lists)
    while recall(refine, nprobe) < _TUNED_RECALL and nprobe < lists:
        nprobe = min(lists, nprobe + max(1, nprobe // 4))
    return index.version


def check_width(vectors: Vectors, version: IndexVersion) -> None:
    """Check that vectors are of an index's width.

    Raises:
        UserError: They are not.
    """
    if vectors.ndim != 2 or vectors.shape[1] != version.dim:
        raise UserError(
            f"vectors of shape {list(vectors.shape)}: must be [n, {version.dim}], as {version.name} has them"
        )
