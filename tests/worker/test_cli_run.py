"""`rectrain run` from the outside; the ranks are forked where a new interpreter would only take longer."""

import json

import pytest
from click.testing import CliRunner
from training_runs import dlrm_job, train

from rectrain.cli.main import cli
from rectrain_jobs.training import launch


@pytest.fixture
def run(monkeypatch):
    """`rectrain run` with these arguments; its `started` counts how often it started ranks."""

    def forked(arguments, world_size):
        invoke.started += 1
        options = dict(zip(arguments[::2], arguments[1::2], strict=True))
        ended = train(options["--job"], options["--output"], ranks=world_size)
        worst = max(range(world_size), key=lambda rank: ended.codes[rank])
        return ended.codes[worst], ended.reasons[worst]

    def invoke(*arguments):
        return CliRunner().invoke(cli, ["run", *map(str, arguments)])

    invoke.started = 0
    monkeypatch.setattr(launch, "run_ranks", forked)
    return invoke


def assert_refused(result, *messages):
    assert result.exit_code == 2, result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    assert "Traceback" not in result.output
    for message in messages:
        assert message in errors[0]


def test_a_run_leaves_its_results_shows_them_again_and_refuses_another_job(run, tmp_path):
    job, out = dlrm_job(tmp_path, training={"epochs": 1}), tmp_path / "out"
    assert run(job, "--output", out).exit_code == 0
    for name in ("metrics.json", "plan.json", "bundle/bundle.json"):
        assert (out / name).is_file()
    metrics = json.loads((out / "metrics.json").read_text())

    again = run(job, "--output", out)
    assert again.exit_code == 0 and run.started == 1
    assert "this run has ended after step 7; --restart trains anew" in again.output
    assert f"{metrics['auc']:.5f}" in again.output and f"{out}/bundle" in again.output

    refused = run(job, "--output", out, "--set", "training.batchSize=32")
    assert_refused(refused, str(out), "spec.training.batchSize was 16, and is 32", "--restart")
    assert run.started == 1

    anew = run(job, "--output", out, "--set", "training.batchSize=32", "--restart")
    assert anew.exit_code == 0 and run.started == 2
    assert json.loads((out / "result.json").read_text())["step"] == 4


def test_restart_also_removes_checkpoints_that_are_elsewhere_and_spares_foreign_folders(run, tmp_path):
    job = dlrm_job(tmp_path, training={"maxSteps": 2, "epochs": 1, "checkpoint": {"uri": "checkpoints"}})
    for _ in range(2):
        assert run(job, "--set", "output.uri=out", "--restart").exit_code == 0
        points = [json.loads(line) for line in (tmp_path / "out/points.jsonl").read_text().splitlines()]
        assert [point["step"] for point in points if "loss" in point] == [1, 2]
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "letter.txt").write_text("dear")
    assert_refused(run(job, "--output", foreign, "--restart"), "holds no run of rectrain")
    assert (foreign / "letter.txt").exists()


def test_a_reason_of_a_rank_is_one_error_line_and_a_corrected_job_may_use_the_folder(run, tmp_path):
    job, out = dlrm_job(tmp_path, training={"maxSteps": 1, "epochs": 1}), tmp_path / "out"
    wrong = run(job, "--output", out, "--set", "data.train.uri=nowhere")
    assert_refused(wrong, f"{tmp_path}/nowhere")
    assert run(job, "--output", out).exit_code == 0


def test_bad_input_is_refused_before_any_rank_starts(run, tmp_path):
    job = dlrm_job(tmp_path)
    assert_refused(run(job, "--set", "training.batchSiz=3"), "batchSiz")
    (tmp_path / "file").write_text("")
    assert_refused(run(job, "--output", tmp_path / "file" / "out"), "cannot be written", "Not a directory")
    text = job.read_text()
    job.write_text(text.replace("batchSize", "batchSiz"))
    assert_refused(run(job, "--output", tmp_path / "out"), "spec.training.batchSiz", "did you mean batchSize?")
    job.write_text("\n".join(line for line in text.splitlines() if "validation" not in line))
    assert_refused(run(job, "--output", tmp_path / "out"), "spec.data.validation", "is required")
    assert run.started == 0 and not (tmp_path / "out").exists()
