"""Histories: for each row some of the items around it, gathered without a loop over rows."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def items_before(items: Any, positions: npt.NDArray[np.int64], starts: npt.NDArray[np.int64], length: int) -> Any:
    """Return for each row the last items before a position.

    Args:
        items: Arrow array of all items, a user's in time order one after the other.
        positions: int64 `[rows]` into items; the item there is not part of the history.
        starts: int64 `[rows]`: where the user's items begin.
        length: The most items that are wanted.

    Returns:
        Arrow list array `[rows]`.
    """
    wanted = positions[:, None] - length + np.arange(length)
    return _lists(items, wanted, wanted >= starts[:, None])


def other_items(
    items: Any,
    starts: npt.NDArray[np.int64],
    ends: npt.NDArray[np.int64],
    own: npt.NDArray[np.int64] | None,
    length: int,
) -> Any:
    """Return for each row the last of a user's items, leaving out the row's own.

    Args:
        items: Arrow array of all items, a user's one after the other.
        starts: int64 `[rows]`: where the user's items begin.
        ends: int64 `[rows]`: one past where they end.
        own: int64 `[rows]`: position of the row's own item; None when it is not among them.
        length: The most items that are wanted.

    Returns:
        Arrow list array `[rows]`.
    """
    steps = np.arange(length)
    if own is None:
        wanted = ends[:, None] - length + steps
        return _lists(items, wanted, wanted >= starts[:, None])
    # Counted without the own item, those from its place on are one further back.
    wanted = ends[:, None] - 1 - length + steps
    own_or_later: Any = wanted >= own[:, None]
    return _lists(items, wanted + own_or_later, wanted >= starts[:, None])


def _lists(items: Any, wanted: npt.NDArray[np.int64], present: Any) -> Any:
    offsets = np.zeros(len(wanted) + 1, np.int64)
    np.cumsum(present.sum(axis=1), out=offsets[1:])
    lists: Any = pa.LargeListArray
    return lists.from_arrays(pa.array(offsets), items.take(pa.array(wanted[present])))
