"""Pipelines: fitted as a whole, the same answers alone, in a batch and in a data frame, saved and loaded as one."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import linear_model

from rectrain.api import UserError
from rectrain_jobs.pipeline import (
    BoostedTrees,
    Bucketizer,
    Cross,
    DictionaryVectorizer,
    FactorizationMachine,
    FeatureTransformer,
    Hashing,
    Log,
    LogisticRegression,
    OneHot,
    OnlinePredictionPipeline,
    OnlinePredictor,
    Sequence,
    SparseVector,
    StandardScaler,
    StringIndexer,
    UnitVariance,
    ValueRefusedError,
    VectorBatch,
    load_stage,
    save_stage,
)
from rectrain_jobs.pipeline.vectors import VECTOR_TYPE

SCHEMA = pa.schema(
    {
        "user": pa.int64(),
        "city": pa.string(),
        "seen": pa.list_(pa.string()),
        "age": pa.float64(),
        "price": pa.float64(),
        "click": pa.int64(),
        "spent": pa.float64(),
    }
)


def rows_of(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows in which clicks come of a pair of city and user, and spending of age."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        user, city, age = int(rng.integers(0, 6)), "abc"[rng.integers(0, 3)], float(rng.normal(40, 10))
        likes = (user + "abc".index(city)) % 2
        rows.append(
            {
                "user": user if rng.random() < 0.95 else None,
                "city": city,
                "seen": [f"i{n}" for n in rng.integers(0, 5, rng.integers(0, 4))],
                "age": age if rng.random() < 0.9 else None,
                "price": float(rng.exponential(20)),
                "click": int(likes ^ (rng.random() < 0.1)),
                "spent": age / 10 + likes,
            }
        )
    return rows


TABLE = pa.Table.from_pylist(rows_of(400), SCHEMA)
ROWS = [
    {"user": 0, "city": "a", "seen": ["i0", "new", "i0"], "age": 0.0, "price": 0.0},
    {"user": None, "city": None, "seen": None, "age": None, "price": None},
    {"user": 99, "city": "new", "seen": ["new"], "age": -1e3, "price": 1e6},
    *rows_of(5, seed=1),
]


def vectorizer() -> DictionaryVectorizer:
    return DictionaryVectorizer(
        [
            StandardScaler("age", fill_missing=40.0),
            Log("price"),
            Bucketizer("price", buckets=4),
            OneHot(StringIndexer("city", 10)),
            OneHot(Hashing("user", 32)),
            OneHot(Sequence("seen", StringIndexer("seen", 10), 3)),
            OneHot(Cross(["city", "user"], 64)),
        ]
    )


PREDICTORS = {
    "logistic regression": (LogisticRegression, "click"),
    "factorization machine": (lambda: FactorizationMachine(4, l2=1e-2), "click"),
    "factorization machine of values": (lambda: FactorizationMachine(4, "Regression", l2=1e-2), "spent"),
    "boosted trees": (lambda: BoostedTrees(trees=20), "click"),
    "boosted trees of values": (lambda: BoostedTrees("Regression", trees=20), "spent"),
}
_fitted: dict[str, OnlinePredictionPipeline[Any]] = {}


def fitted(name: str) -> OnlinePredictionPipeline[Any]:
    if name not in _fitted:
        make, label = PREDICTORS[name]
        _fitted[name] = OnlinePredictionPipeline(vectorizer(), [UnitVariance()], make()).fit(TABLE, label)
    return _fitted[name]


@pytest.mark.parametrize("name", PREDICTORS)
def test_a_whole_pipeline_is_fitted_saved_loaded_and_answers_everywhere_the_same(name, tmp_path):
    pipeline = fitted(name)
    pipeline.save(tmp_path / "folder")
    loaded = OnlinePredictor.load(tmp_path / "folder")
    assert {path.suffix for path in (tmp_path / "folder").rglob("*") if path.is_file()} == {
        ".json",
        ".safetensors",
        ".parquet",
    }
    alone = [pipeline.predict(row) for row in ROWS]
    assert [loaded.predict(row) for row in ROWS] == alone
    np.testing.assert_allclose(loaded.predict_batch(ROWS), alone, rtol=1e-9, atol=1e-12)
    raw = [loaded.predict_raw(row) for row in ROWS]
    frame = polars.from_arrow(pa.Table.from_pylist(ROWS, SCHEMA))
    offline = loaded.transform(frame)
    np.testing.assert_allclose(offline["prediction"].to_list(), alone, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(offline["raw_score"].to_list(), [one.score for one in raw], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(offline["predicted_label"].to_list(), [one.label for one in raw], rtol=1e-9)


@pytest.mark.parametrize("name", PREDICTORS)
def test_it_learns_what_the_data_says(name):
    table = pa.Table.from_pylist(rows_of(300, seed=2), SCHEMA)
    transformed = fitted(name).transform(table)
    if PREDICTORS[name][1] == "click":
        right = np.array(transformed["predicted_label"]) == np.array(table["click"])
        assert right.mean() > 0.8  # half would be chance; a tenth of the clicks is noise
    else:
        known = np.array(table["age"].is_valid())
        spent = np.array(table["spent"])[known]
        errors = np.array(transformed["prediction"])[known] - spent
        assert np.abs(errors).mean() < 0.5 * np.abs(spent - spent.mean()).mean()


def test_logistic_regression_is_scikit_learns():
    vectors = vectorizer().fit(TABLE).transform_batch(TABLE.to_batches()[0])
    labels = np.array(TABLE["click"], np.float64)
    ours = LogisticRegression(l2=0.01, iterations=2000).fit(vectors, labels)
    theirs = linear_model.LogisticRegression(C=1 / (0.01 * len(labels)), max_iter=2000, tol=1e-8)
    theirs.fit(vectors.dense(), labels)
    np.testing.assert_allclose(ours.score_batch(vectors), theirs.decision_function(vectors.dense()), atol=2e-2)


VECTORS = st.lists(
    st.dictionaries(st.integers(0, 7), st.floats(-3, 3), max_size=8).map(
        lambda entries: SparseVector(list(entries), list(entries.values()), 8)
    ),
    max_size=6,
)


@settings(max_examples=60, deadline=None)
@given(vectors=VECTORS)
def test_a_vector_alone_is_the_vector_in_a_batch(vectors, tmp_path_factory):
    rng = np.random.default_rng(0)
    models = [
        (LogisticRegression(weights=rng.normal(size=8), intercept=0.5), 0.0),
        (FactorizationMachine(3, intercept=0.5, weights=rng.normal(size=8), vectors=rng.normal(size=(8, 3))), 1e-12),
    ]
    for model, tolerance in models:
        alone = np.array([model.score(vector) for vector in vectors])
        np.testing.assert_allclose(model.score_batch(vectors), alone, rtol=tolerance, atol=tolerance)
        together, each = model.predict_batch(vectors), [model.predict(vector) for vector in vectors]
        np.testing.assert_allclose(together, np.array(each), rtol=tolerance, atol=tolerance)
    scaling = UnitVariance()
    scaling.partial_fit(VectorBatch.of([SparseVector([0, 3], [1.0, 5.0], 8), SparseVector([0], [1.0], 8)]))
    scaling.finish_fit()
    assert [scaling.transform_one(vector) for vector in vectors] == list(scaling.transform_batch(vectors))
    column = scaling.transform_batch(vectors).to_arrow()
    assert column.type == VECTOR_TYPE
    assert list(VectorBatch.from_arrow(column, 8)) == [scaling.transform_one(vector) for vector in vectors]


@settings(max_examples=40, deadline=None)
@given(vectors=VECTORS)
def test_a_factorization_machine_sums_over_pairs(vectors):
    rng = np.random.default_rng(0)
    weights, factors = rng.normal(size=8), rng.normal(size=(8, 3))
    model = FactorizationMachine(3, intercept=0.5, weights=weights, vectors=factors)
    for vector in vectors:
        entries = list(zip(vector.indices, vector.values, strict=True))
        expected = 0.5 + sum(weights[i] * x for i, x in entries)
        for n, (i, x) in enumerate(entries):
            expected += sum(factors[i] @ factors[j] * x * y for j, y in entries[n + 1 :])
        assert model.score(vector) == pytest.approx(expected, abs=1e-9)


@dataclass
class Visit:
    """Features of a user's own type."""

    minutes: float
    pages: int


