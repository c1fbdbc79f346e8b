"""What happens in a training besides steps: batches, evaluations, early stopping, rates, a loss that is not finite."""

import json
import re
from collections import Counter

import numpy as np
import pytest
import torch
from training_runs import (
    ITEMS,
    ROWS,
    batches_of,
    dlrm_job,
    ended_run,
    look_on,
    points_of,
    rows_of,
    succeed,
    train,
    two_tower_job,
    weights_of,
    write_shards,
)


def test_every_rank_has_as_many_batches_of_rows_that_do_not_divide(tmp_path_factory):
    _, _, ended = ended_run(tmp_path_factory, dlrm_job)
    of_ranks = [batches_of(printed) for printed in ended.printed]
    assert [len(batches) for batches in of_ranks] == [14, 14]
    for epoch in range(2):
        rows = [row for batches in of_ranks for number, ids in batches if number == epoch for row in ids if row >= 0]
        counts = Counter(rows)
        assert sorted(counts) == list(range(ROWS))
        assert sum(counts.values()) == ROWS + 1  # one row twice, so that both ranks have 102
    sizes = [sum(row >= 0 for row in ids) for _, ids in of_ranks[0]]
    assert sizes == [16] * 6 + [6] + [16] * 6 + [6]
    assert of_ranks[0][0] != of_ranks[0][7], "the epochs have the same order"


def test_evaluations_and_checkpoints_come_at_the_steps_that_the_job_asks_for(tmp_path_factory):
    _, output, _ = ended_run(tmp_path_factory, dlrm_job)
    assert sorted(points_of(output)) == list(range(1, 15))
    assert sorted(points_of(output, "auc")) == [5, 10, 14]
    aucs = points_of(output, "auc")
    best = [step for step in aucs if aucs[step] == max(auc for earlier, auc in aucs.items() if earlier <= step)]
    markers = [json.loads(file.read_text()) for file in sorted(output.glob("checkpoints/*/complete.json"))]
    # Every fourth step, the last one and every best one were saved; the newest two and the best are kept.
    newest = sorted({4, 8, 12, 14, *best})[-2:]
    assert [marker["step"] for marker in markers] == sorted({*newest, best[-1]})
    goodness = {marker["step"]: marker["goodness"] for marker in markers}
    assert goodness == {step: pytest.approx(aucs[step]) if step in aucs else None for step in goodness}
    assert markers[-1]["best"] == pytest.approx(max(aucs.values()))
    assert json.loads((output / "metrics.json").read_text())["auc"] == pytest.approx(aucs[14])


def test_training_stops_when_the_metric_no_longer_gets_better_and_stays_stopped(tmp_path):
    job = dlrm_job(
        tmp_path,
        training={"epochs": 50, "earlyStopping": {"metric": "auc", "patience": 2, "minDelta": 0.9}},
    )
    # The first evaluation is better than none; after it nothing gets better by 0.9.
    for attempt in range(2):
        ended = succeed(job, tmp_path / "out")
        assert ("continuing from the checkpoint of step 21 of 350" in ended.printed[0]) == bool(attempt)
        assert "stopped early: auc did not get better" in ended.printed[0]
        assert sorted(points_of(tmp_path / "out", "auc")) == [7, 14, 21]
        assert max(points_of(tmp_path / "out")) == 21
    assert json.loads((tmp_path / "out/result.json").read_text())["step"] == 21


