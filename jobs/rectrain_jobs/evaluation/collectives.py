"""The few collectives that evaluation needs; each does the plain thing in a process without torch.distributed."""

import torch
import torch.distributed as dist
from torch import Tensor

Group = dist.ProcessGroup | None


def rank_and_size(group: Group) -> tuple[int, int]:
    """Return this process's rank and the number of ranks; (0, 1) without torch.distributed."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(group), dist.get_world_size(group)


def sum_over_ranks(values: Tensor, group: Group) -> Tensor:
    """Return the elementwise sum of `values` over the ranks, on every rank."""
    return _reduce(values, dist.ReduceOp.SUM, group)


def max_over_ranks(values: Tensor, group: Group) -> Tensor:
    """Return the elementwise maximum of `values` over the ranks, on every rank."""
    return _reduce(values, dist.ReduceOp.MAX, group)


def _reduce(values: Tensor, op: dist.ReduceOp.RedOpType, group: Group) -> Tensor:
    if rank_and_size(group)[1] == 1:
        return values
    reduced = values.clone()
    dist.all_reduce(reduced, op=op, group=group)
    return reduced


def gather_rows(rows: Tensor, group: Group) -> list[Tensor]:
    """Return the `rows` [n, ...] of every rank, in rank order; n may differ between ranks."""
    size = rank_and_size(group)[1]
    if size == 1:
        return [rows]
    lengths = [torch.empty(1, dtype=torch.int64, device=rows.device) for _ in range(size)]
    dist.all_gather(lengths, torch.tensor([len(rows)], dtype=torch.int64, device=rows.device), group=group)
    counts = [int(length) for length in torch.cat(lengths).tolist()]
    padded = rows.new_zeros((max(counts), *rows.shape[1:]))
    padded[: len(rows)] = rows
    gathered = [torch.empty_like(padded) for _ in range(size)]
    dist.all_gather(gathered, padded, group=group)
    return [part[:count] for part, count in zip(gathered, counts, strict=True)]
