"""The features of a job, fitted: applied to batches and to single requests, saved beside the data and the model."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pyarrow as pa
from pydantic import ValidationError

from rectrain.api.errors import UserError
from rectrain.api.features import Encoding, Feature, FeatureKind
from rectrain.api.tables import encoding_of
from rectrain_jobs.features.stages import transformers_of
from rectrain_jobs.pipeline.saving import parquet_bytes, table_of
from rectrain_jobs.pipeline.stage import State, register
from rectrain_jobs.pipeline.transformer import FeatureTransformer, column_of
from rectrain_jobs.pipeline.vocabulary import Vocabulary
from rectrain_jobs.storage import ObjectStore, store_at

FORMAT_VERSION = 1
FEATURES_FILE = "features.json"


@register("feature_set")
class FeatureSet(FeatureTransformer[Mapping[str, Any], dict[str, Any]]):
    """Features with everything they learnt.

    Attributes:
        features: The definitions, in the job's order.
        transformers: By feature name.
    """

    def __init__(self, features: Sequence[Feature], fitted: Mapping[str, Any] | None = None) -> None:
        """Make the transformers of some features.

        Args:
            features: The definitions.
            fitted: By feature name what its transformer's `to_json` gave; None for features that are still to fit.
        """
        self.features = list(features)
        self.vocabularies = _vocabularies(self.features)
        self.transformers = transformers_of(self.features, self.vocabularies, fitted or {})

    @property
    def needs_fit(self) -> bool:  # type: ignore[override]
        """Whether some feature learns from the training data."""
        return any(transformer.needs_fit for transformer in self.transformers.values())

    @property
    def fitted_names(self) -> list[str]:
        """Names of the features that learn from the training data."""
        return [name for name, transformer in self.transformers.items() if transformer.needs_fit]

    @property
    def inputs(self) -> list[str]:  # type: ignore[override]
        """The features' names."""
        return list(self.transformers)

    def output_fields(self) -> list["pa.Field[Any]"]:
        """Return a column for each feature, as its transformer declares it."""
        return [field for transformer in self.transformers.values() for field in transformer.output_fields()]

    def columns_of(self, batch: pa.RecordBatch) -> list[Any]:
        """Return the values of these columns."""
        return list(self.transform_vectorized(batch).values())

    def partial_fit(self, values: pa.RecordBatch | Mapping[str, Any]) -> None:
        """Take in one batch of the training data."""
        for name in self.fitted_names:
            self.transformers[name].partial_fit(column_of(values, name))

    def finish_fit(self) -> None:
        """Settle what was learnt, after the last batch."""
        for transformer in self.transformers.values():
            transformer.finish_fit()

    def select(self, names: Iterable[str]) -> "FeatureSet":
        """Return a set of only some features, which shares their transformers: those of one tower, for instance."""
        wanted = set(names)
        part = FeatureSet.__new__(FeatureSet)
        part.features = [feature for feature in self.features if feature.name in wanted]
        part.vocabularies = self.vocabularies
        part.transformers = {feature.name: self.transformers[feature.name] for feature in part.features}
        return part

    def transforms_as(self, other: "FeatureSet") -> bool:
        """Tell whether another set has these features and makes the same of every value, by what both have learnt."""
        return all(
            name in other.transformers and transformer.to_json() == other.transformers[name].to_json()
            for name, transformer in self.transformers.items()
        ) and all(
            table not in other.vocabularies or vocabulary.values == other.vocabularies[table].values
            for table, vocabulary in self.vocabularies.items()
        )

    def transform_vectorized(self, values: pa.RecordBatch | Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
        """Return the columns of a batch as the model reads them.

        Args:
            values: Raw values: Arrow arrays, by feature name.

        Returns:
            By feature name: Categorical int32 or int64 `[rows]`, Dense float32 `[rows]`, Sequence int32 or int64
            `[rows, max_length]` with -1 where there is no element.

        Raises:
            ValueRefusedError: A value is not one that its feature takes; it names feature, value and row.
            UserError: A feature has no column.
        """
        return {
            name: transformer.transform_batch(column_of(values, name))
            for name, transformer in self.transformers.items()
        }

    def transform_func(self, value: Mapping[str, Any]) -> dict[str, Any]:
        """Return one row as the model reads it: what a batch of it would be, without the first dimension.

        Args:
            value: Raw values by feature name; those that are absent or None are missing.

        Raises:
            ValueRefusedError: A value is not one that its feature takes.
        """
        get = value.get
        return {name: transformer.transform_func(get(name)) for name, transformer in self.transformers.items()}

    def state(self) -> State:
        """Return the definitions with what was learnt, each vocabulary as a table."""
        tables = {vocabulary.name: vocabulary.to_table() for vocabulary in self.vocabularies.values()}
        return State(self.to_json(), tables=tables)

    @classmethod
    def from_state(cls, state: State, version: int) -> "FeatureSet":
        """Return the features as they were fitted."""
        made = cls.from_json(state.config)
        for vocabulary in made.vocabularies.values():
            vocabulary.restore_table(state.tables[vocabulary.name])
        return made

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "FeatureSet":
        """Return the features of what `to_json` gave; vocabularies are still empty."""
        entries = document["features"]
        features = [Feature.model_validate(entry["definition"]) for entry in entries]
        return cls(features, {entry["definition"]["name"]: entry["fitted"] for entry in entries})

    def to_json(self) -> dict[str, Any]:
        """Return the content of features.json, without the digests of vocabularies."""
        return {
            "version": FORMAT_VERSION,
            "features": [
                {
                    "definition": feature.model_dump(mode="json", by_alias=True, exclude_none=True),
                    "fitted": self.transformers[feature.name].to_json(),
                }
                for feature in self.features
            ],
        }

    def save(self, target: ObjectStore | str | Path) -> None:
        """Write features.json and vocabulary.<feature>.parquet; features.json last.

        Args:
            target: A store or a local folder.
        """
        store = store_at(target)
        digests = {}
        for vocabulary in self.vocabularies.values():
            data = parquet_bytes(vocabulary.to_table())
            digests[vocabulary.name] = hashlib.sha256(data).hexdigest()
            store.write_bytes(vocabulary_file(vocabulary.name), data)
        document = {**self.to_json(), "vocabularies": {name: {"sha256": digest} for name, digest in digests.items()}}
        store.write_bytes(FEATURES_FILE, (json.dumps(document, indent=1) + "\n").encode())

    @classmethod
    def load(cls, source: ObjectStore | str | Path) -> "FeatureSet":
        """Read what `save` wrote.

        Args:
            source: A store or a local folder.

        Raises:
            UserError: A file is missing, damaged, does not belong to the others, or is of an unknown version.
        """
        store = store_at(source)
        where = store.uri_of(FEATURES_FILE)
        try:
            document = json.loads(store.read_bytes(FEATURES_FILE))
            version = document["version"]
            if version != FORMAT_VERSION:
                raise UserError(f"{where}: version {version!r} is not known; this release reads {FORMAT_VERSION}")
            loaded = cls.from_json(document)
            digests = {name: entry["sha256"] for name, entry in document["vocabularies"].items()}
        except (ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{where}: is not a feature file of rectrain: {type(error).__name__}: {reason}") from None
        for vocabulary in loaded.vocabularies.values():
            name = vocabulary_file(vocabulary.name)
            data = store.read_bytes(name)
            if hashlib.sha256(data).hexdigest() != digests.get(vocabulary.name):
                raise UserError(f"{store.uri_of(name)}: does not belong to {where}; convert the data again")
            vocabulary.restore_table(table_of(data))
        return loaded


def fit(features: Sequence[Feature], batches: Iterable[pa.RecordBatch | Mapping[str, Any]]) -> FeatureSet:
    """Learn vocabularies and statistics from the training data, in one pass.

    Args:
        features: The definitions, as in `spec.features`.
        batches: The raw training data, a column for each feature; not read when no feature learns anything.

    Raises:
        ValueRefusedError: A value is not one that its feature takes.
    """
    feature_set = FeatureSet(features)
    if feature_set.needs_fit:
        for batch in batches:
            feature_set.partial_fit(batch)
        feature_set.finish_fit()
    return feature_set


def vocabulary_file(name: str) -> str:
    """Return the name of the file that keeps the vocabulary owned by a feature."""
    return f"vocabulary.{name}.parquet"


def _vocabularies(features: Sequence[Feature]) -> dict[str, Vocabulary]:
    """Return the vocabularies by table: features that share a table must give the same row to the same value."""
    found: dict[str, Vocabulary] = {}
    for feature in features:
        if feature.kind is FeatureKind.DENSE or feature.of is not None:
            continue
        if encoding_of(feature) is Encoding.VOCABULARY:
            assert feature.cardinality is not None, "Feature.rules() asks for it"
            table = feature.table or feature.name
            found.setdefault(table, Vocabulary(feature.name, feature.cardinality, feature.min_count or 1))
    return found
