"""Interactions: lines of `user item item ...`, in no particular order."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rectrain_jobs.data.formats.base import (
    BATCH_ROWS,
    Definition,
    InteractionColumns,
    RawBatch,
    Reader,
    id_array,
    is_held_out,
)
from rectrain_jobs.data.formats.history import other_items
from rectrain_jobs.data.formats.lines import TokenLines, token_lines
from rectrain_jobs.data.source import SourceFile


class InteractionsReader(Reader):
    """Gives a row for each user and item of a line.

    A history (a Sequence of the item feature) holds the user's other training items in file order: for a training row
    without its own item, for a validation row all of them. It needs every training interaction in memory, about 32
    bytes each; without a history rows are streamed.
    """

    def __init__(self, definition: Definition) -> None:
        """Check the features."""
        super().__init__(definition)
        self._columns = InteractionColumns(definition)

    def train(self) -> Iterator[RawBatch]:
        """Give the training rows."""
        if self._columns.history_length:
            known = self._load()
            yield from known.rows(self._columns, held_out=False)
        else:
            yield from self._stream(self.definition.train_files(), held_out=False)

    def validation(self) -> Iterator[RawBatch]:
        """Give the rows of the validation input, or those that are held out."""
        files = self.definition.validation_files()
        if not files and self.definition.source.validation_fraction is None:
            return
        if not self._columns.history_length:
            yield from self._stream(files or self.definition.train_files(), held_out=not files or None)
        elif files:
            known = self._load()
            for file in files:
                for lines in token_lines(file):
                    users, items, numbers = pairs(lines)
                    history = known.history_of(users, self._columns.history_length)
                    yield RawBatch(self._columns.columns(users, items, history), file.uri, numbers)
        else:
            yield from self._load().rows(self._columns, held_out=True)

    def _stream(self, files: Sequence[SourceFile], held_out: bool | None) -> Iterator[RawBatch]:
        """Give the rows that are held out, those that are not, or with None all."""
        fraction = self.definition.source.validation_fraction if held_out is not None else None
        position = 0
        for file in files:
            for lines in token_lines(file):
                users, items, numbers = pairs(lines)
                batch = RawBatch(self._columns.columns(users, items), file.uri, numbers)
                if fraction is not None:
                    mask = is_held_out(np.arange(position, position + batch.num_rows), fraction)
                    position += batch.num_rows
                    batch = batch.select(mask if held_out else ~mask)
                yield batch

    def _load(self) -> "_Interactions":
        return _load(self.definition.train_files(), self._columns, self.definition.source.validation_fraction)


class _Interactions(NamedTuple):
    """Every training interaction.

    Attributes:
        files: Each file's URI and one past its last interaction.
        numbers: int64 `[interactions]`: line numbers.
        users: Arrow strings `[users]`.
        user_codes: int64 `[interactions]`: positions in users.
        items: Arrow array `[interactions]`.
        held_out: bool `[interactions]`.
        starts: int64 `[users + 1]`: where each user's items begin in items_by_user.
        items_by_user: Items that are not held out, a user's in file order one after the other.
        places: int64 `[interactions]`: where an item that is not held out is in items_by_user.
    """

    files: list[tuple[str, int]]
    numbers: npt.NDArray[np.int64]
    users: Any
    user_codes: npt.NDArray[np.int64]
    items: Any
    held_out: npt.NDArray[np.bool_]
    starts: npt.NDArray[np.int64]
    items_by_user: Any
    places: npt.NDArray[np.int64]

    def rows(self, columns: InteractionColumns, held_out: bool) -> Iterator[RawBatch]:
        """Give the rows that are held out, or those that are not, with their histories."""
        begin = 0
        for uri, end in self.files:
            chosen = begin + np.flatnonzero(self.held_out[begin:end] == held_out)
            for first in range(0, len(chosen), BATCH_ROWS):
                rows = chosen[first : first + BATCH_ROWS]
                codes = self.user_codes[rows]
                own = None if held_out else self.places[rows]
                history = other_items(
                    self.items_by_user, self.starts[codes], self.starts[codes + 1], own, columns.history_length
                )
                users, items = self.users.take(pa.array(codes)), self.items.take(pa.array(rows))
                yield RawBatch(columns.columns(users, items, history), uri, self.numbers[rows])
            begin = end

    def history_of(self, users: Any, length: int) -> Any:
        """Return the last items of some users; of an unknown one none."""
        codes = np.asarray(pc.index_in(users, value_set=self.users).fill_null(-1)).astype(np.int64)
        starts = np.where(codes < 0, 0, self.starts[codes])
        ends = np.where(codes < 0, 0, self.starts[codes + 1])
        return other_items(self.items_by_user, starts, ends, None, length)


def _load(files: Sequence[SourceFile], columns: InteractionColumns, fraction: float | None) -> _Interactions:
    users: list[Any] = []
    items: list[Any] = []
    numbers = [np.empty(0, np.int64)]
    ends = []
    for file in files:
        for lines in token_lines(file):
            some_users, some_items, some_numbers = pairs(lines)
            users.append(some_users.dictionary_encode())
            items.append(some_items)
            numbers.append(some_numbers)
        ends.append((file.uri, sum(map(len, numbers))))
    encoded: Any = pa.chunked_array(users or [pa.array([], pa.string()).dictionary_encode()]).unify_dictionaries()
    codes = np.concatenate([chunk.indices.to_numpy() for chunk in encoded.chunks]).astype(np.int64)
    known_users = encoded.chunk(0).dictionary
    all_items: Any = pa.chunked_array(items, pa.string()).cast(pa.large_string()).combine_chunks()
    all_items = id_array(all_items, columns.item)
    held_out = np.zeros(len(codes), bool)
    if fraction is not None:
        held_out = is_held_out(np.arange(len(codes)), fraction)
    order = np.argsort(codes, kind="stable")
    order = order[~held_out[order]]
    places = np.zeros(len(codes), np.int64)
    places[order] = np.arange(len(order))
    starts = np.zeros(len(known_users) + 1, np.int64)
    np.cumsum(np.bincount(codes[order], minlength=len(known_users)), out=starts[1:])
    return _Interactions(
        files=ends,
        numbers=np.concatenate(numbers),
        users=known_users,
        user_codes=codes,
        items=all_items,
        held_out=held_out,
        starts=starts,
        items_by_user=all_items.take(pa.array(order)),
        places=places,
    )


def pairs(lines: TokenLines) -> tuple[Any, Any, npt.NDArray[np.int64]]:
    """Return the user, the item and the line number of each interaction; a user without items has none."""
    counts = np.diff(lines.offsets) - 1
    is_item = np.ones(len(lines.tokens), bool)
    is_item[lines.offsets[:-1]] = False
    users = lines.tokens.take(pa.array(np.repeat(lines.offsets[:-1], counts)))
    return users, lines.tokens.filter(pa.array(is_item)), np.repeat(lines.numbers, counts)
