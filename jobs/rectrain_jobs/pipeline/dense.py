"""Numbers: filled where missing, checked to be finite, scaled.

The statistics of a transform are those of the training data after missing values are filled.
"""

from abc import abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rectrain.api.errors import UserError
from rectrain_jobs.pipeline.stage import State, register
from rectrain_jobs.pipeline.transformer import ColumnTransformer
from rectrain_jobs.pipeline.values import ValueRefusedError, at_least_one, first_failure, plain_array, shown

SAMPLE_SIZE = 1 << 17
"""Values from which quantiles are taken; a uniform sample of larger data, in which a quantile q is off by a rank of
about sqrt(q * (1 - q) / 131072), at most 0.0014, one standard deviation."""
SAMPLE_SEED = 20240229
DEFAULT_BUCKETS = 16
_NUMBERS = (float, int, np.number, np.bool_)
_FLOAT32_OVERFLOW = float(np.finfo(np.float32).max) + 2.0**103  # from here on rounding gives infinity


class Dense(ColumnTransformer):
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
        """Scale raw values: a float64 array, or one float; both give the same values."""

    def state(self) -> State:
        """Return the arguments, fitted ones among them."""
        return State({"name": self.name, "fill_missing": self.fill_missing, **self.to_json()})

    def transform_vectorized(self, values: Any) -> npt.NDArray[Any]:
        """Return the scaled values of a batch, float32 `[rows]`."""
        values = self.raw(values)
        with np.errstate(over="ignore"):
            scaled = np.asarray(self.scale(values), np.float64).astype(np.float32)
        finite = np.isfinite(scaled)
        if not finite.all():
            row = int(np.argmin(finite))
            raise self._too_large(float(values[row])).at_row(row)
        return scaled

    def transform_func(self, value: Any) -> Any:
        """Return the scaled value of one raw value, a float32 scalar."""
        if isinstance(value, str):
            return self._text_one(value)
        number = self.fill_missing if value is None else self._number(value)
        scaled = self.scale(number)
        if not -_FLOAT32_OVERFLOW < scaled < _FLOAT32_OVERFLOW:
            raise self._too_large(number)
        return np.float32(scaled)

    def _text_one(self, value: str) -> Any:
        # Arrow and Python do not read quite the same texts as numbers; Arrow decides.
        try:
            return self.transform_vectorized(pa.array([value]))[0]
        except (ValueRefusedError, UnicodeEncodeError):
            raise ValueRefusedError(self.name, f"value {shown(value)} is not a finite number") from None

    def _number(self, value: Any) -> float:
        if not isinstance(value, _NUMBERS):
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


@register("unscaled")
class Unscaled(Dense):
    """The number as it is."""

    def scale(self, values: Any) -> Any:
        """Return the values."""
        return values

    def to_json(self) -> dict[str, Any]:
        """Return nothing: no value is learnt."""
        return {}


@register("log")
class Log(Dense):
    """sign(x) * log(1 + abs(x))."""

    def scale(self, values: Any) -> Any:
        """Return the signed logarithm of the values."""
        return np.copysign(np.log1p(np.abs(values)), values)

    def to_json(self) -> dict[str, Any]:
        """Return nothing: no value is learnt."""
        return {}


@register("standard_scaler")
class StandardScaler(Dense):
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

    def partial_fit(self, values: Any) -> None:
        """Merge the mean and the squares of a batch."""
        values = self.raw(values)
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
        self._count, self._running_mean, self._squares = 0, 0.0, 0.0

    def scale(self, values: Any) -> Any:
        """Return how many deviations the values are above the mean."""
        return (values - self.mean) / self.deviation

    def to_json(self) -> dict[str, Any]:
        """Return mean and deviation."""
        return {"mean": self.mean, "deviation": self.deviation}


@register("min_max_scaler")
class MinMaxScaler(Dense):
    """0 for the smallest value of the training data, 1 for the largest; values outside are outside 0 to 1."""

    needs_fit = True

    def __init__(self, name: str, fill_missing: float = 0.0, minimum: float = 0.0, maximum: float = 1.0) -> None:
        """Describe the feature, fitted or not."""
        super().__init__(name, fill_missing)
        self.minimum = minimum
        self.maximum = maximum
        self._seen = (np.inf, -np.inf)

    def partial_fit(self, values: Any) -> None:
        """Take in the extremes of a batch."""
        values = self.raw(values)
        if len(values):
            low, high = self._seen
            self._seen = (min(low, float(values.min())), max(high, float(values.max())))

    def finish_fit(self) -> None:
        """Settle the extremes; a constant is only shifted."""
        if self._seen[0] <= self._seen[1]:
            self.minimum, self.maximum = self._seen
        self._seen = (np.inf, -np.inf)

    def scale(self, values: Any) -> Any:
        """Return where the values are between the extremes."""
        return (values - self.minimum) / ((self.maximum - self.minimum) or 1.0)

    def to_json(self) -> dict[str, Any]:
        """Return the extremes."""
        return {"minimum": self.minimum, "maximum": self.maximum}


@register("bucketizer")
class Bucketizer(Dense):
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
        """Describe the feature with its boundaries, or with the number of buckets to find them for.

        Raises:
            UserError: The boundaries do not rise, or there is no number of buckets.
        """
        super().__init__(name, fill_missing)
        self.boundaries = np.array(boundaries or [], np.float64)
        if not (np.isfinite(self.boundaries).all() and (np.diff(self.boundaries) > 0).all()):
            raise UserError(f"{name}: boundaries are {boundaries}; must be finite numbers that rise")
        self.buckets = at_least_one(buckets, f"{name}: buckets")
        self.needs_fit = boundaries is None
        self._random = np.random.default_rng(SAMPLE_SEED)
        self._keys = np.empty(0)
        self._sample = np.empty(0)

    def partial_fit(self, values: Any) -> None:
        """Let the values of a batch compete for a place in the sample."""
        if not self.needs_fit:
            return
        values = self.raw(values)
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
