import numpy as np
import pytest
import torch

from rectrain.api.features import Side
from rectrain.api.job import RecTrainingJobSpec
from rectrain_jobs.data.batch import BatchBuilder

RETRIEVAL = RecTrainingJobSpec.model_validate(
    {
        "model": {"type": "TwoTower", "twoTower": {}},
        "features": [
            {"name": "age", "kind": "Dense", "side": "User"},
            {"name": "user_id", "kind": "Categorical", "side": "User", "cardinality": 10},
            {"name": "history", "kind": "Sequence", "side": "User", "of": "item_id", "maxLength": 3},
            {"name": "price", "kind": "Dense", "side": "Item"},
            {"name": "item_id", "kind": "Categorical", "side": "Item", "cardinality": 9},
        ],
        "labels": [{"name": "click", "task": "Binary"}],
        "data": {"train": {"uri": "x"}},
    }
)
COLUMNS = {
    "age": np.array([20.0, 30.0]),
    "user_id": np.array([0, 7], np.int32),
    "history": np.array([[1, -1, 2], [-1, -1, -1]]),
    "price": np.array([0.5, 1.5], np.float32),
    "item_id": np.array([3, 0]),
    "click": np.array([1, 0], np.uint8),
}
ALL_VALID = np.ones(2, bool)


def jagged(batch):
    """By feature: the ids of each row."""
    return {
        name: [values.tolist() for values in part.values().split(part.lengths().tolist())]
        for name, part in batch.sparse.to_dict().items()
    }


def test_a_batch_holds_the_rows_in_the_job_s_order_and_types():
    batch = BatchBuilder(RETRIEVAL).build(COLUMNS, np.array([True, False]))
    assert batch.dense.tolist() == [[20, 0.5], [30, 1.5]]
    assert jagged(batch) == {"user_id": [[0], [7]], "history": [[1, 2], []], "item_id": [[3], [0]]}
    assert batch.sparse.keys() == ["user_id", "history", "item_id"]
    assert batch.labels["click"].tolist() == [1.0, 0.0]
    assert batch.valid.tolist() == [True, False]
    assert batch.item_ids.tolist() == [3, 0]
    assert [t.dtype for t in (batch.dense, batch.sparse.values(), batch.labels["click"], batch.item_ids)] == [
        torch.float32,
        torch.int64,
        torch.float32,
        torch.int64,
    ]


@pytest.mark.parametrize(
    "side, read, expected, item_ids",
    [
        (Side.USER, ["age", "user_id", "history"], {"user_id": [[0], [7]], "history": [[1, 2], []]}, []),
        (Side.ITEM, ["price", "item_id"], {"item_id": [[3], [0]]}, [3, 0]),
    ],
)
def test_a_batch_of_one_side_reads_only_its_columns(side, read, expected, item_ids):
    builder = BatchBuilder(RETRIEVAL, sides=[side])
    assert builder.columns == read
    batch = builder.build({name: COLUMNS[name] for name in read}, ALL_VALID)
    nothing = {name: [[], []] for name in ("user_id", "history", "item_id")}
    assert jagged(batch) == nothing | expected
    assert batch.item_ids.tolist() == item_ids
    assert batch.labels == {}
    assert batch.dense.shape == (2, 2)


def test_drawn_negatives_are_further_rows_with_item_features_only():
    negatives = {"item_id": np.array([5, 6, 7]), "price": np.array([9.0, 8.0, 7.0])}
    batch = BatchBuilder(RETRIEVAL).build(COLUMNS, ALL_VALID, negatives)
    assert batch.num_negatives == 3
    assert jagged(batch) == {
        "user_id": [[0], [7], [], [], []],
        "history": [[1, 2], [], [], [], []],
        "item_id": [[3], [0], [5], [6], [7]],
    }
    assert batch.dense.tolist() == [[20, 0.5], [30, 1.5], [0, 9], [0, 8], [0, 7]]
    assert batch.item_ids.tolist() == [3, 0, 5, 6, 7]
    assert len(batch.valid) == len(batch.labels["click"]) == 2


@pytest.mark.parametrize(
    "task, column, dtype, expected",
    [
        ({"task": "Binary"}, np.array([0, 1], np.int64), torch.float32, [0.0, 1.0]),
        ({"task": "Regression"}, np.array([0.5, -1.0], np.float64), torch.float32, [0.5, -1.0]),
        ({"task": "MultiClass", "numClasses": 3}, np.array([2, 0], np.int32), torch.int64, [2, 0]),
        (
            {"task": "MultiLabel", "numClasses": 2},
            np.array([[1, 0], [1, 1]], np.uint8),
            torch.float32,
            [[1, 0], [1, 1]],
        ),
    ],
    ids=lambda value: value["task"] if isinstance(value, dict) else "",
)
def test_labels_have_the_type_of_their_task_and_their_own_memory(task, column, dtype, expected):
    job = {
        "model": {"type": "DLRM", "dlrm": {}},
        "features": [{"name": "f", "kind": "Categorical", "cardinality": 4}],
        "labels": [{"name": "y", **task}],
        "data": {"train": {"uri": "x"}},
    }
    column.setflags(write=False)
    batch = BatchBuilder(RecTrainingJobSpec.model_validate(job)).build({"f": np.array([0, 3]), "y": column}, ALL_VALID)
    assert batch.labels["y"].dtype is dtype
    assert batch.labels["y"].tolist() == expected
    batch.labels["y"].zero_()
    assert batch.dense.shape == (2, 0)
    assert len(batch.item_ids) == 0


def test_moving_a_batch_keeps_everything():
    batch = BatchBuilder(RETRIEVAL).build(COLUMNS, ALL_VALID, {"item_id": np.array([5])})
    moved = batch.to(torch.device("cpu"), non_blocking=True)
    assert jagged(moved) == jagged(batch)
    assert moved.num_negatives == 1
    for name in ("dense", "valid", "item_ids"):
        assert torch.equal(getattr(moved, name), getattr(batch, name))


def test_a_feature_of_no_side_is_not_read():
    features = [f.model_copy(update={"side": Side.NONE}) if f.name == "user_id" else f for f in RETRIEVAL.features]
    spec = RETRIEVAL.model_copy(update={"features": features})
    builder = BatchBuilder(spec)
    assert builder.columns == ["age", "history", "price", "item_id", "click"]
    batch = builder.build({name: column for name, column in COLUMNS.items() if name != "user_id"}, ALL_VALID)
    assert batch.sparse.keys() == ["history", "item_id"]
    assert BatchBuilder(spec, sides=[Side.USER]).columns == ["age", "history"]
