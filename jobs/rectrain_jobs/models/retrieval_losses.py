"""Losses of retrieval models: in-batch softmax, sampled softmax, BPR and binary cross-entropy.

Scores are inner products of user vectors, already divided by the temperature, and item vectors. The matrix of scores of
all rows with all candidates of a batch is the bulk of a step's work and, with the candidates of many ranks, far larger
than anything else in memory. It is never held whole: a slice of rows at a time is scored, turned into the loss and its
gradient in place while it is in cache, and dropped. The negatives of a sampled softmax are few, so there it is.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.autograd.function import once_differentiable

from rectrain_jobs.models.candidates import Candidates

_SLICE_ELEMENTS = {"cpu": 2**20, "cuda": 2**26}
"""Scores held at once: what fits a core's cache on CPU, what fills the device on GPU."""


def in_batch_softmax_loss(
    users: Tensor, candidates: Candidates, positive: Tensor, log_q: Tensor | None = None, mask_duplicates: bool = True
) -> Tensor:
    """Return the mean over positive rows of -log softmax of the row's own item among the candidates.

    Sampling-bias correction: Yi et al., "Sampling-bias-corrected neural modeling for large corpus item
    recommendations", RecSys 2019: log_q is taken off every score, that of the positive item included.

    Args:
        users: [rows, width] user vectors divided by the temperature.
        candidates: The items; row i's own is candidate offset + i.
        positive: bool [rows]; other rows do not count, but their items remain candidates.
        log_q: [candidates] log of the probability of being drawn, times the strength of the correction. None: 0.
        mask_duplicates: Leave out candidates that are the row's own item over again.
    """
    bias = torch.zeros_like(candidates.vectors[:, 0]) if log_q is None else -log_q
    return _mean_over_positives(_softmax_rows, users, candidates, positive, bias, mask_duplicates)


def bpr_loss(users: Tensor, candidates: Candidates, positive: Tensor, mask_duplicates: bool = True) -> Tensor:
    """Return the mean over positive rows of the mean over negatives of -log sigmoid(positive score - negative score).

    Rendle et al., "BPR: Bayesian personalized ranking from implicit feedback", UAI 2009, with the candidates of the
    step as the negatives. A row without negatives has loss 0.

    Args:
        users: [rows, width] user vectors divided by the temperature.
        candidates: The items; row i's own is candidate offset + i.
        positive: bool [rows]; other rows do not count, but their items remain candidates.
        mask_duplicates: Leave out candidates that are the row's own item over again.
    """
    bias = torch.zeros_like(candidates.vectors[:, 0])
    return _mean_over_positives(_bpr_rows, users, candidates, positive, bias, mask_duplicates)


def sampled_softmax_loss(
    users: Tensor,
    own_items: Tensor,
    negatives: Tensor,
    own_ids: Tensor,
    negative_ids: Tensor,
    log_q: Tensor,
    positive: Tensor,
) -> Tensor:
    """Return the mean over positive rows of -log softmax of the row's own item among it and the shared negatives.

    Jean et al., "On using very large target vocabulary for neural machine translation", ACL 2015, as TensorFlow's
    sampled_softmax_loss has it: log_q is taken off every score, that of the own item included, and a negative that is
    the row's own item does not count.

    Args:
        users: [rows, width] user vectors divided by the temperature.
        own_items: [rows, width] vectors of the rows' own items.
        negatives: [negatives, width].
        own_ids: int64 [rows].
        negative_ids: int64 [negatives].
        log_q: [rows + negatives] log of how often each of these items is expected to be drawn, times the strength of
            the correction.
        positive: bool [rows]; other rows do not count.
    """
    rows = len(users)
    own_scores = (users * own_items).sum(dim=1) - log_q[:rows]
    scores = torch.addmm(-log_q[rows:], users, negatives.T)
    scores = scores.masked_fill(own_ids[:, None] == negative_ids, -math.inf)
    own_first = torch.cat([own_scores[:, None], scores], dim=1)
    losses = F.cross_entropy(own_first, torch.zeros_like(own_ids), reduction="none")
    return losses.where(positive, 0).sum() / positive.sum().clamp_min(1)


