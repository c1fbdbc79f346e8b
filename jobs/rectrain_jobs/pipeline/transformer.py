"""Transformers of features: one function of one value, which serves requests, batches and data frames alike."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, Generic, Self, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rectrain.api.errors import UserError
from rectrain_jobs.pipeline.frames import DataFrameT, append_columns, record_batches
from rectrain_jobs.pipeline.stage import Stage
from rectrain_jobs.pipeline.values import ValueRefusedError, plain_array
from rectrain_jobs.pipeline.vectors import VECTOR_TYPE, SparseVector

In = TypeVar("In")
Out = TypeVar("Out")


class FeatureTransformer(Stage, Generic[In, Out]):
    """Turns a value into another; a subclass writes `transform_func`.

    A row of a data frame is a mapping from column names to values, which is what `transform_func` gets unless `read` is
    overridden. To be saved, a subclass also has `state` and is registered.

    Attributes:
        needs_fit: Whether it learns from the training data before it can transform.
        inputs: Names of the columns that it reads from a data frame; None for all.
        output: Name of the column that `transform` appends.
        output_type: Arrow type of that column.
    """

    needs_fit: bool = False
    inputs: list[str] | None = None
    output: str
    output_type: pa.DataType

    @abstractmethod
    def transform_func(self, value: In) -> Out:
        """Return what a value becomes.

        Raises:
            ValueRefusedError: The value is not one that the transformer takes.
        """

    def transform_vectorized(self, values: Any) -> Any:
        """Return what `transform_func` makes of each of many values; a faster twin of it, where a subclass has one.

        Args:
            values: The values of a batch, as `read` gives them or as the stage before made them.
        """
        transformed = []
        for row, value in enumerate(self.each(values)):
            try:
                transformed.append(self.transform_func(value))
            except ValueRefusedError as error:
                raise error.at_row(row) from None
        return transformed

    def transform_one(self, value: In) -> Out:
        """Return what one value becomes.

        Raises:
            ValueRefusedError: The value is not one that the transformer takes.
        """
        return self.transform_func(value)

    def transform_batch(self, values: Any) -> Any:
        """Return what the values of a batch become.

        Raises:
            ValueRefusedError: A value is not one that the transformer takes; it names the row.
        """
        return self.transform_vectorized(values)

    def transform(self, frame: DataFrameT) -> DataFrameT:
        """Return a data frame (pandas, Arrow, Polars or Spark) with the columns of `output_fields` appended.

        Raises:
            UserError: A column is missing, a column of that name is there already, or a value is not one that is taken.
        """
        return append_columns(frame, self.inputs, self.output_fields(), self.columns_of)

    def output_fields(self) -> list["pa.Field[Any]"]:
        """Return the names and types of the columns that `transform` appends."""
        return [pa.field(self.output, self.output_type)]

    def columns_of(self, batch: pa.RecordBatch) -> list[Any]:
        """Return the values of these columns for a batch of a data frame."""
        return [self.transform_batch(self.read(batch))]

    def read(self, batch: pa.RecordBatch) -> Any:
        """Return the values that a batch of a data frame holds for this transformer."""
        return batch

    def value_of(self, row: Mapping[str, Any]) -> In:
        """Return the value that a row holds for this transformer."""
        return row  # type: ignore[return-value]  # In is a mapping unless this is overridden

    def each(self, values: Any) -> Iterable[In]:
        """Return the values of a batch one by one."""
        if isinstance(values, pa.RecordBatch):
            return map(self.value_of, values.to_pylist())
        if isinstance(values, pa.Array):
            return values.to_pylist()  # type: ignore[return-value]
        return values  # type: ignore[no-any-return]

    def partial_fit(self, values: Any) -> None:
        """Take in one batch of the training data."""

    def finish_fit(self) -> None:
        """Settle what was learnt, after the last batch."""

    def fit(self, frame: Any) -> Self:
        """Learn from the training data, in one pass.

        Args:
            frame: A data frame, or an iterable of Arrow record batches.
        """
        if self.needs_fit:
            for batch in record_batches(frame, self.inputs):
                self.partial_fit(self.read(batch))
            self.finish_fit()
        return self


class VectorTransformer(FeatureTransformer[In, SparseVector]):
    """Turns a value into a sparse vector; `transform_vectorized` returns a VectorBatch."""

    output_type = VECTOR_TYPE

    def columns_of(self, batch: pa.RecordBatch) -> list[Any]:
        """Return the vectors of a batch of a data frame."""
        return [self.transform_batch(self.read(batch)).to_arrow()]


class ColumnTransformer(FeatureTransformer[Any, Any]):
    """Turns the raw values of one column into numbers of one type and shape.

    Attributes:
        name: Name of the column, for messages too.
        dtype: Type of what it returns.
        shape: Shape of what it returns for one value; empty for a scalar.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...] = ()

    @property
    def inputs(self) -> list[str]:  # type: ignore[override]
        """The column."""
        return [self.name]

    @property
    def output(self) -> str:  # type: ignore[override]
        """The column's name and the stage's, such as age_log."""
        return f"{self.name}_{getattr(self, 'stage_name', type(self).__name__.lower())}"

    @property
    def output_type(self) -> pa.DataType:  # type: ignore[override]
        """Arrow's form of dtype and shape."""
        kind: pa.DataType = pa.from_numpy_dtype(self.dtype)
        return pa.list_(kind) if self.shape else kind

    def read(self, batch: pa.RecordBatch) -> "pa.Array[Any]":
        """Return the column."""
        return plain_array(column_of(batch, self.name))

    def value_of(self, row: Mapping[str, Any]) -> Any:
        """Return the column's value."""
        return row.get(self.name)

    def transform_vectorized(self, values: Any) -> npt.NDArray[Any]:
        """Return the values of a batch, `[rows, *shape]` of `dtype`.

        Args:
            values: Raw values: an Arrow array, chunked or not, a numpy array or a list.
        """
        rows = super().transform_vectorized(plain_array(values))
        return np.array(rows, self.dtype).reshape(len(rows), *self.shape)

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Return the fitted values as JSON types; vocabularies are kept in files of their own."""


def column_of(batch: pa.RecordBatch | Mapping[str, Any], name: str) -> Any:
    """Return a column of a batch.

    Raises:
        UserError: There is none of this name.
    """
    columns: Any = batch
    try:
        return columns[name]
    except KeyError:
        known = batch.schema.names if isinstance(batch, pa.RecordBatch) else list(batch)
        raise UserError(f"feature {name}: there is no such column; the data has {', '.join(known) or 'none'}") from None
