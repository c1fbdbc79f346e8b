"""Ids: from a raw value to a row of an embedding table.

A table of cardinality n has rows 0 to n - 1 for ids, row n for values that are out of vocabulary and row n + 1 for
missing ones. Missing are null, NaN and the empty text.
"""

from abc import abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from rectrain.api.features import UnknownPolicy
from rectrain.api.tables import EXTRA_ROWS
from rectrain_jobs.pipeline.stage import State, register
from rectrain_jobs.pipeline.transformer import ColumnTransformer
from rectrain_jobs.pipeline.values import (
    ValueRefusedError,
    at_least_one,
    canonical_text,
    first_that_is_no_text,
    integer_of,
    integers_of_text,
    plain_array,
    python_value,
    shown,
)
from rectrain_jobs.pipeline.vocabulary import Vocabulary

HASH_SEED = 0
_INT32_ROWS = 2**31


def id_dtype(cardinality: int) -> np.dtype[Any]:
    """Return the type of a table's row numbers: int32, or int64 where they do not fit."""
    return np.dtype(np.int32 if cardinality + EXTRA_ROWS <= _INT32_ROWS else np.int64)


class Categorical(ColumnTransformer):
    """An id; subclasses say which row a known value has."""

    def __init__(
        self, name: str, cardinality: int, unknown: UnknownPolicy | str = UnknownPolicy.OUT_OF_VOCABULARY
    ) -> None:
        """Describe the feature's table.

        Args:
            name: Name of the column.
            cardinality: Number of ids.
            unknown: What happens to values that the encoding does not know.

        Raises:
            UserError: The cardinality is no number of ids.
        """
        self.name = name
        self.cardinality = at_least_one(cardinality, f"{name}: cardinality")
        self.unknown = UnknownPolicy(unknown)
        self.dtype = id_dtype(cardinality)

    @property
    def out_of_vocabulary_row(self) -> int:
        """Row of values that the encoding does not know."""
        return self.cardinality

    @property
    def missing_row(self) -> int:
        """Row of missing values."""
        return self.cardinality + 1

    def state(self) -> State:
        """Return the arguments."""
        return State({"name": self.name, "cardinality": self.cardinality, "unknown": self.unknown})

    @abstractmethod
    def _known_row(self, value: Any) -> int | None:
        """Return the row of a value that is not missing, or None when the encoding does not know it."""

    @abstractmethod
    def _expected(self) -> str:
        """Say what values are known, for a message."""

    def row_of(self, value: Any) -> int:
        """Return the row of any raw value. This function is the transform: of batches and of single values.

        Raises:
            ValueRefusedError: The value is unknown and the feature refuses such, or it is neither text nor a number.
        """
        value = python_value(value)
        if value is None:
            return self.missing_row
        try:
            row = self._known_row(value)
        except TypeError as error:
            raise ValueRefusedError(self.name, f"value {shown(value)} {error}") from None
        if row is not None:
            return row
        if self.unknown is UnknownPolicy.REFUSE:
            raise ValueRefusedError(self.name, f"value {shown(value)} is not {self._expected()}")
        return self.out_of_vocabulary_row

    def transform_func(self, value: Any) -> Any:
        """Return the row of one raw value, a numpy scalar of `dtype`."""
        return self.dtype.type(self.row_of(value))

    def transform_vectorized(self, values: Any) -> npt.NDArray[Any]:
        """Return the rows of a batch of raw values, `[rows]` of `dtype`: `row_of` applied to each distinct value."""
        array = plain_array(values)
        if len(array) == 0 or pa.types.is_null(array.type):
            return np.full(len(array), self.missing_row, self.dtype)
        try:
            encoded: Any = array.dictionary_encode()
        except pa.ArrowNotImplementedError:
            raise ValueRefusedError(self.name, f"has type {array.type}; an id is text or a number", row=0) from None
        codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        distinct = encoded.dictionary.to_pylist()
        rows = np.empty(len(distinct) + 1, self.dtype)
        rows[-1] = self.missing_row
        for code, value in enumerate(distinct):
            try:
                rows[code] = self.row_of(value)
            except ValueRefusedError as error:
                raise error.at_row(int(np.argmax(codes == code))) from None
        encoded_rows: npt.NDArray[Any] = rows[codes]
        return encoded_rows


