"""What is observed of a job: conditions, progress and results. Written by the controller, never by users."""

from datetime import datetime
from enum import StrEnum

from pydantic import Field

from rectrain.api.base import ApiModel


class ConditionStatus(StrEnum):
    """Whether a condition holds."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Condition(ApiModel):
    """One aspect of the job's state, in the form of metav1.Condition."""

    type: str
    """Suspended, Running, Restarting, Succeeded, Failed, DataPrepared."""
    status: ConditionStatus
    """True, False or Unknown."""
    observed_generation: int | None = None
    """Generation of the job that the condition is about."""
    last_transition_time: datetime
    """When the status last changed."""
    reason: str
    """The cause, as one CamelCase word."""
    message: str = ""
    """The cause, for people."""


class Progress(ApiModel):
    """How far training is."""

    step: int
    """Steps done."""
    total_steps: int
    """Steps in all."""
    epoch: int
    """Current epoch, from 0."""
    examples_per_second: float
    """Rows of all ranks in a second."""
    loss: float | None = None
    """Training loss."""
    estimated_remaining_seconds: int | None = None
    """Time left."""
    last_update_time: datetime
    """When this was read."""


class MetricValue(ApiModel):
    """A final metric."""

    name: str
    """Name, such as recall@20."""
    value: float
    """Value."""


class Results(ApiModel):
    """What a job has given."""

    metrics: list[MetricValue] = Field(default_factory=list)
    """Final metrics."""
    mlflow_run_id: str | None = None
    """Run in MLflow."""
    checkpoint_uri: str | None = None
    """Newest checkpoint."""
    model_uri: str | None = None
    """Model bundle."""
    index_name: str | None = None
    """Vector index that the items are in."""


class Status(ApiModel):
    """The observed state of a job."""

    conditions: list[Condition] = Field(default_factory=list)
    """Aspects of the state, one of each type."""
    progress: Progress | None = None
    """How far training is."""
    results: Results | None = None
    """What the job has given."""
    restarts: int = 0
    """Restarts after failures so far; runPolicy.maxRestarts bounds them."""
    attempt: int = 0
    """Number of the current attempt, from 0. Also grows by restarts that are no failures, as after a preemption."""
    start_time: datetime | None = None
    """When the workers were first let run, since the job was created or resumed; runPolicy.activeDeadlineSeconds counts
    from it."""
    restart_after: datetime | None = None
    """While the job waits to be restarted: the next attempt begins no earlier."""
    observed_generation: int | None = None
    """Generation of the job that was last acted on."""
