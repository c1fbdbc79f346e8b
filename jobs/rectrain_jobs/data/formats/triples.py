"""Triples: a table of named columns, as CSV, TSV or Parquet; users, items, ratings and whatever else."""

from collections.abc import Iterator
from typing import Any

import pyarrow.compute as pc

from rectrain.api.features import FeatureKind, Task
from rectrain_jobs.data.formats.base import Definition, RawBatch, RowReader
from rectrain_jobs.data.formats.delimited import delimited_rows
from rectrain_jobs.data.formats.parquet import named_columns, parquet_rows
from rectrain_jobs.data.source import SourceFile

_TAB_SUFFIXES = (".tsv", ".inter", ".item", ".user")


class TriplesReader(RowReader):
    """Gives a row for each line; the first one names the columns, as `name` or as RecBole's `name:type`.

    Values of a Sequence feature or a MultiLabel label are apart by spaces. Values of comma-separated files may be in
    double quotes, those of others are taken as they are.
    """

    def __init__(self, definition: Definition) -> None:
        """Find the columns of lists."""
        super().__init__(definition)
        lists = {feature.name for feature in definition.features if feature.kind is FeatureKind.SEQUENCE}
        self._lists = lists | {label.name for label in definition.labels if label.task is Task.MULTI_LABEL}

    def rows(self, file: SourceFile) -> Iterator[RawBatch]:
        """Give all rows of a file."""
        columns = named_columns(self)
        if file.name.endswith(".parquet"):
            yield from parquet_rows(file, columns)
            return
        delimiter = self.definition.source.delimiter or ("\t" if file.name.endswith(_TAB_SUFFIXES) else ",")
        for batch in delimited_rows(file, columns, delimiter=delimiter, quoted=delimiter == ","):
            split: dict[str, Any] = {
                name: pc.ascii_split_whitespace(pc.ascii_trim_whitespace(column)) if name in self._lists else column
                for name, column in batch.columns.items()
            }
            yield RawBatch(split, batch.file, batch.numbers)
