"""Models: one section for each type, named by `model.type`."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field
from pydantic.alias_generators import to_snake

from rectrain.api.base import ApiModel, Count, Fraction, Name, Positive
from rectrain.api.rules import forbidden, one_of, required


class ModelType(StrEnum):
    """The models that can be trained."""

    TWO_TOWER = "TwoTower"
    DLRM = "DLRM"
    DCN_V2 = "DCNv2"
    DEEP_FM = "DeepFM"
    MIND = "MIND"


class Similarity(StrEnum):
    """How a user vector and an item vector become a score."""

    DOT = "Dot"
    COSINE = "Cosine"


class RetrievalLoss(StrEnum):
    """What a two-tower model minimizes."""

    IN_BATCH_SOFTMAX = "InBatchSoftmax"
    BINARY_CROSS_ENTROPY = "BinaryCrossEntropy"
    BPR = "BPR"


class LabelAttention(StrEnum):
    """How a target item attends to the interests of a user in training."""

    SOFT = "Soft"
    HARD = "Hard"


class Negatives(ApiModel):
    """Where the negatives of a retrieval loss come from."""

    across_ranks: bool = True
    """Use the items of every rank's batch as negatives, not only those of the own batch."""
    uniform: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Further negatives drawn uniformly from all items, shared by a step's rows."""
    mask_duplicates: bool = True
    """Do not count an item as a negative of a row whose positive item it is."""
    log_q_correction: Fraction = 1.0
    """Strength of the sampling-bias correction: the log of an item's share of the training data, times this, is taken
    off its score as a negative. 1 corrects in full, 0 not at all."""


class TwoTower(ApiModel):
    """A user tower and an item tower whose vectors are compared: the standard retrieval model."""

    embedding_dim: Count = 64
    """Width of the embeddings."""
    hidden_dims: Annotated[list[Count], Field(max_length=16)] = Field(default_factory=lambda: [128, 64])
    """Widths of the layers of each tower above its embeddings; the last one is the width of the vectors. An empty list
    leaves out the layers: the embeddings of a side are summed, as in matrix factorization."""
    similarity: Similarity = Similarity.COSINE
    """Cosine or Dot."""
    temperature: Positive = 0.05
    """Scores are divided by it before the loss."""
    loss: RetrievalLoss = RetrievalLoss.IN_BATCH_SOFTMAX
    """InBatchSoftmax (positives only), BinaryCrossEntropy (needs a Binary label) or BPR (positives only)."""
    negatives: Negatives = Negatives()
    """Negatives of InBatchSoftmax and BPR."""
    embedding_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the embedding's values set to zero in training."""
    init_std: Positive | None = None
    """Standard deviation of the initial embeddings. Default: 1 / sqrt(embeddingDim)."""


class DLRM(ApiModel):
    """Deep Learning Recommendation Model: embeddings and a dense vector, dot interactions, an MLP on top."""

    embedding_dim: Count = 64
    """Width of the embeddings, and of the dense features' vector."""
    dense_dims: Annotated[list[Count], Field(max_length=16)] = Field(default_factory=lambda: [128])
    """Widths of the layers over the dense features, below a last one of embeddingDim."""
    over_dims: Annotated[list[Count], Field(max_length=16)] = Field(default_factory=lambda: [256, 128])
    """Widths of the layers over the interactions, below the output."""


class DCNv2(ApiModel):
    """Deep & Cross Network V2: DLRM's shape with low-rank cross layers for the interactions."""

    embedding_dim: Count = 64
    """Width of the embeddings, and of the dense features' vector."""
    dense_dims: Annotated[list[Count], Field(max_length=16)] = Field(default_factory=lambda: [128])
    """Widths of the layers over the dense features, below a last one of embeddingDim."""
    over_dims: Annotated[list[Count], Field(max_length=16)] = Field(default_factory=lambda: [256, 128])
    """Widths of the layers over the crosses, below the output."""
    cross_layers: Annotated[int, Field(ge=1, le=32)] = 3
    """Number of cross layers."""
    cross_rank: Count = 64
    """Rank of each cross layer's weight."""


class DeepFM(ApiModel):
    """Factorization machine and MLP side by side over the same embeddings."""

    embedding_dim: Count = 64
    """Width of the embeddings, and of the dense features' vector."""
    dense_dims: Annotated[list[Count], Field(max_length=16)] = Field(default_factory=lambda: [128])
    """Widths of the layers over the dense features, below a last one of embeddingDim."""
    over_dims: Annotated[list[Count], Field(max_length=16)] = Field(default_factory=lambda: [256, 128])
    """Widths of the deep part's layers."""


