"""Retrieval losses against loops that follow their definitions."""

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st

from rectrain_jobs.models import retrieval_losses
from rectrain_jobs.models.candidates import Candidates, gather_candidates
from rectrain_jobs.models.retrieval_losses import (
    binary_cross_entropy_loss,
    bpr_loss,
    in_batch_softmax_loss,
    mixed_log_q,
    sampled_softmax_loss,
)

WIDTH = 3


def others(row, item_ids, offset, mask_duplicates):
    """The candidates that are negatives of a row."""
    own = offset + row
    return [
        j
        for j, item in enumerate(item_ids)
        if j != own and item >= 0 and not (mask_duplicates and item == item_ids[own])
    ]


def naive_softmax(users, items, item_ids, offset, positive, log_q, mask_duplicates):
    losses = []
    for row in range(len(users)):
        if positive[row]:
            columns = [offset + row, *others(row, item_ids, offset, mask_duplicates)]
            scores = torch.stack([users[row] @ items[j] - (0 if log_q is None else log_q[j]) for j in columns])
            losses.append(scores.logsumexp(0) - scores[0])
    return torch.stack(losses).mean() if losses else 0 * users.sum() + 0 * items.sum()


def naive_bpr(users, items, item_ids, offset, positive, log_q, mask_duplicates):
    losses = []
    for row in range(len(users)):
        if positive[row]:
            own = users[row] @ items[offset + row]
            negatives = [own - users[row] @ items[j] for j in others(row, item_ids, offset, mask_duplicates)]
            losses.append(-F.logsigmoid(torch.stack(negatives)).mean() if negatives else 0 * own)
    return torch.stack(losses).mean() if losses else 0 * users.sum() + 0 * items.sum()


def softmax(users, items, item_ids, offset, positive, log_q, mask_duplicates):
    return in_batch_softmax_loss(users, Candidates(items, item_ids, offset), positive, log_q, mask_duplicates)


def bpr(users, items, item_ids, offset, positive, log_q, mask_duplicates):
    return bpr_loss(users, Candidates(items, item_ids, offset), positive, mask_duplicates)


LOSSES = pytest.mark.parametrize("loss, naive", [(softmax, naive_softmax), (bpr, naive_bpr)], ids=["softmax", "bpr"])


