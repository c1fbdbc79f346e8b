"""Latency of one prediction from a dictionary of 40 features, against MLflow's pyfunc, MLlib and the bare model.

The linear model is a pipeline of vectorizer and logistic regression. Its peers learn from the same rows with the same
shape of stages: scikit-learn's, saved by MLflow and called through pyfunc with a data frame of one row, and MLlib's,
called with a Spark data frame of one row. Our own pipeline behind MLflow's pyfunc is beside them. The DLRM is compared
with its model called on a batch of one row that was prepared before, and with its layers on looked-up embeddings alone.
Beside it are the retrieval models, which score an item for a user with 20 items in the history: a TwoTower and a MIND.
"""

import argparse
import json
import logging
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import Any

import mlflow
import numpy as np
import pandas
import pyarrow
import torch
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression as ScikitLogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder
from sklearn.preprocessing import StandardScaler as ScikitStandardScaler

from rectrain.api.job import RecTrainingJobSpec
from rectrain_jobs.bundle.layout import Manifest
from rectrain_jobs.bundle.online import BundlePredictor
from rectrain_jobs.bundle.reading import Bundle
from rectrain_jobs.data.batch import BatchBuilder
from rectrain_jobs.features import fit
from rectrain_jobs.models.registry import build_model
from rectrain_jobs.pipeline import (
    DictionaryVectorizer,
    LogisticRegression,
    OneHot,
    OnlinePredictionPipeline,
    StandardScaler,
    StringIndexer,
)

NUMBERS = [f"number_{position}" for position in range(13)]
TEXTS = [f"text_{position}" for position in range(27)]
ITEMS = 36_000
RETRIEVAL = {
    "TwoTower": {"type": "TwoTower", "twoTower": {"embeddingDim": 64, "hiddenDims": [128, 64]}},
    "MIND": {"type": "MIND", "mind": {"embeddingDim": 64, "interests": 4, "similarity": "Cosine"}},
}
Row = dict[str, Any]


def main() -> None:
    """Measure, and print the figures with their ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=4000, help="calls of a fast path (default 4000)")
    parser.add_argument("--slow-calls", type=int, default=40, help="calls of a slow path (default 40)")
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    arguments = parser.parse_args()
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    fast, slow = arguments.calls, arguments.slow_calls

    table = rows_of(5000)
    requests = table[:500]
    frame = pandas.DataFrame(table)
    pipeline = linear_pipeline(frame)
    dlrm = dlrm_predictor(frame)
    retrieval = {name: retrieval_predictor(model) for name, model in RETRIEVAL.items()}
    users = [{"item_id": n, "history": [(n * k) % ITEMS for k in range(1, 21)]} for n in range(500)]
    figures = {
        "linear": latency(pipeline.predict, requests, fast),
        "dlrm": latency(dlrm.predict, requests, fast),
        **model_alone(dlrm, requests, fast),
        **{name: latency(predictor.predict, users, fast) for name, predictor in retrieval.items()},
        "mlflow": latency(of_one_row(scikit_by_mlflow(frame)), requests, slow),
        "mlflow_of_ours": latency(of_one_row(ours_by_mlflow(pipeline)), requests, slow),
        "spark": spark_latency(frame, requests, slow),
    }
    show = {name: f"p50 {p50:,.0f} us, p99 {p99:,.0f} us" for name, (p50, p99) in figures.items()}
    ratio = {name: p50 / figures["linear"][0] for name, (p50, _) in figures.items()}
    of_model = figures["dlrm"][0] / figures["dlrm_model"][0]
    print(f"linear model, one dictionary of 40 features: {show['linear']}")
    print(
        f"  scikit-learn by MLflow's pyfunc, a frame of one row: {show['mlflow']}; {ratio['mlflow']:,.0f} times as long"
    )
    print(f"  our pipeline by MLflow's pyfunc: {show['mlflow_of_ours']}; {ratio['mlflow_of_ours']:,.0f} times as long")
    print(f"  MLlib, a Spark frame of one row: {show['spark']}; {ratio['spark']:,.0f} times as long")
    print(f"DLRM, one dictionary of 40 features: {show['dlrm']}")
    print(f"  its model on a prepared batch of one row: {show['dlrm_model']}; ours takes {of_model:.2f} times as long")
    print(f"  its layers on prepared rows, without a batch: {show['dlrm_layers']}")
    for name in RETRIEVAL:
        print(f"{name}, an item for a user with 20 items in the history: {show[name]}")
    if arguments.json:
        machine = {"cpus": os.cpu_count(), "load": os.getloadavg()[0], "python": platform.python_version()}
        print(json.dumps({"microseconds": figures, "dlrm_by_model": of_model, "machine": machine}))


def rows_of(count: int) -> list[Row]:
    """Return rows of 13 numbers, 27 texts and a label that depends on some of them."""
    draw = random.Random(0)
    rows = []
    for _ in range(count):
        row: Row = {name: draw.gauss(0, 1) for name in NUMBERS}
        row |= {name: f"{draw.randrange(200):08x}" for name in TEXTS}
        row["click"] = int(row[NUMBERS[0]] + (int(row[TEXTS[0]], 16) % 2) > draw.gauss(0.5, 1))
        rows.append(row)
    return rows


def linear_pipeline(frame: pandas.DataFrame) -> OnlinePredictionPipeline[Row]:
    """Return our pipeline, fitted."""
    stages = [*(StandardScaler(name) for name in NUMBERS), *(OneHot(StringIndexer(name, 200)) for name in TEXTS)]
    return OnlinePredictionPipeline(DictionaryVectorizer(stages), [], LogisticRegression()).fit(frame, "click")


def scikit_by_mlflow(frame: pandas.DataFrame) -> Any:
    """Return the model of scikit-learn as MLflow's pyfunc gives it back."""
    columns = make_column_transformer(
        (ScikitStandardScaler(), NUMBERS), (OneHotEncoder(handle_unknown="ignore"), TEXTS)
    )
    model = make_pipeline(columns, ScikitLogisticRegression(max_iter=200))
    features = frame[[*NUMBERS, *TEXTS]]
    model.fit(features, frame["click"])
    with tempfile.TemporaryDirectory(prefix="rectrain-benchmark-") as folder:
        signature = mlflow.models.infer_signature(features, model.predict(features))
        mlflow.sklearn.save_model(
            model, folder + "/model", signature=signature, pip_requirements=[], serialization_format="cloudpickle"
        )
        return mlflow.pyfunc.load_model(folder + "/model")


