"""Spark's data frames: read batch by batch on the driver, and transformed on the executors.

Executors need this package. A stage travels to them once, as a broadcast.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
from pyspark.ml.linalg import SparseVector, Vectors, VectorUDT
from pyspark.sql import DataFrame
from pyspark.sql.functions import udf
from pyspark.sql.pandas.types import from_arrow_type
from pyspark.sql.types import StructField, StructType

from rectrain_jobs.pipeline.frames import Columns, arrow_array


def record_batches(frame: DataFrame) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a data frame; the driver holds two partitions at a time."""
    for row in frame.mapInArrow(_as_streams, "stream binary").toLocalIterator(prefetchPartitions=True):
        with pa.ipc.open_stream(row.stream) as stream:
            yield from stream


def append_columns(
    frame: DataFrame, inputs: Sequence[str] | None, fields: Sequence["pa.Field[Any]"], columns: Columns
) -> DataFrame:
    """Return the data frame with columns appended, which executors compute.

    Args:
        frame: The data frame.
        inputs: Names of the columns that are read; None for all.
        fields: Names and types of the new columns.
        columns: Computes them.
    """
    new = [StructField(field.name, from_arrow_type(field.type)) for field in fields]
    shared = frame.sparkSession.sparkContext.broadcast((inputs, list(fields), columns))

    def appended(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        inputs, fields, columns = shared.value
        for batch in batches:
            read = batch if inputs is None else batch.select(inputs)
            made = [arrow_array(values, field.type) for values, field in zip(columns(read), fields, strict=True)]
            names = [*batch.schema.names, *(field.name for field in fields)]
            yield pa.RecordBatch.from_arrays([*batch.columns, *made], names=names)

    return frame.mapInArrow(appended, StructType([*frame.schema.fields, *new]))


def mllib_vectors(frame: DataFrame, column: str, width: int) -> DataFrame:
    """Return the data frame with a column of our vectors made one of MLlib's, for its estimators to learn from.

    Args:
        frame: The data frame, as `DictionaryVectorizer.transform` returned it.
        column: Name of the column, such as features.
        width: Number of slots.
    """

    def sparse(vector: Any) -> SparseVector:
        return Vectors.sparse(width, sorted(zip(vector.indices, vector.values, strict=True)))

    return frame.withColumn(column, udf(sparse, VectorUDT())(column))


def _as_streams(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        yield pa.RecordBatch.from_pydict({"stream": [sink.getvalue().to_pybytes()]})
