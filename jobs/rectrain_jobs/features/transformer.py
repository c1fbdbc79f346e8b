"""What every feature's transformer offers."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa


class FeatureTransformer(ABC):
    """Turns the raw values of one feature into what the model reads.

    Attributes:
        name: Name of the feature, for messages.
        dtype: Type of what `transform` returns.
        shape: Shape of one row of what `transform` returns; empty for a scalar.
        needs_fit: Whether it learns from the training data before it can transform.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...] = ()
    needs_fit: bool = False

    def partial_fit(self, array: "pa.Array[Any]") -> None:  # noqa: B027  # most have nothing to learn
        """Take in one batch of the training data's raw values."""

    def finish_fit(self) -> None:  # noqa: B027
        """Settle what was learnt, after the last batch."""

    def fit(self, arrays: Iterable["pa.Array[Any]"]) -> None:
        """Learn from the raw values of the whole training data."""
        for array in arrays:
            self.partial_fit(array)
        self.finish_fit()

    @abstractmethod
    def transform(self, array: "pa.Array[Any]") -> npt.NDArray[Any]:
        """Return the values of a batch, `[rows, *shape]` of `dtype`.

        Raises:
            ValueRefusedError: A value is not one that the feature takes; it names the row.
        """

    @abstractmethod
    def transform_one(self, value: Any) -> Any:
        """Return one row of what `transform` would return for this raw value: a numpy scalar, or an array of `shape`.

        Raises:
            ValueRefusedError: The value is not one that the feature takes.
        """

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Return the fitted values as JSON types; vocabularies are kept in files of their own."""
