"""Sequences: lines of `user item item ...` in time order, one line a user; the last item is held out."""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from rectrain_jobs.data.formats.base import Definition, InteractionColumns, Pairs, RawBatch, Reader, id_array
from rectrain_jobs.data.formats.history import items_before
from rectrain_jobs.data.formats.lines import token_lines
from rectrain_jobs.data.source import SourceFile


class SequencesReader(Reader):
    """Gives a row for each item of a user; a history (a Sequence of the item feature) holds the items before it.

    The last item of each user with two or more is the validation row, the others are training rows. With a separate
    validation input the last item of its lines is, and the training input is for training as a whole; without
    validation shards too.
    """

    def __init__(self, definition: Definition) -> None:
        """Check the features."""
        super().__init__(definition)
        self._columns = InteractionColumns(definition)

    def train(self) -> Iterator[RawBatch]:
        """Give the training rows."""
        splits = self.definition.hold_out and self.definition.source.validation_uri is None
        yield from self._rows(self.definition.train_files(), is_last=False if splits else None)

    def validation(self) -> Iterator[RawBatch]:
        """Give each user's last item."""
        yield from self._rows(self.definition.validation_files() or self.definition.train_files(), is_last=True)

    def _rows(self, files: Sequence[SourceFile], is_last: bool | None) -> Iterator[RawBatch]:
        """Give the rows of items that are a user's last (of two or more), those that are not, or with None all."""
        for file in files:
            for lines in token_lines(file):
                counts = np.diff(lines.offsets) - 1
                line_of_token = np.repeat(np.arange(len(counts)), counts + 1)
                positions = np.arange(len(lines.tokens))
                chosen = positions != lines.offsets[line_of_token]
                if is_last is not None:
                    last = (positions == lines.offsets[line_of_token + 1] - 1) & (counts[line_of_token] >= 2)
                    chosen &= last == is_last
                rows = positions[chosen]
                begins = lines.offsets[line_of_token[chosen]]
                tokens = lines.tokens
                pairs = Pairs(
                    file.uri,
                    tokens.take(pa.array(begins)),
                    tokens.take(pa.array(rows)),
                    lines.numbers[line_of_token[chosen]],
                )
                length = self._columns.history_length
                items = id_array(tokens, self._columns.item)
                history = items_before(items, rows, begins + 1, length) if length else None
                yield self._columns.batch(pairs, history)
