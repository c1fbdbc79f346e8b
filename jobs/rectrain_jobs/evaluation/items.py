"""The inputs of a ranking evaluation: the item corpus, and a list of items for every user."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rectrain.api.errors import UserError
from rectrain_jobs.evaluation.collectives import Group, gather_rows, rank_and_size

Array = Tensor | npt.NDArray[np.generic]

# A row must fit the low half of a 64-bit search key.
_MAX_ITEMS = 1 << 32


class ItemLists:
    """A list of item ids for each user, in compressed sparse row form, on the CPU.

    Attributes:
        offsets: int64 [users + 1]; user u has `ids[offsets[u]:offsets[u + 1]]`.
        ids: int64 [total].
    """

    def __init__(self, offsets: Array, ids: Array) -> None:
        """Check and hold the lists.

        Raises:
            ValueError: The offsets do not start at 0, fall, or do not end at the number of ids.
            UserError: An id is negative.
        """
        self.offsets = torch.as_tensor(offsets, dtype=torch.int64, device="cpu")
        self.ids = torch.as_tensor(ids, dtype=torch.int64, device="cpu")
        ends = (int(self.offsets[0]), int(self.offsets[-1])) if len(self.offsets) else None
        if ends != (0, len(self.ids)) or bool((self.offsets.diff() < 0).any()):
            raise ValueError(f"offsets must rise from 0 to {len(self.ids)}, the number of ids")
        if len(self.ids) and int(self.ids.min()) < 0:
            raise UserError(f"item id {int(self.ids.min())} is negative: ids start at 0")

    @classmethod
    def of(cls, lists: Sequence[Sequence[int]]) -> "ItemLists":
        """Build from one sequence of ids per user."""
        lengths = torch.tensor([0, *(len(items) for items in lists)], dtype=torch.int64)
        return cls(lengths.cumsum(0), torch.tensor([i for items in lists for i in items], dtype=torch.int64))

    @classmethod
    def empty(cls, users: int) -> "ItemLists":
        """Build empty lists for `users` users."""
        return cls.of([[]] * users)

    def __len__(self) -> int:
        """Return the number of users."""
        return len(self.offsets) - 1

    def owners(self) -> Tensor:
        """Return the user of every id, int64 [total], rising."""
        return torch.repeat_interleave(torch.arange(len(self)), self.offsets.diff())

    def slice(self, start: int, end: int) -> "ItemLists":
        """Return the lists of users start to end."""
        offsets = self.offsets[start : end + 1]
        return ItemLists(offsets - offsets[0], self.ids[int(offsets[0]) : int(offsets[-1])])


class ItemCorpus:
    """The items that are ranked: all of them on this rank, or this rank's shard.

    Build with `replicated` or `sharded`. A row is an item's place in the whole corpus; it decides between items of
    equal score, the lower row first.

    Attributes:
        vectors: This rank's vectors, float32 [rows here, dim].
        first_row: Row of `vectors[0]` in the whole corpus.
        rows: Rows of the whole corpus.
        is_sharded: Whether the ranks hold different rows.
        group: The ranks that evaluate together; None is all.
    """

    def __init__(
        self, vectors: Tensor, ids: Tensor | None, *, first_row: int, rows: int, is_sharded: bool, group: Group
    ) -> None:
        """Hold checked vectors and the ids of the whole corpus; see `replicated` and `sharded`."""
        if not 0 < rows <= _MAX_ITEMS:
            raise UserError(f"the corpus has {rows} items: it needs 1 to {_MAX_ITEMS}")
        self.vectors = vectors
        self.first_row = first_row
        self.rows = rows
        self.is_sharded = is_sharded
        self.group = group
        self._ids = ids
        if ids is None:
            return
        if len(ids) != rows:
            raise ValueError(f"{len(ids)} item ids for {rows} item vectors")
        self._sorted_ids, self._sorted_rows = ids.sort()
        if int(self._sorted_ids[0]) < 0:
            raise UserError(f"item id {int(self._sorted_ids[0])} is negative: ids start at 0")
        repeated = self._sorted_ids[1:][self._sorted_ids.diff() == 0]
        if len(repeated):
            raise UserError(f"item id {int(repeated[0])} has more than one vector: ids must be distinct")

    @classmethod
    def replicated(cls, vectors: Array, ids: Array | None = None, *, group: Group = None) -> "ItemCorpus":
        """Hold the whole corpus on every rank, and share the users between the ranks.

        Args:
            vectors: [items, dim], any float type; searched as float32 on its device.
            ids: Item ids [items], distinct, 0 or more; None when ids are row numbers.
            group: The ranks over which metrics are summed; None is all.

        Raises:
            UserError: The corpus is empty, a vector is not finite, or an id is negative or repeated.
        """
        held = finite_vectors(vectors, "item")
        all_ids = None if ids is None else torch.as_tensor(ids, dtype=torch.int64, device="cpu")
        return cls(held, all_ids, first_row=0, rows=len(held), is_sharded=False, group=group)

    @classmethod
    def sharded(cls, vectors: Array, ids: Array | None = None, *, group: Group = None) -> "ItemCorpus":
        """Hold this rank's part of the corpus; rows count on from rank to rank. Every rank must call it.

        The vectors stay where they are; the ids (8 bytes an item) are gathered on every rank.

        Args:
            vectors: This rank's vectors [rows here, dim], 0 rows included, on a device that the group communicates on.
            ids: This rank's item ids [rows here], or None on every rank: then ids are row numbers.
            group: The ranks that share the corpus; None is all.

        Raises:
            UserError: As for `replicated`.
        """
        held = finite_vectors(vectors, "item")
        row_counts = torch.cat(gather_rows(torch.tensor([len(held)], device=held.device), group)).tolist()
        all_ids = None
        if ids is not None:
            here = torch.as_tensor(ids, dtype=torch.int64, device=held.device)
            all_ids = torch.cat(gather_rows(here, group)).cpu()
        first_row = sum(row_counts[: rank_and_size(group)[0]])
        return cls(held, all_ids, first_row=first_row, rows=sum(row_counts), is_sharded=True, group=group)

    def contains(self, ids: Tensor) -> Tensor:
        """Return which of the ids (int64 [n], CPU, 0 or more) the corpus has, bool [n].

        Raises:
            UserError: Ids are rows, and one is past the last row.
        """
        if self._ids is None:
            if len(ids) and int(ids.max()) >= self.rows:
                raise UserError(f"item id {int(ids.max())} is not in the corpus: its ids are 0 to {self.rows - 1}")
            return torch.ones(len(ids), dtype=torch.bool)
        places = torch.searchsorted(self._sorted_ids, ids).clamp(max=self.rows - 1)
        return self._sorted_ids[places] == ids

    def rows_of(self, items: ItemLists) -> ItemLists:
        """Map item ids to rows, leaving out ids that the corpus does not have.

        Raises:
            UserError: Ids are rows, and one is past the last row.
        """
        known = self.contains(items.ids)
        if self._ids is None:
            return items
        rows = self._sorted_rows[torch.searchsorted(self._sorted_ids, items.ids[known])]
        lengths = torch.bincount(items.owners()[known], minlength=len(items))
        return ItemLists(torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]), rows)

    def ids_of(self, rows: Tensor) -> Tensor:
        """Map rows to item ids; -1 (no item) stays -1. int64 of any shape, on the CPU."""
        rows = rows.cpu()
        return rows if self._ids is None else torch.where(rows < 0, -1, self._ids[rows.clamp(min=0)])


def finite_user_vectors(vectors: Array) -> Tensor:
    """Return user vectors [n, dim] or [n, vectors of a user, dim] as float32 [n, vectors of a user, dim].

    Raises:
        ValueError: They have another number of dimensions.
        UserError: A component is nan or infinite.
    """
    held = torch.as_tensor(vectors)
    if held.ndim != 3:
        return finite_vectors(held, "user")[:, None]
    return finite_vectors(held.flatten(0, 1), "user").view(held.shape)


def finite_vectors(vectors: Array, what: str) -> Tensor:
    """Return the vectors [n, dim] as contiguous float32 on their device.

    Raises:
        ValueError: They are not two-dimensional.
        UserError: A component is nan or infinite.
    """
    held = torch.as_tensor(vectors).detach().float().contiguous()
    if held.ndim != 2:
        raise ValueError(f"{what} vectors have shape {tuple(held.shape)}, not [n, dim]")
    finite = held.isfinite().all(1)
    if not bool(finite.all()):
        bad = int((~finite).sum())
        raise UserError(f"{bad} of {len(held)} {what} vectors are not finite: the model has diverged")
    return held
