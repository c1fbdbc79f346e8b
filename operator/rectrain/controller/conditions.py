"""Conditions in the form of metav1.Condition: set, compared, and told about in events."""

from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum

from rectrain.api.status import Condition, ConditionStatus, find_condition


class ConditionType(StrEnum):
    """The conditions of a job, in the order that they are listed in."""

    SUSPENDED = "Suspended"
    DATA_PREPARED = "DataPrepared"
    RUNNING = "Running"
    RESTARTING = "Restarting"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


_ORDER = list(ConditionType)
_MAX_MESSAGE = 4096
"""Characters of a message. What others say can be longer than a condition may hold, and a status that the API server
refuses would be tried for ever."""


def is_true(conditions: Iterable[Condition], type_: ConditionType) -> bool:
    """Return whether the condition of a type is there and holds."""
    condition = find_condition(conditions, type_)
    return condition is not None and condition.status is ConditionStatus.TRUE


def with_condition(
    conditions: Iterable[Condition],
    type_: ConditionType,
    holds: bool,
    reason: str,
    message: str,
    *,
    generation: int,
    now: datetime,
) -> list[Condition]:
    """Return the conditions with one of them set.

    Its lastTransitionTime moves only when its status does.

    Args:
        conditions: The conditions before.
        type_: Type of the one that is set.
        holds: Its status.
        reason: One CamelCase word.
        message: The reason for people.
        generation: Generation of the job that this is about.
        now: The time of this pass.
    """
    status = ConditionStatus.TRUE if holds else ConditionStatus.FALSE
    conditions = list(conditions)
    before = find_condition(conditions, type_)
    changed = before is None or before.status is not status
    condition = Condition(
        type=type_,
        status=status,
        observed_generation=generation,
        last_transition_time=now if before is None or changed else before.last_transition_time,
        reason=reason,
        message=message if len(message) <= _MAX_MESSAGE else f"{message[: _MAX_MESSAGE - 3]}...",
    )
    others = [c for c in conditions if c.type != type_]
    return sorted([*others, condition], key=lambda c: _ORDER.index(ConditionType(c.type)) if c.type in _ORDER else -1)
