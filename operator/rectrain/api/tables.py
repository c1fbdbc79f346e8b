"""The embedding tables that a job's features make, and the memory that they take."""

from typing import NamedTuple

from rectrain.api.features import Encoding, Feature, FeatureKind, Pooling, Side, UnknownPolicy
from rectrain.api.job import RecTrainingJobSpec
from rectrain.api.quantities import format_bytes
from rectrain.api.training import EmbeddingOptimizerType

EXTRA_ROWS = 2
"""Rows of a table after its ids: out-of-vocabulary, then missing."""


class EmbeddingTable(NamedTuple):
    """One embedding table."""

    name: str
    """Name, also of the parameter."""
    cardinality: int
    """Number of ids; they are rows 0 to cardinality - 1."""
    embedding_dim: int
    """Width."""
    features: tuple[str, ...]
    """Features that look up in it."""
    pooling: Pooling
    """How several rows of one feature become one vector."""

    @property
    def num_embeddings(self) -> int:
        """Rows of the table: the ids, out-of-vocabulary and missing."""
        return self.cardinality + EXTRA_ROWS


def item_table(spec: RecTrainingJobSpec) -> EmbeddingTable:
    """Return the table that holds the items of a retrieval model."""
    return next(table for table in embedding_tables(spec) if spec.model.item_id in table.features)


def categorical_of(spec: RecTrainingJobSpec, feature: Feature) -> Feature:
    """Return the feature that says how this one's ids are encoded: for a sequence with `of` that one, else itself."""
    return spec.feature(feature.of) if feature.of is not None else feature


def encoding_of(feature: Feature) -> Encoding:
    """Return the encoding of a categorical or sequence feature; Identity unless it says otherwise."""
    return feature.encoding or Encoding.IDENTITY


def unknown_policy_of(feature: Feature) -> UnknownPolicy:
    """Return what happens to unknown values of a feature; ids out of range are refused unless it says otherwise."""
    if feature.unknown is not None:
        return feature.unknown
    return UnknownPolicy.REFUSE if encoding_of(feature) is Encoding.IDENTITY else UnknownPolicy.OUT_OF_VOCABULARY


def embedded_features(spec: RecTrainingJobSpec) -> list[Feature]:
    """Return the features that look up in an embedding table, in the job's order."""
    return [f for f in spec.features if f.kind is not FeatureKind.DENSE and f.side is not Side.NONE]


def table_of(spec: RecTrainingJobSpec, feature: Feature) -> str:
    """Return the name of the embedding table that a categorical or sequence feature looks up in."""
    owner = categorical_of(spec, feature)
    return owner.table or owner.name


def embedding_tables(spec: RecTrainingJobSpec) -> list[EmbeddingTable]:
    """Return the embedding tables of a job, in the order of the features that first name them."""
    grouped: dict[str, list[Feature]] = {}
    for feature in embedded_features(spec):
        grouped.setdefault(table_of(spec, feature), []).append(feature)
    return [
        EmbeddingTable(
            name=table,
            cardinality=_cardinality(spec, features[0]),
            embedding_dim=categorical_of(spec, features[0]).embedding_dim or spec.model.section.embedding_dim,
            features=tuple(f.name for f in features),
            pooling=_pooling(features),
        )
        for table, features in grouped.items()
    ]


def _pooling(features: list[Feature]) -> Pooling:
    # One id alone has the same sum and mean, so only sequences decide; a rule of the job lets them not differ.
    return next((f.pooling or Pooling.MEAN for f in features if f.kind is FeatureKind.SEQUENCE), Pooling.SUM)


def _cardinality(spec: RecTrainingJobSpec, feature: Feature) -> int:
    cardinality = categorical_of(spec, feature).cardinality
    assert cardinality is not None, "Feature.rules() asks for it"
    return cardinality


def state_bytes_per_row(kind: EmbeddingOptimizerType, embedding_dim: int) -> int:
    """Return the bytes of optimizer state that one float32 row of a table has."""
    return {
        EmbeddingOptimizerType.SGD: 0,
        EmbeddingOptimizerType.ADAGRAD: 4 * embedding_dim,
        EmbeddingOptimizerType.ROW_WISE_ADAGRAD: 4,
        EmbeddingOptimizerType.ADAM: 8 * embedding_dim,
        EmbeddingOptimizerType.PARTIAL_ROW_WISE_ADAM: 4 * embedding_dim + 4,
    }[kind]


def table_bytes(table: EmbeddingTable, spec: RecTrainingJobSpec) -> int:
    """Return the bytes of a table's float32 weights and optimizer state."""
    optimizer = spec.training.optimizers.embedding.type
    return table.num_embeddings * (4 * table.embedding_dim + state_bytes_per_row(optimizer, table.embedding_dim))


def largest_tables(spec: RecTrainingJobSpec, count: int = 5) -> str:
    """Return the names and sizes of the largest tables, for a message."""
    sizes = sorted(((table_bytes(t, spec), t) for t in embedding_tables(spec)), key=lambda pair: -pair[0])
    return "; ".join(
        f"{t.name} {format_bytes(size)} ({t.num_embeddings:,} x {t.embedding_dim})" for size, t in sizes[:count]
    )
