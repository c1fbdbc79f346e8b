"""`rectrain index` and evaluation through it, on the bundle and the index that a run left."""

import hashlib
import json
import shutil
import subprocess
import sys

import pytest
import safetensors.numpy
import torch.distributed as dist
from click.testing import CliRunner
from training_runs import ITEMS, dlrm_job, ended_run, mind_job

from rectrain.cli.main import cli
from rectrain_jobs.bundle import load_bundle


@pytest.fixture
def ended(tmp_path_factory, tmp_path):
    """A run's job and bundle, and a copy of the index that it published, to be changed by the test."""
    job, output, _ = ended_run(tmp_path_factory, mind_job)
    shutil.copytree(job.parent / "index", tmp_path / "index")
    return job, output / "bundle", f"publish.index.uri={tmp_path / 'index'}"


def rectrain(*arguments):
    result = CliRunner().invoke(cli, [*map(str, arguments)])
    if dist.is_initialized():
        dist.destroy_process_group()
    return result


def succeed(*arguments):
    result = rectrain(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def assert_refused(result, message):
    assert result.exit_code == 2, result.output
    assert message in result.stderr and "Traceback" not in result.output


def versions(job, place):
    found = json.loads(succeed("index", "info", job, "--set", place, "--json"))
    return found["served"], [version["name"] for version in found["versions"]], found["count"]


def test_a_run_publishes_the_items_of_its_bundle(ended, tmp_path_factory):
    job, bundle, place = ended
    version = load_bundle(str(bundle)).version
    assert versions(job, place) == (f"000001_{version}", [f"000001_{version}"], ITEMS)
    result = json.loads((bundle.parent / "result.json").read_text())
    assert result["indexVersion"] == f"000001_{version}"
    assert "1.0000 of the exact neighbours" in succeed("index", "verify", job, "--bundle", bundle, "--set", place)


def test_versions_are_published_built_rolled_back_and_dropped(ended):
    job, bundle, place = ended
    (first,) = versions(job, place)[1]
    assert "serving 000002_" in succeed("index", "publish", job, "--bundle", bundle, "--set", place)
    second = versions(job, place)[0]
    succeed("index", "build", job, "--bundle", bundle, "--set", place)
    served, (_, _, third), _ = versions(job, place)
    assert served == second
    assert f"serving {first}" in succeed("index", "rollback", job, "--set", place)
    assert f"serving {third}" in succeed("index", "rollback", job, "--set", place, "--to", third)
    assert_refused(rectrain("index", "drop", job, third, "--set", place), f"version {third} is served")
    succeed("index", "drop", job, first, "--set", place)
    assert versions(job, place) == (third, [second, third], ITEMS)
    assert third in succeed("index", "info", job, "--set", place)
    succeed("index", "publish", job, "--bundle", bundle, "--set", place, "--set", "publish.index.keep=1")
    assert len(versions(job, place)[1]) == 1


def test_items_that_training_never_saw_are_not_published(ended, tmp_path):
    job, trained_bundle, place = ended
    bundle = shutil.copytree(trained_bundle, tmp_path / "bundle")
    counts = safetensors.numpy.load_file(bundle / "item_counts.safetensors")["item_counts"]
    counts[[2, 5]] = 0
    safetensors.numpy.save_file({"item_counts": counts}, bundle / "item_counts.safetensors")
    manifest = json.loads((bundle / "bundle.json").read_text())
    digest = hashlib.sha256((bundle / "item_counts.safetensors").read_bytes()).hexdigest()
    (bundle / "bundle.json").write_text(json.dumps(manifest | {"itemCountsSha256": digest}))
    succeed("index", "publish", job, "--bundle", bundle, "--set", place)
    assert versions(job, place)[2] == ITEMS - 2
    assert "is right" in succeed("index", "verify", job, "--bundle", bundle, "--set", place)


def test_a_damaged_version_is_shown_and_needs_no_torch_to_be_left(ended, tmp_path):
    job, bundle, place = ended
    (first,) = versions(job, place)[1]
    succeed("index", "publish", job, "--bundle", bundle, "--set", place)
    served = versions(job, place)[0]
    (tmp_path / "index" / "versions" / served / "version.json").write_text("{")
    shown = rectrain("index", "info", job, "--set", place)
    assert_refused(shown, "version.json: is damaged")
    assert first in shown.stdout and f"unfinished or damaged, removed by the next publishing: {served}" in shown.stdout
    code = "import sys; from rectrain.cli.main import cli; cli.main(sys.argv[1:], standalone_mode=False)"
    code += "; assert 'torch' not in sys.modules"
    command = [sys.executable, "-c", code, "index", "rollback", job, "--set", place, "--to", first]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == f"serving {first}\n"
    assert versions(job, place)[0] == first


def test_evaluation_through_the_index_tells_what_the_index_loses(ended):
    job, bundle, place = ended
    evaluate = ("evaluate", job, "--bundle", bundle, "--json", "--set", place)
    exactly = json.loads(succeed(*evaluate).splitlines()[-1])
    assert json.loads(succeed(*evaluate, "--index").splitlines()[-1]) == pytest.approx(exactly)
    refused = rectrain(*evaluate, "--index", "--set", "evaluation.metrics=[mrr]")
    assert_refused(refused, "mrr without a cut-off cannot be measured through an index")


def test_an_index_of_another_model_is_refused(ended, tmp_path):
    job, bundle, place = ended
    other = tmp_path / "other"
    shutil.copytree(bundle, other)
    manifest = json.loads((other / "bundle.json").read_text())
    (other / "bundle.json").write_text(json.dumps(manifest | {"name": "other"}))
    for command in (("index", "verify"), ("evaluate",)):
        flags = ["--index"] if command == ("evaluate",) else []
        refused = rectrain(*command, job, "--bundle", other, "--set", place, *flags)
        assert_refused(refused, f"is of model {load_bundle(str(bundle)).version}, the bundle is")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["publish.index="], "spec.publish.index: is required: where the index is"),
        (["publish.index.uri=nowhere"], "has no served version yet; publish one first"),
        (["publish.index={type: Milvus, uri: index}"], "must be http://host:port, https://host:port or a path"),
    ],
)
def test_an_index_that_is_not_there_is_named(ended, changes, message):
    job, bundle, _ = ended
    overrides = [argument for change in changes for argument in ("--set", change)]
    assert_refused(rectrain("index", "verify", job, "--bundle", bundle, *overrides), message)


def test_a_model_without_item_vectors_is_refused(tmp_path_factory, ended):
    job, _, place = ended
    _, output, _ = ended_run(tmp_path_factory, dlrm_job)
    refused = rectrain("index", "publish", job, "--bundle", output / "bundle", "--set", place)
    assert_refused(refused, "a bundle of DLRM has no item vectors; a retrieval model has")
