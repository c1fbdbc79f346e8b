"""Interactions: lines of `user item item ...`, in no particular order."""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from rectrain_jobs.data.formats.base import Definition, InteractionColumns, Pairs, RawBatch, Reader, is_held_out
from rectrain_jobs.data.formats.grouped import GroupedInteractions, group
from rectrain_jobs.data.formats.history import other_items
from rectrain_jobs.data.formats.lines import token_lines
from rectrain_jobs.data.source import SourceFile


class InteractionsReader(Reader):
    """Gives a row for each user and item of a line; a user without items has none.

    A history (a Sequence of the item feature) holds the user's other training items in file order: for a training row
    without its own item, for a validation row all of them. It needs every training interaction in memory, about 50
    bytes each; without a history rows are streamed.
    """

    def __init__(self, definition: Definition) -> None:
        """Check the features."""
        super().__init__(definition)
        self._columns = InteractionColumns(definition)

    def train(self) -> Iterator[RawBatch]:
        """Give the training rows."""
        if not self._columns.history_length:
            yield from self._stream(self.definition.train_files(), held_out=False)
            return
        known = self._group()
        for file, rows in known.chunks(held_out=False):
            starts, ends = known.spans(rows)
            length = self._columns.history_length
            history = other_items(known.items_by_user, starts, ends, known.places[rows], length)
            yield self._columns.batch(known.pairs(file, rows), history)

    def validation(self) -> Iterator[RawBatch]:
        """Give the rows of the validation input, or those that are held out."""
        files = self.definition.validation_files()
        if not files and self.definition.source.validation_fraction is None:
            return
        if not self._columns.history_length:
            yield from self._stream(files or self.definition.train_files(), held_out=None if files else True)
            return
        known = self._group()
        length = self._columns.history_length
        if files:
            for pairs in _read(files):
                starts, ends = known.spans_of_users(pairs.users)
                yield self._columns.batch(pairs, other_items(known.items_by_user, starts, ends, None, length))
        else:
            for file, rows in known.chunks(held_out=True):
                starts, ends = known.spans(rows)
                history = other_items(known.items_by_user, starts, ends, None, length)
                yield self._columns.batch(known.pairs(file, rows), history)

    def _stream(self, files: Sequence[SourceFile], held_out: bool | None) -> Iterator[RawBatch]:
        """Give the rows that are held out, those that are not, or with None all."""
        fraction = self.definition.source.validation_fraction if held_out is not None else None
        position = 0
        for pairs in _read(files):
            batch = self._columns.batch(pairs)
            if fraction is not None:
                mask = is_held_out(np.arange(position, position + batch.num_rows), fraction)
                position += batch.num_rows
                batch = batch.select(mask if held_out else ~mask)
            yield batch

    def _group(self) -> GroupedInteractions:
        fraction = self.definition.source.validation_fraction
        held_out_of = None if fraction is None else lambda positions: is_held_out(positions, fraction)
        return group(_read(self.definition.train_files()), self._columns.item, held_out_of)


def _read(files: Sequence[SourceFile]) -> Iterator[Pairs]:
    for file in files:
        for lines in token_lines(file):
            counts = np.diff(lines.offsets) - 1
            is_item = np.ones(len(lines.tokens), bool)
            is_item[lines.offsets[:-1]] = False
            users = lines.tokens.take(pa.array(np.repeat(lines.offsets[:-1], counts)))
            items = lines.tokens.filter(pa.array(is_item))
            yield Pairs(file.uri, users, items, np.repeat(lines.numbers, counts))
