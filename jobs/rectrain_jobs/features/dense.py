"""Numbers: filled where missing, checked to be finite, scaled.

The statistics of a transform are those of the training data after missing values are filled.
"""

from abc import abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rectrain.api.features import Feature, Transform
from rectrain_jobs.features.transformer import FeatureTransformer
from rectrain_jobs.features.values import ValueRefusedError, first_failure, plain_array, shown

SAMPLE_SIZE = 1 << 17
"""Values from which quantiles are taken; a uniform sample of larger data, in which a quantile q is off by a rank of
about sqrt(q * (1 - q) / 131072), at most 0.0014, one standard deviation."""
SAMPLE_SEED = 20240229
DEFAULT_BUCKETS = 16


class Dense(FeatureTransformer):
    """A number; subclasses scale it."""

    dtype = np.dtype(np.float32)

    def __init__(self, name: str, fill_missing: float = 0.0) -> None:
        """Describe the feature.

        Args:
            name: Name of the feature.
            fill_missing: The raw value that stands for a missing one.
        """
        self.name = name
        self.fill_missing = fill_missing

    @abstractmethod
    def scale(self, values: Any) -> Any:
        """Scale raw values: a float64 array, or one float64 number; both give the same values."""

    def transform(self, array: "pa.Array[Any]") -> npt.NDArray[Any]:
        """Return the scaled values of a batch, float32 `[rows]`."""
        values = self.raw(array)
        with np.errstate(over="ignore"):
            scaled = np.asarray(self.scale(values), np.float64).astype(np.float32)
        finite = np.isfinite(scaled)
        if not finite.all():
            row = int(np.argmin(finite))
            raise self._too_large(float(values[row])).at_row(row)
        return scaled

    def transform_one(self, value: Any) -> Any:
        """Return the scaled value of one raw value, a float32 scalar."""
        if isinstance(value, str):
            return self._text_one(value)
        number = self.fill_missing if value is None else self._number(value)
        with np.errstate(over="ignore"):
            scaled = np.float32(self.scale(np.float64(number)))
        if not -np.inf < scaled < np.inf:
            raise self._too_large(number)
        return scaled

    def _text_one(self, value: str) -> Any:
        # Arrow and Python do not read quite the same texts as numbers; Arrow decides.
        try:
            return self.transform(pa.array([value]))[0]
        except (ValueRefusedError, UnicodeEncodeError):
            raise ValueRefusedError(self.name, f"value {shown(value)} is not a finite number") from None

    def _number(self, value: Any) -> float:
        if not isinstance(value, int | float | np.number | np.bool_):
            raise ValueRefusedError(self.name, f"value {shown(value)} is not a number")
        try:
            number = float(value)
        except OverflowError:
            raise self._too_large(value) from None
        if not -np.inf < number < np.inf:
            raise self._not_finite(number)
        return number

    def raw(self, array: "pa.Array[Any]") -> npt.NDArray[np.float64]:
        """Return the raw values of a batch, float64 `[rows]`, missing ones filled.

        Raises:
            ValueRefusedError: A value is not a number, NaN or infinite.
        """
        array = plain_array(array)
        if pa.types.is_null(array.type):
            return np.full(len(array), self.fill_missing)
        numbers = self._as_float64(array)
        values = numbers.fill_null(self.fill_missing).to_numpy(zero_copy_only=False)
        finite = np.isfinite(values)
        if not finite.all():
            row = int(np.argmin(finite))
            raise self._not_finite(float(values[row])).at_row(row)
        return values  # type: ignore[no-any-return]

    def _as_float64(self, array: Any) -> Any:
        if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
            array = _without_empty(array)
        elif not (
            pa.types.is_integer(array.type) or pa.types.is_floating(array.type) or pa.types.is_boolean(array.type)
        ):
            raise ValueRefusedError(self.name, f"has type {array.type}; a Dense feature is a number", row=0)
        try:
            return array.cast(pa.float64(), safe=False)
        except pa.ArrowInvalid:
            row = first_failure(len(array), lambda low, high: not _castable(array.slice(low, high - low)))
            value = array[row].as_py()
            raise ValueRefusedError(self.name, f"value {shown(value)} is not a number", row) from None

    def _not_finite(self, value: float) -> ValueRefusedError:
        return ValueRefusedError(self.name, f"value {value} is not a finite number; leave a missing value empty")

    def _too_large(self, value: object) -> ValueRefusedError:
        return ValueRefusedError(self.name, f"value {shown(value)} does not fit a 32-bit float once transformed")


def _castable(array: Any) -> bool:
    try:
        array.cast(pa.float64())
    except pa.ArrowInvalid:
        return False
    return True


def _without_empty(array: Any) -> Any:
    return pc.if_else(pc.equal(array, pa.scalar("", array.type)), None, array)


class Unscaled(Dense):
    """The number as it is."""

    def scale(self, values: Any) -> Any:
        """Return the values."""
        return values

    def to_json(self) -> dict[str, Any]:
        """Return nothing: no value is learnt."""
        return {}