class VisitVectorizer(FeatureTransformer[Visit, SparseVector]):
    inputs = ["minutes", "pages"]  # noqa: RUF012

    def transform_func(self, value: Visit) -> SparseVector:
        return SparseVector([0, 1], [value.minutes, float(value.pages)], 2)

    def value_of(self, row: Any) -> Visit:
        return Visit(**row)


class Squared(FeatureTransformer[SparseVector, SparseVector]):
    def transform_func(self, value: SparseVector) -> SparseVector:
        return value._replace(values=[number * number for number in value.values])


def test_a_user_s_own_features_and_transformers():
    rng = np.random.default_rng(0)
    table = pa.table({"minutes": rng.normal(size=200), "pages": rng.integers(0, 5, 200)})
    table = table.append_column("bought", [[float(m * m > 1) for m in table["minutes"].to_pylist()]])
    pipeline = OnlinePredictionPipeline(VisitVectorizer(), [Squared(), UnitVariance()], LogisticRegression(1e-6))
    pipeline.fit(table, "bought")
    assert pipeline.predict(Visit(3.0, 0)) > 0.9 > 0.1 > pipeline.predict(Visit(0.1, 4))
    visits = [Visit(**row) for row in table.select(["minutes", "pages"]).to_pylist()]
    assert pipeline.transform(table)["prediction"].to_pylist() == [pipeline.predict(visit) for visit in visits]
    assert pipeline.predict_batch(visits).tolist() == [pipeline.predict(visit) for visit in visits]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda t: t.drop_columns("click"), "column click: there is no such column"),
        (lambda t: t.slice(0, 0), "the data frame to fit on has no rows"),
        (lambda t: t.set_column(5, "click", pa.array([2.0] * len(t))), r"label 2.0: is not 0 or 1 \(task Binary\)"),
        (lambda t: t.set_column(5, "click", pa.nulls(len(t))), "label click: a row has no finite number"),
        (lambda t: t.set_column(5, "click", pa.array([[1]] * len(t))), "label click: has type list"),
    ],
)
def test_data_that_cannot_be_fitted_is_refused(change, problem):
    with pytest.raises(UserError, match=problem):
        OnlinePredictionPipeline(vectorizer(), [], LogisticRegression()).fit(change(TABLE), "click")


@pytest.mark.parametrize("make", [LogisticRegression, FactorizationMachine, BoostedTrees])
def test_vectors_of_another_width_are_refused(make):
    with pytest.raises(UserError, match=f"{make.__name__}: takes vectors of width 0, not 2; fit it on such"):
        make().predict(SparseVector([0], [1.0], 2))
    with pytest.raises(UserError, match="takes vectors of width 0, not 2"):
        make().predict_batch([SparseVector([0], [1.0], 2)])


def test_a_refused_row_of_a_batch_is_named():
    with pytest.raises(ValueRefusedError, match="age: value 'old' is not a finite number") as caught:
        fitted("logistic regression").predict_batch([{}, {"age": "old"}])
    assert caught.value.row == 1


def test_what_is_no_predictor_is_not_loaded_as_one(tmp_path):
    with pytest.raises(UserError, match=r"is no pipeline and no model bundle: it has no pipeline\.json"):
        OnlinePredictor.load(tmp_path)
    save_stage(Log("age"), tmp_path)
    assert isinstance(load_stage(tmp_path), Log)
    with pytest.raises(UserError, match="holds a Log, which is no predictor; use load_stage"):
        OnlinePredictor.load(tmp_path)