class OfOurs(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Our pipeline behind MLflow's interface."""

    def __init__(self, pipeline: OnlinePredictionPipeline[Row]) -> None:
        """Keep the pipeline."""
        self.pipeline = pipeline

    def predict(self, context: Any, model_input: pandas.DataFrame, params: Any = None) -> Any:
        """Return the predictions for a data frame."""
        return self.pipeline.transform(model_input)["prediction"]


def ours_by_mlflow(pipeline: OnlinePredictionPipeline[Row]) -> Any:
    """Return our pipeline as MLflow's pyfunc gives it back."""
    with tempfile.TemporaryDirectory(prefix="rectrain-benchmark-") as folder:
        mlflow.pyfunc.save_model(folder + "/model", python_model=OfOurs(pipeline), pip_requirements=[])
        return mlflow.pyfunc.load_model(folder + "/model")


def of_one_row(model: Any) -> Callable[[Row], Any]:
    """Return a function of one row, which it makes a data frame as MLflow's server does."""
    return lambda row: model.predict(pandas.DataFrame([{name: row[name] for name in (*NUMBERS, *TEXTS)}]))


def spark_latency(frame: pandas.DataFrame, requests: list[Row], calls: int) -> tuple[float, float]:
    """Return the latency of an MLlib pipeline on Spark data frames of one row."""
    from pyspark.ml import Pipeline
    from pyspark.ml.classification import LogisticRegression as SparkLogisticRegression
    from pyspark.ml.feature import OneHotEncoder as SparkOneHotEncoder
    from pyspark.ml.feature import StringIndexer as SparkStringIndexer
    from pyspark.ml.feature import VectorAssembler
    from pyspark.sql import SparkSession

    os.environ |= {"SPARK_LOCAL_IP": "127.0.0.1", "PYSPARK_PYTHON": sys.executable}
    spark = (
        SparkSession.builder.master("local[2]")
        .config("spark.ui.enabled", False)
        .config("spark.ui.showConsoleProgress", False)
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.sql.shuffle.partitions", 1)
        .config("spark.log.level", "ERROR")
        .getOrCreate()
    )
    try:
        ids, slots = [f"{name}_id" for name in TEXTS], [f"{name}_slots" for name in TEXTS]
        stages = [
            SparkStringIndexer(inputCols=TEXTS, outputCols=ids, handleInvalid="keep"),
            SparkOneHotEncoder(inputCols=ids, outputCols=slots),
            VectorAssembler(inputCols=[*NUMBERS, *slots], outputCol="features"),
            SparkLogisticRegression(labelCol="click", maxIter=20),
        ]
        model = Pipeline(stages=stages).fit(spark.createDataFrame(frame))

        def predict(row: Row) -> Any:
            return model.transform(spark.createDataFrame([row])).select("probability").collect()

        return latency(predict, requests, calls)
    finally:
        spark.stop()


def dlrm_predictor(frame: pandas.DataFrame) -> BundlePredictor:
    """Return a DLRM of the same features, with its initial weights, as a predictor."""
    spec = RecTrainingJobSpec.model_validate(
        {
            "model": {"type": "DLRM", "dlrm": {"embeddingDim": 16, "denseDims": [64, 32], "overDims": [128, 64]}},
            "features": [
                *({"name": name, "kind": "Dense", "transform": "Standard"} for name in NUMBERS),
                *(
                    {"name": name, "kind": "Categorical", "encoding": "Vocabulary", "cardinality": 200}
                    for name in TEXTS
                ),
            ],
            "labels": [{"name": "click", "task": "Binary"}],
            "data": {"train": {"uri": "none"}},
        }
    )
    fitted = fit(spec.features, pyarrow.Table.from_pandas(frame).to_batches())
    return BundlePredictor(
        "memory", Bundle(Manifest(name="dlrm", spec={}), "0", spec, fitted, build_model(spec).eval())
    )


def retrieval_predictor(model: dict[str, Any]) -> BundlePredictor:
    """Return a retrieval model of histories, with its initial weights, as a predictor."""
    spec = RecTrainingJobSpec.model_validate(
        {
            "model": model,
            "features": [
                {"name": "user_id", "kind": "Categorical", "side": "None", "cardinality": 10},
                {"name": "item_id", "kind": "Categorical", "side": "Item", "cardinality": ITEMS},
                {"name": "history", "kind": "Sequence", "side": "User", "of": "item_id", "maxLength": 20},
            ],
            "data": {"train": {"uri": "none"}},
        }
    )
    manifest = Manifest(name=model["type"].lower(), spec={})
    return BundlePredictor("memory", Bundle(manifest, "0", spec, fit(spec.features, []), build_model(spec).eval()))


def model_alone(dlrm: BundlePredictor, requests: list[Row], calls: int) -> dict[str, tuple[float, float]]:
    """Return the latencies of the DLRM's model on prepared batches of one row, and of its layers on prepared rows."""
    rows = [dlrm.features.transform_one(row) for row in requests]
    builder = BatchBuilder(dlrm.bundle.spec.model_copy(update={"labels": []}))
    batches = [
        builder.build({name: np.array([value]) for name, value in row.items()}, np.ones(1, np.bool_)) for row in rows
    ]
    with torch.inference_mode():
        alone = [dlrm.bundle.model.predict(batch)["click"].item() for batch in batches]
        np.testing.assert_allclose([dlrm.predict(row) for row in requests], alone, rtol=1e-5)
        return {
            "dlrm_model": latency(dlrm.bundle.model.predict, batches, calls),
            "dlrm_layers": latency(dlrm.of_row, rows, calls),
        }


def latency(function: Callable[[Any], Any], arguments: Iterable[Any], calls: int) -> tuple[float, float]:
    """Return median and 99th percentile of the time of a call, in microseconds, after a tenth of warming up."""
    given = list(arguments)
    for number in range(max(calls // 10, 5)):
        function(given[number % len(given)])
    times = []
    for number in range(calls):
        argument = given[number % len(given)]
        begin = time.perf_counter()
        function(argument)
        times.append((time.perf_counter() - begin) * 1e6)
    return statistics.median(times), statistics.quantiles(times, n=100)[98]


if __name__ == "__main__":
    main()
