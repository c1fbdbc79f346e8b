"""What is observed of a job: conditions, progress and results. Written by the controller, never by users."""

from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from rectrain.api.base import ApiModel, keyed_by


class ConditionStatus(StrEnum):
    """Whether a condition holds."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class State(StrEnum):
    """The state of a job in one word, for people: what its conditions, which programs read, come to."""

    PENDING = "Pending"
    SUSPENDED = "Suspended"
    RUNNING = "Running"
    RESTARTING = "Restarting"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"

    @property
    def is_final(self) -> bool:
        """Whether a job in this state has ended for good."""
        return self in (State.SUCCEEDED, State.FAILED)


_STRONGEST_FIRST = (State.FAILED, State.SUCCEEDED, State.SUSPENDED, State.RESTARTING, State.RUNNING)


class Condition(ApiModel):
    """One aspect of the job's state, in the form of metav1.Condition."""

    type: Annotated[str, Field(max_length=316)]
    """Suspended, Running, Restarting, Succeeded, Failed, DataPrepared."""
    status: ConditionStatus
    """True, False or Unknown."""
    observed_generation: int | None = None
    """Generation of the job that the condition is about."""
    last_transition_time: datetime
    """When the status last changed."""
    reason: Annotated[str, Field(max_length=1024)]
    """The cause, as one CamelCase word."""
    message: Annotated[str, Field(max_length=32768)] = ""
    """The cause, for people."""


class Progress(ApiModel):
    """How far training is."""

    step: int
    """Steps done."""
    total_steps: int
    """Steps in all."""
    completed: str = Field(default_factory=lambda told: _percentage(told["step"], told["total_steps"]))
    """Share of the steps that are done, such as 45%; for people."""
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


def _percentage(step: int, total_steps: int) -> str:
    return f"{min(100, 100 * step // max(1, total_steps))}%"


class MetricValue(ApiModel):
    """A final metric."""

    name: str
    """Name, such as recall@20."""
    value: float
    """Value."""


class Results(ApiModel):
    """What a job has given."""

    metrics: Annotated[list[MetricValue], keyed_by("name")] = Field(default_factory=list)
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

    state: State | None = None
    """The state in one word, for people: a column of `kubectl get` cannot pick a condition by its type. Programs read
    the conditions."""
    conditions: Annotated[list[Condition], keyed_by("type")] = Field(default_factory=list)
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


def find_condition(conditions: Iterable[Condition], type_: str) -> Condition | None:
    """Return the condition of a type, or None."""
    return next((c for c in conditions if c.type == type_), None)


def state_of(conditions: Iterable[Condition]) -> State:
    """Return the one word that a job's conditions come to."""
    true = {condition.type for condition in conditions if condition.status is ConditionStatus.TRUE}
    return next((state for state in _STRONGEST_FIRST if state in true), State.PENDING)
