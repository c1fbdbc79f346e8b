"""Exact area under the ROC curve over scores that are spread across ranks."""

import math

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from rectrain_jobs.evaluation.collectives import Group, gather_rows, rank_and_size, sum_over_ranks

# Scores of one broadcast: 16 MiB of float32.
_BROADCAST_SCORES = 1 << 22


def exact_auc(scores: Tensor, positive: Tensor, group: Group = None, *, chunk: int = _BROADCAST_SCORES) -> float:
    """Compute the exact AUC of all ranks' examples: P(score of a positive > score of a negative), ties half.

    No rank ever holds all scores: each sorts its own, the rarer class goes around in chunks, and every rank counts
    the pairs with its own examples of the other class. Beyond its own scores a rank holds a sorted copy of them and
    about five chunks (the chunk and its positions): O(n / ranks + chunk). The count is of whole numbers, so the
    result does not depend on how the examples are spread. It is the Mann-Whitney U statistic over the number of pairs
    (Fawcett 2006, An introduction to ROC analysis); up to 4e18 pairs.

    Args:
        scores: This rank's scores, float32 [n], without nan; any increasing function of the probability will do.
        positive: This rank's labels, bool [n].
        group: The ranks to count over; the scores must be on a device that it communicates on.
        chunk: Scores in one broadcast.

    Returns:
        The AUC, on every rank; nan when one of the two classes does not occur.
    """
    positives, negatives = _sorted(scores[positive]), _sorted(scores[~positive])
    sizes = torch.tensor([[len(positives), len(negatives)]], dtype=torch.int64, device=scores.device)
    sizes_by_rank = torch.cat(gather_rows(sizes, group)).tolist()
    total_positives = sum(size[0] for size in sizes_by_rank)
    total_negatives = sum(size[1] for size in sizes_by_rank)
    if total_positives == 0 or total_negatives == 0:
        return math.nan

    send_positives = total_positives <= total_negatives
    sent, kept = (positives, negatives) if send_positives else (negatives, positives)
    rank, ranks = rank_and_size(group)
    # Over all pairs (s sent, x kept): [x < s] + [x <= s], which counts a tie once and an x below s twice.
    below = torch.zeros((), dtype=torch.int64, device=scores.device)
    for source in range(ranks):
        length = sizes_by_rank[source][0 if send_positives else 1]
        for start in range(0, length, chunk):
            end = min(start + chunk, length)
            if ranks == 1:
                part = sent[start:end]
            else:
                part = sent[start:end].clone() if rank == source else scores.new_empty(end - start)
                dist.broadcast(part, group_src=source, group=group)
            below += torch.searchsorted(kept, part).sum() + torch.searchsorted(kept, part, right=True).sum()
    twice_pairs: int = 2 * total_positives * total_negatives
    twice_below = int(sum_over_ranks(below, group))
    return (twice_below if send_positives else twice_pairs - twice_below) / twice_pairs


def _sorted(scores: Tensor) -> Tensor:
    # torch.sort also makes the order, which nobody needs here; on a CPU numpy is an order of magnitude faster.
    if scores.device.type == "cpu":
        return torch.from_numpy(np.sort(scores.numpy()))
    return torch.sort(scores).values