def binary_cross_entropy_loss(users: Tensor, items: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    """Return the mean over valid rows of the cross-entropy of the label and sigmoid of the row's score.

    Args:
        users: [rows, width] user vectors divided by the temperature.
        items: [rows, width] item vectors.
        labels: [rows] 0 or 1.
        valid: bool [rows]; other rows do not count.
    """
    scores = (users * items).sum(dim=1)
    losses = F.binary_cross_entropy_with_logits(scores, labels.where(valid, 0).to(scores.dtype), reduction="none")
    return losses.where(valid, 0).sum() / valid.sum().clamp_min(1)


def mixed_log_q(item_log_q: Tensor, in_batch: int, uniform: int, num_items: int) -> Tensor:
    """Return the log of the probability that an item is drawn as a candidate, from a batch or uniformly.

    Yang et al., "Mixed negative sampling for learning two-tower neural networks in recommendations", WWW 2020
    Companion: with uniform negatives beside those of the batch, candidates come from the mixture of both
    distributions, in proportion to their numbers.

    Args:
        item_log_q: [...] log of each item's share of the training rows.
        in_batch: Number of candidates that are items of training rows.
        uniform: Number of candidates that were drawn uniformly.
        num_items: Number of items that those were drawn from.
    """
    if uniform == 0:
        return item_log_q
    total = in_batch + uniform
    return torch.logaddexp(
        item_log_q + math.log(in_batch / total), torch.full_like(item_log_q, math.log(uniform / total / num_items))
    )


class _Rows(NamedTuple):
    """What a slice's scores became; the scores themselves now hold unscaled gradients."""

    losses: Tensor  # [slice]
    scale: Tensor  # [slice]: the loss's gradient in a score is the matrix's element times this
    own_item: Tensor  # [slice]: minus the loss's gradient in the score of the row's own item, beyond the matrix's


_RowLoss = Callable[[Tensor, Tensor, Tensor], _Rows]


def _softmax_rows(scores: Tensor, own_scores: Tensor, targets: Tensor) -> _Rows:
    """Turn scores into their exponentials; -inf is a candidate left out."""
    scores[torch.arange(len(scores), device=scores.device), targets] = own_scores
    largest = scores.amax(dim=1)
    sums = scores.sub_(largest[:, None]).exp_().sum(dim=1)
    return _Rows((largest - own_scores) + sums.log(), sums.reciprocal(), torch.ones_like(sums))


def _bpr_rows(scores: Tensor, own_scores: Tensor, targets: Tensor) -> _Rows:
    """Turn scores into sigmoid(score - own score); -inf is a candidate left out."""
    scores[torch.arange(len(scores), device=scores.device), targets] = -math.inf
    scale = (scores > -math.inf).sum(dim=1).clamp_min(1).to(scores.dtype).reciprocal()
    scores.sub_(own_scores[:, None])
    losses = F.softplus(scores).sum(dim=1) * scale
    return _Rows(losses, scale, scores.sigmoid_().sum(dim=1) * scale)


def _mean_over_positives(
    row_loss: _RowLoss, users: Tensor, candidates: Candidates, positive: Tensor, bias: Tensor, mask_duplicates: bool
) -> Tensor:
    targets = torch.arange(len(users), device=users.device) + candidates.offset
    duplicates = _duplicates(candidates.item_ids, targets, positive) if mask_duplicates else None
    weights = positive.to(users.dtype) / positive.sum().clamp_min(1)
    absent = candidates.item_ids < 0
    return _RowwiseLoss.apply(  # type: ignore[no-any-return, no-untyped-call]
        row_loss, users, candidates.vectors, bias.to(users.dtype), absent, targets, weights, duplicates
    )


class _Duplicates(NamedTuple):
    """Pairs of a row and a candidate that is the row's own item (that of the row itself among them)."""

    rows: Tensor  # int64 [pairs], ascending
    columns: Tensor  # int64 [pairs]
    ends: Tensor  # int64 [rows]: number of pairs up to and with each row


def _duplicates(item_ids: Tensor, targets: Tensor, positive: Tensor) -> _Duplicates:
    # Few pairs are equal: finding them in the sorted ids is much less work than comparing all rows with all candidates.
    sorted_ids, order = item_ids.sort()
    own = item_ids[targets]
    first = torch.searchsorted(sorted_ids, own)
    counts = (torch.searchsorted(sorted_ids, own, right=True) - first) * positive
    ends = counts.cumsum(0)
    rows = torch.repeat_interleave(counts)
    columns = order[torch.arange(len(rows), device=rows.device) + (first - ends + counts)[rows]]
    return _Duplicates(rows, columns, ends)


class _RowwiseLoss(torch.autograd.Function):
    """Sum over rows of weight times a loss of the row's scores; computes the gradients along with the value."""

    @staticmethod
    def forward(
        ctx: Any,
        row_loss: _RowLoss,
        users: Tensor,
        items: Tensor,
        bias: Tensor,
        absent: Tensor,
        targets: Tensor,
        weights: Tensor,
        duplicates: _Duplicates | None,
    ) -> Tensor:
        wants_gradients = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        step = max(1, _SLICE_ELEMENTS.get(users.device.type, 2**20) // max(1, len(items)))
        pair_ends = [0] * (len(users) // step + 1)
        if duplicates is not None:
            last_rows = torch.arange(step, len(users) + step, step, device=users.device).clamp_max(len(users)) - 1
            pair_ends = duplicates.ends[last_rows].tolist()
        item_bias = bias.masked_fill(absent, -math.inf)
        own_items = items[targets]
        # Without -inf, so that a padding row, whose weight is 0, has no infinite loss.
        own_scores = (users * own_items).sum(dim=1) + bias[targets]
        user_gradient, item_gradient = torch.empty_like(users), torch.zeros_like(items)
        own_weights = torch.empty_like(own_scores)
        loss, pair_begin = own_scores.new_zeros(()), 0
        for number, begin in enumerate(range(0, len(users), step)):
            part = slice(begin, begin + step)
            scores = torch.addmm(item_bias, users[part], items.T)
            if duplicates is not None:
                pairs = slice(pair_begin, pair_ends[number])
                scores[duplicates.rows[pairs] - begin, duplicates.columns[pairs]] = -math.inf
                pair_begin = pair_ends[number]
            rows = row_loss(scores, own_scores[part], targets[part])
            loss += (rows.losses * weights[part]).sum()
            if wants_gradients:
                scale = (rows.scale * weights[part])[:, None]
                torch.mul(scores @ items, scale, out=user_gradient[part])
                item_gradient.addmm_(scores.T, users[part] * scale)
                own_weights[part] = rows.own_item * weights[part]
        if wants_gradients:
            user_gradient.addcmul_(own_items, own_weights[:, None], value=-1)
            item_gradient.index_add_(0, targets, users * own_weights[:, None], alpha=-1)
            ctx.save_for_backward(user_gradient, item_gradient)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        user_gradient, item_gradient = ctx.saved_tensors
        gradient = gradients[0]
        return None, user_gradient * gradient, item_gradient * gradient, None, None, None, None, None
