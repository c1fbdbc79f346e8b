"""Models of sparse vectors: what they share, and logistic regression."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rectrain.api.errors import UserError
from rectrain.api.features import Task
from rectrain_jobs.pipeline.predictor import OnlinePredictor
from rectrain_jobs.pipeline.stage import State, register
from rectrain_jobs.pipeline.transformer import column_of
from rectrain_jobs.pipeline.vectors import SparseVector, VectorBatch

Floats = npt.NDArray[np.float64]


class VectorPredictor(OnlinePredictor[SparseVector]):
    """Predicts from sparse vectors; of a data frame it reads the column `features`, which a vectorizer appends."""

    def read(self, batch: pa.RecordBatch) -> VectorBatch:
        """Return the vectors of a batch of a data frame."""
        return VectorBatch.from_arrow(column_of(batch, "features"), self.width)

    @property
    def inputs(self) -> list[str]:  # type: ignore[override]
        """The column of vectors."""
        return ["features"]

    @property
    @abstractmethod
    def width(self) -> int:
        """Number of slots of the vectors that it takes; 0 before it is fitted."""

    def checked(self, vectors: Any) -> VectorBatch:
        """Return vectors as a batch.

        Raises:
            UserError: They have another width than the model.
        """
        batch = VectorBatch.of(vectors)
        if len(batch) and batch.width != self.width:
            raise self.unfit(batch.width)
        return batch

    def unfit(self, width: int) -> UserError:
        """Return the error for vectors of another width than the model's."""
        return UserError(f"{type(self).__name__}: takes vectors of width {self.width}, not {width}; fit it on such")


@register("logistic_regression")
class LogisticRegression(VectorPredictor):
    """The logit is a weighted sum of the vector.

    Fitted by L-BFGS to the least mean logistic loss plus l2 / 2 times the sum of the squared weights.
    """

    def __init__(
        self, l2: float = 1e-4, iterations: int = 200, weights: Floats | None = None, intercept: float = 0.0
    ) -> None:
        """Describe the model, fitted or not.

        Args:
            l2: Strength of the regularization; the intercept is not regularized.
            iterations: Most iterations of L-BFGS.
            weights: float64 [width].
            intercept: Added to every logit.
        """
        self.l2 = l2
        self.iterations = iterations
        self.intercept = float(intercept)
        self.weights: Floats = np.ascontiguousarray(weights if weights is not None else [], np.float64)
        self._weight_of = memoryview(self.weights.data)  # the fastest to take single numbers from, and no copy

    @classmethod
    def from_spark(cls, model: Any) -> Self:
        """Return the model that Spark MLlib's logistic regression learnt.

        Args:
            model: A pyspark.ml.classification.LogisticRegressionModel of two classes.

        Raises:
            UserError: It has other than two classes.
        """
        if model.numClasses != 2:
            raise UserError(f"the logistic regression of Spark has {model.numClasses} classes; 2 are supported")
        return cls(weights=model.coefficients.toArray(), intercept=model.intercept)

    @property
    def width(self) -> int:
        """Number of slots of the vectors that it takes."""
        return len(self.weights)

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how a process that is sent the model makes it; a view of memory cannot be sent."""
        return type(self), (self.l2, self.iterations, self.weights, self.intercept)

    def state(self) -> State:
        """Return settings and weights."""
        config = {"l2": self.l2, "iterations": self.iterations, "intercept": self.intercept}
        return State(config, {"weights": self.weights})

    def score(self, features: SparseVector) -> float:
        """Return the logit of one vector."""
        weight_of, total = self._weight_of, 0.0
        if features.width != self.width:
            raise self.unfit(features.width)
        for index, value in zip(features.indices, features.values, strict=True):
            total += weight_of[index] * value
        return total + self.intercept

    def score_batch(self, features: Any) -> Floats:
        """Return the logits of many vectors, float64 [rows]."""
        vectors = self.checked(features)
        # bincount adds in order, as score does.
        sums = np.bincount(vectors.rows, self.weights[vectors.indices] * vectors.values, minlength=len(vectors))
        return sums + self.intercept

    def fit(self, features: Any, labels: Floats) -> Self:
        """Learn weights and intercept.

        Args:
            features: Vectors of all rows.
            labels: 0 or 1 for each.

        Raises:
            UserError: A label is neither.
        """
        vectors = VectorBatch.of(features)
        check_labels(self.task, labels)
        matrix = as_matrix(vectors)

        def objective(parameters: Floats) -> tuple[float, Floats]:
            weights, intercept = parameters[:-1], parameters[-1]
            loss, slope = loss_of(self.task, matrix @ weights + intercept, labels)
            gradient = np.append(matrix.T @ slope + self.l2 * weights, slope.sum())
            return loss + self.l2 / 2 * float(weights @ weights), gradient

        fitted = minimized(objective, np.zeros(vectors.width + 1), self.iterations)
        self.weights, self.intercept = np.ascontiguousarray(fitted[:-1]), float(fitted[-1])
        self._weight_of = memoryview(self.weights.data)
        return self


def as_matrix(vectors: VectorBatch) -> Any:
    """Return vectors as a sparse matrix of scipy, [rows, width]."""
    from scipy.sparse import csr_matrix

    return csr_matrix((vectors.values, vectors.indices, vectors.starts), shape=(len(vectors), vectors.width))


def check_labels(task: Task, labels: Floats) -> None:
    """Check that labels are what a task has.

    Raises:
        UserError: One is not.
    """
    if task is Task.BINARY and not np.isin(labels, (0.0, 1.0)).all():
        wrong = labels[~np.isin(labels, (0.0, 1.0))][0]
        raise UserError(f"label {wrong}: is not 0 or 1 (task Binary)")


def loss_of(task: Task, scores: Floats, labels: Floats) -> tuple[float, Floats]:
    """Return the mean loss of scores and its derivative by each score: logistic, or half the squared error."""
    if task is Task.REGRESSION:
        errors = scores - labels
        return float(np.square(errors).mean() / 2), errors / len(labels)
    losses = np.logaddexp(0.0, scores) - labels * scores
    return float(losses.mean()), (np.exp(-np.logaddexp(0.0, -scores)) - labels) / len(labels)


def minimized(objective: Callable[[Floats], tuple[float, Floats]], start: Floats, iterations: int) -> Floats:
    """Return the parameters at which L-BFGS finds an objective least.

    Args:
        objective: Returns its value and gradient.
        start: Where to begin.
        iterations: The most iterations.
    """
    from scipy.optimize import minimize

    found = minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": iterations})
    return found.x  # type: ignore[no-any-return]
