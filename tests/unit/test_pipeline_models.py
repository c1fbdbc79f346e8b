"""A trained model predicts the same online, for a data frame, and in the trainer's forward."""

import pickle
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from rectrain.api import UserError
from rectrain.api.job import RecTrainingJobSpec
from rectrain_jobs.bundle.layout import Manifest
from rectrain_jobs.bundle.online import BundlePredictor
from rectrain_jobs.bundle.reading import Bundle
from rectrain_jobs.data.batch import BatchBuilder
from rectrain_jobs.features import fit
from rectrain_jobs.models.registry import build_model
from rectrain_jobs.pipeline import ValueRefusedError

LABELS = [
    {"name": "click", "task": "Binary"},
    {"name": "rating", "task": "Regression"},
    {"name": "kind", "task": "MultiClass", "numClasses": 3},
    {"name": "tags", "task": "MultiLabel", "numClasses": 4},
]
MODELS: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "DLRM": ({"type": "DLRM", "dlrm": {"embeddingDim": 4, "denseDims": [6], "overDims": [7]}}, LABELS),
    "DCNv2": ({"type": "DCNv2", "dcnV2": {"embeddingDim": 4, "denseDims": [6], "overDims": [7]}}, LABELS),
    "DeepFM": ({"type": "DeepFM", "deepFm": {"embeddingDim": 4, "denseDims": [6], "overDims": [7]}}, LABELS),
    "TwoTower": ({"type": "TwoTower", "twoTower": {"embeddingDim": 4, "hiddenDims": [6, 5]}}, []),
    "MIND": ({"type": "MIND", "mind": {"embeddingDim": 4, "interests": 3}}, []),
    "MIND with a label": ({"type": "MIND", "mind": {"embeddingDim": 4, "interests": 3}}, LABELS[:1]),
}
SCHEMA = pa.schema(
    {
        "user_id": pa.int64(),
        "item_id": pa.string(),
        "history": pa.list_(pa.string()),
        "city": pa.string(),
        "age": pa.float64(),
        "visits": pa.int64(),
    }
)
TRAINING = [
    {"user_id": n % 5, "item_id": f"{n % 7}", "history": [f"{n % 3}"], "city": f"c{n % 4}", "age": n / 3, "visits": n}
    for n in range(40)
]
ROWS = [
    {"user_id": 0, "item_id": "0", "history": ["0", "1", "0"], "city": "c0", "age": 0.0, "visits": 0},  # id 0
    {"user_id": 4, "item_id": "6", "history": ["5", "new", None, "6", "2"], "city": "c1", "age": -7.5, "visits": 3},
    {"user_id": None, "item_id": None, "history": None, "city": None, "age": None, "visits": None},  # missing
    {"user_id": 99, "item_id": "new", "history": ["new"], "city": "new", "age": 1e6, "visits": -1},  # unknown
    {"user_id": 3, "item_id": "", "history": [], "city": "", "age": 2.0, "visits": 10**9},
]


def bundle_of(model: str) -> Bundle:
    section, labels = MODELS[model]
    unknown = {"unknown": "OutOfVocabulary"}
    features: list[dict[str, Any]] = [
        {"name": "age", "kind": "Dense", "transform": "Standard", "side": "User"},
        {"name": "user_id", "kind": "Categorical", "cardinality": 5, "side": "User", **unknown},
        {"name": "item_id", "kind": "Categorical", "cardinality": 7, "encoding": "Vocabulary", "side": "Item"},
        {"name": "history", "kind": "Sequence", "of": "item_id", "maxLength": 3, "side": "User"},
        {"name": "city", "kind": "Categorical", "cardinality": 3, "encoding": "Hashing", "side": "User"},
        {"name": "visits", "kind": "Dense", "transform": "Log", "side": "User"},
    ]
    if model.startswith("MIND"):
        features[1]["side"] = "None"
    spec = RecTrainingJobSpec.model_validate(
        {"model": section, "features": features, "labels": labels, "data": {"train": {"uri": "x"}}}
    )
    fitted = fit(spec.features, [pa.RecordBatch.from_pylist(TRAINING, SCHEMA)])
    return Bundle(Manifest(name="tiny", spec={}), "version", spec, fitted, build_model(spec).eval())


