import gc
import threading
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rectrain.api.errors import UserError
from rectrain_jobs.data.mds.batches import BatchReader
from rectrain_jobs.data.mds.order import Order, Position, World, evaluation_order, training_order


class Source:
    """Gathers ids themselves, and notes which it was asked for."""

    def __init__(self, fail_at=None):
        self.asked = []
        self.fail_at = fail_at

    def gather(self, sample_ids, columns=None):
        if len(self.asked) == self.fail_at:
            raise UserError("a shard is corrupt")
        self.asked.append(sample_ids)
        return {"id": sample_ids.copy()}

    @contextmanager
    def fetching_ahead(self, sample_ids):
        self.gathered = []
        yield self.gathered.append


def reader(source, batches=10, prefetch=2):
    ids = np.arange(batches * 4).reshape(batches, 4)
    return BatchReader(source, ids, Position(epoch=2), np.arange(batches + 1) * 8, None, prefetch)


def batch_threads():
    return [thread for thread in threading.enumerate() if thread.name == "mds-batches"]


@pytest.mark.parametrize("prefetch", [0, 1, 2, 50])
def test_batches_come_in_order_with_the_position_after_each(prefetch):
    source = Source()
    batches = list(reader(source, prefetch=prefetch))
    assert np.concatenate([batch.columns["id"] for batch in batches]).tolist() == list(range(40))
    assert prefetch == 0 or source.gathered == list(range(10))
    assert [batch.position for batch in batches] == [Position(epoch=2, sample_in_epoch=8 * (n + 1)) for n in range(10)]
    assert batch_threads() == []


def test_a_reader_can_be_read_again():
    again = reader(Source())
    assert [b.sample_ids.tolist() for b in again] == [b.sample_ids.tolist() for b in again]


def test_no_more_is_prepared_than_asked_for():
    source = Source()
    prepared = threading.Semaphore(0)
    gather = source.gather
    source.gather = lambda *arguments: (prepared.release(), gather(*arguments))[1]
    batches = iter(reader(source, prefetch=3))
    next(batches)
    for _ in range(4):  # the one taken, and three ahead
        assert prepared.acquire(timeout=30)
    assert not prepared.acquire(timeout=0.2)
    batches.close()


@pytest.mark.parametrize("prefetch", [0, 2])
def test_errors_reach_the_consumer_after_the_batches_before_them(prefetch):
    batches = iter(reader(Source(fail_at=3), prefetch=prefetch))
    assert [next(batches).sample_ids[0] for _ in range(3)] == [0, 4, 8]
    with pytest.raises(UserError, match="a shard is corrupt"):
        next(batches)
    assert batch_threads() == []


@pytest.mark.parametrize("how", ["break", "close", "forget", "error"])
def test_breaking_off_ends_the_thread(how):
    batches = iter(reader(Source(), batches=1000))
    next(batches)
    assert len(batch_threads()) == 1
    if how == "close":
        batches.close()
    elif how == "error":
        with pytest.raises(RuntimeError):
            for _ in batches:
                raise RuntimeError
    elif how == "break":
        for _ in batches:
            break
    del batches
    gc.collect()
    assert batch_threads() == []


def test_padding_between_samples_is_moved_to_the_end():
    ids = np.array([[3, -1, 5, -1], [-1, -1, -1, -1]])
    first, second = BatchReader(Source(), ids, Position(), np.arange(3), None, 0)
    assert first.sample_ids.tolist() == [3, 5, -1, -1] and first.num_valid == 2
    assert first.mask.tolist() == [True, True, False, False]
    assert second.num_valid == 0


@given(
    num_samples=st.integers(1, 300),
    batch_size=st.integers(1, 20),
    nodes=st.integers(1, 3),
    ranks=st.integers(1, 4),
)
def test_evaluation_reads_every_sample_once_in_order_and_as_many_batches_everywhere(
    num_samples, batch_size, nodes, ranks
):
    parts = [evaluation_order(num_samples, batch_size, World(nodes, ranks, rank)) for rank in range(nodes * ranks)]
    assert len({part.shape for part in parts}) == 1
    together = np.stack(parts, axis=1).ravel()
    assert together[together >= 0].tolist() == list(range(num_samples))
    assert np.all(together[num_samples:] == -1)


@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=8),
    batch_size=st.integers(1, 20),
    ranks=st.integers(1, 4),
    epoch=st.integers(0, 5),
    shuffle=st.booleans(),
)
def test_training_reads_every_sample_with_fewer_repeats_than_ranks(sizes, batch_size, ranks, epoch, shuffle):
    world, order = World(1, ranks), Order(shuffle=shuffle)
    ids = training_order(np.array(sizes), batch_size, world, order, Position(epoch).settled(order, world))
    assert ids.shape[0] == ranks and ids.shape[2] == batch_size
    read = ids[ids != -1]
    assert set(read.tolist()) == set(range(sum(sizes)))
    assert len(read) - sum(sizes) < ranks
    assert len({(part != -1).sum() for part in ids}) == 1


def test_positions_round_trip_and_are_checked():
    position = Position(3, 128, 7, 4, 2)
    assert Position.from_state_dict(position.state_dict()) == position
    assert Position.from_state_dict({**position.state_dict(), "other": 1}) == position
    assert position.next_epoch() == Position(4, 0, 7, 4, 2)
    for state in ({}, {"epoch": 1}, {"epoch": -1, "sample_in_epoch": 0}, {"epoch": 0, "sample_in_epoch": "8"}):
        with pytest.raises(UserError, match="data position: "):
            Position.from_state_dict(state)


def test_what_the_first_epoch_settles_is_kept():
    order, world = Order(seed=5), World(4, 8)
    settled = Position().settled(order, world)
    assert settled == Position(0, 0, 5, 4, 4)
    assert settled.settled(Order(seed=6, num_canonical_nodes=3), World(2, 8)) == settled
    assert Position().settled(Order(algorithm="py1s"), world).num_canonical_nodes == 64 * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [({"algorithm": "py9"}, "'py9' is unknown; use naive, py1br"), ({"seed": -1}, "-1 is negative")],
)
def test_wrong_orders_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        Order(**options)
