"""What is known of items besides their vectors: names, popularity, attributes that requests filter by."""

import math
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rectrain.api.errors import UserError
from rectrain.api.features import Encoding
from rectrain.api.job import RecTrainingJobSpec
from rectrain.api.tables import EXTRA_ROWS, categorical_of, encoding_of
from rectrain_jobs.features import FeatureSet
from rectrain_jobs.pipeline.categorical import StringIndexer
from rectrain_jobs.pipeline.saving import table_of
from rectrain_jobs.pipeline.values import integer_of
from rectrain_jobs.retrieval.base import Ids, Mask
from rectrain_jobs.serving.recall_api import Condition

_CACHED_FILTERS = 32


class ItemNames:
    """From rows of the item table to ids as the training data has them.

    Args:
        spec: The job's model and features.
        features: The features as fitted.

    Raises:
        UserError: Item ids are hashed, so that a row stands for several items.
    """

    def __init__(self, spec: RecTrainingJobSpec, features: FeatureSet) -> None:
        """Take the vocabulary, if there is one."""
        item = categorical_of(spec, spec.feature(spec.model.item_id))
        if encoding_of(item) is Encoding.HASHING:
            raise UserError(
                f"feature {item.name}: has encoding Hashing, by which items cannot be told from their rows; to be "
                "served, train with encoding Identity or Vocabulary"
            )
        transformer = features.transformers[spec.model.item_id]
        values = transformer.vocabulary.values if isinstance(transformer, StringIndexer) else None
        self.known_values = None if values is None else len(values)
        self._names: npt.NDArray[Any] | None = None
        if values is not None:
            numbers = [integer_of(text) for text in values]
            are_numbers = all(str(number) == text for number, text in zip(numbers, values, strict=True))
            self._names = np.array(numbers if are_numbers else values, object)

    def of(self, rows: Ids) -> list[int | str]:
        """Return the ids of items."""
        found: list[int | str] = (rows if self._names is None else self._names[rows]).tolist()
        return found


class Attributes:
    """Attributes of items, from a Parquet table with a row for each item.

    Args:
        columns: By attribute its value for each row of the item table; null where it is not known.
    """

    def __init__(self, columns: Mapping[str, "pa.Array[Any]"]) -> None:
        """Hold the columns."""
        self._columns = columns
        self._masks: OrderedDict[str, Mask] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def read(cls, data: bytes, where: str, spec: RecTrainingJobSpec, features: FeatureSet) -> "Attributes":
        """Read a table.

        Args:
            data: The Parquet file: a column named as the item feature, and a column for each attribute.
            where: The file's URI, for messages.
            spec: The job's model and features.
            features: The features as fitted.

        Raises:
            UserError: It is no such table.
        """
        item_id = spec.model.item_id
        try:
            table: Any = table_of(data)
        except pa.ArrowException as error:
            raise UserError(f"{where}: is no Parquet file: {' '.join(str(error).split())[:200]}") from None
        if item_id not in table.column_names:
            raise UserError(f"{where}: has no column {item_id}; its columns are {', '.join(table.column_names)}")
        cardinality = categorical_of(spec, spec.feature(item_id)).cardinality or 0
        place = np.full(cardinality, -1, np.int64)  # by row of the item table the row of this one
        encoding: Any = features.transformers[item_id]
        for position, value in enumerate(table.column(item_id).to_pylist()):
            try:
                row = encoding.row_of(value)
            except UserError:
                continue  # no item of this model
            if row < cardinality:
                place[row] = position
        taken = pa.array(place, mask=place < 0)
        columns = {}
        for name in table.column_names:
            if name == item_id:
                continue
            kind = table.schema.field(name).type
            if pa.types.is_dictionary(kind):
                kind = kind.value_type
            if not (
                pa.types.is_boolean(kind)
                or pa.types.is_integer(kind)
                or pa.types.is_floating(kind)
                or pa.types.is_string(kind)
                or pa.types.is_large_string(kind)
            ):
                raise UserError(f"{where}: attribute {name} is of type {kind}; must be text, a number or true/false")
            columns[name] = table.column(name).cast(kind).combine_chunks().take(taken)
        return cls(columns)

    def allowed(self, conditions: Mapping[str, Condition]) -> Mask:
        """Return by row of the item table whether the item meets all conditions.

        Raises:
            UserError: There is no such attribute, or a value is of another type than it.
        """
        key = repr(sorted(conditions.items()))
        with self._lock:
            if key in self._masks:
                self._masks.move_to_end(key)
                return self._masks[key]
        mask: Any = None
        for name, condition in conditions.items():
            met = self._met(name, condition)
            mask = met if mask is None else mask & met
        with self._lock:
            self._masks[key] = mask
            if len(self._masks) > _CACHED_FILTERS:
                self._masks.popitem(last=False)
        return mask  # type: ignore[no-any-return]

    def _met(self, name: str, condition: Condition) -> Mask:
        if name not in self._columns:
            known = ", ".join(self._columns) or "none; start the service with --items"
            raise UserError(f"filter.{name}: there is no such attribute of items; there are {known}")
        column: Any = self._columns[name]
        mask = column.is_valid()
        for values, wanted in ((condition.in_, True), (condition.not_in, False)):
            if values is not None:
                found = _is_in(name, column, values)
                mask = pc.and_(mask, found if wanted else pc.invert(found))
        met: Mask = mask.to_numpy(zero_copy_only=False)
        for bound, compare in (
            (condition.gt, np.greater),
            (condition.gte, np.greater_equal),
            (condition.lt, np.less),
            (condition.lte, np.less_equal),
        ):
            if bound is not None:
                met = met & compare(*_comparable(name, column, bound, up=compare in (np.greater_equal, np.less)))
        return met


