"""Factorization machines: linear weights and the inner products of pairs of slots' factors."""

from typing import Any, Self

import numpy as np

from rectrain.api.features import Task
from rectrain_jobs.pipeline.stage import State, register
from rectrain_jobs.pipeline.vector_models import (
    Floats,
    VectorPredictor,
    as_matrix,
    check_labels,
    loss_of,
    minimized,
)
from rectrain_jobs.pipeline.vectors import SparseVector, VectorBatch


@register("factorization_machine")
class FactorizationMachine(VectorPredictor):
    """A weighted sum of the vector, plus for each pair of slots the inner product of their factors.

    Rendle, "Factorization machines", ICDM 2010; pairs are summed in linear time by lemma 3.1. Fitted by L-BFGS to the
    least mean loss plus l2 / 2 times the sum of the squared weights and factors.
    """

    def __init__(
        self,
        factors: int = 8,
        task: Task | str = Task.BINARY,
        l2: float = 1e-4,
        iterations: int = 200,
        seed: int = 0,
        intercept: float = 0.0,
        weights: Floats | None = None,
        vectors: Floats | None = None,
    ) -> None:
        """Describe the model, fitted or not.

        Args:
            factors: Number of factors of a slot.
            task: Binary or Regression.
            l2: Strength of the regularization; the intercept is not regularized.
            iterations: Most iterations of L-BFGS.
            seed: Of the initial factors, which must not be zero.
            intercept: Added to every score.
            weights: float64 [width].
            vectors: float64 [width, factors], the factors.
        """
        self.factors = factors
        self.task = Task(task)
        self.l2 = l2
        self.iterations = iterations
        self.seed = seed
        self.intercept = float(intercept)
        self.weights: Floats = np.asarray(weights if weights is not None else [], np.float64)
        self.vectors: Floats = np.asarray(vectors if vectors is not None else np.empty((0, factors)), np.float64)

    @property
    def width(self) -> int:
        """Number of slots of the vectors that it takes."""
        return len(self.weights)

    def state(self) -> State:
        """Return settings, weights and factors."""
        names = ("factors", "task", "l2", "iterations", "seed", "intercept")
        return State({name: getattr(self, name) for name in names}, {"weights": self.weights, "vectors": self.vectors})

    def score(self, features: SparseVector) -> float:
        """Return the score of one vector."""
        return float(self.score_batch([features])[0])

    def score_batch(self, features: Any) -> Floats:
        """Return the scores of many vectors, float64 [rows]."""
        batch = self.checked(features)
        filled = np.diff(batch.starts) > 0
        scores = np.full(len(batch), self.intercept)
        if filled.any():
            starts, values = batch.starts[:-1][filled], batch.values
            weighted = self.vectors[batch.indices] * values[:, None]
            sums, squares = (np.add.reduceat(part, starts) for part in (weighted, np.square(weighted)))
            linear = np.add.reduceat(self.weights[batch.indices] * values, starts)
            scores[filled] += linear + (np.square(sums) - squares).sum(axis=1) / 2
        return scores

    def fit(self, features: Any, labels: Floats) -> Self:
        """Learn intercept, weights and factors.

        Args:
            features: Vectors of all rows.
            labels: For each 0 or 1, or a value.

        Raises:
            UserError: A label is not what the task has.
        """
        batch = VectorBatch.of(features)
        check_labels(self.task, labels)
        matrix, width = as_matrix(batch), batch.width
        squared = matrix.multiply(matrix).tocsr()

        def objective(parameters: Floats) -> tuple[float, Floats]:
            intercept, weights, vectors = parameters[0], parameters[1 : width + 1], parameters[width + 1 :]
            vectors = vectors.reshape(width, self.factors)
            sums = matrix @ vectors
            pairs = (np.square(sums) - squared @ np.square(vectors)).sum(axis=1) / 2
            loss, slope = loss_of(self.task, intercept + matrix @ weights + pairs, labels)
            by_vectors = matrix.T @ (slope[:, None] * sums) - (squared.T @ slope)[:, None] * vectors
            gradient = np.concatenate([[slope.sum()], matrix.T @ slope, by_vectors.reshape(-1)])
            gradient[1:] += self.l2 * parameters[1:]
            return loss + self.l2 / 2 * float(parameters[1:] @ parameters[1:]), gradient

        start = np.zeros(1 + width * (1 + self.factors))
        start[width + 1 :] = np.random.default_rng(self.seed).normal(0, 0.05, width * self.factors)
        fitted = minimized(objective, start, self.iterations)
        self.intercept, self.weights = float(fitted[0]), fitted[1 : width + 1].copy()
        self.vectors = fitted[width + 1 :].reshape(width, self.factors).copy()
        return self
