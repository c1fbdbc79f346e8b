"""Pipelines on Spark's data frames, in a real Spark on this machine, and MLlib's models brought online."""

import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from pyspark.ml.classification import LogisticRegression as SparkLogisticRegression
from pyspark.ml.recommendation import ALS
from pyspark.sql import DataFrame, SparkSession
from training_runs import dlrm_job, ended_run

from rectrain.api import UserError
from rectrain_jobs.pipeline import (
    BoostedTrees,
    Cross,
    DictionaryVectorizer,
    Hashing,
    LogisticRegression,
    MatrixFactorization,
    OneHot,
    OnlinePredictionPipeline,
    OnlinePredictor,
    Sequence,
    StandardScaler,
    StringIndexer,
    UnitVariance,
    ValueRefusedError,
)
from rectrain_jobs.pipeline.spark import mllib_vectors

SCHEMA = "user long, city string, seen array<string>, age double, click long"
ROWS: list[dict[str, Any]] = [
    {"user": 0, "city": "a", "seen": ["i0", "new", "i0"], "age": 0.0},
    {"user": None, "city": None, "seen": None, "age": None},
    {"user": 99, "city": "new", "seen": [], "age": -1e3},
]


@pytest.fixture(scope="module")
def spark() -> Iterator[SparkSession]:
    os.environ |= {"SPARK_LOCAL_IP": "127.0.0.1", "PYSPARK_PYTHON": sys.executable}
    session = (
        SparkSession.builder.master("local[1]")
        # Little data: compiling queries takes longer than running them.
        .config("spark.driver.extraJavaOptions", "-XX:TieredStopAtLevel=1")
        .config("spark.sql.codegen.wholeStage", False)
        .config("spark.sql.codegen.factoryMode", "NO_CODEGEN")
        .config("spark.sql.adaptive.enabled", False)
        .config("spark.default.parallelism", 1)
        .config("spark.ui.enabled", False)
        .config("spark.sql.shuffle.partitions", 1)
        .config("spark.driver.host", "127.0.0.1")
        .getOrCreate()
    )
    yield session
    session.stop()


@pytest.fixture(scope="module")
def frame(spark: SparkSession) -> DataFrame:
    """Rows in which clicks come of the city and the user, in two partitions."""
    rng = np.random.default_rng(0)
    rows = []
    for n in range(200):
        user, city = int(rng.integers(0, 6)), "abc"[rng.integers(0, 3)]
        seen = [f"i{k}" for k in rng.integers(0, 5, n % 3)]
        rows.append((user, city, seen, None if n % 10 == 0 else float(rng.normal()), (user + "abc".index(city)) % 2))
    return spark.createDataFrame(rows, SCHEMA).repartition(2).cache()


def vectorizer() -> DictionaryVectorizer:
    return DictionaryVectorizer(
        [
            StandardScaler("age"),
            OneHot(StringIndexer("city", 10)),
            OneHot(Hashing("user", 16)),
            OneHot(Sequence("seen", StringIndexer("seen", 10), 3)),
            OneHot(Cross(["city", "user"], 32)),
        ]
    )


def requests(spark: SparkSession) -> DataFrame:
    return spark.createDataFrame([(*row.values(), 0) for row in ROWS], SCHEMA).coalesce(1)


@pytest.mark.parametrize("make", [LogisticRegression, lambda: BoostedTrees(trees=5)])
def test_a_pipeline_fitted_on_spark_is_the_one_fitted_here_and_answers_online_as_on_executors(make, spark, frame):
    on_spark = OnlinePredictionPipeline(vectorizer(), [UnitVariance()], make()).fit(frame, "click")
    here = OnlinePredictionPipeline(vectorizer(), [UnitVariance()], make()).fit(frame.toArrow(), "click")
    alone = [here.predict(row) for row in ROWS]
    # The partitions may come in another order, which the order of sums depends on.
    np.testing.assert_allclose([on_spark.predict(row) for row in ROWS], alone, rtol=1e-3, atol=1e-3)
    transformed = here.transform(requests(spark))
    assert transformed.columns == ["user", "city", "seen", "age", "click", "prediction", "raw_score", "predicted_label"]
    collected = transformed.collect()
    assert [row.user for row in collected] == [row["user"] for row in ROWS]
    np.testing.assert_allclose([row.prediction for row in collected], alone, rtol=1e-9, atol=1e-12)
    raw = [here.predict_raw(row) for row in ROWS]
    assert [row.predicted_label for row in collected] == [one.label for one in raw]
    np.testing.assert_allclose([row.raw_score for row in collected], [one.score for one in raw], rtol=1e-9, atol=1e-12)


