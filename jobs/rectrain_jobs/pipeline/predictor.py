"""Predictors: of one request, of many, and of the rows of a data frame."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rectrain.api.errors import UserError
from rectrain.api.features import Task
from rectrain_jobs.pipeline.frames import DataFrameT, append_columns
from rectrain_jobs.pipeline.saving import MANIFEST, load_stage, save_stage
from rectrain_jobs.pipeline.stage import Stage, stage_class
from rectrain_jobs.storage import ObjectStore, Storage, open_store

FeaturesT = TypeVar("FeaturesT")

BUNDLE_MANIFEST = "bundle.json"
"""By it a folder is a model bundle of the trainer."""


class RawPrediction(NamedTuple):
    """A prediction before it is made a probability.

    Attributes:
        label: 0 or 1, or the number of the class, or for MultiLabel a list of zeros and ones; for Regression the value.
        score: The logit or logits; for Regression the value.
    """

    label: Any
    score: Any


class OnlinePredictor(Stage, Generic[FeaturesT]):
    """Predicts from features; a subclass writes `score`, and `score_batch` where it has a faster way for many.

    Attributes:
        task: What is predicted, and so what a score means: the logit of a probability, one of each class, or a value.
        num_scores: Number of scores that one row has; None where a score is one number.
        inputs: Names of the columns that it reads from a data frame; None for all.
    """

    task: Task = Task.BINARY
    num_scores: int | None = None
    inputs: list[str] | None = None

    @abstractmethod
    def score(self, features: FeaturesT) -> Any:
        """Return the score of one row: a float, or a float array [num_scores].

        Raises:
            ValueRefusedError: A value is not one that the model takes.
        """

    def score_batch(self, features: Any) -> npt.NDArray[Any]:
        """Return the scores of many rows, float [rows] or [rows, num_scores].

        Args:
            features: Many, as a sequence or as `read` gives them.
        """
        return np.array([self.score(one) for one in features])

    def predict(self, features: FeaturesT) -> Any:
        """Return the prediction for one row: a probability, or an array of them; for Regression the value.

        Raises:
            ValueRefusedError: A value is not one that the model takes.
        """
        return _prediction(self.task, self.score(features))

    def predict_raw(self, features: FeaturesT) -> RawPrediction:
        """Return label and score of one row.

        Raises:
            ValueRefusedError: A value is not one that the model takes.
        """
        score = self.score(features)
        label = _label(self.task, np.asarray(score)).tolist()
        return RawPrediction(label, score if self.num_scores is None else score.tolist())

    def predict_batch(self, features: Sequence[FeaturesT]) -> npt.NDArray[Any]:
        """Return the predictions for many rows, float [rows] or [rows, num_scores].

        Raises:
            ValueRefusedError: A value is not one that the model takes; it names the row.
        """
        return _predictions(self.task, self.score_batch(features))

    def transform(self, frame: DataFrameT) -> DataFrameT:
        """Return a data frame (pandas, Arrow, Polars or Spark) with predictions appended.

        The columns: `prediction`, `raw_score` and `predicted_label`.

        Raises:
            UserError: A column is missing, one of these is there already, or a value is not one that the model takes.
        """
        return append_columns(frame, self.inputs, self.output_fields(), self.columns_of)

    def output_fields(self) -> list["pa.Field[Any]"]:
        """Return the names and types of the columns that `transform` appends."""
        score: pa.DataType = pa.float64() if self.num_scores is None else pa.list_(pa.float64())
        label: pa.DataType = pa.float64() if self.task is Task.REGRESSION else pa.int64()
        if self.task is Task.MULTI_LABEL:
            label = pa.list_(label)
        return [
            pa.field("prediction", score),
            pa.field("raw_score", score),
            pa.field("predicted_label", label),
        ]

    def columns_of(self, batch: pa.RecordBatch) -> list[Any]:
        """Return the values of these columns for a batch of a data frame."""
        scores = self.score_batch(self.read(batch)).astype(np.float64)
        return [_predictions(self.task, scores), scores, _label(self.task, scores)]

    def read(self, batch: pa.RecordBatch) -> Any:
        """Return the features that a batch of a data frame holds; by default a mapping for each row."""
        return batch.to_pylist()

    def fit(self, features: Any, labels: npt.NDArray[Any]) -> Any:
        """Learn from the training data.

        Args:
            features: Of all rows, as `score_batch` takes them.
            labels: Of all rows.

        Raises:
            UserError: The predictor is one that was fitted elsewhere.
        """
        raise UserError(f"{type(self).__name__} cannot be fitted here; it comes with what it learnt")

    def save(self, target: ObjectStore | str | Path) -> None:
        """Write a folder that `load` reads.

        Args:
            target: A store, a URI or a local folder.

        Raises:
            UserError: A class of a stage is not registered.
        """
        save_stage(self, target)

    @staticmethod
    def load(uri: str | Path, storage: Storage | None = None, label: str | None = None) -> "OnlinePredictor[Any]":
        """Return the predictor of a folder: one that `save` wrote, or a model bundle of the trainer.

        Args:
            uri: The folder, local or in S3.
            storage: How to reach S3.
            label: Of a bundle with several labels the one to predict.

        Raises:
            UserError: It is neither, or is damaged, or of a newer version, or needs a package that is not installed.
        """
        store = open_store(str(uri), storage)
        if store.exists(MANIFEST):
            found = load_stage(store)
            if not isinstance(found, OnlinePredictor):
                raise UserError(f"{store.uri}: holds a {type(found).__name__}, which is no predictor; use load_stage")
            return found
        if store.exists(BUNDLE_MANIFEST):
            kind: Any = stage_class("bundle", "install rectrain[cpu]")
            return kind.open(str(uri), storage, label)  # type: ignore[no-any-return]
        raise UserError(
            f"{store.uri}: is no pipeline and no model bundle: it has no {MANIFEST} and no {BUNDLE_MANIFEST}"
        )


def _prediction(task: Task, score: Any) -> Any:
    """Return the prediction of one row's score or scores."""
    if task is Task.BINARY:
        # np.exp rounds as it does for a whole array.
        small = float(np.exp(-abs(score)))
        return 1.0 / (1.0 + small) if score >= 0 else small / (1.0 + small)
    return score if task is Task.REGRESSION else _predictions(task, score[np.newaxis])[0]


def _predictions(task: Task, scores: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if task is Task.REGRESSION:
        return scores
    if task is Task.MULTI_CLASS:
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        shares: npt.NDArray[Any] = powers / powers.sum(axis=1, keepdims=True)
        return shares
    small = np.exp(-np.abs(scores))
    return np.where(scores >= 0, 1.0 / (1.0 + small), small / (1.0 + small))


def _label(task: Task, scores: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if task is Task.REGRESSION:
        return scores
    return np.argmax(scores, axis=-1) if task is Task.MULTI_CLASS else (scores > 0).astype(np.int64)
