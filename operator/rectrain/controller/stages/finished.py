"""A job that has ended stays as it ended; its pods are stopped, and it is deleted after its time to live."""

from datetime import timedelta

from rectrain.api.operations import CleanPodPolicy
from rectrain.api.status import find_condition
from rectrain.controller.conditions import ConditionType
from rectrain.controller.decision import DeleteJob
from rectrain.controller.draft import Draft

_RESYNC = timedelta(hours=6)
"""After which an ended job is read anew: the event of its deletion can be lost, and it would be counted for ever."""


def keep_finished(draft: Draft) -> bool:
    """Settle the pass if the job has ended."""
    ended = next((t for t in (ConditionType.SUCCEEDED, ConditionType.FAILED) if draft.holds(t)), None)
    if ended is None:
        return False
    child = draft.own_child
    if child is not None and (not child.phase.is_final or _is_removed_with_its_pods(draft)):
        draft.stop_child()
    draft.look_again(draft.now + _RESYNC)
    _live(draft, ended)
    return True


def _is_removed_with_its_pods(draft: Draft) -> bool:
    definition = draft.job.definition
    return definition is not None and definition.spec.run_policy.clean_pod_policy is CleanPodPolicy.ALL


def _live(draft: Draft, ended: ConditionType) -> None:
    """Delete the job when its time to live is over; its children go with it."""
    if draft.job.definition is None:
        return
    ttl = draft.definition.spec.run_policy.ttl_seconds_after_finished
    condition = find_condition(draft.status.conditions, ended)
    if ttl is None or condition is None:
        return
    until = condition.last_transition_time + timedelta(seconds=ttl)
    if draft.now >= until:
        draft.actions = [DeleteJob(draft.job.uid)]
    else:
        draft.look_again(until)