def test_stages_append_their_columns_on_executors(spark, frame):
    for stage in (vectorizer(), Sequence("seen", StringIndexer("seen", 10), 3), StandardScaler("age")):
        stage.fit(frame)
        collected = stage.transform(requests(spark)).select(stage.output).collect()
        for row, values in zip(collected, ROWS, strict=True):
            made, expected = row[0], stage.transform_one(stage.value_of(values))
            if isinstance(stage, DictionaryVectorizer):
                assert (made["indices"], made["values"]) == (expected.indices, expected.values)
            else:
                assert made == pytest.approx(expected.tolist())


def test_mllib_s_logistic_regression_is_brought_online(spark, frame, tmp_path):
    stages = vectorizer().fit(frame)
    vectors = mllib_vectors(stages.transform(frame), "features", stages.width)
    model = SparkLogisticRegression(labelCol="click", regParam=0.01, maxIter=5).fit(vectors)
    pipeline = OnlinePredictionPipeline(stages, [], LogisticRegression.from_spark(model))
    pipeline.save(tmp_path)
    online = OnlinePredictor.load(tmp_path)
    expected = model.transform(mllib_vectors(stages.transform(requests(spark)), "features", stages.width)).collect()
    probabilities = [row.probability[1] for row in expected]
    np.testing.assert_allclose([online.predict(row) for row in ROWS], probabilities, rtol=1e-9)
    raw = [online.predict_raw(row) for row in ROWS]
    assert [one.label for one in raw] == [int(row.prediction) for row in expected]
    np.testing.assert_allclose([one.score for one in raw], [row.rawPrediction[1] for row in expected], rtol=1e-9)
    three = spark.createDataFrame([(v.features, n % 3) for n, v in enumerate(vectors.take(9))], ["features", "click"])
    with pytest.raises(UserError, match="the logistic regression of Spark has 3 classes; 2 are supported"):
        LogisticRegression.from_spark(SparkLogisticRegression(labelCol="click", maxIter=1).fit(three))


def test_mllib_s_als_is_brought_online(spark, tmp_path):
    ratings = [(user, item, float((user * item) % 5)) for user in range(8) for item in range(6) if (user + item) % 3]
    frame = spark.createDataFrame(ratings, "user int, item int, rating float")
    model = ALS(
        userCol="user", itemCol="item", ratingCol="rating", rank=4, maxIter=1, numUserBlocks=1, numItemBlocks=1, seed=1
    ).fit(frame)
    MatrixFactorization.from_spark(model).save(tmp_path)
    online = OnlinePredictor.load(tmp_path)
    pairs = [{"user": user, "item": item} for user in (0, 3, 7, 99) for item in (0, 5, 77)]
    asked = spark.createDataFrame([tuple(pair.values()) for pair in pairs], "user int, item int")
    expected = {(row.user, row.item): row.prediction for row in model.transform(asked).collect()}
    alone = [online.predict(pair) for pair in pairs]
    np.testing.assert_allclose(alone, [expected[tuple(pair.values())] for pair in pairs], rtol=1e-5, atol=1e-6)
    assert np.isnan(alone).sum() == 3 + 3  # pairs of the unknown user or item; the others are known
    np.testing.assert_array_equal(online.predict_batch(pairs), alone)
    np.testing.assert_array_equal([row.prediction for row in online.transform(asked).collect()], alone)
    assert np.isnan(online.predict({"user": None})) and online.predict({"user": "3", "item": 5.0}) == alone[4]
    with pytest.raises(ValueRefusedError, match="user: value 'x' is not an integer"):
        online.predict({"user": "x", "item": 1})


def test_a_trained_model_is_one_line_to_load_and_answers_on_executors(spark, tmp_path_factory):
    _, output, _ = ended_run(tmp_path_factory, dlrm_job)
    predictor = OnlinePredictor.load(output / "bundle")
    rows = [(0, 0, 0.0, None), (None, None, None, 1.5), (49, 39, 1.0, -2.0)]
    frame = spark.createDataFrame(rows, "user_id long, item_id long, price double, age double")
    frame = frame.coalesce(1)  # one process that imports torch is enough
    alone = [predictor.predict(dict(zip(frame.columns, row, strict=True))) for row in rows]
    assert len(set(alone)) == 3
    collected = [row.prediction for row in predictor.transform(frame).collect()]
    np.testing.assert_allclose(collected, alone, rtol=1e-5)