def test_the_model_of_a_run_with_early_stopping_is_that_of_its_best_evaluation(tmp_path):
    rates = {part: {"type": "Adagrad", "learningRate": 0.1} for part in ("embedding", "dense")}
    stopping = {"metric": "log_loss", "patience": 2}
    job = dlrm_job(tmp_path, training={"epochs": 30, "optimizers": rates, "earlyStopping": stopping})
    ended = succeed(job, tmp_path / "out")
    losses = points_of(tmp_path / "out", "log_loss")
    best, last = min(losses, key=losses.__getitem__), max(losses)
    assert last == best + 14, "it stops two epochs after the best one"
    assert f"the model is that of step {best}, where log_loss was best" in ended.printed[0]
    assert json.loads((tmp_path / "out/metrics.json").read_text())["log_loss"] == losses[best]
    assert json.loads((tmp_path / "out/bundle/bundle.json").read_text())["lineage"]["step"] == best
    assert json.loads((tmp_path / "out/result.json").read_text())["step"] == last

    none_better = [f"training.maxSteps={best}", "training.earlyStopping="]
    succeed(job, tmp_path / "as far", overrides=none_better)
    weights = weights_of(tmp_path / "as far")
    assert all(torch.equal(value, weights[name]) for name, value in weights_of(tmp_path / "out").items())


@pytest.fixture(scope="module")
def initial(tmp_path_factory):
    """A job with plain SGD, and the weights that it has when its rates are as good as zero."""
    folder = tmp_path_factory.mktemp("sgd")
    sgd = {"type": "SGD", "learningRate": 0.5}
    job = dlrm_job(folder, training={"maxSteps": 4, "optimizers": {"embedding": sgd, "dense": sgd}})
    warmup = [f"training.optimizers.{part}.schedule.warmupSteps=1000000000" for part in ("embedding", "dense")]
    succeed(job, folder / "still", overrides=warmup)
    return job, weights_of(folder / "still")


def moved(output, initial):
    """The largest change of a weight, for the tables and for the rest."""
    changes = {name: (value - initial[name]).abs().max().item() for name, value in weights_of(output).items()}
    return [max(v for name, v in changes.items() if ("embedding_bags" in name) == tables) for tables in (True, False)]


def test_each_optimizer_has_its_own_schedule_and_clipping(initial, tmp_path):
    job, before = initial
    optimizers = "training.optimizers"
    succeed(job, tmp_path / "free")
    assert min(moved(tmp_path / "free", before)) > 1e-3
    clipped = [f"{optimizers}.embedding.clipValue=1e-9", f"{optimizers}.dense.schedule.warmupSteps=1000000000"]
    succeed(job, tmp_path / "clipped", overrides=clipped)
    assert max(moved(tmp_path / "clipped", before)) < 1e-6
    succeed(job, tmp_path / "norm", overrides=[f"{optimizers}.dense.clipNorm=1e-9"])
    tables, dense = moved(tmp_path / "norm", before)
    assert tables > 1e-3 and dense < 1e-6


def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_and_rows(tmp_path):
    sgd = {"type": "SGD", "learningRate": 1e30}
    job = dlrm_job(
        tmp_path,
        training={"batchSize": 4, "checkpoint": {"everySteps": 1, "keep": 100}, "optimizers": {"dense": sgd}},
    )
    ended = train(job, tmp_path / "out", watch=look_on)
    assert ended.codes == [4, 4]
    found = re.match(
        r"the loss is not finite at step (\d+) of 52, rank (\d): rows \[([\d, ]+)\]\.\.\. of (\S+);", ended.reasons[0]
    )
    assert found, ended.reasons
    step = int(found[1])
    _, rows = batches_of(ended.printed[int(found[2])])[step - 1]
    assert [int(row) for row in found[3].split(",")] == rows[:4]
    assert found[4] == str(tmp_path / "train")
    assert "lower the learning rates, or clip gradients" in ended.reasons[0]
    assert ended.reasons[0].count("\n") == 0
    saved = sorted(marker.parent.name for marker in (tmp_path / "out").glob("checkpoints/*/complete.json"))
    assert saved == [f"step-{number:010d}" for number in range(1, step)]
    assert not (tmp_path / "out/metrics.json").exists() and not (tmp_path / "out/bundle").exists()


def spoiled(column, row, value):
    columns = rows_of()
    columns[column][row] = value
    return columns


