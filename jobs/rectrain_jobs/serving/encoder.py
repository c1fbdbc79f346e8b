"""User and item vectors of a bundle's model in numpy: the forward of `rectrain_jobs.models` without torch.

A service needs the user side of one small network. Without torch it starts in a second, and its image is a tenth.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from rectrain.api.errors import UserError
from rectrain.api.features import FeatureKind, Pooling, Side
from rectrain.api.job import RecTrainingJobSpec
from rectrain.api.models import MIND, Similarity, TwoTower
from rectrain.api.tables import categorical_of, embedding_tables, table_of

Floats = npt.NDArray[np.float32]
Weights = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class EncodedUser:
    """A user's features as the model reads them.

    Attributes:
        rows: By Categorical and Sequence feature the rows of its embedding table; none is the zero vector.
        dense: By Dense feature its scaled value.
    """

    rows: Mapping[str, Sequence[int]] = field(default_factory=dict)
    dense: Mapping[str, float] = field(default_factory=dict)


class Encoder(ABC):
    """Gives vectors whose inner products are a model's scores."""

    @abstractmethod
    def users(self, users: Sequence[EncodedUser]) -> Floats:
        """Return float32 [users, vectors of a user, width]."""

    @abstractmethod
    def items(self, rows: npt.NDArray[np.int64]) -> Floats:
        """Return the vectors of items that are known by their id alone, float32 [rows, width].

        Args:
            rows: Rows of the item table.
        """


def encoder_of(spec: RecTrainingJobSpec, weights: Weights) -> Encoder:
    """Return the encoder of a bundle's model.

    Args:
        spec: The job's model and features.
        weights: All parameters by name.

    Raises:
        UserError: The model has no user vectors.
    """
    if isinstance(spec.model.section, MIND):
        return InterestEncoder(spec, spec.model.section, weights)
    if isinstance(spec.model.section, TwoTower):
        return TowerEncoder(spec, spec.model.section, weights)
    raise UserError(f"a bundle of {spec.model.type} has no user vectors; TwoTower and MIND have")


class InterestEncoder(Encoder):
    """MIND: see `rectrain_jobs.models.mind`, whose names the parameters have."""

    def __init__(self, spec: RecTrainingJobSpec, section: MIND, weights: Weights) -> None:
        """Hold the weights."""
        self._tables = _tables(spec, weights, "embeddings.embeddings")
        self._item = self._tables[spec.model.item_id]
        self._history = section.history
        self._profile = [
            (f.name, f.pooling is not Pooling.SUM)
            for f in spec.features
            if f.side is Side.USER and f.kind is not FeatureKind.DENSE and f.name != section.history
        ]
        self._dense = _dense_of(spec, Side.USER)
        self._logits: Floats = weights["arch.user.routing.initial_logits"]
        self._bilinear: Floats = np.ascontiguousarray(weights["arch.user.routing.bilinear.weight"].T)
        self._iterations = section.routing_iterations
        self._layers = Layers("arch.user.layers", weights)
        self._normalise = section.similarity is Similarity.COSINE

    def users(self, users: Sequence[EncodedUser]) -> Floats:
        """Return the interests, float32 [users, interests, width]."""
        interests = self._route(users)
        if self._layers:
            profile = [_pooled(self._tables[name], users, name, mean) for name, mean in self._profile]
            profile.append(_numbers(users, self._dense))
            beside = np.concatenate(profile, axis=1)[:, None]
            beside = np.broadcast_to(beside, (*interests.shape[:2], beside.shape[2]))
            interests = self._layers(np.concatenate([interests, beside], axis=2))
        return _normalised(interests) if self._normalise else interests

    def items(self, rows: npt.NDArray[np.int64]) -> Floats:
        """Return rows of the item table."""
        return _normalised(self._item[rows]) if self._normalise else self._item[rows]

    def _route(self, users: Sequence[EncodedUser]) -> Floats:
        histories = [user.rows.get(self._history, ()) for user in users]
        longest = max(1, *map(len, histories))
        vectors = np.zeros((len(users), longest, self._item.shape[1]), np.float32)
        present = np.zeros((len(users), 1, longest), np.float32)
        for position, history in enumerate(histories):
            if len(history):
                vectors[position, : len(history)] = self._item[history]
                present[position, 0, : len(history)] = 1
        mapped: Floats = vectors @ self._bilinear
        logits = np.broadcast_to(self._logits[:, :longest], (len(users), len(self._logits), longest))
        weights = _softmax(logits) * present
        for _ in range(self._iterations - 1):
            logits = logits + _squash(weights @ mapped) @ mapped.swapaxes(1, 2)
            weights = _softmax(logits) * present
        return _squash(weights @ mapped)


class TowerEncoder(Encoder):
    """TwoTower: see `rectrain_jobs.models.two_tower`."""

    def __init__(self, spec: RecTrainingJobSpec, section: TwoTower, weights: Weights) -> None:
        """Hold the weights."""
        self._item_id = spec.model.item_id
        normalise = section.similarity is Similarity.COSINE
        tables = _tables(spec, weights, "embeddings.embedding_bags")
        self._user = _Tower(spec, Side.USER, tables, Layers("arch.user.layers", weights), normalise)
        self._items = _Tower(spec, Side.ITEM, tables, Layers("arch.item.layers", weights), normalise)

    def users(self, users: Sequence[EncodedUser]) -> Floats:
        """Return the user vectors, float32 [users, 1, width]."""
        return self._user.vectors(users)[:, None]

    def items(self, rows: npt.NDArray[np.int64]) -> Floats:
        """Return the vectors of items that are known by their id alone."""
        return self._items.vectors_of_rows(self._item_id, rows)