def _comparable(name: str, column: Any, bound: int | float, up: bool) -> tuple[Any, Any]:
    """Return a column's numbers, whatever where there are none, and what they are compared with.

    Whole numbers are compared as such, as float64 does not tell large ones apart; a bound with a fraction is taken to
    the next whole number, up or down. Others are compared in the column's own precision, in which 0.3 is 0.3.
    """
    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise UserError(f"filter.{name}: is compared with {bound!r:.80}, and it is no number but {kind}")
    values = column.fill_null(0).to_numpy(zero_copy_only=False)
    if pa.types.is_integer(kind):
        return values, bound if isinstance(bound, int) else (math.ceil if up else math.floor)(bound)
    return values, _float_of(bound, values.dtype)


def _float_of(value: int | float, kind: npt.DTypeLike) -> Any:
    """Return a number as a type has it: infinite where it is too large."""
    try:
        exact = float(value)
    except OverflowError:
        exact = math.inf if value > 0 else -math.inf
    with np.errstate(over="ignore"):
        return np.array(exact).astype(kind)[()]


def _is_in(name: str, column: Any, values: list[Any]) -> Any:
    """Return by position whether the column's value is one of those given."""
    kind = column.type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    expected: tuple[type, ...] = (str,) if is_text else (bool,) if pa.types.is_boolean(kind) else (int, float)
    for value in values:
        if not isinstance(value, expected) or (isinstance(value, bool) and bool not in expected):
            raise UserError(f"filter.{name}: is compared with {value!r:.80}, and it is of type {kind}")
    if pa.types.is_floating(kind):
        numbers = column.fill_null(0).to_numpy(zero_copy_only=False)
        return pa.array(np.isin(numbers, [_float_of(value, numbers.dtype) for value in values]))
    try:
        return pc.is_in(
            column, value_set=pa.array(values, kind) if not pa.types.is_integer(kind) else _integers(values, kind)
        )
    except (pa.ArrowException, OverflowError):
        raise UserError(f"filter.{name}: a value does not fit its type {kind}") from None


def _integers(values: list[Any], kind: Any) -> Any:
    # A number with a fraction is no integer's equal.
    return pa.array([int(value) for value in values if isinstance(value, int) or value.is_integer()], kind)


def popular_items(counts: npt.NDArray[np.int64] | None, most: int) -> Ids:
    """Return the rows of the most frequent items, at most so many, by falling count and then by row."""
    if counts is None:
        return np.zeros(0, np.int64)
    order = np.argsort(-counts[: len(counts) - EXTRA_ROWS], kind="stable")[:most]
    found: Ids = order[counts[order] > 0].astype(np.int64)
    return found
