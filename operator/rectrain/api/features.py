"""Features and labels: what a row of training data holds, and how raw values become it."""

from collections.abc import Iterator
from enum import StrEnum
from itertools import pairwise
from typing import Annotated

from pydantic import Field
from pydantic.alias_generators import to_camel

from rectrain.api.base import ApiModel, Count, Name, Problem


class FeatureKind(StrEnum):
    """What a feature is."""

    CATEGORICAL = "Categorical"
    DENSE = "Dense"
    SEQUENCE = "Sequence"


class Side(StrEnum):
    """Which tower of a retrieval model reads a feature."""

    USER = "User"
    ITEM = "Item"
    NONE = "None"


class Encoding(StrEnum):
    """How a categorical value becomes a row of its embedding table."""

    IDENTITY = "Identity"
    VOCABULARY = "Vocabulary"
    HASHING = "Hashing"


class UnknownPolicy(StrEnum):
    """What happens to a categorical value that the encoding does not know."""

    REFUSE = "Refuse"
    OUT_OF_VOCABULARY = "OutOfVocabulary"


class Transform(StrEnum):
    """How a dense value is scaled."""

    NONE = "None"
    STANDARD = "Standard"
    LOG = "Log"
    BUCKET = "Bucket"


class Pooling(StrEnum):
    """How the embeddings of one feature in one row become one vector."""

    SUM = "Sum"
    MEAN = "Mean"


class Padding(StrEnum):
    """The side on which a short sequence is filled."""

    LEFT = "Left"
    RIGHT = "Right"


class Feature(ApiModel):
    """One column of the data and everything that turns a raw value into what the model reads."""

    name: Name
    """Name of the feature; the column of the shards has the same name."""
    kind: FeatureKind
    """Categorical (an id), Dense (a number) or Sequence (a list of ids of one categorical)."""
    side: Side | None = None
    """The tower that reads the feature: User or Item. Retrieval models need it, ranking models ignore it. None is for
    model.userId alone: users are told apart by it, and no embedding of it is learnt, so that users who are not in the
    training data are served like any other."""
    encoding: Encoding | None = None
    """Categorical and Sequence: Identity (ids 0 to cardinality - 1, the default), Vocabulary (values learnt from the
    training data) or Hashing (any value, hashed into cardinality rows)."""
    cardinality: Annotated[int, Field(ge=1, le=2**40)] | None = None
    """Categorical and Sequence: the number of ids. With Vocabulary the most frequent values that are kept, with Hashing
    the number of buckets. The embedding table has two rows more: one for out-of-vocabulary, one for missing."""
    min_count: Count | None = None
    """Vocabulary: values seen fewer times in the training data are out of vocabulary. Default 1."""
    unknown: UnknownPolicy | None = None
    """Categorical and Sequence: Refuse (default for Identity: an id outside its range is an error) or OutOfVocabulary
    (default for Vocabulary: such values share the out-of-vocabulary row). Hashing knows every value."""
    embedding_dim: Count | None = None
    """Categorical and Sequence: width of the embedding, if other than the model's. Retrieval models only."""
    table: Name | None = None
    """Categorical and Sequence: name of the embedding table; features that name the same table share it. Default: the
    feature's name, or for a sequence with `of` that feature's table."""
    of: Name | None = None
    """Sequence: the categorical feature whose encoding, cardinality and table the elements have."""
    max_length: Count | None = None
    """Sequence: the longest list that is kept; of a longer one the last elements."""
    padding: Padding | None = None
    """Sequence: the side on which a shorter list is filled in the shards. Right by default. Padding is no id."""
    pooling: Pooling | None = None
    """Sequence: how the embeddings of the elements become one vector: Mean (default) or Sum."""
    transform: Transform | None = None
    """Dense: None (default), Standard (mean 0, variance 1 over the training data), Log (sign(x) * log(1 + abs(x))) or
    Bucket (the number of the interval between boundaries, scaled to 0..1)."""
    boundaries: list[float] | None = None
    """Dense with Bucket: increasing boundaries; without them quantiles of the training data are used."""
    num_buckets: Annotated[int, Field(ge=2, le=65536)] | None = None
    """Dense with Bucket and no boundaries: number of quantile buckets. Default 16."""
    fill_missing: float | None = None
    """Dense: the raw value that stands for a missing one, before the transform. Default 0."""

    def rules(self) -> Iterator[Problem]:
        """Yield fields that do not go with the kind, encoding or transform, and those that they ask for."""
        for field, kinds in _KINDS_OF_FIELD.items():
            value = getattr(self, field)
            if value is not None and self.kind not in kinds:
                yield _problem(field, value, f"is not for a {self.kind} feature, only for {' and '.join(kinds)}")
        if self.kind is FeatureKind.SEQUENCE:
            yield from self._sequence_rules()
        if self.kind is not FeatureKind.DENSE and self.of is None and self.cardinality is None:
            yield _problem("cardinality", None, f"is required for a {self.kind} feature: the number of its ids")
        if self.min_count is not None and self.encoding is not Encoding.VOCABULARY:
            yield _problem("min_count", self.min_count, "is only for encoding Vocabulary")
        if self.unknown is not None and self.encoding is Encoding.HASHING:
            yield _problem("unknown", self.unknown, "is not for encoding Hashing, which knows every value")
        if self.transform is not Transform.BUCKET:
            for field in ("boundaries", "num_buckets"):
                if getattr(self, field) is not None:
                    yield _problem(field, getattr(self, field), "is only for transform Bucket")
        if self.boundaries is not None:
            if not self.boundaries or any(low >= high for low, high in pairwise(self.boundaries)):
                yield _problem("boundaries", self.boundaries, "must be one or more increasing numbers")
            if self.num_buckets is not None:
                yield _problem("num_buckets", self.num_buckets, "must be left out when boundaries are given")

    def _sequence_rules(self) -> Iterator[Problem]:
        if self.max_length is None:
            yield _problem("max_length", None, "is required for a Sequence feature: the longest list that is kept")
        if self.of is not None:
            for field in ("encoding", "cardinality", "min_count", "unknown", "embedding_dim", "table"):
                if getattr(self, field) is not None:
                    yield _problem(field, getattr(self, field), f"must be left out: `of: {self.of}` says it")


