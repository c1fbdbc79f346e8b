"""One-hot vectors of ids, and ids of combinations of columns."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from rectrain_jobs.pipeline.categorical import HASH_SEED, Categorical
from rectrain_jobs.pipeline.sequence import Sequence
from rectrain_jobs.pipeline.stage import State, register
from rectrain_jobs.pipeline.transformer import VectorTransformer, column_of
from rectrain_jobs.pipeline.values import ValueRefusedError, canonical_text, plain_array, python_value, shown
from rectrain_jobs.pipeline.vectors import SparseVector, VectorBatch


@register("cross")
class Cross(Categorical):
    """The combination of the values of several columns as one id: XXH64 of their canonical texts, modulo cardinality.

    Each text is preceded by its length in bytes and a colon, so that no two combinations have the same bytes. Where one
    of the values is missing, the combination is.
    """

    def __init__(self, columns: list[str], cardinality: int) -> None:
        """Describe the combination.

        Args:
            columns: Names of the columns.
            cardinality: Number of ids.
        """
        super().__init__("_x_".join(columns), cardinality)
        self.columns = columns

    @property
    def inputs(self) -> list[str]:  # type: ignore[override]
        """The columns."""
        return self.columns

    def state(self) -> State:
        """Return the arguments."""
        return State({"columns": self.columns, "cardinality": self.cardinality})

    def to_json(self) -> dict[str, Any]:
        """Return nothing: no value is learnt."""
        return {}

    def read(self, batch: pa.RecordBatch) -> Any:
        """Return the whole batch, of which the columns are taken."""
        return batch

    def value_of(self, row: Mapping[str, Any]) -> Any:
        """Return the whole row, of which the values are taken."""
        return row

    def row_of(self, value: Any) -> int:
        """Return the id of a row's combination."""
        hashed = xxhash.xxh64(seed=HASH_SEED)
        for name in self.columns:
            part = python_value(value.get(name))
            if part is None:
                return self.missing_row
            try:
                text = canonical_text(part).encode("utf-8", "surrogatepass")
            except TypeError as error:
                raise ValueRefusedError(name, f"value {shown(part)} {error}") from None
            hashed.update(b"%d:%s" % (len(text), text))
        return hashed.intdigest() % self.cardinality

    def transform_vectorized(self, values: Any) -> npt.NDArray[Any]:
        """Return the ids of a batch: `row_of` applied to each distinct combination."""
        encoded: list[Any] = []
        for name in self.columns:
            array = plain_array(column_of(values, name))
            try:
                encoded.append(array.dictionary_encode("encode"))
            except pa.ArrowNotImplementedError:
                raise ValueRefusedError(name, f"has type {array.type}; an id is text or a number", row=0) from None
        codes = np.stack([column.indices.to_numpy(zero_copy_only=False) for column in encoded], axis=1)
        distinct, first, back = np.unique(codes, axis=0, return_index=True, return_inverse=True)
        rows = np.empty(len(distinct), self.dtype)
        for position, combination in enumerate(distinct.tolist()):
            parts = {
                name: column.dictionary[code].as_py()
                for name, column, code in zip(self.columns, encoded, combination, strict=True)
            }
            try:
                rows[position] = self.row_of(parts)
            except ValueRefusedError as error:
                raise error.at_row(int(first[position])) from None
        found: npt.NDArray[Any] = rows[back.reshape(-1)]
        return found

    def _known_row(self, value: Any) -> int | None:
        raise AssertionError("row_of takes whole rows")

    def _expected(self) -> str:
        raise AssertionError("a combination is always known")


@register("one_hot")
class OneHot(VectorTransformer[Any]):
    """A slot for each id of a column: 1 in the slot of the row's id, or in a sequence how often each id occurs.

    The slots are those of the ids, then one for values out of vocabulary and one for missing ones.
    """

    def __init__(self, ids: Categorical | Sequence) -> None:
        """Describe the vector.

        Args:
            ids: Gives the ids.
        """
        self.ids = ids
        self.name = ids.name
        elements = ids.elements if isinstance(ids, Sequence) else ids
        self.width = elements.missing_row + 1
        self.needs_fit = ids.needs_fit
        self.inputs = ids.inputs
        self.output = f"{ids.name}_one_hot"

    def state(self) -> State:
        """Return what gives the ids."""
        return State(stages={"ids": self.ids})

    def read(self, batch: pa.RecordBatch) -> Any:
        """Return what the ids are made of."""
        return self.ids.read(batch)

    def value_of(self, row: Mapping[str, Any]) -> Any:
        """Return what the ids are made of."""
        return self.ids.value_of(row)

    def partial_fit(self, values: Any) -> None:
        """Let the ids learn."""
        self.ids.partial_fit(values)

    def finish_fit(self) -> None:
        """Settle what they learnt."""
        self.ids.finish_fit()

    def transform_func(self, value: Any) -> SparseVector:
        """Return the vector of one value."""
        if not isinstance(self.ids, Sequence):
            return SparseVector([self.ids.row_of(value)], [1.0], self.width)
        counts: dict[int, float] = {}
        for row in self.ids.transform_func(value).tolist():
            if row >= 0:
                counts[row] = counts.get(row, 0.0) + 1.0
        return SparseVector(list(counts), list(counts.values()), self.width)

    def transform_vectorized(self, values: Any) -> VectorBatch:
        """Return the vectors of a batch."""
        ids = self.ids.transform_batch(values).astype(np.int64)
        if ids.ndim == 1:
            return VectorBatch(np.arange(len(ids) + 1), ids, np.ones(len(ids)), self.width)
        rows, places = np.nonzero(ids >= 0)
        entries = rows * self.width + ids[rows, places]
        _, first, counts = np.unique(entries, return_index=True, return_counts=True)
        order = np.argsort(first)
        first = first[order]
        starts = np.searchsorted(rows[first], np.arange(len(ids) + 1))
        return VectorBatch(starts, ids[rows, places][first], counts[order].astype(np.float64), self.width)
