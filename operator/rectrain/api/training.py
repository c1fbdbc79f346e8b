"""Training: length, optimizers, checkpoints, sharding and evaluation."""

from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, Field

from rectrain.api.base import ApiModel, Count, Fraction, Name, NonNegative, Positive, Quantity, Uri, keyed_by
from rectrain.api.metric_names import METRIC_PATTERN, parse_metric
from rectrain.api.rules import Rule


def _check_metric(name: str) -> str:
    parse_metric(name)
    return name


# The pattern is for schemas; what parse_metric says of a wrong name is more helpful.
Metric = Annotated[
    str, Field(max_length=64, json_schema_extra={"pattern": METRIC_PATTERN}), AfterValidator(_check_metric)
]
"""Name of a metric, such as auc or recall@20."""


class Decay(StrEnum):
    """How the learning rate falls after the warm-up."""

    CONSTANT = "Constant"
    LINEAR = "Linear"
    COSINE = "Cosine"


class Schedule(ApiModel):
    """Learning rate over the steps."""

    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps over which the learning rate rises linearly from 0."""
    decay: Decay = Decay.CONSTANT
    """How it falls from the end of the warm-up to the end of training."""
    final_fraction: Fraction = 0.0
    """Linear and Cosine: the share of the learning rate that is left at the end."""


class EmbeddingOptimizerType(StrEnum):
    """Optimizers that are fused into the backward pass of the embedding tables."""

    SGD = "SGD"
    ADAGRAD = "Adagrad"
    ROW_WISE_ADAGRAD = "RowWiseAdagrad"
    ADAM = "Adam"
    PARTIAL_ROW_WISE_ADAM = "PartialRowWiseAdam"


class EmbeddingOptimizer(ApiModel):
    """Optimizer of the embedding tables, applied in the backward pass to the rows that a batch touched."""

    RULES = (
        Rule(
            "weightDecay",
            "must be 0 with {type}; RowWiseAdagrad and Adam have it",
            broken=lambda optimizer: optimizer.weight_decay > 0 and optimizer.type in ("SGD", "Adagrad"),
            cel='!has(self.weightDecay) || self.weightDecay == 0.0 || !(self.type in ["SGD", "Adagrad"])',
        ),
    )

    type: EmbeddingOptimizerType = EmbeddingOptimizerType.ROW_WISE_ADAGRAD
    """SGD, Adagrad and RowWiseAdagrad run on CPU and GPU; Adam and PartialRowWiseAdam on GPU."""
    learning_rate: Positive = 0.02
    """Learning rate at the end of the warm-up."""
    weight_decay: NonNegative = 0.0
    """L2 penalty on the rows that a batch touched. SGD and Adagrad have none."""
    epsilon: Positive = 1e-8
    """Added to the denominator."""
    schedule: Schedule = Schedule()
    """Learning rate over the steps."""
    clip_value: Positive | None = None
    """Largest absolute value of a gradient's element."""


class DenseOptimizerType(StrEnum):
    """Optimizers of the layers above the embeddings."""

    SGD = "SGD"
    ADAGRAD = "Adagrad"
    ADAM = "Adam"
    ADAM_W = "AdamW"


class DenseOptimizer(ApiModel):
    """Optimizer of everything but the embedding tables."""

    type: DenseOptimizerType = DenseOptimizerType.ADAM
    """SGD, Adagrad, Adam or AdamW."""
    learning_rate: Positive = 0.001
    """Learning rate at the end of the warm-up."""
    weight_decay: NonNegative = 0.0
    """L2 penalty; decoupled with AdamW."""
    schedule: Schedule = Schedule()
    """Learning rate over the steps."""
    clip_norm: Positive | None = None
    """Largest norm of all these gradients together."""


class Optimizers(ApiModel):
    """One optimizer for the embedding tables, one for the rest."""

    embedding: EmbeddingOptimizer = EmbeddingOptimizer()
    """Optimizer of the embedding tables."""
    dense: DenseOptimizer = DenseOptimizer()
    """Optimizer of the other layers."""


class EarlyStopping(ApiModel):
    """Stop when a metric no longer gets better.

    The model bundle and the final metrics are those of the best evaluation; of the last step where its weights were not
    kept, see checkpoint.keepBest.
    """

    metric: Metric
    """One of evaluation.metrics; whether larger is better is known from its name."""
    patience: Count = 3
    """Evaluations without improvement before training stops."""
    min_delta: NonNegative = 0.0
    """Smallest change that counts as an improvement."""


