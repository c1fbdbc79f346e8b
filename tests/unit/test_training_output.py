"""The folder of a run: whose it is, and what ended in it."""

import json
import math

import pytest

from rectrain.api import UserError, parse_job
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
    out.write_result({"step": 3})
    assert out.read_result() == {"step": 3}


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--output .*/file/out: cannot be written: Not a directory"):
        output(tmp_path / "file" / "out")
