"""Delimited text: a line a row, values apart by a comma, a tab or another character."""

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from rectrain.api.errors import UserError
from rectrain_jobs.data.formats.base import RawBatch, check_columns
from rectrain_jobs.data.source import SourceFile
from rectrain_jobs.pipeline.values import first_that_is_no_text

BLOCK_BYTES = 1 << 22
_LINE_END = re.compile(rb"[\r\n]")  # Arrow takes CR alone for one, too


def delimited_rows(
    file: SourceFile,
    columns: Mapping[str, str],
    *,
    delimiter: str,
    names: Sequence[str] | None = None,
    quoted: bool = False,
) -> Iterator[RawBatch]:
    """Read columns of a delimited text file as text; an empty value is missing, a blank line is no row.

    Args:
        file: The file.
        columns: The column of the file for each name that is wanted.
        delimiter: What separates values.
        names: Names of the file's columns; None when its first line has them.
        quoted: Whether values may be in double quotes.

    Raises:
        UserError: A line has too many or too few values, a column is not there or there twice, or the file cannot be
            read.
    """
    with file.local() as path:
        skipped = 0
        if names is None:
            with file.stream(path) as stream:
                names = _header(stream, file, delimiter, quoted)
            skipped = 1
        check_columns(file, columns, names)
        # By the columns' places, since a name may be there twice as long as it is not asked for.
        numbered = [str(place) for place in range(len(names))]
        place_of = {wanted: numbered[names.index(column)] for wanted, column in columns.items()}
        line = 1 + skipped
        with file.stream(path) as stream:
            try:
                reader = pa_csv.open_csv(
                    stream,
                    read_options=pa_csv.ReadOptions(
                        column_names=numbered, skip_rows=skipped, block_size=BLOCK_BYTES, use_threads=False
                    ),
                    parse_options=pa_csv.ParseOptions(
                        delimiter=delimiter,
                        quote_char='"' if quoted else False,
                        ignore_empty_lines=False,
                    ),
                    convert_options=pa_csv.ConvertOptions(
                        column_types=dict.fromkeys(numbered, pa.binary()),
                        strings_can_be_null=True,
                        null_values=[""],
                    ),
                )
                for batch in reader:
                    yield _raw_batch(batch, place_of, file, line)
                    line += batch.num_rows
            except pa.ArrowInvalid as error:
                raise UserError(_problem(file, " ".join(str(error).split()), line)) from None


def _problem(file: SourceFile, reason: str, line: int) -> str:
    """Return what is wrong with a file that Arrow cannot read.

    Args:
        file: The file.
        reason: What Arrow says, on one line.
        line: The first line that was not read.
    """
    # Arrow also tells it to a handler of invalid rows, which fails of itself where the row is not UTF-8.
    ragged = re.match(r"CSV parse error: Row #(\d+): Expected (\d+) columns, got (\d+)", reason)
    if ragged is not None:
        return f"{file.uri}:{ragged[1]}: has {ragged[3]} values; a line has {ragged[2]}"
    if "Empty CSV" in reason or "Could not skip initial" in reason:
        return f"{file.uri}: has no rows"
    if "straddl" in reason:
        return f"{file.uri}:{line}: this line or one after it is longer than {BLOCK_BYTES} bytes"
    return f"{file.uri}: cannot be read: {reason}"


def _header(stream: Any, file: SourceFile, delimiter: str, quoted: bool) -> list[str]:
    """Return the names of the first line; of `name:type`, as RecBole writes them, the name."""
    data = b""
    while not _LINE_END.search(data) and (block := stream.read(1 << 16)):
        data += block
    try:
        text = _LINE_END.split(data, 1)[0].decode("utf-8-sig")
        names = next(csv.reader([text], delimiter=delimiter), []) if quoted else text.split(delimiter)
    except UnicodeDecodeError:
        raise UserError(f"{file.uri}:1: is not UTF-8 text") from None
    except csv.Error as error:
        raise UserError(f"{file.uri}:1: names no columns: {error}") from None
    if not any(names):
        raise UserError(f"{file.uri}:1: has no column names")
    return [name.strip().partition(":")[0] for name in names]


def _raw_batch(batch: pa.RecordBatch, place_of: Mapping[str, str], file: SourceFile, line: int) -> RawBatch:
    numbers = np.arange(line, line + batch.num_rows)
    texts: dict[str, Any] = {}
    for place in set(place_of.values()):
        column: Any = batch.column(place)
        try:
            texts[place] = column.cast(pa.string())
        except pa.ArrowInvalid:
            raise UserError(f"{file.uri}:{numbers[first_that_is_no_text(column)]}: is not UTF-8 text") from None
    raw = RawBatch({name: texts[place] for name, place in place_of.items()}, file.uri, numbers)
    # A line without any value is no row; one whose wanted values are all missing is.
    if all(column.null_count for column in batch.columns):
        empty = np.ones(batch.num_rows, bool)
        for column in batch.columns:
            empty &= np.asarray(pc.is_null(column))
        return raw.select(~empty)
    return raw
