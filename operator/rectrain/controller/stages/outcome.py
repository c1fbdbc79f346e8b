"""What follows when the workers have ended: the job succeeds, fails, or is restarted as a whole."""

from datetime import datetime, timedelta

from rectrain.api.status import find_condition
from rectrain.controller.classify import Failure, Retry, classify
from rectrain.controller.conditions import ConditionType
from rectrain.controller.draft import Draft
from rectrain.controller.observed import Phase, names_of
from rectrain.controller.results import results_of

_BACKOFF = timedelta(seconds=5)
_MAX_BACKOFF = timedelta(minutes=5)
_SILENCE = timedelta(seconds=90)
"""After which Kubernetes has noticed that a node does not answer: by default it does after 50 s."""


def take_outcome(draft: Draft) -> bool:
    """Settle the pass if the current attempt has ended.

    Nothing is deleted here: the status that says how the attempt ended has to be written first.
    """
    child = draft.current_child
    if child is None or not (child.phase.is_final or _has_lost_a_pod(draft)):
        return False
    if child.phase is Phase.SUCCEEDED:
        _succeed(draft)
        return True
    failure = classify(child, draft.pods)
    if failure.reason == "WorkerFailed" and _awaits_others(draft, failure):
        return True
    restarts, allowed = draft.status.restarts, draft.definition.spec.run_policy.max_restarts
    if failure.retry is Retry.NEVER:
        draft.fail(failure.reason, failure.message)
    elif failure.retry is Retry.COUNTED and restarts >= allowed:
        draft.fail(
            "MaxRestartsExceeded" if allowed else failure.reason,
            f"failed after {restarts} restarts, the most that runPolicy.maxRestarts allows; last: {failure.message}"
            if allowed
            else failure.message,
        )
    else:
        _restart(draft, failure)
    return True


def _has_lost_a_pod(draft: Draft) -> bool:
    """Return whether a pod was given up with its node, while the others run on and wait for it in vain.

    They would find out by themselves only by the time-out of a collective, elastic ones too.
    """
    return any(p.disruption and p.unreachable for p in draft.pods)


def _awaits_others(draft: Draft, failure: Failure) -> bool:
    """Wait for a while for how the other pods end: an exit code alone does not tell a cause from its consequence.

    They end soon, for they have lost a peer and are told to stop; but a node that is lost is only found out after its
    silence. The next attempt would have to wait for them in any case. A pod that ended may be gone before anything is
    known of its end: then the others' end is all there is.
    """
    ends = [p.termination.finished_at for p in draft.pods if p.termination and p.termination.finished_at]
    running = [p for p in draft.pods if p.is_running]
    until = min([*ends, _waits_since(draft)]) + _SILENCE
    if not running or draft.now >= until:
        return False
    draft.set(ConditionType.RUNNING, False, "Stopping", f"{failure.message}; waits for the others: {names_of(running)}")
    draft.look_again(until)
    return True


def _waits_since(draft: Draft) -> datetime:
    """Return since when the others are waited for; a node whose clock is ahead has pods that end later than that."""
    running = find_condition(draft.status.conditions, ConditionType.RUNNING)
    return running.last_transition_time if running is not None and running.reason == "Stopping" else draft.now


def backoff(restarts: int) -> timedelta:
    """Return how long to wait before an attempt: 5 s after the first failure, doubling, at most 5 min."""
    return min(_BACKOFF * (1 << min(max(restarts - 1, 0), 10)), _MAX_BACKOFF)


def _succeed(draft: Draft) -> None:
    results = results_of(draft.pods)
    if results is not None:
        draft.update(results=results)
    message = "the model is trained" if results is not None else "the model is trained; the workers left no results"
    draft.set(ConditionType.RUNNING, False, "TrainingCompleted")
    draft.set(ConditionType.RESTARTING, False, "TrainingCompleted")
    draft.set(ConditionType.SUCCEEDED, True, "TrainingCompleted", message)
    draft.update(restart_after=None)


def _restart(draft: Draft, failure: Failure) -> None:
    """Have all workers restarted from the last checkpoint; only those failures count that are the job's own."""
    restarts = draft.status.restarts + (failure.retry is Retry.COUNTED)
    after: datetime = draft.now + backoff(restarts if failure.retry is Retry.COUNTED else 1)
    draft.update(restarts=restarts, attempt=draft.attempt + 1, restart_after=after)
    draft.set(ConditionType.RUNNING, False, failure.reason, failure.message)
    draft.set(ConditionType.RESTARTING, True, failure.reason, failure.message)
    draft.look_again(draft.now)