class Log(Dense):
    """sign(x) * log(1 + abs(x))."""

    def scale(self, values: Any) -> Any:
        """Return the signed logarithm of the values."""
        return np.copysign(np.log1p(np.abs(values)), values)

    def to_json(self) -> dict[str, Any]:
        """Return nothing: no value is learnt."""
        return {}


class Standard(Dense):
    """Mean 0 and variance 1 over the training data.

    Mean and sum of squares are merged batch by batch as in Chan, Golub and LeVeque, "Updating formulae and a pairwise
    algorithm for computing sample variances" (1979).
    """

    needs_fit = True

    def __init__(self, name: str, fill_missing: float = 0.0, mean: float = 0.0, deviation: float = 1.0) -> None:
        """Describe the feature, fitted or not."""
        super().__init__(name, fill_missing)
        self.mean = mean
        self.deviation = deviation
        self._count = 0
        self._running_mean = 0.0
        self._squares = 0.0

    def partial_fit(self, array: "pa.Array[Any]") -> None:
        """Merge the mean and the squares of a batch."""
        values = self.raw(array)
        if not len(values):
            return
        mean = float(values.mean())
        total = self._count + len(values)
        delta = mean - self._running_mean
        self._squares += float(np.square(values - mean).sum()) + delta**2 * self._count * len(values) / total
        self._running_mean += delta * len(values) / total
        self._count = total

    def finish_fit(self) -> None:
        """Settle mean and deviation; a constant is only shifted."""
        if self._count:
            self.mean = self._running_mean
            deviation = float(np.sqrt(self._squares / self._count))
            # Of a constant, rounding may leave a deviation that is no more than noise.
            self.deviation = deviation if deviation > 1e-12 * abs(self.mean) else 1.0

    def scale(self, values: Any) -> Any:
        """Return how many deviations the values are above the mean."""
        return (values - self.mean) / self.deviation

    def to_json(self) -> dict[str, Any]:
        """Return mean and deviation."""
        return {"mean": self.mean, "deviation": self.deviation}


class Bucket(Dense):
    """The number of the interval between boundaries that a value is in, divided by the number of boundaries.

    Interval i holds the values from boundary i - 1 to below boundary i. Boundaries that are not given are quantiles of
    a uniform sample of the training data (Vitter's reservoir, by random keys of which the smallest are kept).
    """

    def __init__(
        self,
        name: str,
        fill_missing: float = 0.0,
        boundaries: list[float] | None = None,
        buckets: int = DEFAULT_BUCKETS,
    ) -> None:
        """Describe the feature with its boundaries, or with the number of buckets to find them for."""
        super().__init__(name, fill_missing)
        self.boundaries = np.array(boundaries or [], np.float64)
        self.buckets = buckets
        self.needs_fit = boundaries is None
        self._random = np.random.default_rng(SAMPLE_SEED)
        self._keys = np.empty(0)
        self._sample = np.empty(0)

    def partial_fit(self, array: "pa.Array[Any]") -> None:
        """Let the values of a batch compete for a place in the sample."""
        if not self.needs_fit:
            return
        values = self.raw(array)
        keys = np.concatenate([self._keys, self._random.random(len(values))])
        values = np.concatenate([self._sample, values])
        if len(keys) > SAMPLE_SIZE:
            kept = np.argpartition(keys, SAMPLE_SIZE)[:SAMPLE_SIZE]
            keys, values = keys[kept], values[kept]
        self._keys, self._sample = keys, values

    def finish_fit(self) -> None:
        """Settle the boundaries; quantiles that coincide are one boundary."""
        if self.needs_fit and len(self._sample):
            self.boundaries = np.unique(np.quantile(self._sample, np.arange(1, self.buckets) / self.buckets))
            self._keys = self._sample = np.empty(0)

    def scale(self, values: Any) -> Any:
        """Return the intervals of the values, from 0 to 1."""
        return np.searchsorted(self.boundaries, values, side="right") / max(len(self.boundaries), 1)

    def to_json(self) -> dict[str, Any]:
        """Return the boundaries."""
        return {"boundaries": self.boundaries.tolist()}


def dense_transformer(feature: Feature, fitted: dict[str, Any] | None = None) -> Dense:
    """Return the transformer of a Dense feature.

    Args:
        feature: The feature.
        fitted: What `to_json` gave once fitted; None for one that is still to fit.
    """
    fill = feature.fill_missing if feature.fill_missing is not None else 0.0
    match feature.transform or Transform.NONE:
        case Transform.NONE:
            return Unscaled(feature.name, fill)
        case Transform.LOG:
            return Log(feature.name, fill)
        case Transform.STANDARD:
            return Standard(feature.name, fill, **(fitted or {}))
        case Transform.BUCKET:
            boundaries = (fitted or {}).get("boundaries", feature.boundaries)
            return Bucket(feature.name, fill, boundaries, feature.num_buckets or DEFAULT_BUCKETS)
