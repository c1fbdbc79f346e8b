"""Synthetic click data from a known model, so that the best AUC and log loss that any model can reach are known."""

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rectrain.api.errors import UserError
from rectrain.api.features import Feature, FeatureKind, Task
from rectrain_jobs.data.formats.base import BATCH_ROWS, Definition, RawBatch, Reader, splitmix64

DEFAULT_ROWS = 2_000_000
VALIDATION_SHARE = 5
"""There is one validation row for this many training rows."""
NUM_DENSE = 13
NUM_CATEGORICAL = 26
DEFAULT_CARDINALITIES = (100, 100, 100, 100, 50, 50, 20, 20, *(10, 20, 50, 100, 200, 200) * 3)
"""An id's vector is known only as well as its rows are many: with these the default number of rows is enough."""

_BIAS = -1.0
_DENSE_SCALE = 0.25
_ID_SCALE = 0.3
_PAIR_SCALE = 0.3
_PAIR_DIMENSIONS = 4
_PAIRS = ((0, 1), (2, 3), (4, 5), (6, 7))
_ZIPF_EXPONENT = 1.1
# Ids from about here on are too rare to learn, so what they do to the label fades away.
_LEARNABLE_IDS = 256
_TABLE_LIMIT = 1 << 20
_MODEL_SEED = 0x52454354


