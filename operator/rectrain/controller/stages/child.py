"""The PyTorchJob of the current attempt: created, watched, and replaced when its attempt is over."""

from datetime import timedelta

from rectrain.api.job import KIND
from rectrain.api.status import Progress, find_condition
from rectrain.controller.conditions import ConditionType
from rectrain.controller.decision import CreateChild, CreateConfigMap
from rectrain.controller.draft import Draft
from rectrain.controller.observed import Child, Phase, awaits_pods, misses_pods, names_of
from rectrain.controller.pending import IMAGE_REASONS, pending_reason
from rectrain.manifests import memory_problem

_FOREIGN_RETRY = timedelta(seconds=30)
_PATIENCE = timedelta(seconds=15)
"""After which something that was to go away is read anew, should the event of its end be lost."""
_PODS_REFUSED = "PodsRefused"
_PODS_PATIENCE = (timedelta(seconds=15), timedelta(seconds=60))
"""After which it is asked why pods are missing."""
_IMAGE_PATIENCE = timedelta(minutes=10)
"""How long a worker may fail to pull its image while the others hold their places."""


def run_child(draft: Draft) -> bool:
    """Bring about the PyTorchJob of the current attempt, and say how it is."""
    child = draft.observed.child
    if child is None:
        _create(draft)
    elif draft.own_child is None and child.owner == f"{KIND}/{draft.job.key.name}":
        _wait(draft, "the PyTorchJob of the job that had this name before is not gone yet")
    elif draft.own_child is None:
        _leave_alone(draft, child)
    elif child.deleting or draft.current_child is None:
        draft.stop_child()
        _wait(draft, f"the PyTorchJob of the last attempt is being deleted{_held_by(draft)}")
    else:
        _report(draft, child)
    return True


def _create(draft: Draft) -> None:
    left = [p for p in draft.observed.pods if not p.gone]
    if left:  # the same names are needed again
        _wait(draft, f"pods of the last attempt are still there: {names_of(left)}")
        return
    if draft.status.start_time is None and draft.status.attempt == 0:
        problem = memory_problem(draft.definition)
        if problem is not None:
            draft.fail("OutOfDeviceMemory", problem)
            return
    after = draft.status.restart_after
    if after is not None and draft.now < after:
        _wait(draft, f"the next attempt begins at {after:%H:%M:%S} UTC")
        draft.look_again(after)
        return
    draft.actions += [CreateConfigMap(), CreateChild(draft.attempt, suspended=draft.job.queue is not None)]
    _report_phase(draft, suspended=draft.job.queue is not None, phase=Phase.PENDING)
    if draft.observed.refusal is None:  # the watch of a type that was just installed may tell nothing of it
        draft.look_again(draft.now + _PODS_PATIENCE[0])


def _leave_alone(draft: Draft, child: Child) -> None:
    owner = f"belongs to another owner, {child.owner_uid}" if child.owner_uid else "belongs to nobody"
    draft.set(ConditionType.SUSPENDED, False, "NotSuspended")
    draft.set(
        ConditionType.RUNNING,
        False,
        "NameTaken",
        f"PyTorchJob {draft.job.key.name} exists and {owner}; it is left alone: delete it, or rename the job",
    )
    draft.look_again(draft.now + _FOREIGN_RETRY)


def _wait(draft: Draft, message: str) -> None:
    draft.set(ConditionType.SUSPENDED, False, "NotSuspended")
    draft.set(ConditionType.RUNNING, False, "Restarting" if draft.status.attempt else "Pending", message)
    draft.look_again(draft.now + _PATIENCE)


def _held_by(draft: Draft) -> str:
    """Return which pods nobody can stop, and what lets go of them: Kubernetes cannot know whether they still run."""
    lost = [p for p in draft.pods if p.unreachable and not p.gone]
    if not lost:
        return ""
    return (
        f", but the node of {names_of(lost)} does not answer: it goes when the node is back, is deleted, or has the "
        "taint node.kubernetes.io/out-of-service"
    )


def _report(draft: Draft, child: Child) -> None:
    """Say how the current attempt is."""
    _report_phase(draft, suspended=child.suspended, phase=child.phase)
    progress = draft.observed.progress
    if progress is not None and _advanced(draft.status.progress, progress):
        draft.update(progress=progress)
    _look_for_missing_pods(draft, child)
    _look_for_missing_config_map(draft)
    for pod in draft.pods:
        if pod.waiting_reason not in IMAGE_REASONS:
            continue
        until = pod.since + _IMAGE_PATIENCE
        if pod.waiting_reason == "InvalidImageName" or draft.now >= until:
            draft.fail(pod.waiting_reason, f"pod {pod.name}: {pod.waiting_message or pod.waiting_reason}")
            return
        draft.look_again(until)


def _look_for_missing_pods(draft: Draft, child: Child) -> None:
    """Look again while pods are missing: that they cannot be created is told by events alone, which nobody watches."""
    start = draft.status.start_time
    if start is None or not awaits_pods(draft.job, child, draft.pods):
        return
    soon = next((start + wait for wait in _PODS_PATIENCE if draft.now < start + wait), None)
    if soon is not None or draft.observed.pods_refused:
        draft.look_again(soon or draft.now + _PODS_PATIENCE[-1])


def _look_for_missing_config_map(draft: Draft) -> None:
    """Make what pods mount again where it was deleted; look again while they are prepared, for it is not watched."""
    if draft.observed.config_map_missing:
        draft.actions.append(CreateConfigMap())
    if any(p.is_prepared for p in draft.pods):
        draft.look_again(draft.now + _PODS_PATIENCE[-1])


def _refused_pods(draft: Draft) -> tuple[str, str] | None:
    """Return why pods cannot be created: as events say, and until they are asked again as they said last."""
    if not misses_pods(draft.job, draft.pods):
        return None
    message = draft.observed.pods_refused
    if message is None:
        told = find_condition(draft.status.conditions, ConditionType.RUNNING)
        message = told.message if told is not None and told.reason == _PODS_REFUSED else ""
    return (_PODS_REFUSED, message) if message else None


def _report_phase(draft: Draft, *, suspended: bool, phase: Phase) -> None:
    queue = draft.job.queue
    if suspended:
        message = f"waits for admission by queue {queue}" if queue else "the PyTorchJob is suspended"
        draft.set(ConditionType.SUSPENDED, True, "WaitingForAdmission", message)
        draft.set(ConditionType.RUNNING, False, "WaitingForAdmission", message)
        draft.update(start_time=None)
        return
    draft.set(ConditionType.SUSPENDED, False, "NotSuspended")
    if draft.status.start_time is None:
        draft.update(start_time=draft.now)
        seconds = draft.definition.spec.run_policy.active_deadline_seconds
        if seconds is not None:
            draft.look_again(draft.now + timedelta(seconds=seconds))
    draft.update(restart_after=None)
    pending = pending_reason(draft.pods) or _refused_pods(draft)
    if phase is Phase.RUNNING:
        draft.set(ConditionType.RUNNING, True, "Training", pending[1] if pending else "the workers run")
        draft.set(ConditionType.RESTARTING, False, "Restarted" if draft.attempt else "NotNeeded")
    else:
        reason, message = pending or ("Pending", "the worker pods are being created")
        draft.set(ConditionType.RUNNING, False, reason, message)


def _advanced(before: Progress | None, after: Progress) -> bool:
    """Return whether anything but the time of reading is new."""
    return before is None or before.model_copy(update={"last_update_time": after.last_update_time}) != after
