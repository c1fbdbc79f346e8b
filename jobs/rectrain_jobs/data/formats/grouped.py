"""Interactions in memory, grouped by user: what histories are taken from."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rectrain.api.features import Feature
from rectrain_jobs.data.formats.base import BATCH_ROWS, Pairs, id_array


@dataclass(frozen=True)
class GroupedInteractions:
    """All interactions of some files.

    Attributes:
        files: Each file and one past its last interaction.
        numbers: int64 `[interactions]`: line numbers.
        users: Arrow strings `[users]`.
        user_codes: int64 `[interactions]`: positions in users.
        items: Arrow array `[interactions]`.
        held_out: bool `[interactions]`: kept out of histories.
        starts: int64 `[users + 1]`: where each user's items begin in items_by_user.
        items_by_user: Items that are not held out, a user's one after the other, by time or else in file order.
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

    def chunks(self, held_out: bool) -> Iterator[tuple[str, npt.NDArray[np.int64]]]:
        """Give the interactions that are held out, or those that are not: file and positions, some at a time."""
        begin = 0
        for file, end in self.files:
            chosen = begin + np.flatnonzero(self.held_out[begin:end] == held_out)
            for first in range(0, len(chosen), BATCH_ROWS):
                yield file, chosen[first : first + BATCH_ROWS]
            begin = end

    def pairs(self, file: str, rows: npt.NDArray[np.int64]) -> Pairs:
        """Return some interactions."""
        users = self.users.take(pa.array(self.user_codes[rows]))
        return Pairs(file, users, self.items.take(pa.array(rows)), self.numbers[rows])

    def spans(self, rows: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return where the items of each interaction's user begin and end in items_by_user."""
        codes = self.user_codes[rows]
        return self.starts[codes], self.starts[codes + 1]

    def spans_of_users(self, users: Any) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return where the items of some users begin and end in items_by_user; nothing for an unknown user."""
        codes = np.asarray(pc.index_in(users, value_set=self.users).fill_null(-1)).astype(np.int64)
        known = codes >= 0
        return np.where(known, self.starts[codes], 0), np.where(known, self.starts[codes + 1], 0)


def group(parts: Iterable[Pairs], item: Feature, held_out_of: Any = None) -> GroupedInteractions:
    """Gather interactions by user.

    Args:
        parts: The interactions, file after file.
        item: The item feature.
        held_out_of: Tells by their positions (int64) which are held out; None for none.
    """
    users: list[Any] = []
    items: list[Any] = []
    numbers = [np.empty(0, np.int64)]
    times: list[npt.NDArray[np.float64]] = []
    files: dict[str, int] = {}
    for part in parts:
        users.append(part.users.dictionary_encode())
        items.append(part.items)
        numbers.append(part.numbers)
        files[part.file] = files.get(part.file, 0) + len(part.numbers)
        if part.times is not None:
            times.append(part.times)
    encoded: Any = pa.chunked_array(users or [pa.array([], pa.string()).dictionary_encode()]).unify_dictionaries()
    codes = np.concatenate([chunk.indices.to_numpy() for chunk in encoded.chunks]).astype(np.int64)
    known_users = encoded.chunk(0).dictionary
    all_items: Any = pa.chunked_array(items, pa.string()).cast(pa.large_string()).combine_chunks()
    all_items = id_array(all_items, item)
    held_out = np.zeros(len(codes), bool) if held_out_of is None else held_out_of(np.arange(len(codes)))
    # Both sorts are stable: file order decides between equal times.
    order = np.lexsort((np.concatenate(times), codes)) if times else np.argsort(codes, kind="stable")
    order = order[~held_out[order]]
    places = np.zeros(len(codes), np.int64)
    places[order] = np.arange(len(order))
    starts = np.zeros(len(known_users) + 1, np.int64)
    np.cumsum(np.bincount(codes[order], minlength=len(known_users)), out=starts[1:])
    ends = np.cumsum(list(files.values())).tolist()
    return GroupedInteractions(
        files=list(zip(files, ends, strict=True)),
        numbers=np.concatenate(numbers),
        users=known_users,
        user_codes=codes,
        items=all_items,
        held_out=held_out,
        starts=starts,
        items_by_user=all_items.take(pa.array(order)),
        places=places,
    )
