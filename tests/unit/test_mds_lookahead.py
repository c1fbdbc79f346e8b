import threading

import pytest

from rectrain.api.errors import UserError
from rectrain_jobs.data.mds.lookahead import MOST_BATCHES_AHEAD, fetching_ahead


class Fetches:
    """Notes what is fetched, and lets a test wait for it."""

    def __init__(self, fail_at=None):
        self.numbers = []
        self.changed = threading.Condition()
        self.fail_at = fail_at

    def __call__(self, number):
        if number == self.fail_at:
            raise UserError("gone")
        with self.changed:
            self.numbers.append(number)
            self.changed.notify()

    def settle_at(self, expected):
        with self.changed:
            assert self.changed.wait_for(lambda: self.numbers == expected, timeout=30), self.numbers
            assert not self.changed.wait_for(lambda: self.numbers != expected, timeout=0.2), self.numbers


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "mds-shards"]


def test_each_shard_is_fetched_once_in_the_order_of_need():
    fetches = Fetches()
    batches = [[0, 1], [1, 2], [0, 2], [3]]
    with fetching_ahead(fetches, batches.__getitem__, len(batches), [1] * 4, None):
        fetches.settle_at([0, 1, 2, 3])
    assert threads() == []


def test_it_keeps_a_bounded_number_of_batches_ahead():
    fetches = Fetches()
    with fetching_ahead(fetches, lambda batch: [batch], 1000, [1] * 1000, None) as tell:
        fetches.settle_at(list(range(MOST_BATCHES_AHEAD)))
        tell(9)
        fetches.settle_at(list(range(MOST_BATCHES_AHEAD + 10)))
    assert threads() == []


def test_it_keeps_a_bounded_number_of_bytes_ahead():
    fetches = Fetches()
    batches = [[0], [1], [2], [0, 3], [4]]
    with fetching_ahead(fetches, batches.__getitem__, len(batches), [10] * 5, 25) as tell:
        fetches.settle_at([0, 1])
        tell(0)  # shard 0 is needed no more, as far as has been looked
        fetches.settle_at([0, 1, 2])
        tell(1)
        fetches.settle_at([0, 1, 2, 0])
        tell(2)
        fetches.settle_at([0, 1, 2, 0, 3])
        tell(3)
        fetches.settle_at([0, 1, 2, 0, 3, 4])


def test_what_is_due_is_fetched_even_if_it_exceeds_the_bytes():
    fetches = Fetches()
    batches = [[0, 1, 2], [3]]
    with fetching_ahead(fetches, batches.__getitem__, len(batches), [10] * 4, 5) as tell:
        fetches.settle_at([0, 1, 2])
        tell(0)
        fetches.settle_at([0, 1, 2, 3])


def test_an_error_ends_it_quietly():
    fetches = Fetches(fail_at=2)
    with fetching_ahead(fetches, lambda batch: [batch], 10, [1] * 10, None) as tell:
        fetches.settle_at([0, 1])
        tell(0)
    assert threads() == []


@pytest.mark.parametrize("told", [-1, 0, 5])
def test_it_ends_with_the_context_wherever_it_is(told):
    with (
        pytest.raises(ZeroDivisionError),
        fetching_ahead(Fetches(), lambda batch: [batch], 1000, [1] * 1000, None) as tell,
    ):
        tell(told)
        raise ZeroDivisionError
    assert threads() == []
