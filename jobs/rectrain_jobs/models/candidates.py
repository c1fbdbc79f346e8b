"""The items that a step's rows are compared with: those of the own batch, or of every rank's."""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class Candidates(NamedTuple):
    """Item vectors that a retrieval loss takes its negatives from.

    Attributes:
        vectors: [candidates, width].
        item_ids: int64 [candidates] rows of the item table; -1 where a padding row left no item.
        offset: Position of the own batch's first row: its i-th row's positive item is candidate offset + i.
    """

    vectors: Tensor
    item_ids: Tensor
    offset: int


def gather_candidates(vectors: Tensor, item_ids: Tensor, across_ranks: bool) -> Candidates:
    """Return the candidates of a step.

    The gradient that reaches a rank's vectors is the sum over the losses of all ranks. Data-parallel training
    averages the gradients of the ranks, so what is minimized is the mean of the ranks' losses.

    Args:
        vectors: [rows, width] item vectors of the own batch; on every rank the same number of rows.
        item_ids: int64 [rows]; -1 for rows that are no item.
        across_ranks: Whether the other ranks' items are candidates too. A collective call then.
    """
    if not across_ranks or not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return Candidates(vectors, item_ids, 0)
    gathered_ids = item_ids.new_empty(dist.get_world_size() * len(item_ids))
    dist.all_gather_single(gathered_ids, item_ids.contiguous())
    gathered: Tensor = _AllGather.apply(vectors)  # type: ignore[no-untyped-call]
    return Candidates(gathered, gathered_ids, dist.get_rank() * len(item_ids))


class _AllGather(torch.autograd.Function):
    """Concatenates the ranks' tensors; its gradient is each rank's slice of the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        gathered = local.new_empty(dist.get_world_size() * local.shape[0], *local.shape[1:])
        dist.all_gather_single(gathered, local.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].contiguous()
        rows = gradient.shape[0] // dist.get_world_size()
        local = gradient.new_empty(rows, *gradient.shape[1:])
        dist.reduce_scatter_single(local, gradient)
        return local