@st.composite
def cases(draw):
    """A rank's rows among candidates: other ranks' before and after, drawn negatives, padding, repeated items."""
    rows, before, after = draw(st.integers(1, 9)), draw(st.integers(0, 4)), draw(st.integers(0, 6))
    count = before + rows + after
    item_ids = torch.tensor(draw(st.lists(st.integers(-1, 5), min_size=count, max_size=count)))
    positive = torch.tensor(draw(st.lists(st.booleans(), min_size=rows, max_size=rows)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    users = torch.randn(rows, WIDTH, generator=generator, dtype=torch.float64) * draw(st.sampled_from([1, 30]))
    items = torch.randn(count, WIDTH, generator=generator, dtype=torch.float64)
    log_q = -5 * torch.rand(count, generator=generator, dtype=torch.float64) if draw(st.booleans()) else None
    positive &= item_ids[before : before + rows] >= 0  # a padding row is no positive
    return (users, items, item_ids, before, positive, log_q, draw(st.booleans()))


def with_gradients(loss, case):
    users, items = case[0].clone().requires_grad_(), case[1].clone().requires_grad_()
    value = loss(users, items, *case[2:])
    value.backward()
    return value.detach(), users.grad, items.grad


@LOSSES
@given(case=cases(), elements=st.sampled_from([1, 23, 2**20]))
@settings(max_examples=150, deadline=None)
def test_value_and_gradients_are_those_of_the_definition(loss, naive, case, elements):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(retrieval_losses._SLICE_ELEMENTS, "cpu", elements)
        value, *gradients = with_gradients(loss, case)
    expected, *expected_gradients = with_gradients(naive, case)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradients, expected_gradients)


@LOSSES
def test_gradients_are_those_of_finite_differences(loss, naive):
    generator = torch.Generator().manual_seed(1)
    users = torch.randn(5, WIDTH, generator=generator, dtype=torch.float64, requires_grad=True)
    items = torch.randn(8, WIDTH, generator=generator, dtype=torch.float64, requires_grad=True)
    log_q = torch.rand(8, generator=generator, dtype=torch.float64)
    ids, positive = torch.tensor([4, 0, 1, 0, 2, 3, -1, 0]), torch.tensor([True, True, False, True, True])
    assert torch.autograd.gradcheck(lambda u, i: loss(u, i, ids, 1, positive, log_q, True), (users, items))


@LOSSES
def test_without_positives_the_loss_and_its_gradients_are_zero(loss, naive):
    case = (
        torch.randn(4, WIDTH),
        torch.randn(4, WIDTH),
        torch.full((4,), -1),
        0,
        torch.zeros(4, dtype=bool),
        None,
        True,
    )
    for tensor in with_gradients(loss, case):
        assert (tensor == 0).all()


def test_scores_far_apart_give_finite_gradients():
    users = torch.tensor([[2000.0], [-2000.0]])
    value, *gradients = with_gradients(
        softmax, (users, torch.tensor([[1.0], [1.0]]), torch.arange(2), 0, torch.ones(2, dtype=bool), None, True)
    )
    assert value.item() == pytest.approx(math.log(2))
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_a_full_correction_makes_popular_items_as_good_as_rare_ones():
    # Candidates drawn in proportion to popularity, many of them: the corrected loss is the softmax over all items.
    generator = torch.Generator().manual_seed(2)
    popularity = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    scores = torch.tensor([0.1, -0.5, 0.7, 1.0], dtype=torch.float64)
    drawn = torch.cat(
        [torch.tensor([2]), torch.multinomial(popularity, 200_000, replacement=True, generator=generator)]
    )
    users, items = torch.ones(1, 1, dtype=torch.float64), scores[drawn, None]
    loss = softmax(users, items, drawn, 0, torch.tensor([True]), popularity.log()[drawn], False)
    # The average of exp(score) / q over draws is the sum over items; the row's own item has one term among n.
    expected = scores.logsumexp(0) + math.log(len(drawn)) - (scores[2] - popularity[2].log())
    assert loss.item() == pytest.approx(expected.item(), abs=0.01)


def test_mixed_log_q_is_that_of_the_mixture():
    item_q = torch.tensor([0.5, 0.4, 0.1, 1e-6])
    for in_batch, uniform, items in ((6, 2, 10), (1, 99, 4)):
        expected = (in_batch * item_q + uniform / items) / (in_batch + uniform)
        torch.testing.assert_close(mixed_log_q(item_q.log(), in_batch, uniform, items).exp(), expected)
    assert torch.equal(mixed_log_q(item_q.log(), 6, 0, 10), item_q.log())


def test_binary_cross_entropy_counts_valid_rows():
    users, items = (
        torch.tensor([[1.0, 2.0], [0.5, 0.0], [9.0, 9.0]]),
        torch.tensor([[1.0, -1.0], [2.0, 0.0], [9.0, 9.0]]),
    )
    labels, valid = torch.tensor([0.0, 1.0, math.nan]), torch.tensor([True, True, False])
    expected = (math.log(1 + math.exp(-1.0)) + math.log(1 + math.exp(-1.0))) / 2
    assert binary_cross_entropy_loss(users, items, labels, valid).item() == pytest.approx(expected)
    users.requires_grad_()
    binary_cross_entropy_loss(users, items, labels, torch.zeros(3, dtype=bool)).backward()
    assert (users.grad == 0).all()


def test_alone_the_candidates_are_the_batch():
    vectors, ids = torch.randn(4, 2), torch.arange(4)
    candidates = gather_candidates(vectors, ids, across_ranks=True)
    assert candidates.vectors is vectors
    assert candidates.offset == 0


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=6),
    st.lists(st.integers(0, 5), min_size=1, max_size=5),
    st.integers(0, 99),
)
@settings(deadline=None)
def test_sampled_softmax_is_that_of_the_definition(own, drawn, seed):
    generator = torch.Generator().manual_seed(seed)
    users, items, negatives = (
        torch.randn(n, WIDTH, generator=generator, dtype=torch.float64, requires_grad=True)
        for n in (len(own), len(own), len(drawn))
    )
    log_q = -5 * torch.rand(len(own) + len(drawn), generator=generator, dtype=torch.float64)
    positive = torch.rand(len(own), generator=generator) < 0.7
    losses = []
    for row in range(len(own)):
        columns = [j for j, item in enumerate(drawn) if item != own[row]]
        scores = [users[row] @ items[row] - log_q[row]]
        scores += [users[row] @ negatives[j] - log_q[len(own) + j] for j in columns]
        if positive[row]:
            losses.append(torch.stack(scores).logsumexp(0) - scores[0])
    expected = torch.stack(losses).mean() if losses else torch.zeros((), dtype=torch.float64)
    loss = sampled_softmax_loss(users, items, negatives, torch.tensor(own), torch.tensor(drawn), log_q, positive)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(tensor.grad.isfinite().all() for tensor in (users, items, negatives))
    if losses:
        leaves = (users, items, negatives)
        found = [tensor.grad.clone() for tensor in leaves]
        wanted = torch.autograd.grad(expected, leaves, allow_unused=True, materialize_grads=True)
        torch.testing.assert_close(found, list(wanted))
