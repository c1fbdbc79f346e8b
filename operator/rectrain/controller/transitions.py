"""Events of what has changed between two statuses."""

from rectrain.api.status import Condition, ConditionStatus, Status, find_condition
from rectrain.controller.conditions import ConditionType, is_true
from rectrain.controller.decision import Event

# The reasons why a job does not run that somebody should look at.
WARNING_REASONS = frozenset(
    {
        "Unschedulable",
        "ImagePullBackOff",
        "ErrImagePull",
        "InvalidImageName",
        "CreateContainerConfigError",
        "CreateContainerError",
        "NameTaken",
        "PodsRefused",
        "PyTorchJobNotInstalled",
        "Refused",
    }
)
_KNOWN = frozenset(ConditionType)
_ENDS_RUNNING = (ConditionType.SUCCEEDED, ConditionType.FAILED, ConditionType.RESTARTING, ConditionType.SUSPENDED)


def events_between(before: Status, after: Status) -> tuple[Event, ...]:
    """Return an event for each transition: a condition that turned, or that has another reason not to run."""
    events = []
    for condition in after.conditions:
        if condition.type not in _KNOWN:  # of a newer controller, or another's
            continue
        type_, old = ConditionType(condition.type), find_condition(before.conditions, ConditionType(condition.type))
        if type_ is ConditionType.RUNNING:
            event = _of_running(condition, old, before, after)
        else:
            event = _of_turn(type_, condition, old, is_again=after.attempt != before.attempt)
        if event is not None:
            events.append(event)
    return tuple(events)


def _of_running(condition: Condition, old: Condition | None, before: Status, after: Status) -> Event | None:
    if old is not None and (old.status, old.reason) == (condition.status, condition.reason):
        return None
    # Where another condition has turned true, it says why.
    if after.attempt != before.attempt:
        return None
    for type_ in _ENDS_RUNNING:
        if is_true(after.conditions, type_) and not is_true(before.conditions, type_):
            return None
    return Event(condition.reason, condition.message, is_warning=condition.reason in WARNING_REASONS)


def _of_turn(type_: ConditionType, condition: Condition, old: Condition | None, *, is_again: bool) -> Event | None:
    turned = condition.status is not (old.status if old is not None else ConditionStatus.FALSE)
    if not turned and not (type_ is ConditionType.RESTARTING and is_again):
        return None
    if condition.status is ConditionStatus.TRUE:
        is_warning = type_ in (ConditionType.FAILED, ConditionType.RESTARTING)
        return Event(condition.reason, condition.message, is_warning=is_warning)
    if type_ is ConditionType.SUSPENDED:
        return Event("Resumed", "the job is no longer suspended")
    return None  # that a restart is over, Running says
