"""What an item index is: versions under one name, and searching one of them. FAISS and Milvus implement it."""

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import Field

from rectrain.api.base import ApiModel
from rectrain.api.errors import UserError

Vectors = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

EXACT_UP_TO = 100_000
"""Items up to which an index is searched exhaustively, which is exact and fast enough; above, approximately."""
TARGET_RECALL = 0.98
"""Share of the exact neighbours that an approximate index is tuned to find."""


FORMAT_VERSION = 1
VERSION_NAME = re.compile(r"(?P<number>\d{6,})_[\w.-]+", re.ASCII)
"""Names of versions: a number by age and the model's version. What lies beside under another name is not ours."""


class DamagedError(UserError):
    """What describes a version, or says which is served, cannot be read."""


class UnavailableError(UserError):
    """What holds the index does not answer, or not in time."""


class IndexVersion(ApiModel):
    """One version of an index: what it holds and which model made it."""

    format_version: int = FORMAT_VERSION
    """Version of this description."""
    name: str
    """Name of the version; names sort by age."""
    model_version: str
    """Version of the model bundle whose item vectors these are; queries must come from the same."""
    job: str
    """Name of the job that trained the model."""
    items: int
    """Number of items at first; single items may have been added or deleted since."""
    dim: int
    """Width of the vectors. Similarity is the inner product."""
    recall: float | None = None
    """Share of the exact neighbours that sampled searches found when it was verified."""
    algorithm: str = ""
    """How it is searched, such as Flat."""
    parameters: dict[str, int] = Field(default_factory=dict)
    """Settings of the algorithm."""


class Hits(NamedTuple):
    """What searches found, best first.

    Attributes:
        ids: int64 [queries, k]; -1 where there is nothing more.
        scores: float32 [queries, k] inner products; -inf where the id is -1.
    """

    ids: Ids
    scores: Vectors


class ItemIndex(Protocol):
    """One version of an index, open to be searched from any number of threads."""

    version: IndexVersion
    is_local: bool
    """Whether it is searched in this process, and not by waiting for another."""

    def count(self) -> int:
        """Return the exact number of items."""
        ...

    def search(self, vectors: Vectors, k: int, allowed: Mask | None = None) -> Hits:
        """Find for each vector [queries, dim] the k items with the highest inner product.

        Args:
            vectors: float32 [queries, dim].
            k: Number of items.
            allowed: bool, by item id: only these items are found; ids beyond its end are not. None for all.

        Raises:
            UnavailableError: Another process is to search, and does not answer.
        """
        ...

    def contains(self, ids: Ids) -> Mask:
        """Tell for each id whether the index has the item."""
        ...


class IndexStore(Protocol):
    """The versions of one index. Searches go to the served one; others are built, verified and swapped in.

    A version goes from `build` (not among `versions()`) over `complete` (among them) to `serve`. Whatever is
    interrupted leaves the served version as it is. One process at a time may change a store; any number may search it.
    """

    uri: str
    """Where it is, for messages."""

    def versions(self) -> list[IndexVersion]:
        """Return the complete versions, oldest first."""
        ...

    def version(self, name: str) -> IndexVersion:
        """Return a complete version.

        Raises:
            UserError: There is none of that name; DamagedError if there is and it cannot be read.
        """
        ...

    def served(self) -> str | None:
        """Return the name of the version that searches go to; None before the first."""
        ...

    def changing(self) -> AbstractContextManager[None]:
        """Hold the store against other processes that change it, where that can be done.

        Raises:
            UserError: Another process holds it.
        """
        ...

    def revision(self) -> str | None:
        """Return what tells the served items as `open` gives them from any earlier ones; None before the first."""
        ...

    def build(self, version: IndexVersion, ids: Ids, vectors: Vectors) -> IndexVersion:
        """Write a version that nobody sees yet; returns it with its algorithm and parameters."""
        ...

    def open(self, version: IndexVersion) -> ItemIndex:
        """Open a version, complete or just built, as it is stored."""
        ...

    def complete(self, version: IndexVersion) -> None:
        """Record that a version is whole and verified."""
        ...

    def serve(self, name: str) -> None:
        """Direct searches to a complete version, in one atomic step."""
        ...

    def remove(self, names: Sequence[str]) -> None:
        """Remove versions, complete or not; absent ones are passed over."""
        ...

    def clear(self) -> None:
        """Remove the index: first no version is served, then there are none."""
        ...

    def unfinished(self) -> list[str]:
        """Return the names of versions that were begun and are not complete, or that cannot be read."""
        ...

    def upsert(self, ids: Ids, vectors: Vectors) -> None:
        """Add items to the served version, or replace their vectors."""
        ...

    def delete(self, ids: Ids) -> int:
        """Delete items from the served version; returns how many there were of them."""
        ...


def no_hits(queries: int, k: int) -> Hits:
    """Return hits of nothing."""
    return Hits(np.full((queries, k), -1, np.int64), np.full((queries, k), -np.inf, np.float32))


def check_items(ids: Ids, vectors: Vectors, dim: int, where: str) -> None:
    """Check items that an index is to hold.

    Args:
        ids: int64 [items], each once and not negative.
        vectors: Finite float32 [items, dim].
        dim: Width of the index.
        where: The index, for messages.

    Raises:
        UserError: They are not such.
    """
    if vectors.ndim != 2 or vectors.shape != (len(ids), dim):
        raise UserError(
            f"{where}: vectors of {len(ids)} items have shape {list(vectors.shape)}: must be [{len(ids)}, {dim}]"
        )
    if len(ids) and ids.min() < 0:
        raise UserError(f"{where}: an item has id {ids.min()}: ids must not be negative")
    distinct, number = np.unique(ids, return_counts=True)
    if len(distinct) != len(ids):
        raise UserError(f"{where}: item {distinct[number.argmax()]} has more than one vector: ids must be distinct")
    is_finite = np.isfinite(vectors).all(axis=1)
    if not is_finite.all():
        raise UserError(
            f"{where}: the vector of item {ids[is_finite.argmin()]} is not finite: has the training diverged?"
        )


def plain(value: Any) -> Vectors:
    """Return vectors as a contiguous float32 array."""
    return np.ascontiguousarray(value, np.float32)