@register("identity")
class Identity(Categorical):
    """Integers from 0 to cardinality - 1, which are rows as they are."""

    def _known_row(self, value: Any) -> int | None:
        number = integer_of(value)
        return number if number is not None and 0 <= number < self.cardinality else None

    def _expected(self) -> str:
        return f"an id from 0 to {self.cardinality - 1} (cardinality {self.cardinality})"

    def transform_vectorized(self, values: Any) -> npt.NDArray[Any]:
        """Return the rows of a batch; integers, the common case, without a look at each distinct value."""
        array = plain_array(values)
        if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
            array = integers_of_text(array) or array
        if not pa.types.is_integer(array.type) or array.null_count:
            return super().transform_vectorized(array)
        ids = array.to_numpy(zero_copy_only=False)
        unknown = (
            (ids < 0) | (ids >= np.uint64(self.cardinality))
            if ids.dtype == np.uint64
            else ((ids < 0) | (ids >= self.cardinality))
        )
        if not unknown.any():
            return ids.astype(self.dtype)
        first = int(np.argmax(unknown))
        try:
            row = self.row_of(ids[first])
        except ValueRefusedError as error:
            raise error.at_row(first) from None
        return np.where(unknown, row, ids).astype(self.dtype)

    def to_json(self) -> dict[str, Any]:
        """Return nothing: no value is learnt."""
        return {}


@register("hashing")
class Hashing(Categorical):
    """Any value: XXH64 (seed 0) of the UTF-8 of its canonical text, modulo cardinality.

    Values that hash to the same row share its embedding. Of n distinct values in c rows a share of about
    1 - exp(-n / c) shares a row with another.
    """

    def _known_row(self, value: Any) -> int | None:
        text = canonical_text(value).encode("utf-8", "surrogatepass")
        return xxhash.xxh64_intdigest(text, HASH_SEED) % self.cardinality

    def _expected(self) -> str:
        raise AssertionError("hashing knows every value")

    def to_json(self) -> dict[str, Any]:
        """Return nothing: no value is learnt."""
        return {}


@register("string_indexer")
class StringIndexer(Categorical):
    """Values learnt from the training data, the most frequent first."""

    needs_fit = True

    def __init__(
        self,
        name: str,
        cardinality: int,
        unknown: UnknownPolicy | str = UnknownPolicy.OUT_OF_VOCABULARY,
        *,
        min_count: int = 1,
        vocabulary: Vocabulary | None = None,
    ) -> None:
        """Describe the feature, fitted or not.

        Args:
            name: Name of the column.
            cardinality: The most values that are kept.
            unknown: What happens to other values.
            min_count: Values seen fewer times are left out.
            vocabulary: One that other features share.
        """
        super().__init__(name, cardinality, unknown)
        self.vocabulary = vocabulary or Vocabulary(name, cardinality, min_count)

    def state(self) -> State:
        """Return the arguments, and the vocabulary as a table."""
        state = super().state()
        state.config["min_count"] = self.vocabulary.min_count
        state.tables["vocabulary"] = self.vocabulary.to_table()
        return state

    @classmethod
    def from_state(cls, state: State, version: int) -> "StringIndexer":
        """Return the indexer with the vocabulary that it learnt."""
        made = cls(**state.config)
        made.vocabulary.restore_table(state.tables["vocabulary"])
        return made

    def _known_row(self, value: Any) -> int | None:
        return self.vocabulary.rows.get(canonical_text(value))

    def _expected(self) -> str:
        return f"in the vocabulary of {len(self.vocabulary.values)} values learnt from the training data"

    def partial_fit(self, values: Any) -> None:
        """Count the values of a batch."""
        array = plain_array(values)
        if len(array) == 0 or pa.types.is_null(array.type):
            return
        if pa.types.is_binary(array.type) or pa.types.is_large_binary(array.type):
            array = self._texts(array)
        try:
            counted: Any = pc.value_counts(array)
            self.vocabulary.count(zip(counted.field(0).to_pylist(), counted.field(1).to_pylist(), strict=True))
        except (TypeError, pa.ArrowNotImplementedError):
            raise ValueRefusedError(self.name, f"has type {array.type}; an id is text or a number", row=0) from None

    def _texts(self, array: Any) -> Any:
        """Return bytes as the texts that they are: a vocabulary is kept as text."""
        try:
            return array.cast(pa.large_string())
        except pa.ArrowInvalid:
            row = first_that_is_no_text(array)
            raise ValueRefusedError(self.name, f"value {shown(array[row].as_py())} is not UTF-8 text", row) from None

    def finish_fit(self) -> None:
        """Settle the vocabulary, unless a feature that shares it has."""
        if self.vocabulary.counting:
            self.vocabulary.settle()

    def to_json(self) -> dict[str, Any]:
        """Return which vocabulary is used."""
        return {"vocabulary": self.vocabulary.name, "values": len(self.vocabulary.values)}
