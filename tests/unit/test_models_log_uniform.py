import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rectrain_jobs.models.log_uniform import LogUniformSampler


def zipf_counts(items, unseen=0, seed=0):
    """Frequencies of shuffled items, of which some are never seen, and of the two rows after them."""
    counts = np.append(1000 // np.arange(1, items + 1), np.zeros(unseen, np.int64))
    return np.append(np.random.default_rng(seed).permutation(counts), [7, 9])


@given(st.integers(1, 60), st.integers(0, 5), st.integers(1, 70), st.integers(0, 1000))
@settings(deadline=None, max_examples=60)
def test_draws_are_distinct_seen_items_and_the_same_for_the_same_state(items, unseen, draws, seed):
    counts = zipf_counts(items, unseen, seed)
    sampler = LogUniformSampler(counts, items + unseen, draws)
    drawn = sampler.draw(np.random.default_rng(seed))
    assert len(drawn) == min(draws, items) == sampler.draws
    assert len(set(drawn.tolist())) == len(drawn)
    assert (counts[drawn] > 0).all() and (drawn < items + unseen).all()
    assert sampler.draw(np.random.default_rng(seed)).tolist() == drawn.tolist()
    assert np.isclose(np.exp(sampler.log_q[:-2][counts[:-2] > 0]).sum(), sampler.draws)


def test_items_are_drawn_as_often_as_is_said():
    counts = zipf_counts(50)
    sampler, rng, steps = LogUniformSampler(counts, 50, 12), np.random.default_rng(0), 20_000
    often = np.bincount(np.concatenate([sampler.draw(rng) for _ in range(steps)]), minlength=52) / steps
    # The expectation is that of a fixed number of tries; the real one varies from step to step.
    np.testing.assert_allclose(often[:50], np.exp(sampler.log_q[:50]), rtol=0.1)


@pytest.mark.parametrize("draws", [1, 5])
def test_a_frequent_item_is_expected_more_often_whatever_its_id(draws):
    counts = np.array([3, 50, 0, 3, 700, 9, 9])
    log_q = LogUniformSampler(counts, 5, draws).log_q
    by_frequency = log_q[[4, 1, 0, 3]]
    assert (np.diff(by_frequency) < 0).all() if draws == 1 else (by_frequency == 0).all()
    assert (log_q[[2, 5, 6]] == log_q[3]).all(), "what is never drawn counts as the rarest"


def test_the_first_draw_is_log_uniform():
    sampler = LogUniformSampler(np.array([5, 4, 3, 2, 0, 0]), 4, 1)
    expected = np.log([2, 3 / 2, 4 / 3, 5 / 4]) / np.log(5)
    np.testing.assert_allclose(np.exp(sampler.log_q[:4]), expected)
