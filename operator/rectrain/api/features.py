"""Features and labels: what a row of training data holds, and how raw values become it."""

from enum import StrEnum
from itertools import pairwise
from typing import Annotated

from pydantic import Field

from rectrain.api.base import WITHOUT_REPEATS, ApiModel, Count, Name
from rectrain.api.rules import Rule, forbidden, given, one_of, required


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


_OF_IDS = ("encoding", "cardinality", "minCount", "unknown", "embeddingDim", "table")
_FIELDS_OF_KINDS = (
    (_OF_IDS, ("Categorical", "Sequence")),
    (("of", "maxLength", "padding", "pooling"), ("Sequence",)),
    (("transform", "boundaries", "numBuckets", "fillMissing"), ("Dense",)),
)


class Feature(ApiModel):
    """One column of the data and everything that turns a raw value into what the model reads."""

    RULES = (
        *(
            forbidden(field, one_of("kind", *kinds), f"is not for a {{kind}} feature, only for {' and '.join(kinds)}")
            for fields, kinds in _FIELDS_OF_KINDS
            for field in fields
        ),
        required(
            "maxLength",
            one_of("kind", "Sequence"),
            "is required for a Sequence feature: the longest list that is kept",
        ),
        *(forbidden(field, ~given("of"), "must be left out: `of: {of}` says it") for field in _OF_IDS),
        required(
            "cardinality",
            one_of("kind", "Categorical", "Sequence") & ~given("of"),
            "is required for a {kind} feature: the number of its ids",
        ),
        forbidden("minCount", one_of("encoding", "Vocabulary"), "is only for encoding Vocabulary"),
        forbidden("unknown", ~one_of("encoding", "Hashing"), "is not for encoding Hashing, which knows every value"),
        forbidden("boundaries", one_of("transform", "Bucket"), "is only for transform Bucket"),
        forbidden("numBuckets", one_of("transform", "Bucket"), "is only for transform Bucket"),
        Rule(
            "boundaries",
            "must be one or more increasing numbers",
            broken=lambda feature: feature.boundaries is not None and not _increase(feature.boundaries),
            # That no number is there twice, the API server knows and says itself.
            cel="!has(self.boundaries) || (self.boundaries.size() > 0 && self.boundaries.isSorted())",
        ),
        forbidden("numBuckets", ~given("boundaries"), "must be left out when boundaries are given"),
    )

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
    boundaries: Annotated[list[float], Field(max_length=1000), WITHOUT_REPEATS] | None = None
    """Dense with Bucket: increasing boundaries; without them quantiles of the training data are used."""
    num_buckets: Annotated[int, Field(ge=2, le=65536)] | None = None
    """Dense with Bucket and no boundaries: number of quantile buckets. Default 16."""
    fill_missing: float | None = None
    """Dense: the raw value that stands for a missing one, before the transform. Default 0."""


def _increase(numbers: list[float]) -> bool:
    return bool(numbers) and all(low < high for low, high in pairwise(numbers))


class Task(StrEnum):
    """What a label is and with it the loss and the metrics."""

    BINARY = "Binary"
    REGRESSION = "Regression"
    MULTI_CLASS = "MultiClass"
    MULTI_LABEL = "MultiLabel"


class Label(ApiModel):
    """One target of the model."""

    RULES = (
        required("numClasses", one_of("task", "MultiClass", "MultiLabel"), "is required for task {task}"),
        forbidden("numClasses", one_of("task", "MultiClass", "MultiLabel"), "is not for task {task}"),
    )

    name: Name
    """Name of the label; the column of the shards has the same name."""
    task: Task
    """Binary (0 or 1), Regression (a finite number), MultiClass (0 to numClasses - 1) or MultiLabel (a list of
    numClasses zeros and ones)."""
    num_classes: Annotated[int, Field(ge=2, le=100_000)] | None = None
    """MultiClass and MultiLabel: the number of classes."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight of this label's loss in the sum over labels."""
