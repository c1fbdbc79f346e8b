"""The order of the columnar reader against the real StreamingDataset, iterated in real processes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from streaming import MDSWriter, StreamingDataset
from streaming.base.batching import generate_work
from streaming.base.world import World as StreamingWorld

from rectrain.api.errors import UserError
from rectrain_jobs.data.mds import MDSDataset, Order, Position, World

SAMPLES = 1003  # divides by nothing used here, nor do the shards
REFERENCE = Path(__file__).with_name("streaming_reference.py")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("order") / "mds"
    with MDSWriter(out=str(path), columns={"id": "int"}, size_limit=1300) as writer:
        for number in range(SAMPLES):
            writer.write({"id": number})
    return path


def order_of(options: dict) -> Order:
    return Order(
        shuffle=options.get("shuffle", False),
        algorithm=options.get("shuffle_algo", "py1e"),
        seed=options.get("shuffle_seed", 9176),
        block_size=options.get("shuffle_block_size"),
        num_canonical_nodes=options.get("num_canonical_nodes"),
    )


def read(dataset, position, world, batch_size, options, stop=None):
    """The ids that a rank's batches hold, and the position after the last."""
    ids = []
    reader = dataset.training_epoch(position, batch_size=batch_size, world=world, order=order_of(options))
    for number, batch in enumerate(reader):
        if number == stop:
            break
        assert batch.columns["id"][: batch.num_valid].tolist() == batch.sample_ids[: batch.num_valid].tolist()
        assert np.all(batch.sample_ids[batch.num_valid :] == -1) and not batch.columns["id"][batch.num_valid :].any()
        ids += batch.columns["id"][: batch.num_valid].tolist()
        position = batch.position
    return ids, position, len(reader)


RUNS = {
    "one rank": {"ranks": 1, "batch_size": 32, "options": {"shuffle": True}},
    "one rank, not shuffled": {"ranks": 1, "batch_size": 7, "options": {}},
    "one rank, many canonical nodes": {
        "ranks": 1,
        "batch_size": 32,
        "options": {"shuffle": True, "num_canonical_nodes": 8},
    },
    "one rank, py1s": {"ranks": 1, "batch_size": 32, "options": {"shuffle": True, "shuffle_algo": "py1s"}},
    "two ranks": {"ranks": 2, "batch_size": 16, "options": {"shuffle": True, "shuffle_seed": 5}},
    "two ranks, py1br": {
        "ranks": 2,
        "batch_size": 24,
        "options": {"shuffle": True, "shuffle_algo": "py1br", "shuffle_block_size": 100},
    },
    "four ranks": {"ranks": 4, "batch_size": 8, "options": {"shuffle": True, "num_canonical_nodes": 4}},
    "four ranks, not shuffled": {"ranks": 4, "batch_size": 10, "options": {}},
}
STOP = 5  # batches of the second epoch, before which the interrupted run stops


@pytest.fixture(scope="module")
def reference(path, tmp_path_factory):
    """What StreamingDataset yields in every run: three epochs, and the second again from its middle."""
    out = tmp_path_factory.mktemp("reference") / "out.json"
    runs = {name: {**run, "epochs": 3, "stop": STOP} for name, run in RUNS.items()}
    subprocess.run([sys.executable, REFERENCE, path, out], input=json.dumps(runs), text=True, check=True, timeout=500)
    return json.loads(out.read_text())


@pytest.mark.parametrize("name", RUNS)
def test_epochs_are_those_of_streaming_dataset(path, reference, name):
    run, dataset = RUNS[name], MDSDataset(str(path))
    for rank, expected in enumerate(reference[name]["ranks"]):
        world, position = World(1, run["ranks"], rank), Position()
        assert len(expected["epochs"]) == 3
        for ids in expected["epochs"]:
            got, position, _ = read(dataset, position, world, run["batch_size"], run["options"])
            assert got == ids
            position = position.next_epoch()
        if run["options"].get("shuffle"):
            assert expected["epochs"][0] != expected["epochs"][1]


@pytest.mark.parametrize("name", RUNS)
def test_a_run_resumed_from_either_state_continues_as_streaming_dataset_does(path, reference, name):
    run, dataset = RUNS[name], MDSDataset(str(path))
    for rank, expected in enumerate(reference[name]["ranks"]):
        world = World(1, run["ranks"], rank)
        before, position, _ = read(dataset, Position(epoch=1), world, run["batch_size"], run["options"], stop=STOP)
        assert position.state_dict() == expected["state"]
        after, _, _ = read(
            dataset, Position.from_state_dict(expected["state"]), world, run["batch_size"], run["options"]
        )
        assert after == expected["resumed"]
        assert before + after == expected["epochs"][1]