def forward(bundle: Bundle, label: str) -> np.ndarray:
    """Return what the trainer's forward predicts, from columns as they are in shards."""
    columns = bundle.features.transform_batch(pa.RecordBatch.from_pylist(ROWS, SCHEMA))
    zeros = {"click": 0, "rating": 0, "kind": 0, "tags": [0] * 4}
    columns |= {label.name: np.array([zeros[label.name]] * len(ROWS)) for label in bundle.spec.labels}
    with torch.no_grad():
        batch = BatchBuilder(bundle.spec).build(columns, np.ones(len(ROWS), np.bool_))
        if bundle.spec.labels:
            return bundle.model.predict(batch)[label].numpy()
        return bundle.model.scores(bundle.model(batch)).sigmoid().numpy()


CASES = [(model, label["name"]) for model, (_, labels) in MODELS.items() for label in labels or [{"name": "score"}]]


@pytest.mark.parametrize(("model", "label"), CASES)
def test_online_offline_and_the_trainer_agree(model, label):
    trained = forward(bundle_of(model), label)
    predictor = BundlePredictor("memory", bundle_of(model), label=label if label != "score" else None)
    online = [predictor.predict(row) for row in ROWS]
    np.testing.assert_allclose(np.array(online), trained, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(predictor.predict_batch(ROWS), trained, rtol=1e-5, atol=1e-6)
    offline = predictor.transform(pa.Table.from_pylist(ROWS, SCHEMA))
    np.testing.assert_allclose(np.array(offline["prediction"].to_pylist()), trained, rtol=1e-5, atol=1e-6)
    raw = [predictor.predict_raw(row) for row in ROWS]
    for column, expected in (
        ("raw_score", [one.score for one in raw]),
        ("predicted_label", [one.label for one in raw]),
    ):
        np.testing.assert_allclose(np.array(offline[column].to_pylist()), np.array(expected), rtol=1e-4, atol=1e-6)
    # Absent is missing, and what no feature reads does no harm.
    assert np.array_equal(predictor.predict({"other": 1}), online[2])
    assert predictor.transform(pa.Table.from_pylist([], SCHEMA))["prediction"].to_pylist() == []


def test_the_model_still_answers_as_before_and_its_tables_are_there_once():
    bundle = bundle_of("DLRM")
    before = forward(bundle, "click")
    predictor = BundlePredictor("memory", bundle, label="click")
    np.testing.assert_array_equal(forward(bundle, "click"), before)
    weights = [table.weight for table in bundle.model.embeddings.embedding_bags.values()]
    assert len({weight.untyped_storage().data_ptr() for weight in weights}) == 1
    with torch.no_grad():
        weights[0].zero_()
    assert predictor.predict(ROWS[0]) == pytest.approx(float(forward(bundle, "click")[0]), rel=1e-5)


@pytest.mark.parametrize(
    ("model", "label", "problem"),
    [
        ("DLRM", None, "memory: predicts several labels; name one: click, rating, kind, tags"),
        ("DLRM", "buy", "memory: has no label 'buy'; it has click, rating, kind, tags"),
        ("TwoTower", "click", "memory: has no label 'click'; it has none"),
    ],
)
def test_the_label_to_predict_has_to_be_known(model, label, problem):
    with pytest.raises(UserError, match=problem):
        BundlePredictor("memory", bundle_of(model), label=label)


def test_a_refused_value_is_named_with_its_row():
    predictor = BundlePredictor("memory", bundle_of("DLRM"), label="click")
    with pytest.raises(ValueRefusedError, match="age: value 'old' is not a finite number") as caught:
        predictor.predict_batch([ROWS[0], {"age": "old"}])
    assert caught.value.row == 1
    with pytest.raises(ValueRefusedError, match="history: value 3 is not a list of ids"):
        predictor.predict({"history": 3})


def test_it_travels_by_the_address_of_its_bundle_and_is_not_saved_again(tmp_path):
    predictor = BundlePredictor("s3://models/tiny", bundle_of("DLRM"), label="click")
    assert len(pickle.dumps(predictor)) < 300
    with pytest.raises(UserError, match="s3://models/tiny: is a model bundle already"):
        predictor.save(tmp_path)
