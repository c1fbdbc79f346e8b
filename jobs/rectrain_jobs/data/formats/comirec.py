"""ComiRec's text files: `uid,item,time` to train on, `user_id:.. hist_item:.. eval_item:..` to evaluate on."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rectrain.api.errors import UserError
from rectrain_jobs.data.formats.base import Definition, InteractionColumns, Pairs, RawBatch, Reader, id_array
from rectrain_jobs.data.formats.delimited import delimited_rows
from rectrain_jobs.data.formats.grouped import group
from rectrain_jobs.data.formats.history import items_before, other_items
from rectrain_jobs.data.formats.lines import TokenLines, token_lines
from rectrain_jobs.data.source import SourceFile
from rectrain_jobs.pipeline.dense import Unscaled

_KEYS = ("user_id", "target_item", "hist_item", "eval_item")


class ComiRecReader(Reader):
    """Gives a row for each line of the training input and for each eval_item of the validation input.

    A history (a Sequence of the item feature) holds for a training row the user's items of earlier times (of equal
    times, of earlier lines), for a validation row the line's hist_items. It needs every training interaction in memory,
    about 60 bytes each. A target_item is not read: it is a placeholder in the files that have one.
    """

    def __init__(self, definition: Definition) -> None:
        """Check the features."""
        super().__init__(definition)
        self._columns = InteractionColumns(definition)

    def train(self) -> Iterator[RawBatch]:
        """Give the training rows."""
        parts = _read(self.definition.train_files())
        length = self._columns.history_length
        if not length:
            yield from map(self._columns.batch, parts)
            return
        known = group(parts, self._columns.item)
        for file, rows in known.chunks(held_out=False):
            starts, _ = known.spans(rows)
            history = items_before(known.items_by_user, known.places[rows], starts, length)
            yield self._columns.batch(known.pairs(file, rows), history)

    def validation(self) -> Iterator[RawBatch]:
        """Give the rows of the validation input."""
        for file in self.definition.validation_files():
            for lines in token_lines(file):
                yield self._evaluation_rows(file, lines)

    def _evaluation_rows(self, file: SourceFile, lines: TokenLines) -> RawBatch:
        keys, values = _split(file, lines)
        line_of_token = np.repeat(np.arange(len(lines.numbers)), np.diff(lines.offsets))
        is_user, is_history, is_target = (
            np.asarray(pc.equal(keys, pa.scalar(key))) for key in ("user_id", "hist_item", "eval_item")
        )
        num_users = np.bincount(line_of_token[is_user], minlength=len(lines.numbers))
        num_targets = np.bincount(line_of_token[is_target], minlength=len(lines.numbers))
        wrong = (num_users != 1) | (num_targets == 0)
        if wrong.any():
            line = int(np.argmax(wrong))
            raise UserError(
                f"{file.uri}:{lines.numbers[line]}: has {num_users[line]} user_id and {num_targets[line]} eval_item; "
                "a line has one user_id and at least one eval_item"
            )
        line_of_row = line_of_token[is_target]
        users = values.filter(pa.array(is_user)).take(pa.array(line_of_row))
        pairs = Pairs(file.uri, users, values.filter(pa.array(is_target)), lines.numbers[line_of_row])
        length = self._columns.history_length
        if not length:
            return self._columns.batch(pairs)
        ends = np.cumsum(np.bincount(line_of_token[is_history], minlength=len(lines.numbers)))
        starts = np.concatenate([[0], ends[:-1]])
        items = id_array(values.filter(pa.array(is_history)), self._columns.item)
        return self._columns.batch(pairs, other_items(items, starts[line_of_row], ends[line_of_row], None, length))


def _read(files: Sequence[SourceFile]) -> Iterator[Pairs]:
    time = Unscaled("time")
    for file in files:
        for batch in delimited_rows(
            file, {"user": "user", "item": "item", "time": "time"}, delimiter=",", names=["user", "item", "time"]
        ):
            for name, column in batch.columns.items():
                if column.null_count:
                    row = int(np.argmin(np.asarray(column.is_valid())))
                    raise UserError(f"{batch.where(row)}: {name}: is missing; a line is user,item,time")
            with batch.locating():
                times: npt.NDArray[np.float64] = time.raw(batch.columns["time"])
            yield Pairs(file.uri, batch.columns["user"], batch.columns["item"], batch.numbers, times)


def _split(file: SourceFile, lines: TokenLines) -> tuple[Any, Any]:
    """Return the keys and the values of `key:value` tokens."""
    split: Any = pc.split_pattern(lines.tokens, ":", max_splits=1)
    lengths = split.value_lengths().to_numpy()
    keys = split.flatten() if not (lengths != 2).any() else None
    if keys is not None:
        keys, values = keys[0::2], keys[1::2]
        wrong = ~np.asarray(pc.is_in(keys, value_set=pa.array(_KEYS)))
    else:
        values, wrong = None, lengths != 2
    if wrong.any():
        token = int(np.argmax(wrong))
        line = int(np.searchsorted(lines.offsets, token, side="right")) - 1
        text = lines.tokens[token].as_py()
        raise UserError(
            f"{file.uri}:{lines.numbers[line]}: {text!r} is not one of {', '.join(key + ':id' for key in _KEYS)}"
        )
    return keys, values
