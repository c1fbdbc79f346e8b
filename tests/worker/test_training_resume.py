"""A run that is cut off, by whatever, continues to what it would have been."""

import json
import shutil
import signal

import pytest
import torch
from training_runs import (
    KILL_ALL_AT_10,
    STANDARD,
    dlrm_job,
    ended_run,
    mind_job,
    points_of,
    succeed,
    train,
    two_tower_job,
    weights_of,
)

from rectrain_jobs.bundle import load_bundle
from rectrain_jobs.storage import Storage


def assert_same_run(output, expected):
    """Losses, evaluations and weights are bitwise equal."""
    assert points_of(output) == points_of(expected)
    assert json.loads((output / "metrics.json").read_text()) == json.loads((expected / "metrics.json").read_text())
    weights, others = weights_of(output), weights_of(expected)
    assert weights.keys() == others.keys()
    for name, value in weights.items():
        assert torch.equal(value, others[name]), name


def steps_with_checkpoint(output):
    return sorted(
        int(marker.parent.name.removeprefix("step-")) for marker in output.glob("checkpoints/*/complete.json")
    )


@pytest.mark.parametrize("make", [two_tower_job, mind_job, dlrm_job])
def test_two_runs_with_the_same_seeds_are_bitwise_equal(make, tmp_path_factory, tmp_path):
    job, expected, _ = ended_run(tmp_path_factory, make)
    succeed(job, tmp_path / "out")
    assert_same_run(tmp_path / "out", expected)


def test_another_seed_makes_another_run(tmp_path_factory, tmp_path):
    job, expected, _ = ended_run(tmp_path_factory, two_tower_job)
    succeed(job, tmp_path / "out", overrides=["training.seed=4", "training.maxSteps=2"])
    assert points_of(tmp_path / "out")[1] != points_of(expected)[1]


@pytest.mark.parametrize("make", [two_tower_job, mind_job, dlrm_job])
def test_a_run_whose_processes_are_killed_within_an_epoch_continues_exactly(make, tmp_path_factory, tmp_path):
    job, expected, _ = ended_run(tmp_path_factory, make)
    output = tmp_path / "out"
    killed = train(job, output, signal_at=KILL_ALL_AT_10)
    assert killed.code == -signal.SIGKILL
    assert steps_with_checkpoint(output) == [5, 8]  # step 5 was evaluated and the best
    assert max(points_of(output)) == 9  # lost, and made again
    resumed = succeed(job, output)
    assert "continuing from the checkpoint of step 8 of 14" in resumed.printed[0]
    assert_same_run(output, expected)


def test_sigterm_to_one_rank_lets_all_save_at_the_next_check_and_exit_143(tmp_path_factory, tmp_path):
    job, expected, _ = ended_run(tmp_path_factory, two_tower_job)
    output = tmp_path / "out"
    stopped = train(job, output, signal_at=(6, int(signal.SIGTERM), 1))
    assert stopped.code == 143
    assert stopped.reasons[0].startswith("stopped by SIGTERM after step 8 of 14; the checkpoint is saved")
    assert steps_with_checkpoint(output) == [5, 8]
    assert not (output / "metrics.json").exists() and not (output / "bundle").exists()
    succeed(job, output)
    assert_same_run(output, expected)


def test_sigterm_between_checkpoints_is_agreed_on_while_training_goes_on(tmp_path_factory, tmp_path):
    job, *_ = ended_run(tmp_path_factory, two_tower_job)
    rarely = ("training.checkpoint.everySteps=100", "evaluation.everySteps=100")
    stopped = train(job, tmp_path / "out", overrides=rarely, signal_at=(3, int(signal.SIGTERM), 1))
    assert stopped.code == 143
    assert stopped.reasons[0].startswith("stopped by SIGTERM after step 10 of 14; the checkpoint is saved")
    assert steps_with_checkpoint(tmp_path / "out") == [10]


@pytest.fixture(scope="module")
def cut_off(tmp_path_factory):
    """A DLRM run on two ranks that was killed; its newest checkpoint is of step 8, one step into the second epoch."""
    job, expected, _ = ended_run(tmp_path_factory, dlrm_job)
    output = tmp_path_factory.mktemp("cut-off") / "out"
    assert train(job, output, signal_at=KILL_ALL_AT_10).code == -signal.SIGKILL
    return job, output, expected


def test_one_rank_with_the_whole_batch_continues_a_run_of_two(cut_off, tmp_path):
    job, begun, expected = cut_off
    shutil.copytree(begun / "checkpoints", tmp_path / "out" / "checkpoints")
    resumed = succeed(job, tmp_path / "out", ranks=1, overrides=["training.batchSize=32"])
    assert "continuing from the checkpoint of step 8 of 14" in resumed.printed[0]
    losses, others = points_of(tmp_path / "out"), points_of(expected)
    assert sorted(losses) == [9, 10, 11, 12, 13, 14]
    for step in range(9, 14):
        assert losses[step] == pytest.approx(others[step], rel=1e-4)
    # Two ranks repeat a row to have as many each, so the last batch is not the same.
    assert losses[14] == pytest.approx(others[14], rel=0.05)
    for name, value in weights_of(tmp_path / "out").items():
        torch.testing.assert_close(value, weights_of(expected)[name], rtol=0, atol=0.02)


def test_a_run_that_continues_on_fewer_ranks_ends_with_its_last_epoch(cut_off, tmp_path):
    job, begun, _ = cut_off
    shutil.copytree(begun / "checkpoints", tmp_path / "out" / "checkpoints")
    resumed = succeed(job, tmp_path / "out", ranks=1, overrides=["workers.replicas=1", "training.batchSize=4"])
    # 32 of the second epoch's 203 rows are done; 171 are 43 batches of one rank.
    assert "continuing from the checkpoint of step 8 of 51" in resumed.printed[0]
    assert "epoch 2/2  step 51/51" in resumed.printed[0]
    assert max(points_of(tmp_path / "out")) == 51
    marker = json.loads((tmp_path / "out/checkpoints/step-0000000051/complete.json").read_text())
    assert (marker["position"]["epoch"], marker["position"]["sample_in_epoch"]) == (2, 0)


def test_a_run_in_object_storage_continues_exactly(bucket, tmp_path_factory, tmp_path):
    _, expected, _ = ended_run(tmp_path_factory, dlrm_job)
    data = {name: {"uri": name} for name in ("train", "validation")}
    job = dlrm_job(tmp_path, **STANDARD, data=data | {"storage": {"endpointUrl": bucket.endpoint_url}})
    output = f"{bucket.uri}/run"
    assert train(job, output, signal_at=KILL_ALL_AT_10).code == -signal.SIGKILL
    resumed = succeed(job, output)
    assert "continuing from the checkpoint of step 8 of 14" in resumed.printed[0]
    bundle = load_bundle(f"{output}/bundle", Storage(endpoint_url=bucket.endpoint_url))
    assert bundle.manifest.metrics == json.loads((expected / "metrics.json").read_text())
    others = weights_of(expected)
    for name, value in bundle.model.state_dict().items():
        assert torch.equal(value, others[name]), name


def test_an_ended_run_trains_no_further(cut_off, tmp_path):
    job, _, expected = cut_off
    shutil.copytree(expected, tmp_path / "out")
    again = succeed(job, tmp_path / "out")
    assert "continuing from the checkpoint of step 14 of 14" in again.printed[0]
    assert_same_run(tmp_path / "out", expected)
