"""Shards from any writer are checked against the job before they are trained or evaluated on."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from rectrain.api import UserError, parse_job
from rectrain.api.job import RecTrainingJob
from rectrain_jobs.data.batch import Batch
from rectrain_jobs.data.mds import MDSDataset, Position
from rectrain_jobs.data.writer import ShardWriter
from rectrain_jobs.storage import LocalStore
from rectrain_jobs.training.data import RowChecker, TrainingData, item_columns, open_dataset
from rectrain_jobs.training.distributed import Ranks

NAMES = ["user_id", "item_id", "history", "age", "click", "kind", "tags"]


def job(folder: Path) -> RecTrainingJob:
    features = [
        {"name": "user_id", "kind": "Categorical", "side": "User", "cardinality": 5},
        {"name": "item_id", "kind": "Categorical", "side": "Item", "cardinality": 5},
        {"name": "history", "kind": "Sequence", "side": "User", "of": "item_id", "maxLength": 2},
        {"name": "age", "kind": "Dense", "side": "Item"},
    ]
    labels = [
        {"name": "click", "task": "Binary"},
        {"name": "kind", "task": "MultiClass", "numClasses": 3},
        {"name": "tags", "task": "MultiLabel", "numClasses": 2},
    ]
    spec = {"model": {"type": "DLRM", "dlrm": {}}, "features": features, "labels": labels}
    spec["data"] = {"train": {"uri": str(folder)}, "cache": {"directory": str(folder / "cache")}}
    document = {"apiVersion": "rectrain.io/v1alpha1", "kind": "RecTrainingJob", "metadata": {"name": "rows"}}
    return parse_job(json.dumps({**document, "spec": spec}), source="job")


def columns(**changes: np.ndarray) -> dict[str, np.ndarray]:
    rows = {
        "user_id": np.arange(3),
        "item_id": np.arange(3, dtype=np.int16),
        "history": np.array([[0, -1], [1, 2], [-1, -1]]),
        "age": np.array([0.5, 1, 2]),
        "click": np.array([0, 1, 1], np.uint8),
        "kind": np.array([0, 1, 2], np.int32),
        "tags": np.array([[0, 1], [1, 1], [0, 0]], np.float32),
    }
    return {**rows, **changes}


def write(folder: Path, values: dict[str, np.ndarray]) -> None:
    store = LocalStore(folder)
    writer = ShardWriter(store, {name: (column.dtype, column.shape[1:]) for name, column in values.items()})
    writer.write(values)
    store.write_bytes("index.json", writer.finish())


def check(folder: Path, values: dict[str, np.ndarray]) -> None:
    write(folder, values)
    dataset = open_dataset(job(folder), str(folder), NAMES)
    rows = np.arange(dataset.num_samples)
    RowChecker(job(folder).spec, dataset).check(dataset.gather(rows), rows)


def test_other_types_of_the_same_kind_are_read(tmp_path):
    check(tmp_path, columns())


@pytest.mark.parametrize(
    ("name", "values", "problem"),
    [
        ("user_id", np.array([0.0, 1, 2]), "user_id: has encoding float64; the definition makes it int32"),
        ("user_id", np.zeros((3, 2), np.int64), "user_id: has encoding ndarray:int64:2; the definition makes it int32"),
        (
            "history",
            np.zeros((3, 3), np.int64),
            r"history: has encoding ndarray:int64:3; the definition makes it int32\[2",
        ),
        ("age", np.zeros((3, 1)), "age: has encoding ndarray:float64:1; the definition makes it float32"),
        ("kind", np.zeros(3), "kind: has encoding float64; the definition makes it int64"),
        ("item_id", np.array([0, 1, 7]), r"row 2: feature item_id has id 7; must be 0 to 4 \(cardinality 5\)"),
        ("history", np.array([[0, 1], [-2, 1], [0, 0]]), "row 1: feature history has id -2; must be"),
        ("age", np.array([0, np.inf, 0]), "row 1: age is inf; must be a finite number"),
        ("click", np.array([0, 1, 2]), r"row 2: click is 2; must be 0 or 1 \(task Binary\)"),
        ("kind", np.array([0, 3, 0]), r"row 1: kind is 3; must be a class from 0 to 2 \(task MultiClass\)"),
        ("kind", np.array([0, -1, 0]), "row 1: kind is -1; must be a class from 0 to 2"),
        (
            "tags",
            np.array([[0, 1], [0.5, 1], [0, 0]]),
            r"row 1: tags is \[0\.5 1\. \]; must be a list of 2 zeros and ones",
        ),
    ],
)
def test_what_a_job_does_not_allow_is_named(tmp_path, name, values, problem):
    with pytest.raises(UserError, match=rf"^{tmp_path}: {problem}"):
        check(tmp_path, columns(**{name: values}))


def test_an_item_that_no_job_allows_is_not_another(tmp_path):
    """A negative id would count from the end of the table."""
    write(tmp_path, columns(item_id=np.array([0, -1, 2])))
    with pytest.raises(UserError, match="row 1: feature item_id has id -1"):
        item_columns(job(tmp_path).spec, [open_dataset(job(tmp_path), str(tmp_path), NAMES)])


def test_data_are_told_apart_by_what_they_hold_and_not_by_the_names_of_their_shards(tmp_path):
    digests = []
    for age in (1.0, 1.0, 2.0):
        write(tmp_path, columns(age=np.full(3, age)))  # beside the shards before, under other names
        index = MDSDataset(str(tmp_path)).index
        digests.append((index.digest, index.content_digest))
    (first, same), (second, again), (_, other) = digests
    assert first != second and same == again != other


@pytest.mark.parametrize(("device", "pinned"), [("cpu", 0), ("cuda", 1)])
def test_batches_for_a_gpu_are_in_page_locked_memory(device, pinned, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(Batch, "pin_memory", lambda batch: (calls.append(batch), batch)[1])  # needs a driver
    write(tmp_path, columns())
    data = TrainingData(job(tmp_path), Ranks(0, 1, 0, 1, torch.device(device), control=None))
    batches = [batch.batch for batch in data.epoch(Position(), 0)]
    assert len(batches) == 1 and len(calls) == pinned