class _Tower:
    """One side's features and layers."""

    def __init__(
        self, spec: RecTrainingJobSpec, side: Side, tables: Weights, layers: "Layers", normalise: bool
    ) -> None:
        means = {f: table.pooling is Pooling.MEAN for table in embedding_tables(spec) for f in table.features}
        names = [f.name for f in spec.features if f.side is side and f.kind is not FeatureKind.DENSE]
        self._features = [(name, tables[name], means[name]) for name in names]
        self._dense = _dense_of(spec, side)
        self._layers = layers
        self._normalise = normalise

    def vectors(self, rows: Sequence[EncodedUser]) -> Floats:
        pooled = [_pooled(table, rows, name, mean) for name, table, mean in self._features]
        return self._combined(pooled, _numbers(rows, self._dense))

    def vectors_of_rows(self, feature: str, rows: npt.NDArray[np.int64]) -> Floats:
        assert [name for name, *_ in self._features] == [feature] and not self._dense, "the id is all that is read"
        return self._combined([self._features[0][1][rows]], np.empty((len(rows), 0), np.float32))

    def _combined(self, pooled: list[Floats], dense: Floats) -> Floats:
        if self._layers:
            vectors = self._layers(np.concatenate([*pooled, dense], axis=1))
        else:
            vectors = np.sum(pooled, axis=0, dtype=np.float32)
        return _normalised(vectors) if self._normalise else vectors


class Layers:
    """Linear layers with ReLU between them; false where the model has none."""

    def __init__(self, prefix: str, weights: Weights) -> None:
        """Take the parameters below a prefix, as torchrec's MLP names them."""
        self._layers: list[tuple[Floats, Floats]] = []
        while f"{prefix}._mlp.{len(self._layers)}._linear.weight" in weights:
            name = f"{prefix}._mlp.{len(self._layers)}._linear"
            self._layers.append((np.ascontiguousarray(weights[f"{name}.weight"].T), weights[f"{name}.bias"]))

    def __bool__(self) -> bool:
        """Tell whether there are any."""
        return bool(self._layers)

    def __call__(self, values: Floats) -> Floats:
        """Return float32 [..., outputs] of [..., inputs]."""
        last = len(self._layers) - 1
        for number, (weight, bias) in enumerate(self._layers):
            values = values @ weight + bias
            if number < last:
                values = np.maximum(values, 0)
        return values


def _tables(spec: RecTrainingJobSpec, weights: Weights, prefix: str) -> dict[str, Floats]:
    """Return by feature the embedding table that it looks up in."""
    features = [f for f in spec.features if f.kind is not FeatureKind.DENSE and f.side is not Side.NONE]
    return {f.name: weights[f"{prefix}.{table_of(spec, f)}.weight"] for f in features}


def _dense_of(spec: RecTrainingJobSpec, side: Side) -> list[str]:
    return [f.name for f in spec.features if f.kind is FeatureKind.DENSE and f.side is side]


def _numbers(users: Sequence[EncodedUser], names: Sequence[str]) -> Floats:
    values = [[user.dense.get(name, 0.0) for name in names] for user in users]
    return np.array(values, np.float32).reshape(len(users), len(names))


def _pooled(table: Floats, users: Sequence[EncodedUser], name: str, mean: bool) -> Floats:
    """Return the sum or mean of each user's vectors of a feature; zeros for a user that has none."""
    pooled = np.zeros((len(users), table.shape[1]), np.float32)
    for position, user in enumerate(users):
        rows = user.rows.get(name, ())
        if len(rows):
            vectors = table[rows]
            pooled[position] = vectors.mean(axis=0) if mean else vectors.sum(axis=0)
    return pooled


def _softmax(logits: Floats) -> Floats:
    """Return the softmax over interests of logits [users, interests, positions]."""
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)  # type: ignore[no-any-return]


def _squash(vectors: Floats) -> Floats:
    squared = np.square(vectors).sum(axis=-1, keepdims=True)
    return vectors * (squared / (1 + squared) / np.sqrt(squared + np.float32(1e-9)))  # type: ignore[no-any-return]


def _normalised(vectors: Floats) -> Floats:
    # As torch's normalize: no vector is divided by less than 1e-12.
    lengths = np.sqrt(np.square(vectors).sum(axis=-1, keepdims=True))
    return vectors / np.maximum(lengths, np.float32(1e-12))  # type: ignore[no-any-return]


def item_rows(spec: RecTrainingJobSpec, known_values: int | None) -> npt.NDArray[np.int64]:
    """Return the rows of all items of a model whose items are known by their id alone.

    Args:
        spec: The job's model and features.
        known_values: Values in the item feature's vocabulary; None where it has none.

    Raises:
        UserError: Items have further features, which a bundle does not hold.
    """
    others = [f.name for f in spec.features if f.side is Side.ITEM and f.name != spec.model.item_id]
    if others:
        raise UserError(
            f"items have features besides their id ({', '.join(others)}), which the bundle does not hold: publish them "
            "with `rectrain index publish`, which reads the job's data"
        )
    cardinality = categorical_of(spec, spec.feature(spec.model.item_id)).cardinality
    assert cardinality is not None, "a rule of the job asks for it"
    return np.arange(cardinality if known_values is None else known_values, dtype=np.int64)
