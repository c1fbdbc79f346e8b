"""From the features of a job to the stages that transform them."""

from collections.abc import Mapping, Sequence
from typing import Any

from rectrain.api.features import Encoding, Feature, FeatureKind, Padding, Transform
from rectrain.api.tables import encoding_of, unknown_policy_of
from rectrain_jobs.pipeline.categorical import Categorical, Hashing, Identity, StringIndexer
from rectrain_jobs.pipeline.dense import DEFAULT_BUCKETS, Bucketizer, Dense, Log, StandardScaler, Unscaled
from rectrain_jobs.pipeline.sequence import Sequence as SequenceTransformer
from rectrain_jobs.pipeline.transformer import ColumnTransformer
from rectrain_jobs.pipeline.vocabulary import Vocabulary


def transformers_of(
    features: Sequence[Feature], vocabularies: Mapping[str, Vocabulary], fitted: Mapping[str, Any]
) -> dict[str, ColumnTransformer]:
    """Return by feature the stage that transforms it.

    Args:
        features: The features.
        vocabularies: By table the vocabulary that its features share.
        fitted: By Dense feature what its `to_json` gave once fitted; none for one that is still to fit.
    """
    ids: dict[str, Categorical] = {
        feature.name: _categorical(feature, vocabularies.get(feature.table or feature.name))
        for feature in features
        if feature.kind is not FeatureKind.DENSE and feature.of is None
    }
    made: dict[str, ColumnTransformer] = {}
    for feature in features:
        match feature.kind:
            case FeatureKind.CATEGORICAL:
                made[feature.name] = ids[feature.name]
            case FeatureKind.DENSE:
                made[feature.name] = _dense(feature, fitted.get(feature.name))
            case FeatureKind.SEQUENCE:
                assert feature.max_length is not None, "Feature.rules() asks for it"
                padding = feature.padding or Padding.RIGHT
                elements = ids[feature.of or feature.name]
                made[feature.name] = SequenceTransformer(feature.name, elements, feature.max_length, padding)
    return made


def _categorical(feature: Feature, vocabulary: Vocabulary | None) -> Categorical:
    """Return the transformer of a Categorical feature, or of the elements of a Sequence that has ids of its own."""
    assert feature.cardinality is not None, "Feature.rules() asks for it"
    unknown = unknown_policy_of(feature)
    match encoding_of(feature):
        case Encoding.IDENTITY:
            return Identity(feature.name, feature.cardinality, unknown)
        case Encoding.HASHING:
            return Hashing(feature.name, feature.cardinality, unknown)
        case Encoding.VOCABULARY:
            assert vocabulary is not None
            return StringIndexer(feature.name, vocabulary.limit, unknown, vocabulary=vocabulary)


def _dense(feature: Feature, fitted: dict[str, Any] | None = None) -> Dense:
    """Return the transformer of a Dense feature."""
    fill = feature.fill_missing if feature.fill_missing is not None else 0.0
    match feature.transform or Transform.NONE:
        case Transform.NONE:
            return Unscaled(feature.name, fill)
        case Transform.LOG:
            return Log(feature.name, fill)
        case Transform.STANDARD:
            return StandardScaler(feature.name, fill, **(fitted or {}))
        case Transform.BUCKET:
            boundaries = (fitted or {}).get("boundaries", feature.boundaries)
            return Bucketizer(feature.name, fill, boundaries, feature.num_buckets or DEFAULT_BUCKETS)
