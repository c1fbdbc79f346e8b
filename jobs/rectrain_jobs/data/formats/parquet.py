"""Parquet: named columns, lists for sequences."""

from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rectrain.api.errors import UserError
from rectrain_jobs.data.formats.base import BATCH_ROWS, RawBatch, RowReader, check_columns
from rectrain_jobs.data.source import SourceFile


def named_columns(reader: RowReader) -> dict[str, str]:
    """Return the source's column for each feature and label of a definition."""
    definition = reader.definition
    names = [feature.name for feature in definition.features] + [label.name for label in definition.labels]
    return {name: definition.source.columns.get(name, name) for name in names}


def parquet_rows(file: SourceFile, columns: Mapping[str, str]) -> Iterator[RawBatch]:
    """Read columns of a Parquet file.

    Args:
        file: The file.
        columns: The column of the file for each name that is wanted.

    Raises:
        UserError: A column is not there or there twice, or the file cannot be read.
    """
    with file.local() as path:
        try:
            with pq.ParquetFile(path) as parquet:
                check_columns(file, columns, parquet.schema_arrow.names)
                row = 1
                for batch in parquet.iter_batches(BATCH_ROWS, columns=sorted(set(columns.values()))):
                    values = {wanted: batch.column(column) for wanted, column in columns.items()}
                    yield RawBatch(values, file.uri, np.arange(row, row + batch.num_rows), "row")
                    row += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{file.uri}: cannot be read as Parquet: {reason}") from None


class ParquetReader(RowReader):
    """Gives a row for each row, its columns found by name."""

    def rows(self, file: SourceFile) -> Iterator[RawBatch]:
        """Give all rows of a file."""
        yield from parquet_rows(file, named_columns(self))
