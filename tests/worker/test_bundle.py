"""The bundle of a run: says what the trainer says, and says in one line what is wrong with it."""

import json
import shutil

import pytest
import torch
from training_runs import dlrm_job, ended_run, mind_job, predictions_of, two_tower_job

from rectrain.api import UserError
from rectrain_jobs.bundle import load_bundle


@pytest.mark.parametrize("make", [two_tower_job, mind_job, dlrm_job])
def test_the_loaded_model_predicts_what_the_trainer_does(make, tmp_path_factory):
    _, output, _ = ended_run(tmp_path_factory, make)
    bundle = load_bundle(str(output / "bundle"))
    trained = torch.load(output.parent / "predictions-0.pt", weights_only=True)
    for name, values in predictions_of(bundle.model, bundle.spec).items():
        torch.testing.assert_close(values, trained[name], rtol=1e-5, atol=1e-6)
    assert bundle.manifest.metrics == json.loads((output / "metrics.json").read_text())
    assert bundle.manifest.lineage["step"] == 14


@pytest.mark.parametrize("make", [two_tower_job, mind_job, dlrm_job])
def test_every_rank_wrote_the_rows_that_it_held(make, tmp_path_factory):
    _, output, _ = ended_run(tmp_path_factory, make)
    weights = json.loads((output / "bundle/weights.json").read_text())["parameters"]
    tables = json.loads((output / "plan.json").read_text())["tables"]
    for table in tables:
        (name,) = [name for name in weights if name.endswith(f".{table['name']}.weight")]
        wrote = {(part["file"], *part["offsets"], *part["sizes"]) for part in weights[name]["parts"]}
        assert wrote == {
            (
                f"weights/rank-{shard['rank']:05d}.safetensors",
                shard["rows"][0],
                shard["columns"][0],
                shard["rows"][1],
                shard["columns"][1],
            )
            for shard in table["shards"]
        }
    assert {shard["rank"] for table in tables for shard in table["shards"]} == {0, 1}


def change_json(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def drop_a_parameter(content):
    content["parameters"].pop(sorted(content["parameters"])[0])


DAMAGES = {
    "missing": (lambda b: (b / "bundle.json").unlink(), "is no model bundle: it has no bundle.json"),
    "newer": (
        lambda b: change_json(b / "bundle.json", lambda c: c.update(formatVersion=9)),
        r"bundle\.json: has format version 9; this rectrain reads 1",
    ),
    "no JSON": (lambda b: (b / "bundle.json").write_text("{"), r"bundle\.json: is damaged at its beginning"),
    "another spec": (
        lambda b: change_json(b / "bundle.json", lambda c: c["spec"].pop("model")),
        r"bundle\.json: spec is not valid",
    ),
    "no index": (lambda b: (b / "weights.json").unlink(), r"is no model bundle: it has no weights\.json"),
    "a parameter less": (lambda b: change_json(b / "weights.json", drop_a_parameter), "which the model has"),
    "weights missing": (
        lambda b: (b / "weights/rank-00001.safetensors").unlink(),
        r"rank-00001\.safetensors: cannot be read",
    ),
    "weights cut off": (
        lambda b: (b / "weights/rank-00000.safetensors").write_bytes(
            (b / "weights/rank-00000.safetensors").read_bytes()[:-20]
        ),
        r"rank-00000\.safetensors: cannot be read",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_bundle_is_named_in_one_line(damage, tmp_path_factory, tmp_path):
    _, output, _ = ended_run(tmp_path_factory, dlrm_job)
    shutil.copytree(output / "bundle", tmp_path / "bundle")
    spoil, message = DAMAGES[damage]
    spoil(tmp_path / "bundle")
    with pytest.raises(UserError, match=message) as caught:
        load_bundle(str(tmp_path / "bundle"))
    assert "\n" not in str(caught.value) and str(tmp_path / "bundle") in str(caught.value)
