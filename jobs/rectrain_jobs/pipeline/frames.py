"""Data frames of pandas, Arrow, Polars and Spark: read as Arrow record batches, given back with columns appended."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from rectrain.api.errors import UserError

DataFrameT = TypeVar("DataFrameT")
"""A pandas, Polars or Spark data frame, an Arrow table or record batch."""

Columns = Callable[[pa.RecordBatch], Sequence[Any]]
"""From a record batch to the values of the columns to append: numpy arrays, lists, or Arrow arrays."""

ROWS_OF_A_BATCH = 1 << 16


def record_batches(frame: Any, inputs: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a data frame, or of an iterable of record batches, in their order.

    Args:
        frame: A data frame; of Spark's, the driver reads one partition at a time.
        inputs: Names of the columns to read; None for all.

    Raises:
        UserError: It is no data frame, or has no such column.
    """
    if _library(frame) == "pyspark":
        from rectrain_jobs.pipeline import spark

        yield from spark.record_batches(_selected(frame, frame.columns, inputs))
    elif isinstance(frame, Iterable) and not hasattr(frame, "columns"):
        for batch in frame:
            yield _selected(batch, batch.schema.names, inputs)
    else:
        yield from _table(frame, inputs).to_batches(ROWS_OF_A_BATCH)


def append_columns(
    frame: DataFrameT, inputs: Sequence[str] | None, fields: Sequence["pa.Field[Any]"], columns: Columns
) -> DataFrameT:
    """Return a data frame with columns appended, of the same library.

    Args:
        frame: The data frame.
        inputs: Names of the columns that are read; None for all.
        fields: Names and types of the new columns.
        columns: Computes them.

    Raises:
        UserError: It is no data frame, has no such column, or has one of the new columns already.
    """
    given: Any = frame
    names = column_names(given)
    for field in fields:
        if field.name in names:
            raise UserError(f"column {field.name}: is in the data frame already; drop or rename it")
    if _library(given) == "pyspark":
        from rectrain_jobs.pipeline import spark

        return spark.append_columns(given, inputs, fields, columns)  # type: ignore[no-any-return]
    batches = _table(given, inputs).to_batches(ROWS_OF_A_BATCH)
    computed = [[arrow_array(v, f.type) for v, f in zip(columns(b), fields, strict=True)] for b in batches]
    new = [pa.chunked_array([part[i] for part in computed], field.type) for i, field in enumerate(fields)]
    return _with(given, fields, new)  # type: ignore[no-any-return]


def column_names(frame: Any) -> list[str]:
    """Return the names of a data frame's columns.

    Raises:
        UserError: It is no data frame that is known here.
    """
    if isinstance(frame, pa.Table | pa.RecordBatch):
        return list(frame.schema.names)
    if _library(frame) in ("pandas", "polars", "pyspark") and type(frame).__name__ == "DataFrame":
        return [str(name) for name in frame.columns]
    kind = f"{type(frame).__module__}.{type(frame).__qualname__}"
    raise UserError(f"{kind} is no data frame; give a DataFrame of pandas, Polars or Spark, or an Arrow table")


def arrow_array(values: Any, kind: pa.DataType) -> "pa.Array[Any]":
    """Return the values of a column as an Arrow array of a type.

    Args:
        values: An Arrow array, a list, or a numpy array; one of two dimensions makes a list of each row.
        kind: The type.
    """
    if isinstance(values, np.ndarray) and values.ndim == 2:
        starts = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
        flat: pa.Array[Any] = pa.array(values.reshape(-1))
        return pa.ListArray.from_arrays(pa.array(starts), flat).cast(kind)
    if isinstance(values, pa.Array):
        return values.cast(kind)
    return pa.array(values, kind)


def _library(frame: Any) -> str:
    return type(frame).__module__.partition(".")[0]


def _selected(frame: Any, names: Sequence[str], inputs: Sequence[str] | None) -> Any:
    if inputs is None:
        return frame
    _check(names, inputs)
    return frame.select(list(inputs))


def _check(names: Sequence[str], inputs: Sequence[str]) -> None:
    for name in inputs:
        if name not in names:
            raise UserError(f"column {name}: there is no such column; the data has {', '.join(names) or 'none'}")
        if names.count(name) > 1:
            raise UserError(f"column {name}: is there more than once; drop or rename the others")


def _table(frame: Any, inputs: Sequence[str] | None) -> pa.Table:
    names = column_names(frame)
    if isinstance(frame, pa.RecordBatch):
        frame = pa.Table.from_batches([frame])
    if isinstance(frame, pa.Table):
        return _selected(frame, names, inputs)  # type: ignore[no-any-return]
    if _library(frame) == "polars":
        return _selected(frame, names, inputs).to_arrow()  # type: ignore[no-any-return]
    wanted = names if inputs is None else list(inputs)
    _check(names, wanted)
    return pa.table({name: pa.Array.from_pandas(frame[name]) for name in wanted})


def _with(frame: Any, fields: Sequence["pa.Field[Any]"], new: Sequence[Any]) -> Any:
    if isinstance(frame, pa.RecordBatch):
        schema = pa.schema([*frame.schema, *fields])
        return pa.RecordBatch.from_arrays([*frame.columns, *(column.combine_chunks() for column in new)], schema=schema)
    if isinstance(frame, pa.Table):
        for field, column in zip(fields, new, strict=True):
            frame = frame.append_column(field, column)
        return frame
    if _library(frame) == "polars":
        import polars

        return frame.with_columns(polars.from_arrow(pa.table(list(new), names=[field.name for field in fields])))
    made = {field.name: column.to_pandas().to_numpy() for field, column in zip(fields, new, strict=True)}
    return frame.assign(**made)