class SampledNegatives(ApiModel):
    """Negatives of a sampled softmax, shared by a step's rows and drawn without repeats by popularity.

    The r-th most frequent item of the training data, r from 1, is drawn in proportion to log(1 + 1/r).
    """

    count: Annotated[int, Field(ge=1, le=1_000_000)] = 1280
    """Items drawn for a step on each rank; all items where there are no more."""
    log_q_correction: Fraction = 1.0
    """Strength of the sampling-bias correction: the log of how often an item is expected to be drawn, times this, is
    taken off its score. 1 corrects in full, 0 not at all."""


class MIND(ApiModel):
    """Multi-Interest Network with Dynamic routing: a user's history becomes several interest vectors.

    An item's score is its highest with any of them. History, targets and negatives share the item's embedding table,
    whose rows are the item vectors.
    """

    embedding_dim: Count = 64
    """Width of the embeddings and of the interest vectors."""
    history: Name = "history"
    """The Sequence feature that is routed to interests: of the item feature, side User."""
    interests: Annotated[int, Field(ge=1, le=64)] = 4
    """Number of interest vectors of a user."""
    routing_iterations: Annotated[int, Field(ge=1, le=16)] = 3
    """Iterations of the dynamic routing; only the last one is differentiated."""
    hidden_dims: Annotated[list[Count], Field(max_length=16)] = Field(default_factory=list)
    """Widths of ReLU layers over each interest and the profile: the other features of side User, concatenated. A linear
    layer of embeddingDim follows. Without profile features and with an empty list the routed interests are the vectors
    themselves."""
    attention: LabelAttention = LabelAttention.SOFT
    """How training weights a user's interests for a target item: Soft (in proportion) or Hard (the closest alone)."""
    attention_power: Annotated[float, Field(ge=1, le=64)] = 1.0
    """Soft: the power that an interest's inner product with the target is raised to before the softmax; its sign is
    kept. The larger, the more the closest interest counts."""
    similarity: Similarity = Similarity.DOT
    """Dot or Cosine."""
    temperature: Positive = 1.0
    """Scores are divided by it before the loss."""
    negatives: SampledNegatives = SampledNegatives()
    """Negatives of the sampled softmax."""
    embedding_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the history embeddings' values set to zero in training."""
    init_std: Positive | None = None
    """Standard deviation of the initial embeddings. Default: 1 / sqrt(embeddingDim)."""


RETRIEVAL_TYPES = (ModelType.TWO_TOWER, ModelType.MIND)
"""Models that give user and item vectors, which are ranked over the whole corpus."""

SECTION_OF_TYPE = {
    ModelType.TWO_TOWER: "twoTower",
    ModelType.DLRM: "dlrm",
    ModelType.DCN_V2: "dcnV2",
    ModelType.DEEP_FM: "deepFm",
    ModelType.MIND: "mind",
}
"""The field of a model's settings."""


class ModelSpec(ApiModel):
    """The model: a type, and the section of that name."""

    RULES = tuple(
        rule
        for type_, section in SECTION_OF_TYPE.items()
        for rule in (
            required(section, one_of("type", type_), f"is required for type {type_}; {{{{}}}} takes the defaults"),
            forbidden(section, one_of("type", type_), "must be left out: type is {type}"),
        )
    )

    type: ModelType
    """Which model to train."""
    two_tower: TwoTower | None = None
    """Settings of a TwoTower model."""
    dlrm: DLRM | None = None
    """Settings of a DLRM model."""
    dcn_v2: DCNv2 | None = None
    """Settings of a DCNv2 model."""
    deep_fm: DeepFM | None = None
    """Settings of a DeepFM model."""
    mind: MIND | None = None
    """Settings of a MIND model."""
    user_id: Name = "user_id"
    """The categorical feature that identifies the user: interactions are grouped and masked by it."""
    item_id: Name = "item_id"
    """The categorical feature that identifies the item: rankings are over its ids."""

    @property
    def is_retrieval(self) -> bool:
        """Whether the model gives user and item vectors that are ranked over the whole corpus."""
        return self.type in RETRIEVAL_TYPES

    @property
    def section(self) -> "TwoTower | DLRM | DCNv2 | DeepFM | MIND":
        """The section of the named type."""
        section = getattr(self, to_snake(SECTION_OF_TYPE[self.type]))
        assert section is not None, "RULES ask for the section of the named type"
        return section  # type: ignore[no-any-return]
