"""Models under DistributedModelParallel on gloo processes."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from launch import run_on_ranks
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from rectrain.api.job import RecTrainingJobSpec
from rectrain_jobs.data.batch import BatchBuilder
from rectrain_jobs.models.candidates import gather_candidates
from rectrain_jobs.models.registry import TrainingTask, build_model
from rectrain_jobs.models.retrieval_losses import bpr_loss, in_batch_softmax_loss

USERS, ITEMS, ROWS, STEPS = 60, 40, 32, 30
CPU, META = torch.device("cpu"), torch.device("meta")


def two_tower_spec(**section):
    return RecTrainingJobSpec.model_validate(
        {
            "model": {"type": "TwoTower", "twoTower": {"embeddingDim": 8, "hiddenDims": [16, 8], **section}},
            "features": [
                {"name": "user_id", "kind": "Categorical", "side": "User", "cardinality": USERS},
                {"name": "history", "kind": "Sequence", "side": "User", "of": "item_id", "maxLength": 4},
                {"name": "item_id", "kind": "Categorical", "side": "Item", "cardinality": ITEMS},
                {"name": "price", "kind": "Dense", "side": "Item"},
            ],
            "data": {"train": {"uri": "x"}},
            "training": {"seed": 5},
        }
    )


def columns(rng, rows):
    users = rng.integers(0, USERS, rows)
    items = (users * 7 + rng.integers(0, 2, rows)) % ITEMS
    history = np.where(rng.random((rows, 4)) < 0.3, -1, (items[:, None] + np.arange(4)) % ITEMS)
    return {"user_id": users, "item_id": items, "history": history, "price": items / ITEMS}


def batch_of(spec, columns, part):
    rows = len(columns["user_id"][part])
    return BatchBuilder(spec).build({name: column[part] for name, column in columns.items()}, np.ones(rows, bool))


def distribute(spec, constraints=None):
    """The trainer's order: model on meta, fused optimizer, plan, DistributedModelParallel, dense optimizer."""
    task = TrainingTask(spec, build_model(spec, CPU, embedding_device=META))
    task.set_item_counts(torch.ones(ITEMS + 2))
    apply_optimizer_in_backward(RowWiseAdagrad, task.model.embeddings.parameters(), {"lr": 0.1})
    ranks = dist.get_world_size()
    planner = EmbeddingShardingPlanner(
        topology=Topology(world_size=ranks, local_world_size=ranks, compute_device="cpu"), constraints=constraints
    )
    sharders = [EmbeddingBagCollectionSharder()]
    plan = planner.collective_plan(task, sharders, dist.group.WORLD)
    model = DistributedModelParallel(task, device=CPU, plan=plan, sharders=sharders)
    dense = KeyedOptimizerWrapper(
        dict(in_backward_optimizer_filter(model.named_parameters())), lambda p: torch.optim.Adam(p, lr=0.01)
    )
    return model, CombinedOptimizer([model.fused_optimizer, dense]), plan


def local_tables(model):
    """By table: the values of the shards on this rank."""
    return {
        name.split(".")[-2]: [shard.tensor for shard in value.local_shards()]
        if hasattr(value, "local_shards")
        else [value]
        for name, value in model.state_dict().items()
        if "embedding_bags" in name
    }


def train(sharding, tables_only):
    spec = two_tower_spec(embeddingDropout=0.1)
    constraints = {t: ParameterConstraints(sharding_types=[sharding], min_partition=4) for t in ("user_id", "item_id")}
    model, optimizer, plan = distribute(spec, constraints)
    assert {p.sharding_type for p in plan.plan["model.embeddings"].values()} == {sharding}
    before = {name: [shard.clone() for shard in shards] for name, shards in local_tables(model).items()}
    losses = []
    rng = np.random.default_rng(dist.get_rank())
    torch.manual_seed(dist.get_rank())
    for _ in range(0 if tables_only else STEPS):
        optimizer.zero_grad()
        loss, _ = model(batch_of(spec, columns(rng, ROWS), slice(None)))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    dense = {name: value.detach().clone() for name, value in model.named_parameters() if "embedding_bags" not in name}
    return {"before": before, "after": local_tables(model), "losses": losses, "dense": dense}


@pytest.mark.parametrize("sharding", ["table_wise", "column_wise", "data_parallel"])
def test_tables_get_seeded_values_on_every_rank(sharding):
    ranks = run_on_ranks(train, 2, sharding, True)
    shards = {
        table: [shard for rank in ranks for shard in rank["before"].get(table, [])] for table in ("user_id", "item_id")
    }
    for table, rows in (("user_id", USERS + 2), ("item_id", ITEMS + 2)):
        assert sum(shard.numel() for shard in shards[table]) == rows * 8 * (2 if sharding == "data_parallel" else 1)
        for shard in shards[table]:
            assert abs(shard.std().item() * 8**0.5 - 1) < 0.15
            assert not (shard == 0).any()
        if sharding == "column_wise":
            assert not torch.equal(*shards[table])
        else:
            assert all(torch.equal(shard, shards[table][0]) for shard in shards[table])


def test_the_loss_falls_and_two_runs_are_bitwise_equal():
    first, second = (run_on_ranks(train, 2, "table_wise", False) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert one["losses"] == other["losses"]
        assert np.mean(one["losses"][-5:]) < 0.7 * np.mean(one["losses"][:5])
        for table, shards in one["after"].items():
            assert all(torch.equal(*pair) for pair in zip(shards, other["after"][table], strict=True))
            assert not any(torch.equal(*pair) for pair in zip(shards, one["before"][table], strict=True))
        assert all(torch.equal(value, other["dense"][name]) for name, value in one["dense"].items())
    assert all(torch.equal(value, first[1]["dense"][name]) for name, value in first[0]["dense"].items())