_IDS = (FeatureKind.CATEGORICAL, FeatureKind.SEQUENCE)
_KINDS_OF_FIELD = {
    **dict.fromkeys(("encoding", "cardinality", "min_count", "unknown", "embedding_dim", "table"), _IDS),
    **dict.fromkeys(("of", "max_length", "padding", "pooling"), (FeatureKind.SEQUENCE,)),
    **dict.fromkeys(("transform", "boundaries", "num_buckets", "fill_missing"), (FeatureKind.DENSE,)),
}


def _problem(field: str, value: object, message: str) -> Problem:
    return Problem((to_camel(field),), value, message)


class Task(StrEnum):
    """What a label is and with it the loss and the metrics."""

    BINARY = "Binary"
    REGRESSION = "Regression"
    MULTI_CLASS = "MultiClass"
    MULTI_LABEL = "MultiLabel"


class Label(ApiModel):
    """One target of the model."""

    name: Name
    """Name of the label; the column of the shards has the same name."""
    task: Task
    """Binary (0 or 1), Regression (a finite number), MultiClass (0 to numClasses - 1) or MultiLabel (a list of
    numClasses zeros and ones)."""
    num_classes: Annotated[int, Field(ge=2, le=100_000)] | None = None
    """MultiClass and MultiLabel: the number of classes."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight of this label's loss in the sum over labels."""

    def rules(self) -> Iterator[Problem]:
        """Yield a number of classes that is missing or has no use."""
        has_classes = self.task in (Task.MULTI_CLASS, Task.MULTI_LABEL)
        if has_classes and self.num_classes is None:
            yield Problem(("numClasses",), None, f"is required for task {self.task}")
        if not has_classes and self.num_classes is not None:
            yield Problem(("numClasses",), self.num_classes, f"is not for task {self.task}")
