"""MIND under DistributedModelParallel on gloo processes: an unpooled, sharded item table."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from launch import run_on_ranks
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import Topology
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

from rectrain.api.errors import UserError
from rectrain.api.job import RecTrainingJobSpec
from rectrain.api.training import EmbeddingOptimizer
from rectrain_jobs.data.batch import BatchBuilder
from rectrain_jobs.models.registry import TrainingTask, build_model
from rectrain_jobs.training.optimizers import fuse_embedding_optimizer
from rectrain_jobs.training.plan import imagined_topology, make_plan, sharders

ITEMS, ROWS, LENGTH, STEPS = 40, 32, 6, 4
CPU, META = torch.device("cpu"), torch.device("meta")


def mind_spec(sharding):
    width = 256 if sharding == "ColumnWise" else 8  # the planner splits columns by 128 or more
    return RecTrainingJobSpec.model_validate(
        {
            "model": {"type": "MIND", "mind": {"embeddingDim": width, "interests": 3, "hiddenDims": [8]}},
            "features": [
                {"name": "user_id", "kind": "Categorical", "side": "None", "cardinality": 60},
                {"name": "city", "kind": "Categorical", "side": "User", "cardinality": 5},
                {"name": "history", "kind": "Sequence", "side": "User", "of": "item_id", "maxLength": LENGTH},
                {"name": "item_id", "kind": "Categorical", "side": "Item", "cardinality": ITEMS},
            ],
            "data": {"train": {"uri": "x"}},
            "training": {"seed": 5, "optimizers": {"embedding": {"learningRate": 0.1}}},
            "sharding": {"constraints": [{"table": t, "types": [sharding]} for t in ("item_id", "city")]},
        }
    )


def batch_of(spec, rng, part):
    items = rng.integers(0, ITEMS, ROWS)
    history = np.where(rng.random((ROWS, LENGTH)) < 0.4, -1, (items[:, None] + np.arange(LENGTH)) % ITEMS)
    columns = {"city": rng.integers(0, 7, ROWS), "history": history, "item_id": items}
    valid = rng.random(ROWS) < 2  # all: the mean of two ranks' means is that of all rows
    negatives = {"item_id": rng.permutation(ITEMS)[:10]}
    return BatchBuilder(spec).build({n: c[part] for n, c in columns.items()}, valid[part], negatives)


def distribute(spec):
    task = TrainingTask(spec, build_model(spec, CPU, embedding_device=META))
    task.set_item_counts(torch.arange(1, ITEMS + 3))
    fuse_embedding_optimizer(task.model.embeddings.parameters(), spec.training.optimizers.embedding, CPU)
    ranks = dist.get_world_size()
    topology = Topology(world_size=ranks, local_world_size=ranks, compute_device="cpu")
    plan, report = make_plan(task, spec, topology, dist.group.WORLD)
    model = DistributedModelParallel(task, device=CPU, plan=plan, sharders=sharders())
    dense = KeyedOptimizerWrapper(
        dict(in_backward_optimizer_filter(model.named_parameters())), lambda p: torch.optim.SGD(p, lr=0.1)
    )
    return model, CombinedOptimizer([model.fused_optimizer, dense]), report


def train(sharding, pipelined):
    spec = mind_spec(sharding)
    model, optimizer, report = distribute(spec)
    assert {table.sharding for table in report.tables} == {
        {"TableWise": "table_wise", "ColumnWise": "column_wise"}[sharding]
    }
    rng = np.random.default_rng(3)
    rank, share = dist.get_rank(), ROWS // dist.get_world_size()
    batches = iter([batch_of(spec, rng, slice(rank * share, (rank + 1) * share)) for _ in range(STEPS)])
    losses, modules = [], 0
    if pipelined:
        pipeline = TrainPipelineSparseDist(model, optimizer, CPU, execute_all_batches=True)
        model.module.loss.register_forward_hook(lambda _module, _inputs, output: losses.append(output[0].item()))
        for _ in range(STEPS):
            pipeline.progress(batches)
        modules = len(pipeline._pipelined_modules)
    else:
        for batch in batches:
            optimizer.zero_grad()
            loss, _ = model(batch)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    parts = {}
    for name, value in model.state_dict().items():
        shards = value.local_shards() if hasattr(value, "local_shards") else None
        if shards is None:
            parts[name] = [([0] * value.ndim, value.detach())]
        else:
            parts[name] = [(list(shard.metadata.shard_offsets), shard.tensor.detach()) for shard in shards]
    return {"losses": losses, "parts": parts, "modules": modules}


def whole(ranks, shapes):
    """Put the shards of all ranks together."""
    found = {name: torch.full(shape, torch.nan) for name, shape in shapes.items()}
    for rank in ranks:
        for name, shards in rank["parts"].items():
            for offsets, tensor in shards:
                found[name][tuple(slice(o, o + n) for o, n in zip(offsets, tensor.shape, strict=True))] = tensor
    return found


@pytest.fixture(scope="module")
def alone():
    (rank,) = run_on_ranks(train, 1, "TableWise", False)
    return rank


def test_two_ranks_train_as_one_with_the_whole_batch(alone):
    ranks = run_on_ranks(train, 2, "TableWise", False)
    losses = torch.tensor([rank["losses"] for rank in ranks]).mean(dim=0)
    torch.testing.assert_close(losses, torch.tensor(alone["losses"]), rtol=1e-4, atol=1e-5)
    expected = whole([alone], {name: shards[0][1].shape for name, shards in alone["parts"].items()})
    found = whole(ranks, {name: value.shape for name, value in expected.items()})
    assert sum(".item_id." in name for name in found) == 1, "history, targets and negatives share a table"
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)


def test_tables_may_be_split_by_columns():
    ranks = run_on_ranks(train, 2, "ColumnWise", False)
    assert all(np.isfinite(rank["losses"]).all() for rank in ranks)
    for name, shards in ranks[0]["parts"].items():
        others = ranks[1]["parts"][name]
        if ".embeddings." in name:
            assert sorted(offsets for offsets, _ in shards + others) == [[0, 0], [0, 128]]
        else:
            assert torch.equal(shards[0][1], others[0][1]), name


@pytest.mark.parametrize(
    "constraint, message",
    [
        ({"types": ["DataParallel"]}, r"\[item_id\]\.types: DataParallel needs GPUs.*TableWise or ColumnWise must be"),
        ({"kernels": ["Dense"]}, r"\[item_id\]\.kernels: Dense needs GPUs.*Fused must be among them"),
    ],
)
def test_a_kernel_that_pools_unasked_is_refused(constraint, message):
    spec = mind_spec("TableWise")
    constraints = [{"table": "item_id", **constraint}]
    spec = RecTrainingJobSpec.model_validate(spec.model_dump() | {"sharding": {"constraints": constraints}})
    task = TrainingTask(spec, build_model(spec, CPU, embedding_device=META))
    with pytest.raises(UserError, match=message):
        make_plan(task, spec, Topology(world_size=2, compute_device="cpu"))


def test_the_train_pipeline_overlaps_the_unpooled_lookups(alone):
    (rank,) = run_on_ranks(train, 1, "TableWise", True)
    assert rank["modules"] == 1
    assert rank["losses"] == pytest.approx(alone["losses"], rel=1e-5)


def test_the_planner_places_the_item_table_on_gpus_that_are_not_here():
    spec = mind_spec("RowWise")
    task = TrainingTask(spec, build_model(spec, CPU, embedding_device=META))
    fuse_embedding_optimizer(task.model.embeddings.parameters(), EmbeddingOptimizer(), torch.device("cuda"))
    topology = imagined_topology(spec, devices=4, nodes=1, hbm=8 << 30)
    _, report = make_plan(task, spec, topology)
    items = next(table for table in report.tables if table.name == "item_id")
    assert items.sharding == "row_wise"
    assert sum(shard.rows[1] for shard in items.shards) == ITEMS + 2
