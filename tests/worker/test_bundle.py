"""The bundle of a run: says what the trainer says, and says in one line what is wrong with it."""

import json
import shutil

import pytest
import torch
from training_runs import (
    SMALL_FILE_BYTES,
    dlrm_job,
    ended_run,
    mind_job,
    predictions_of,
    succeed,
    two_tower_job,
    weights_of,
    write_small_files,
)

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
                f"weights/rank-{shard['rank']:05d}-00000.safetensors",
                shard["rows"][0],
                shard["columns"][0],
                shard["rows"][1],
                shard["columns"][1],
            )
            for shard in table["shards"]
        }
    assert {shard["rank"] for table in tables for shard in table["shards"]} == {0, 1}


def test_weights_that_do_not_fit_one_file_are_in_several(tmp_path_factory, tmp_path):
    job, output, _ = ended_run(tmp_path_factory, dlrm_job)
    succeed(job, tmp_path / "out", watch=write_small_files)
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "out/bundle/weights").iterdir()}
    assert {"rank-00000-00002.safetensors", "rank-00001-00002.safetensors"} <= sizes.keys()
    # A row that is longer is a file of its own, and safetensors adds a header of names.
    assert max(sizes.values()) < SMALL_FILE_BYTES + 2000
    whole, cut = weights_of(output), weights_of(tmp_path / "out")
    assert whole.keys() == cut.keys() and all(torch.equal(whole[name], cut[name]) for name in whole)
    before, after = (load_bundle(str(folder / "bundle")) for folder in (output, tmp_path / "out"))
    for name, value in after.model.state_dict().items():
        assert torch.equal(value, before.model.state_dict()[name])


def change_json(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def change_last_byte(file):
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


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
        lambda b: (b / "weights/rank-00001-00000.safetensors").unlink(),
        r"rank-00001-00000\.safetensors: cannot be read",
    ),
    "weights cut off": (
        lambda b: (b / "weights/rank-00000-00000.safetensors").write_bytes(
            (b / "weights/rank-00000-00000.safetensors").read_bytes()[:-20]
        ),
        r"rank-00000-00000\.safetensors: is damaged: its SHA-256 is",
    ),
    "a weight changed": (
        lambda b: change_last_byte(b / "weights/rank-00000-00000.safetensors"),
        r"rank-00000-00000\.safetensors: is damaged: its SHA-256 is",
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
