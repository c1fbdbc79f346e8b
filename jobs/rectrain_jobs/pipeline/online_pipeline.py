"""A whole pipeline as one predictor: vectorizer, transformers of vectors, model."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rectrain.api.errors import UserError
from rectrain_jobs.pipeline.frames import record_batches
from rectrain_jobs.pipeline.predictor import FeaturesT, OnlinePredictor
from rectrain_jobs.pipeline.stage import State, register
from rectrain_jobs.pipeline.transformer import FeatureTransformer, column_of
from rectrain_jobs.pipeline.values import ValueRefusedError
from rectrain_jobs.pipeline.vectors import VectorBatch


@register("pipeline")
class OnlinePredictionPipeline(OnlinePredictor[FeaturesT]):
    """A vectorizer, any number of transformers of vectors, and a predictor, fitted, saved and served as one."""

    def __init__(
        self,
        vectorizer: FeatureTransformer[FeaturesT, Any],
        transformers: Sequence[FeatureTransformer[Any, Any]],
        predictor: OnlinePredictor[Any],
    ) -> None:
        """Put the stages together.

        Args:
            vectorizer: From features to a vector, or whatever else the next stage takes.
            transformers: From vector to vector, in order.
            predictor: Predicts from the last vector.
        """
        self.vectorizer = vectorizer
        self.transformers = list(transformers)
        self.predictor = predictor
        self.task = predictor.task
        self.num_scores = predictor.num_scores
        self.inputs = vectorizer.inputs

    def state(self) -> State:
        """Return the stages."""
        numbered = {str(position): transformer for position, transformer in enumerate(self.transformers)}
        return State(stages={"vectorizer": self.vectorizer, **numbered, "predictor": self.predictor})

    @classmethod
    def from_state(cls, state: State, version: int) -> Self:
        """Return the pipeline with its stages in their order."""
        stages: Any = state.stages
        transformers = [stages[str(position)] for position in range(len(stages) - 2)]
        return cls(stages["vectorizer"], transformers, stages["predictor"])

    def score(self, features: FeaturesT) -> Any:
        """Return the score of one row."""
        vector = self.vectorizer.transform_one(features)
        for transformer in self.transformers:
            vector = transformer.transform_one(vector)
        return self.predictor.score(vector)

    def score_batch(self, features: Any) -> npt.NDArray[Any]:
        """Return the scores of many rows.

        Args:
            features: A sequence of features, or what the vectorizer reads from a batch of a data frame.
        """
        return self.predictor.score_batch(self._vectors(features, self.transformers))

    def read(self, batch: pa.RecordBatch) -> Any:
        """Return what the vectorizer reads from a batch of a data frame."""
        return self.vectorizer.read(batch)

    def fit(self, frame: Any, label: Any) -> Self:
        """Learn from a data frame: each stage from what those before it make of the rows.

        There is one pass over the data for each stage that learns, and one in which the predictor's vectors are
        gathered in the memory of this process; Spark's executors read the data, this process computes.

        Args:
            frame: A data frame of pandas, Arrow, Polars or Spark.
            label: Name of the column with what is to be predicted.

        Raises:
            UserError: A column is missing, or a label is missing or no number.
            ValueRefusedError: A value is not one that its stage takes.
        """
        self.vectorizer.fit(frame)
        for position, transformer in enumerate(self.transformers):
            if transformer.needs_fit:
                for batch in record_batches(frame, self.inputs):
                    transformer.partial_fit(self._vectors(self.read(batch), self.transformers[:position]))
                transformer.finish_fit()
        vectors, labels = [], []
        columns = None if self.inputs is None else list(dict.fromkeys([*self.inputs, label]))
        for batch in record_batches(frame, columns):
            features = batch if self.inputs is None else batch.select(self.inputs)
            vectors.append(self._vectors(self.read(features), self.transformers))
            labels.append(_labels(batch, label))
        if not sum(map(len, labels)):
            raise UserError("the data frame to fit on has no rows")
        gathered = [one for part in vectors for one in part] if isinstance(vectors[0], list) else None
        self.predictor.fit(gathered or VectorBatch.concatenated(vectors), np.concatenate(labels))
        return self

    def _vectors(self, features: Any, transformers: Sequence[FeatureTransformer[Any, Any]]) -> Any:
        """Return what the vectorizer and some transformers make of many rows."""
        if isinstance(features, Sequence):
            vectors: Any = _each(self.vectorizer, features)
        else:
            vectors = self.vectorizer.transform_batch(features)
        for transformer in transformers:
            vectors = transformer.transform_batch(vectors)
        return vectors


def _each(vectorizer: FeatureTransformer[Any, Any], features: Sequence[Any]) -> list[Any]:
    vectors = []
    for row, one in enumerate(features):
        try:
            vectors.append(vectorizer.transform_one(one))
        except ValueRefusedError as error:
            raise error.at_row(row) from None
    return vectors


def _labels(batch: pa.RecordBatch, name: str) -> npt.NDArray[np.float64]:
    column: Any = column_of(batch, name)
    try:
        labels: npt.NDArray[np.float64] = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise UserError(f"label {name}: has type {column.type}; a label is a number") from None
    if not np.isfinite(labels).all():
        raise UserError(f"label {name}: a row has no finite number; drop rows without a label")
    return labels
