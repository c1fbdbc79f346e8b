"""The folder of a run: whose it is, and what ended in it."""

import json
import math

import pytest
from click.testing import CliRunner

from rectrain.api import UserError, load_job, parse_job
from rectrain.cli.main import cli
from rectrain_jobs.data.convert import ensure_converted
from rectrain_jobs.resolution import resolve_paths
from rectrain_jobs.storage import Storage
from rectrain_jobs.training.output import RunOutput


def job(**training):
    return parse_job(
        json.dumps(
            {
                "apiVersion": "rectrain.io/v1alpha1",
                "kind": "RecTrainingJob",
                "metadata": {"name": "tiny"},
                "spec": {
                    "model": {"type": "TwoTower", "twoTower": {}},
                    "features": [
                        {"name": "user_id", "kind": "Categorical", "side": "User", "cardinality": 5},
                        {"name": "item_id", "kind": "Categorical", "side": "Item", "cardinality": 5},
                    ],
                    "data": {"train": {"uri": "train"}},
                    "training": training,
                },
            }
        ),
        source="job.yaml",
    )


def output(folder):
    return RunOutput(str(folder), Storage())


def test_a_run_keeps_its_identity_and_another_job_is_refused_with_the_difference(tmp_path):
    uid = output(tmp_path).identity(job(epochs=2))
    output(tmp_path).write_plan({})
    assert output(tmp_path).identity(job(epochs=2)) == uid
    with pytest.raises(UserError, match=r"spec\.training\.epochs was 2, and is 3; use another --output, or --restart"):
        output(tmp_path).identity(job(epochs=3))


def test_a_run_that_never_began_to_train_leaves_its_folder_to_a_corrected_job(tmp_path):
    uid = output(tmp_path).identity(job(epochs=2))
    assert output(tmp_path).identity(job(epochs=3)) != uid


def test_metrics_and_result_are_read_as_written(tmp_path):
    out = output(tmp_path)
    assert out.read_result() is None
    out.write_metrics({"auc": 0.5, "ndcg@20": math.nan})
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"auc": 0.5, "ndcg@20": None}
    found = out.read_metrics()
    assert found["auc"] == 0.5 and math.isnan(found["ndcg@20"])
    result = {"step": 3, "bundle": "out/bundle", "mlflowRunId": None}
    out.write_result(result)
    assert out.read_result() == result


def test_a_run_that_has_ended_shows_its_results_and_that_its_data_have_changed(tmp_path):
    raw, file, out = tmp_path / "train.txt", tmp_path / "job.yaml", output(tmp_path / "out")
    raw.write_text("0 1 2\n")
    source = {"format": "Interactions", "uri": "train.txt"}
    changed = job().model_dump(mode="json")
    changed["spec"]["data"] = {"source": source, "train": {"uri": "shards"}}
    file.write_text(json.dumps(changed))
    resolved = resolve_paths(load_job(file), tmp_path)
    ensure_converted(resolved.spec)
    out.identity(resolved)
    out.write_metrics({"auc": 0.75})
    out.write_result({"step": 3, "bundle": "out/bundle", "mlflowRunId": None})

    def shown():
        result = CliRunner().invoke(cli, ["run", str(file), "--output", str(tmp_path / "out")])
        assert result.exit_code == 0, result.output
        return result.output

    assert "this run has ended after step 3; --restart trains anew" in shown() and "0.75000" in shown()
    assert "changed" not in shown()
    raw.write_text("0 1 2 3\n")
    assert "its data have changed since: the raw data differs from that of the shards" in shown()
    raw.unlink()
    assert "this run has ended after step 3" in shown()


def test_only_what_a_run_wrote_is_removed(tmp_path):
    others = ("job-of-mine.yaml", "data/train.txt", "checkpoints/notes.txt")
    ours = (
        "plan.json",
        "points.partial",
        "bundle/weights/rank-00000-00000.safetensors",
        "checkpoints/step-0000000003/x",
    )
    output(tmp_path).identity(job())
    for name in (*others, *ours):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    output(tmp_path).remove()
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()} == set(others)
    with pytest.raises(UserError, match="holds no run of rectrain; remove it yourself or use another --output"):
        output(tmp_path).remove()


@pytest.mark.parametrize("name", ["job.yaml", "metrics.json", "bundle/bundle.json"])
def test_files_that_no_run_wrote_are_not_replaced(tmp_path, name):
    (tmp_path / "bundle").mkdir()
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=rf"{name}: is not of a run, which would replace it; use another --output"):
        output(tmp_path).identity(job())
    assert (tmp_path / name).read_text() == "mine" and not (tmp_path / "run.json").exists()


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b"{}"])
def test_damaged_files_are_named(tmp_path, content):
    for name, read in {"run.json": lambda out: out.identity(job()), "result.json": RunOutput.read_result}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"{name}: is damaged, or of another program; use another --output"):
            read(output(tmp_path))


def test_a_full_disk_is_named_and_leaves_the_progress_before(tmp_path):
    out = output(tmp_path)
    out.write_progress({"step": 1})
    (tmp_path / "progress.json.partial").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"progress\.json\.partial: no space left on the disk"):
        out.write_progress({"step": 2})
    assert json.loads((tmp_path / "progress.json").read_text()) == {"step": 1}


def test_a_folder_that_another_run_writes_to_is_refused(tmp_path):
    refused = pytest.raises(UserError, match="another `rectrain run` is writing there; wait for its end, or use")
    with output(tmp_path).exclusive(), refused, output(tmp_path).exclusive():
        pass
    with output(tmp_path).exclusive():
        pass


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--output .*/file/out: cannot be written: Not a directory"):
        output(tmp_path / "file" / "out")
