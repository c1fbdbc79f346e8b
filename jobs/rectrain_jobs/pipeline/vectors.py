"""Sparse vectors: one of a request, many of a batch."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa


class SparseVector(NamedTuple):
    """The slots of a vector that are not absent; absent ones are zero.

    Attributes:
        indices: Slots, each at most once, in any order.
        values: Their values.
        width: Number of slots.
    """

    indices: list[int]
    values: list[float]
    width: int


VECTOR_TYPE: pa.DataType = pa.struct(
    [pa.field("indices", pa.list_(pa.int64())), pa.field("values", pa.list_(pa.float64()))]
)
"""A vector in a data frame."""


@dataclass(frozen=True)
class VectorBatch:
    """Sparse vectors of one width, as compressed rows.

    Attributes:
        starts: int64 [rows + 1]; row i has the entries from starts[i] to before starts[i + 1].
        indices: int64 [entries], slots.
        values: float64 [entries].
        width: Number of slots.
    """

    starts: npt.NDArray[np.int64]
    indices: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]
    width: int

    def __len__(self) -> int:
        """Return the number of vectors."""
        return len(self.starts) - 1

    def __iter__(self) -> Iterator[SparseVector]:
        """Yield the vectors one by one."""
        indices, values = self.indices.tolist(), self.values.tolist()
        for start, end in zip(self.starts[:-1].tolist(), self.starts[1:].tolist(), strict=True):
            yield SparseVector(indices[start:end], values[start:end], self.width)

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """The row of each entry, int64 [entries]."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    def with_values(self, values: npt.NDArray[np.float64]) -> "VectorBatch":
        """Return vectors with the same slots and other values."""
        return VectorBatch(self.starts, self.indices, values, self.width)

    def dense(self) -> npt.NDArray[np.float64]:
        """Return the vectors as float64 [rows, width]."""
        out = np.zeros((len(self), self.width))
        out[self.rows, self.indices] = self.values
        return out

    def to_arrow(self) -> "pa.Array[Any]":
        """Return the vectors as a column of a data frame, of VECTOR_TYPE."""
        starts: Any = pa.array(self.starts.astype(np.int32))
        flat: list[Any] = [pa.array(self.indices), pa.array(self.values)]
        lists = [pa.ListArray.from_arrays(starts, part) for part in flat]
        return pa.StructArray.from_arrays(lists, ["indices", "values"]).cast(VECTOR_TYPE)

    @classmethod
    def of(cls, vectors: "VectorBatch | Iterable[SparseVector]") -> "VectorBatch":
        """Return vectors as a batch; one that is a batch already as it is."""
        if isinstance(vectors, VectorBatch):
            return vectors
        given = list(vectors)
        starts = np.zeros(len(given) + 1, np.int64)
        np.cumsum([len(vector.indices) for vector in given], out=starts[1:])
        indices = np.array([index for vector in given for index in vector.indices], np.int64)
        values = np.array([value for vector in given for value in vector.values], np.float64)
        return cls(starts, indices, values, given[0].width if given else 0)

    @classmethod
    def concatenated(cls, batches: list["VectorBatch"]) -> "VectorBatch":
        """Return the vectors of one or more batches in one."""
        lengths = np.concatenate([np.diff(batch.starts) for batch in batches])
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        indices = np.concatenate([batch.indices for batch in batches])
        return cls(starts, indices, np.concatenate([batch.values for batch in batches]), batches[0].width)

    @classmethod
    def from_arrow(cls, column: Any, width: int) -> "VectorBatch":
        """Return the vectors of a column of a data frame.

        Args:
            column: Of VECTOR_TYPE, without nulls.
            width: Number of slots.
        """
        indices, values = column.field("indices"), column.field("values")
        starts = np.zeros(len(column) + 1, np.int64)
        np.cumsum(indices.value_lengths().to_numpy(zero_copy_only=False), out=starts[1:])
        flat = indices.flatten().to_numpy(zero_copy_only=False), values.flatten().to_numpy(zero_copy_only=False)
        return cls(starts, flat[0].astype(np.int64), flat[1].astype(np.float64), width)
