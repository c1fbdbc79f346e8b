"""Text files of whitespace-separated values, a block of lines at a time."""

import codecs
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rectrain.api.errors import UserError
from rectrain_jobs.data.source import SourceFile
from rectrain_jobs.pipeline.values import first_failure

BLOCK_BYTES = 1 << 19


class TokenLines(NamedTuple):
    """Some lines of a file, split at whitespace; lines without any value are left out.

    Attributes:
        tokens: Arrow strings, the values of all lines one after the other.
        offsets: int64 `[lines + 1]`: where the values of each line begin.
        numbers: int64 `[lines]`: number of each line in the file, from 1.
    """

    tokens: Any
    offsets: npt.NDArray[np.int64]
    numbers: npt.NDArray[np.int64]


def token_lines(file: SourceFile) -> Iterator[TokenLines]:
    """Split a text file, block by block.

    Raises:
        UserError: The file cannot be read, is not UTF-8 text, or its lines end with CR alone.
    """
    number = 1
    for block in _blocks(file):
        lines = block.split(b"\n")
        if not lines[-1]:
            lines.pop()
        if block.count(b"\r") != block.count(b"\r\n"):
            _refuse_lone_returns(lines, file, number)
        split = _split(lines, file, number)
        if len(split.numbers):
            yield split
        number += len(lines)


def _refuse_lone_returns(lines: list[bytes], file: SourceFile, number: int) -> None:
    """Refuse lines that end as on old Macs: they would be one long line, of one user."""
    for place, line in enumerate(lines):
        if b"\r" in line.rstrip(b"\r"):
            raise UserError(f"{file.uri}:{number + place}: has a CR within the line; lines end with LF or CR LF")


def _blocks(file: SourceFile) -> Iterator[bytes]:
    """Give the bytes of a file in blocks of whole lines."""
    with file.open() as stream:
        parts: list[bytes] = []
        is_first = True
        while block := stream.read(BLOCK_BYTES):
            if is_first:  # Windows programs begin UTF-8 with a mark, which is not part of the first value
                block, is_first = block.removeprefix(codecs.BOM_UTF8), False
            end = block.rfind(b"\n") + 1
            if end:
                yield b"".join([*parts, block[:end]])
                parts = [block[end:]] if end < len(block) else []
            else:
                parts.append(block)
        if parts:
            yield b"".join(parts)


def _split(lines: list[bytes], file: SourceFile, number: int) -> TokenLines:
    try:
        texts: Any = pa.array(lines, pa.binary()).cast(pa.string())
    except pa.ArrowInvalid:
        bad = first_failure(len(lines), lambda low, high: not _is_utf8(b"".join(lines[low:high])))
        raise UserError(f"{file.uri}:{number + bad}: is not UTF-8 text") from None
    split: Any = pc.ascii_split_whitespace(pc.ascii_trim_whitespace(texts))
    tokens, offsets = split.flatten(), split.offsets.to_numpy().astype(np.int64)
    # A line without any value is split into one empty value.
    filled = np.asarray(pc.not_equal(tokens.take(pa.array(offsets[:-1])), pa.scalar("")))
    numbers = np.arange(number, number + len(lines))
    if not filled.all():
        tokens = tokens.filter(pa.array(np.repeat(filled, np.diff(offsets))))
        offsets = np.concatenate([[0], np.diff(offsets)[filled].cumsum()])
        numbers = numbers[filled]
    return TokenLines(tokens, offsets, numbers)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
