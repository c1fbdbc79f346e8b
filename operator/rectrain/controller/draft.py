"""A decision in the making: the stages of `decide` read from it and write to it."""

from datetime import datetime
from typing import Any

from rectrain.api.job import RecTrainingJob
from rectrain.api.status import state_of
from rectrain.controller.conditions import ConditionType, is_true, with_condition
from rectrain.controller.decision import Action, Decision, DeleteChild
from rectrain.controller.observed import Child, Job, Observed, Pod
from rectrain.controller.transitions import events_between


class Draft:
    """What has been decided so far in a pass.

    Attributes:
        job: The job.
        observed: What there is of it.
        now: The time of the pass, in whole seconds as the API server keeps times.
        actions: What will be done.
    """

    def __init__(self, job: Job, observed: Observed, now: datetime) -> None:
        """Begin with the job's status as it is."""
        self.job = job
        self.observed = observed
        self.now = now.replace(microsecond=0)
        self.actions: list[Action] = []
        self.status = job.status
        self._requeue_at: datetime | None = None

    @property
    def definition(self) -> RecTrainingJob:
        """The job's definition; only for stages that come after the check that it is valid."""
        assert self.job.definition is not None
        return self.job.definition

    @property
    def attempt(self) -> int:
        """Number of the current attempt; a child says it too, where the status was lost."""
        child = self.own_child
        return self.status.attempt if child is None else max(self.status.attempt, child.attempt)

    @property
    def own_child(self) -> Child | None:
        """The job's PyTorchJob, if there is one and it is the job's."""
        child = self.observed.child
        return child if child is not None and child.owner_uid == self.job.uid else None

    @property
    def current_child(self) -> Child | None:
        """The PyTorchJob of the current attempt, unless it is on its way out."""
        child = self.own_child
        return child if child is not None and not child.deleting and child.attempt == self.attempt else None

    @property
    def pods(self) -> tuple[Pod, ...]:
        """The pods of the job's own PyTorchJob."""
        child = self.own_child
        return tuple(p for p in self.observed.pods if child is not None and p.owner_uid == child.uid)

    @property
    def has_ended(self) -> bool:
        """Whether the job has succeeded or failed, which is for good."""
        return state_of(self.status.conditions).is_final

    def holds(self, type_: ConditionType) -> bool:
        """Return whether a condition holds."""
        return is_true(self.status.conditions, type_)

    def set(self, type_: ConditionType, holds: bool, reason: str, message: str = "") -> None:
        """Set a condition."""
        conditions = with_condition(
            self.status.conditions, type_, holds, reason, message, generation=self.job.generation, now=self.now
        )
        self.update(conditions=conditions, state=state_of(conditions))

    def update(self, **fields: Any) -> None:
        """Set fields of the status."""
        self.status = self.status.model_copy(update=fields)

    def look_again(self, at: datetime) -> None:
        """Have another pass at that time; the earliest of several counts."""
        self._requeue_at = at if self._requeue_at is None else min(self._requeue_at, at)

    def stop_child(self) -> None:
        """Delete the job's own PyTorchJob, if it is there and not on its way out."""
        child = self.own_child
        if child is not None and not child.deleting:
            self.actions.append(DeleteChild(child.uid))

    def fail(self, reason: str, message: str) -> None:
        """End the job as failed, for good."""
        self.set(ConditionType.RUNNING, False, reason)
        self.set(ConditionType.RESTARTING, False, reason)
        self.set(ConditionType.FAILED, True, reason, message)
        self.update(restart_after=None)

    def decision(self) -> Decision:
        """Return what was decided."""
        if self.has_ended and state_of(self.job.status.conditions) is not state_of(self.status.conditions):
            # Pods are stopped and the time to live begins in the next pass. The event of this one's own patch may be no
            # news by the time that it comes, and brings none.
            self.look_again(self.now)
        return Decision(
            actions=tuple(self.actions),
            status=self.status,
            events=events_between(self.job.status, self.status),
            requeue_at=self._requeue_at,
        )