BAD_VALUES = [
    ("user_id", 150, 77, r"row 150: feature user_id has id 77; must be 0 to 49 \(cardinality 50\)"),
    ("item_id", 20, -5, r"row 20: feature item_id has id -5; must be 0 to 39"),
    ("item_id", 20, 1 << 40, rf"row 20: feature item_id has id {1 << 40}; must be 0 to {ITEMS - 1}"),
    ("price", 99, np.nan, "row 99: price is nan; must be a finite number"),
    ("age", 202, -np.inf, "row 202: age is -inf; must be a finite number"),
    ("label", 7, 2.0, r"row 7: label is 2\.0; must be 0 or 1 \(task Binary\)"),
]


@pytest.mark.parametrize(("column", "row", "value", "message"), BAD_VALUES)
def test_a_wrong_value_in_the_shards_is_named(tmp_path, column, row, value, message):
    write_shards(tmp_path / "train", spoiled(column, row, value))
    assert_refused(tmp_path, rf"{tmp_path}/train: {message}")


def test_a_wrong_id_in_the_validation_shards_is_named(tmp_path):
    columns = spoiled("user_id", 150, 77)
    write_shards(tmp_path / "validation", columns)
    assert_refused(tmp_path, rf"{tmp_path}/validation: row 150: feature user_id has id 77")


def test_an_evaluation_set_without_users_is_named(tmp_path):
    columns = rows_of()
    columns["label"] = np.zeros_like(columns["label"])  # no row is a user's relevant item
    write_shards(tmp_path / "validation", columns)
    job = two_tower_job(tmp_path, labels=[{"name": "label", "task": "Binary"}])
    assert_refused(tmp_path, rf"{tmp_path}/validation: has no users to evaluate on", job)


def damage_shard(folder, damage):
    shard = sorted(folder.glob("*.mds"))[1]
    shard.write_bytes(damage(shard.read_bytes()))
    return shard


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[: len(data) // 2], r"has \d+ bytes, the index says \d+"),
        (lambda data: data[:-8] + bytes(8), "corrupt: its sha1 is"),
    ],
    ids=["truncated", "corrupted"],
)
def test_a_damaged_shard_is_named(tmp_path, damage, message):
    job = dlrm_job(tmp_path)
    shard = damage_shard(tmp_path / "train", damage)
    assert_refused(tmp_path, rf"{shard}: {message}", job)


def test_a_column_that_the_shards_do_not_have_is_named(tmp_path):
    columns = rows_of()
    del columns["age"]
    write_shards(tmp_path / "train", columns)
    assert_refused(tmp_path, rf"{tmp_path}/train: has no column 'age', which the job names; its columns are ")


def test_a_store_that_cannot_be_reached_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    job = dlrm_job(
        tmp_path, data={"train": {"uri": "s3://nowhere/train"}, "storage": {"endpointUrl": "http://127.0.0.1:9"}}
    )
    assert_refused(tmp_path, r".*s3://nowhere/train.*http://127\.0\.0\.1:9", job)


def test_an_optimizer_without_a_kernel_for_the_cpu_is_refused(tmp_path):
    job = dlrm_job(tmp_path, training={"optimizers": {"embedding": {"type": "Adam"}}})
    assert_refused(tmp_path, r"spec\.training\.optimizers\.embedding\.type: Adam runs on GPUs only", job)


def assert_refused(folder, message, job=None):
    """The run ends with exit code 2 and one line on every rank, and leaves no result."""
    ended = train(job or dlrm_job(folder), folder / "out")
    assert 2 in ended.codes, ended
    reason = next(reason for code, reason in zip(ended.codes, ended.reasons, strict=True) if code == 2)
    assert re.match(message, reason), reason
    assert "\n" not in reason and "Traceback" not in reason
    for left in ("metrics.json", "result.json", "bundle"):
        assert not (folder / "out" / left).exists()


def test_the_dense_copies_of_the_ranks_are_the_same(tmp_path_factory):
    _, output, _ = ended_run(tmp_path_factory, dlrm_job)
    one, other = (torch.load(output.parent / f"predictions-{rank}.pt", weights_only=True) for rank in range(2))
    assert torch.equal(one["label"], other["label"])