@pytest.mark.parametrize(
    ("nodes", "ranks_per_node", "canonical_nodes"),
    [(2, 1, None), (2, 2, None), (2, 2, 8), (4, 1, 2), (4, 1, 1), (2, 3, 6), (1, 4, 64)],
)
@pytest.mark.parametrize("algorithm", ["naive", "py1br", "py1e", "py1s", "py2s"])
def test_several_nodes_get_what_generate_work_of_a_real_dataset_gives_them(
    path, nodes, ranks_per_node, canonical_nodes, algorithm
):
    options = {"shuffle": True, "shuffle_algo": algorithm, "num_canonical_nodes": canonical_nodes}
    streaming = StreamingDataset(local=str(path), batch_size=12, **options)
    world = StreamingWorld(nodes, ranks_per_node, 1, 0)
    streaming._resume(world, 0)  # settles the defaults, as the first iteration does
    dataset = MDSDataset(str(path))
    for epoch, sample_in_epoch in ((0, 0), (1, 0), (1, 12 * nodes * ranks_per_node * 3)):
        expected = generate_work("random", streaming, world, epoch, sample_in_epoch)
        for rank in range(nodes * ranks_per_node):
            rank_ids = expected[rank // ranks_per_node, rank % ranks_per_node].reshape(-1, 12)
            reader = dataset.training_epoch(
                Position(epoch, sample_in_epoch),
                batch_size=12,
                world=World(nodes, ranks_per_node, rank),
                order=order_of(options),
            )
            np.testing.assert_array_equal(reader.sample_ids, rank_ids)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ((1, 4, 6), (1, 2, 12)),
        ((1, 2, 12), (1, 4, 6)),
        ((2, 2, 6), (1, 2, 12)),
        ((2, 2, 6), (3, 2, 4)),
        ((1, 1, 24), (2, 3, 4)),
    ],
)
@pytest.mark.parametrize("shuffle", [True, False])
def test_a_run_that_continues_with_other_ranks_sees_the_same_global_batches(path, first, then, shuffle):
    dataset, options = MDSDataset(str(path)), {"shuffle": shuffle, "num_canonical_nodes": 4}

    def global_batches(layout, position):
        nodes, ranks, batch_size = layout
        readers = [
            dataset.training_epoch(
                position, batch_size=batch_size, world=World(nodes, ranks, rank), order=order_of(options), prefetch=0
            )
            for rank in range(nodes * ranks)
        ]
        assert len({len(reader) for reader in readers}) == 1
        batches = []
        for parts in zip(*readers, strict=True):
            assert len({part.position for part in parts}) == 1
            ids = np.concatenate([part.sample_ids[part.mask] for part in parts])
            assert all(part.num_valid == part.mask.sum() for part in parts)
            batches.append((sorted(ids.tolist()), parts[0].position))
        return batches

    whole = global_batches(first, Position(epoch=3))
    resumed = global_batches(then, whole[9][1])
    assert [ids for ids, _ in resumed[:-1]] == [ids for ids, _ in whole[10:-1]]
    assert set(resumed[-1][0]) == set(whole[-1][0])
    streaming = StreamingDataset(local=str(path), batch_size=then[2], **options)
    streaming.initial_physical_nodes = first[0]
    streaming._set_shuffle_block_size(StreamingWorld(1, 1, 1, 0))
    work = generate_work("random", streaming, StreamingWorld(then[0], then[1], 1, 0), 3, whole[9][1].sample_in_epoch)
    assert [ids for ids, _ in resumed] == [
        sorted(batch[batch != -1].tolist()) for batch in np.moveaxis(work[:, :, 0], 2, 0)
    ]


def test_layouts_that_do_not_divide_are_refused_in_one_line(path):
    dataset = MDSDataset(str(path))
    with pytest.raises(UserError, match=r"data order over 3 nodes of 1 ranks: .*divisible") as caught:
        dataset.training_epoch(Position(), batch_size=8, world=World(3, 1, 0), order=Order(num_canonical_nodes=2))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="Resuming further into the dataset"):
        dataset.training_epoch(Position(0, 5000), batch_size=8)


def test_an_epoch_that_was_read_to_its_end_has_no_more_batches(path):
    dataset = MDSDataset(str(path))
    *_, last = dataset.training_epoch(Position(), batch_size=100)
    assert last.num_valid == 3
    assert list(dataset.training_epoch(last.position, batch_size=100)) == []
