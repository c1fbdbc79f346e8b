import pytest
import torch

from rectrain.api.job import RecTrainingJobSpec
from rectrain_jobs.models.embeddings import TableInitializer, build_embeddings

CPU = torch.device("cpu")
ROWS, WIDTH = 400, 16
FEATURES = [
    {"name": "user_id", "kind": "Categorical", "side": "User", "cardinality": 50},
    {"name": "item_id", "kind": "Categorical", "side": "Item", "cardinality": ROWS - 2},
    {"name": "history", "kind": "Sequence", "side": "User", "of": "item_id", "maxLength": 4},
    {"name": "tags", "kind": "Sequence", "side": "Item", "cardinality": 5, "maxLength": 4, "pooling": "Sum"},
    {"name": "price", "kind": "Dense", "side": "Item"},
]


def spec_of(model, seed=0):
    section = {"TwoTower": "twoTower", "DLRM": "dlrm"}[model]
    return RecTrainingJobSpec.model_validate(
        {
            "model": {"type": model, section: {"embeddingDim": WIDTH}},
            "features": FEATURES,
            "labels": [{"name": "y", "task": "Binary"}],
            "data": {"train": {"uri": "x"}},
            "training": {"seed": seed},
        }
    )


def test_each_feature_looks_up_in_its_table():
    tables = build_embeddings(spec_of("TwoTower"), torch.device("meta")).embedding_bag_configs()
    assert [(t.name, t.feature_names, t.num_embeddings, t.embedding_dim, t.pooling.name) for t in tables] == [
        ("user_id", ["user_id"], 52, WIDTH, "SUM"),
        ("item_id", ["item_id", "history"], ROWS, WIDTH, "MEAN"),
        ("tags", ["tags"], 7, WIDTH, "SUM"),
    ]


@pytest.mark.parametrize("model, std", [("TwoTower", WIDTH**-0.5), ("DLRM", ROWS**-0.5 / 3**0.5)])
def test_tables_start_with_the_model_s_distribution_from_the_seed(model, std):
    def weights(seed):
        return build_embeddings(spec_of(model, seed), CPU).embedding_bags["item_id"].weight.detach()

    assert weights(0).std().item() == pytest.approx(std, rel=0.03)
    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


def test_parts_of_a_table_differ_by_rank_and_whole_tables_do_not(monkeypatch):
    initialise = TableInitializer("t", (10, 4), seed=3, normal_std=1.0)

    def on_rank(rank, *shape):
        monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
        monkeypatch.setattr("torch.distributed.get_rank", lambda: rank)
        return initialise(torch.zeros(*shape))

    assert torch.equal(on_rank(0, 10, 4), on_rank(1, 10, 4))
    assert not torch.equal(on_rank(0, 5, 4), on_rank(1, 5, 4))
    assert torch.equal(on_rank(1, 5, 4), on_rank(1, 5, 4))
    assert on_rank(1, 0).shape == (0,)
