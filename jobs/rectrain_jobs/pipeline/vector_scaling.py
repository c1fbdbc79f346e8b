"""Scaling of whole vectors."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rectrain_jobs.pipeline.stage import State, register
from rectrain_jobs.pipeline.transformer import VectorTransformer, column_of
from rectrain_jobs.pipeline.vectors import SparseVector, VectorBatch


@register("unit_variance")
class UnitVariance(VectorTransformer[SparseVector]):
    """Divides each slot of a vector by its standard deviation over the training data, in which absent is zero.

    Means are not subtracted, so that absent slots stay absent (as Spark's StandardScaler by default).
    """

    needs_fit = True
    output = "scaled_features"

    def __init__(self, deviations: npt.NDArray[np.float64] | None = None) -> None:
        """Describe the scaling, fitted or not.

        Args:
            deviations: float64 [width].
        """
        self.inputs = ["features"]
        self.deviations: npt.NDArray[np.float64] = np.asarray([] if deviations is None else deviations, np.float64)
        self._rows = 0
        self._sums: npt.NDArray[np.float64] = np.zeros(0)
        self._squares: npt.NDArray[np.float64] = np.zeros(0)

    def state(self) -> State:
        """Return the deviations."""
        return State(arrays={"deviations": self.deviations})

    def read(self, batch: pa.RecordBatch) -> VectorBatch:
        """Return the vectors of a batch of a data frame."""
        return VectorBatch.from_arrow(column_of(batch, "features"), len(self.deviations))

    def partial_fit(self, values: Any) -> None:
        """Take in the vectors of a batch."""
        batch = VectorBatch.of(values)
        if not self._rows:
            self._sums, self._squares = np.zeros(batch.width), np.zeros(batch.width)
        self._sums += np.bincount(batch.indices, batch.values, batch.width)
        self._squares += np.bincount(batch.indices, np.square(batch.values), batch.width)
        self._rows += len(batch)

    def finish_fit(self) -> None:
        """Settle the deviations; a constant is left as it is."""
        if self._rows:
            means = self._sums / self._rows
            variances = self._squares / self._rows - np.square(means)
            # Of a constant, rounding may leave a variance that is no more than noise.
            varies = variances > 1e-12 * np.square(means)
            self.deviations = np.sqrt(np.where(varies, variances, 1.0))
        self._rows = 0

    def transform_func(self, value: SparseVector) -> SparseVector:
        """Return one vector scaled."""
        deviations = self.deviations
        values = [number / deviations.item(index) for index, number in zip(value.indices, value.values, strict=True)]
        return SparseVector(value.indices, values, value.width)

    def transform_vectorized(self, values: Any) -> VectorBatch:
        """Return many vectors scaled."""
        batch = VectorBatch.of(values)
        return batch.with_values(batch.values / self.deviations[batch.indices])