class PlantedModel:
    """The model that the labels are drawn from.

    The logit of a click is a bias, plus for each dense value x its weight times x (dense_0, dense_2, ...) or times
    tanh(2 x) (dense_1, ...), plus an effect of each id, plus the dot products of the ids' vectors for the pairs
    (cat_0, cat_1), (cat_2, cat_3), (cat_4, cat_5) and (cat_6, cat_7). Only features that are declared take part. The
    weights are drawn from normal distributions once and for all: no seed changes them.
    """

    def __init__(self, dense: Sequence[int], categorical: dict[int, int]) -> None:
        """Describe the model.

        Args:
            dense: Numbers of the dense features.
            categorical: Cardinality by number of the categorical features.
        """
        self.dense = list(dense)
        self.categorical = categorical
        self.pairs = [(a, b) for a, b in _PAIRS if a in categorical and b in categorical]

    def logits(self, dense: npt.NDArray[np.float32], ids: dict[int, npt.NDArray[np.int64]]) -> npt.NDArray[np.float64]:
        """Return the log-odds of a click, float64 `[rows]`.

        Args:
            dense: float32 `[rows, dense features]`.
            ids: int64 `[rows]` by number of the categorical feature.
        """
        total: Any = np.full(len(dense), _BIAS)
        for column, number in enumerate(self.dense):
            values = dense[:, column].astype(np.float64)
            weight = _DENSE_SCALE * (1 if _normals(0, number, 0, np.zeros(1, np.int64))[0] >= 0 else -1)
            total += weight * (values if number % 2 == 0 else np.tanh(2 * values))
        for number, some_ids in ids.items():
            total += _ID_SCALE * self._effects(number, 0, some_ids)
        for first, second in self.pairs:
            for dimension in range(1, _PAIR_DIMENSIONS + 1):
                total += (
                    _PAIR_SCALE
                    * self._effects(first, dimension, ids[first])
                    * self._effects(second, dimension, ids[second])
                )
        return np.asarray(total)

    def _effects(self, number: int, dimension: int, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        table = self._tables.get((number, dimension))
        return _fading_normals(number, dimension, ids) if table is None else table[ids]

    @cached_property
    def _tables(self) -> dict[tuple[int, int], npt.NDArray[np.float64]]:
        """The effects of features with few ids, which are looked up faster than they are computed."""
        in_pairs = {number for pair in self.pairs for number in pair}
        return {
            (number, dimension): _fading_normals(number, dimension, np.arange(cardinality))
            for number, cardinality in self.categorical.items()
            if cardinality <= _TABLE_LIMIT
            for dimension in range(_PAIR_DIMENSIONS + 1 if number in in_pairs else 1)
        }


class SyntheticReader(Reader):
    """Makes rows: normal dense values, ids whose frequencies follow Zipf's law, a label drawn from the planted model.

    The features are any of dense_0 to dense_12 and cat_0 to cat_25, the latter with the cardinalities that are
    declared. Row i is the same however many rows there are.
    """

    def __init__(self, definition: Definition) -> None:
        """Check the features and the label."""
        super().__init__(definition)
        self._dense = {f.name: _number(f, "dense", NUM_DENSE, FeatureKind.DENSE) for f in _of(definition, "dense_")}
        self._ids = {
            f.name: _number(f, "cat", NUM_CATEGORICAL, FeatureKind.CATEGORICAL) for f in _of(definition, "cat_")
        }
        for feature in definition.features:
            if feature.name not in self._dense and feature.name not in self._ids:
                raise UserError(f"features[{feature.name}]: Synthetic has dense_0 to dense_12 and cat_0 to cat_25 only")
        tasks = [label.task for label in definition.labels]
        if tasks != [Task.BINARY]:
            raise UserError(f"labels: must be one Binary label for Synthetic, not {', '.join(tasks) or 'none'}")
        cardinalities = {f.name: f.cardinality or 1 for f in definition.features}
        self.model = PlantedModel(
            list(self._dense.values()), {number: cardinalities[name] for name, number in self._ids.items()}
        )
        self._bayes: dict[str, Any] = {}

    def train(self) -> Iterator[RawBatch]:
        """Give the training rows."""
        for batch, _ in self._blocks(0, self._rows):
            yield batch

    def validation(self) -> Iterator[RawBatch]:
        """Give the validation rows, and find how well the planted model does on them."""
        parts = []
        for batch, logits in self._blocks(1, max(1, self._rows // VALIDATION_SHARE)):
            parts.append((logits, np.asarray(batch.columns[self.definition.labels[0].name])))
            yield batch
        logits, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        self._bayes = bayes_figures(logits, labels)

    def metadata(self) -> dict[str, Any]:
        """Return how well the planted model does on the validation rows, once they have been read."""
        return {"bayes": self._bayes} if self._bayes else {}

    @property
    def _rows(self) -> int:
        return self.definition.source.rows or DEFAULT_ROWS

    def _blocks(self, split: int, rows: int) -> Iterator[tuple[RawBatch, npt.NDArray[np.float64]]]:
        for block, first in enumerate(range(0, rows, BATCH_ROWS)):
            random = np.random.default_rng([self.definition.source.seed, split, block])
            dense = random.standard_normal((BATCH_ROWS, len(self._dense)), dtype=np.float32)
            ids = {
                number: zipf_ids(random.random(BATCH_ROWS), cardinality)
                for number, cardinality in self.model.categorical.items()
            }
            logits = self.model.logits(dense, ids)
            labels = (random.random(BATCH_ROWS) < _sigmoid(logits)).astype(np.float32)
            # A whole block is made even where fewer rows are wanted, so that these do not depend on how many.
            wanted = min(BATCH_ROWS, rows - first)
            columns: dict[str, Any] = {self.definition.labels[0].name: pa.array(labels[:wanted])}
            columns |= {name: pa.array(dense[:wanted, column]) for column, name in enumerate(self._dense)}
            columns |= {name: pa.array(ids[number][:wanted]) for name, number in self._ids.items()}
            yield RawBatch(columns, "Synthetic", np.arange(first + 1, first + wanted + 1), "row"), logits[:wanted]


def zipf_ids(uniform: npt.NDArray[np.float64], cardinality: int) -> npt.NDArray[np.int64]:
    """Return ids from 0 to cardinality - 1, the chance of id i about proportional to (i + 1) ** -1.1.

    Args:
        uniform: float64 `[rows]`, uniform in [0, 1).
        cardinality: Number of ids.
    """
    power = 1 - _ZIPF_EXPONENT
    ranks = (1 + uniform * ((cardinality + 1) ** power - 1)) ** (1 / power)
    ids: npt.NDArray[np.int64] = np.clip(ranks.astype(np.int64) - 1, 0, cardinality - 1)
    return ids


def bayes_figures(logits: npt.NDArray[np.float64], labels: npt.NDArray[np.float32]) -> dict[str, Any]:
    """Return how well the model that drew the labels predicts them.

    Returns:
        `auc` and `logLoss` on these labels, which no model beats but by chance; `expectedLogLoss`, what the log loss is
        on average over labels drawn for these rows; `positives`, their share; `rows`.
    """
    chance = _sigmoid(logits)
    # log(1 + exp(-z)) for z of the label's sign, without overflow.
    losses = np.logaddexp(0, np.where(labels > 0, -logits, logits))
    expected = chance * np.logaddexp(0, -logits) + (1 - chance) * np.logaddexp(0, logits)
    positives, negatives = logits[labels > 0], np.sort(logits[labels == 0])
    figures: dict[str, Any] = {
        "logLoss": float(losses.mean()),
        "expectedLogLoss": float(expected.mean()),
        "positives": float(labels.mean()),
        "rows": len(labels),
    }
    if len(positives) and len(negatives):
        below = np.searchsorted(negatives, positives, "left") + np.searchsorted(negatives, positives, "right")
        figures["auc"] = float(below.mean() / (2 * len(negatives)))
    return figures


def _of(definition: Definition, prefix: str) -> list[Feature]:
    return [feature for feature in definition.features if feature.name.startswith(prefix)]


def _number(feature: Feature, prefix: str, limit: int, kind: FeatureKind) -> int:
    match = re.fullmatch(rf"{prefix}_(\d+)", feature.name)
    if match is None or int(match[1]) >= limit:
        raise UserError(f"features[{feature.name}]: Synthetic has {prefix}_0 to {prefix}_{limit - 1} only")
    if feature.kind is not kind:
        raise UserError(f"features[{feature.name}].kind: must be {kind} for Synthetic, not {feature.kind}")
    return int(match[1])


def _fading_normals(number: int, dimension: int, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    return np.asarray(_normals(1, number, dimension, ids) / (1 + ids / _LEARNABLE_IDS))


def _normals(kind: int, number: int, dimension: int, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return a standard normal number for each id, always the same, by hashing it (Box and Muller's transform)."""
    salt = splitmix64(np.array([_MODEL_SEED + (kind << 40) + (number << 48) + (dimension << 56)], np.uint64))
    mixed = splitmix64(ids.astype(np.uint64) ^ salt)
    radius = (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53
    angle = (splitmix64(mixed) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return np.asarray(np.sqrt(-2 * np.log1p(-radius)) * np.cos(2 * np.pi * angle))


def _sigmoid(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * logits)))
