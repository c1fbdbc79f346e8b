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
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from rectrain.api.job import RecTrainingJobSpec
from rectrain_jobs.data.batch import BatchBuilder
from rectrain_jobs.models.candidates import Candidates, gather_candidates
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


def distribute(spec, constraints):
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


def only(sharding):
    return {t: ParameterConstraints(sharding_types=[sharding], min_partition=4) for t in ("user_id", "item_id")}


def local_tables(model):
    """By table: the values of the shards on this rank."""
    return {
        name.split(".")[-2]: [shard.tensor for shard in value.local_shards()]
        if hasattr(value, "local_shards")
        else [value]
        for name, value in model.state_dict().items()
        if "embedding_bags" in name
    }


def train_pipelined(pipelined):
    """As `train`, through torchrec's pipeline, which traces the model's forward."""
    spec = two_tower_spec()
    model, optimizer, _ = distribute(spec, only("table_wise"))
    rng = np.random.default_rng(dist.get_rank())
    batches = [batch_of(spec, columns(rng, ROWS), slice(None)) for _ in range(6)]
    if not pipelined:
        return {"losses": [step(model, optimizer, batch) for batch in batches]}
    pipeline = TrainPipelineSparseDist(model, optimizer, CPU, execute_all_batches=True)
    losses, iterator = [], iter(batches)

    def keep(loss, *_):
        losses.append(loss.item())

    model.module.loss.register_forward_hook(lambda _module, _inputs, output: keep(*output))
    for _ in batches:
        pipeline.progress(iterator)
    return {"losses": losses, "pipelined": len(pipeline._pipelined_modules)}


def step(model, optimizer, batch):
    optimizer.zero_grad()
    loss, _ = model(batch)
    loss.backward()
    optimizer.step()
    return loss.item()


def train_global_batch(loss):
    """Three steps on this rank's share of a fixed global batch."""
    spec = two_tower_spec(loss=loss, temperature=0.5)
    model, optimizer, _ = distribute(spec, only("table_wise"))
    rng = np.random.default_rng(3)
    rank, share = dist.get_rank(), 2 * ROWS // dist.get_world_size()
    losses = []
    for _ in range(3):
        losses.append(
            step(model, optimizer, batch_of(spec, columns(rng, 2 * ROWS), slice(rank * share, (rank + 1) * share)))
        )
    return {
        "losses": losses,
        "tables": {name: shards for name, shards in local_tables(model).items() if shards},
        "dense": {name: p.detach() for name, p in model.named_parameters() if "embedding_bags" not in name},
    }


def step_on_gathered_candidates(kind, ranks):
    """The loss and gradients of this rank's rows; `ranks` holds every rank's inputs."""
    own = ranks[dist.get_rank()]
    users, items = own["users"].requires_grad_(), own["items"].requires_grad_()
    candidates = gather_candidates(items, own["ids"], across_ranks=True)
    loss = loss_of(kind, users, candidates, own["positive"])
    loss.backward()
    # What DistributedDataParallel does with the gradients of the layers below.
    return {"loss": loss.detach(), "users": users.grad / len(ranks), "items": items.grad / len(ranks)}


def loss_of(kind, users, candidates, positive):
    if kind == "bpr":
        return bpr_loss(users, candidates, positive)
    return in_batch_softmax_loss(
        users, candidates, positive, log_q=0.3 * candidates.item_ids.clamp_min(0).to(users.dtype)
    )


def train(sharding, tables_only):
    spec = two_tower_spec(embeddingDropout=0.1)
    model, optimizer, plan = distribute(spec, only(sharding))
    assert {p.sharding_type for p in plan.plan["model.embeddings"].values()} == {sharding}
    before = {name: [shard.clone() for shard in shards] for name, shards in local_tables(model).items()}
    losses = []
    rng = np.random.default_rng(dist.get_rank())
    torch.manual_seed(dist.get_rank())
    for _ in range(0 if tables_only else STEPS):
        losses.append(step(model, optimizer, batch_of(spec, columns(rng, ROWS), slice(None))))
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


@pytest.mark.parametrize("kind", ["softmax", "bpr"])
def test_gradients_through_gathered_candidates_are_those_of_one_process(kind):
    generator = torch.Generator().manual_seed(0)
    ranks = [
        {
            "users": torch.randn(6, 4, generator=generator, dtype=torch.float64),
            "items": torch.randn(8, 4, generator=generator, dtype=torch.float64),
            "ids": torch.randint(-1, 6, (8,), generator=generator),
        }
        for _ in range(2)
    ]
    for rank, positive in zip(ranks, ([1, 1, 0, 1, 1, 1], [1, 0, 0, 1, 0, 1]), strict=True):
        rank["positive"] = torch.tensor(positive, dtype=torch.bool) & (rank["ids"][:6] >= 0)
    results = run_on_ranks(step_on_gathered_candidates, 2, kind, ranks)

    users = [rank["users"].clone().requires_grad_() for rank in ranks]
    items = torch.cat([rank["items"] for rank in ranks]).requires_grad_()
    ids = torch.cat([rank["ids"] for rank in ranks])
    losses = [
        loss_of(kind, users[rank], Candidates(items, ids, 8 * rank), ranks[rank]["positive"]) for rank in range(2)
    ]
    torch.stack(losses).mean().backward()
    for rank, result in enumerate(results):
        torch.testing.assert_close(result["loss"], losses[rank].detach())
        torch.testing.assert_close(result["users"], users[rank].grad)
        torch.testing.assert_close(result["items"], items.grad[8 * rank : 8 * rank + 8])


@pytest.mark.parametrize("loss", ["InBatchSoftmax", "BPR"])
def test_two_ranks_train_as_one_with_the_whole_batch(loss):
    (alone,) = run_on_ranks(train_global_batch, 1, loss)
    ranks = run_on_ranks(train_global_batch, 2, loss)
    torch.testing.assert_close(
        torch.tensor([rank["losses"] for rank in ranks]).mean(dim=0),
        torch.tensor(alone["losses"]),
        rtol=1e-5,
        atol=1e-6,
    )
    tables = {name: shards for rank in ranks for name, shards in rank["tables"].items()}
    assert set(tables) == {"user_id", "item_id"}
    for name, shards in tables.items():
        torch.testing.assert_close(shards, alone["tables"][name], rtol=1e-4, atol=1e-5)
    for name, value in ranks[0]["dense"].items():
        torch.testing.assert_close(value, alone["dense"][name], rtol=1e-3, atol=1e-4)


def test_the_train_pipeline_traces_the_model_and_overlaps_its_lookups():
    plain = run_on_ranks(train_pipelined, 2, False)
    pipelined = run_on_ranks(train_pipelined, 2, True)
    for one, other in zip(plain, pipelined, strict=True):
        assert other["pipelined"] == 1
        assert other["losses"] == pytest.approx(one["losses"], rel=1e-5)