class Checkpoint(ApiModel):
    """Sharded checkpoints, from which a restart continues."""

    uri: Uri | None = None
    """Folder of the checkpoints: s3://bucket/prefix, file:///path or a path. Default: checkpoints in the run's
    output."""
    every_steps: Count | None = None
    """Steps between checkpoints. Default: one at the end of each epoch."""
    keep: Count = 3
    """Number of newest checkpoints that are kept."""
    keep_best: bool = True
    """Also keep the checkpoint with the best value of the early-stopping metric, or else of the first metric."""


class Precision(StrEnum):
    """Arithmetic of the forward and backward pass."""

    AUTO = "Auto"
    FLOAT32 = "Float32"
    BFLOAT16 = "BFloat16"


class Training(ApiModel):
    """How the model is trained."""

    batch_size: Annotated[int, Field(ge=1, le=2**24)] = 1024
    """Rows in a step, on each rank."""
    epochs: Count | None = None
    """Passes over the training data. Default 1, or unlimited with maxSteps."""
    max_steps: Count | None = None
    """Stop after so many steps, if that is before the last epoch's end."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """Seed of the initial weights, dropout and negatives. On CPU two runs with the same seeds are bitwise equal."""
    optimizers: Optimizers = Optimizers()
    """Optimizers of the embedding tables and of the rest."""
    precision: Precision = Precision.AUTO
    """Auto (BFloat16 autocast on CUDA, Float32 on CPU), Float32 or BFloat16."""
    early_stopping: EarlyStopping | None = None
    """Stop when a metric no longer gets better. The model bundle and the final metrics are those of the last step; the
    best weights are kept as a checkpoint, see checkpoint.keepBest."""
    checkpoint: Checkpoint = Checkpoint()
    """Checkpoints."""
    log_every_steps: Count = 50
    """Steps between two points of the loss and throughput."""


class ShardingType(StrEnum):
    """Ways to split an embedding table over ranks."""

    DATA_PARALLEL = "DataParallel"
    TABLE_WISE = "TableWise"
    COLUMN_WISE = "ColumnWise"
    ROW_WISE = "RowWise"
    TABLE_ROW_WISE = "TableRowWise"
    TABLE_COLUMN_WISE = "TableColumnWise"
    GRID = "Grid"


class ComputeKernel(StrEnum):
    """Where a table's rows are and how they are updated."""

    DENSE = "Dense"
    FUSED = "Fused"
    FUSED_UVM = "FusedUVM"
    FUSED_UVM_CACHING = "FusedUVMCaching"


class TableConstraint(ApiModel):
    """What the planner may choose for one embedding table."""

    table: Name
    """Name of the embedding table."""
    types: Annotated[list[ShardingType], Field(min_length=1, max_length=7)] | None = None
    """Allowed sharding types. Default: all that the device has."""
    kernels: Annotated[list[ComputeKernel], Field(min_length=1, max_length=4)] | None = None
    """Allowed compute kernels. Default: all that the device has."""


class Sharding(ApiModel):
    """What the sharding planner works with."""

    hbm_per_device: Quantity | None = None
    """Memory of a GPU that the planner may use. Default: measured on the device."""
    host_memory_per_rank: Quantity | None = None
    """Main memory of a rank that the planner may use. Default: the machine's memory divided by its ranks."""
    constraints: Annotated[list[TableConstraint], Field(max_length=2000), keyed_by("table")] = Field(
        default_factory=list
    )
    """What may be chosen for single tables."""


class Evaluation(ApiModel):
    """What is measured on the validation data, and when."""

    metrics: Annotated[list[Metric], Field(max_length=64)] | None = None
    """Names of metrics. Default: recall@20, ndcg@20 and hit_rate@20 for retrieval models; auc and log_loss, rmse, or
    accuracy for the tasks of other models."""
    every_steps: Count | None = None
    """Steps between evaluations. Default: at the end of training, and of each epoch with early stopping."""
    every_epochs: Count | None = None
    """Epochs between evaluations."""
    batch_size: Annotated[int, Field(ge=1, le=2**24)] | None = None
    """Rows evaluated at once on each rank. Default: training.batchSize."""
    mask_train_items: bool = True
    """Ranking metrics leave out the items that a user has in the training data."""
