"""The sharding plan of tables that need not be here: whether they fit, where they are, and what would help."""

import itertools
import json

import psutil
import pytest
import torch
import yaml
from click.testing import CliRunner
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator

from rectrain.api import UserError
from rectrain.api.job import RecTrainingJobSpec
from rectrain.api.tables import embedding_tables
from rectrain.api.training import ComputeKernel, ShardingType
from rectrain.cli.main import cli
from rectrain_jobs.models.registry import TrainingTask, build_model
from rectrain_jobs.training import distributed
from rectrain_jobs.training.distributed import Ranks
from rectrain_jobs.training.plan import imagined_topology, make_plan, table_bytes, topology_of

# The ids of Criteo's terabyte click logs, as MLPerf's DLRM caps them.
CRITEO_ROWS = [
    40_000_000, 39_060, 17_295, 7_424, 20_265, 3, 7_122, 1_543, 63, 40_000_000, 3_067_956, 405_282, 10,
    2_209, 11_938, 155, 4, 976, 14, 40_000_000, 40_000_000, 40_000_000, 590_152, 12_973, 108, 36,
]  # fmt: skip


def criteo_spec(**changes):
    features = [{"name": f"dense_{i}", "kind": "Dense"} for i in range(13)]
    features += [{"name": f"cat_{i}", "kind": "Categorical", "cardinality": n} for i, n in enumerate(CRITEO_ROWS)]
    return {
        "model": {"type": "DLRM", "dlrm": {"embeddingDim": 128}},
        "features": features,
        "labels": [{"name": "label", "task": "Binary"}],
        "data": {"train": {"uri": "s3://bucket/criteo"}},
        "training": {"batchSize": 8192, "optimizers": {"embedding": {"type": "RowWiseAdagrad"}}},
        **changes,
    }


@pytest.fixture
def criteo(tmp_path):
    job = {"apiVersion": "rectrain.io/v1alpha1", "kind": "RecTrainingJob", "metadata": {"name": "criteo"}}
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(job | {"spec": criteo_spec()}))
    return str(file)


def plan(*arguments):
    return CliRunner().invoke(cli, ["plan", *arguments], env={"COLUMNS": "200"})


def test_criteo_1tb_fits_eight_gpus_of_80_gib(criteo):
    result = plan(criteo, "--devices", "8", "--hbm", "80Gi", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    rows = sum(CRITEO_ROWS) + 2 * len(CRITEO_ROWS)
    assert sum(report["bytesOfRank"]) == rows * (4 * 128 + 4)
    assert max(memory[0] for memory in report["memory_of_rank"]) < 80 << 30
    for table in report["tables"]:
        assert sum(part["rows"][1] * part["columns"][1] for part in table["shards"]) == table["rows"] * 128
    said = plan(criteo, "--devices", "8", "--hbm", "80Gi").stdout
    assert "Sharding plan for 8 cuda ranks" in said and "cat_19" in said and "40,000,002" in said
    assert "fits: at most" in said and "of a GPU's 80.0 GiB" in said


def test_criteo_1tb_does_not_fit_two_gpus_of_16_gib_and_it_says_what_would_make_it_fit(criteo):
    result = plan(criteo, "--devices", "2", "--hbm", "16Gi")
    assert (result.exit_code, result.stdout) == (2, "")
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and "Traceback" not in result.stderr
    (message,) = errors
    assert "the embedding tables do not fit" in message
    for table in (0, 9, 19, 20, 21):
        assert f"cat_{table} " in message
    assert "(40,000,002 x 128)" in message
    for remedy in ("or more GPUs of 16.0 GiB", "or more on each", "FusedUVMCaching", "a smaller embeddingDim"):
        assert remedy in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--devices", "8"], "--hbm: is required, such as 80Gi"),
        (["--devices", "8", "--hbm", "lots"], "--hbm: "),
        (["--devices", "8", "--hbm", "0"], "--hbm: must be more than no bytes, not '0'"),
        (["--devices", "8", "--hbm", "80Gi", "--nodes", "3"], "--devices 8: must be a multiple of --nodes, 3"),
    ],
)
def test_wrong_arguments_are_named(criteo, arguments, message):
    result = plan(criteo, *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ") and message in result.stderr and result.stderr.count("\n") == 1


def small_plan(**sharding):
    spec = RecTrainingJobSpec.model_validate(
        criteo_spec(
            features=[{"name": f"c{i}", "kind": "Categorical", "cardinality": 1000} for i in range(3)],
            sharding=sharding,
        )
    )
    task = TrainingTask(spec, build_model(spec))
    return spec, make_plan(task, spec, imagined_topology(spec, devices=2, nodes=1, hbm=1 << 30))[1]


def test_the_plan_does_not_depend_on_the_order_in_which_torchrec_lists_the_options(monkeypatch):
    listed = EmbeddingEnumerator._filter_sharding_types
    reports = []
    for order in (sorted, lambda names: sorted(names, reverse=True)):
        monkeypatch.setattr(
            EmbeddingEnumerator,
            "_filter_sharding_types",
            lambda self, *args, order=order, **kwargs: order(listed(self, *args, **kwargs)),
        )
        reports.append(small_plan()[1])
    assert all(one == other for one, other in itertools.pairwise(reports))


def test_constraints_are_kept_and_each_part_is_counted():
    spec, report = small_plan(constraints=[{"table": "c1", "types": ["RowWise"]}])
    table = next(t for t in report.tables if t.name == "c1")
    assert table.sharding == "row_wise" and [s.rows for s in table.shards] == [(0, 501), (501, 501)]
    assert sum(report.bytes_of_rank()) == sum(table_bytes(table, spec) for table in embedding_tables(spec))


@pytest.mark.parametrize("type_", [str(type_) for type_ in ShardingType])
@pytest.mark.parametrize("kernel", [str(kernel) for kernel in ComputeKernel])
def test_types_and_kernels_that_do_not_go_together_are_named(type_, kernel):
    constraint = {"table": "c1", "types": [type_], "kernels": [kernel]}
    if (type_ == "DataParallel") == (kernel == "Dense"):
        _, report = small_plan(constraints=[constraint])
        assert len(report.tables) == 3
    else:
        message = rf"^spec\.sharding\.constraints\[c1\]: none of the types {type_} goes .* {kernel} on cuda"
        with pytest.raises(UserError, match=message):
            small_plan(constraints=[constraint])


@pytest.mark.parametrize(("limit", "gibibytes"), [("2147483648", 2), ("max", None), (None, None)])
def test_the_planner_has_the_memory_that_the_container_leaves(tmp_path, monkeypatch, limit, gibibytes):
    file = tmp_path / "memory.max"
    if limit is not None:
        file.write_text(f"{limit}\n")
    monkeypatch.setattr(distributed, "_CGROUP_LIMITS", (file,))
    ranks = Ranks(0, 4, 0, 2, torch.device("cpu"), control=None)
    spec, _ = small_plan()
    (capacity,) = {device.storage.ddr for device in topology_of(ranks, spec).devices}
    host = psutil.virtual_memory().total if gibibytes is None else gibibytes << 30
    assert capacity == host // ranks.local_world_size
    spec, _ = small_plan(hostMemoryPerRank="64Mi")
    (capacity,) = {device.storage.ddr for device in topology_of(ranks, spec).devices}
    assert capacity == 64 << 20
