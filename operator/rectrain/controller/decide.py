"""decide(): every policy of the controller. Pure: no clock, no client, no state."""

from collections.abc import Callable
from datetime import datetime, timedelta
from zlib import crc32

from rectrain.controller.conditions import ConditionType
from rectrain.controller.decision import Decision
from rectrain.controller.draft import Draft
from rectrain.controller.observed import Job, Observed
from rectrain.controller.stages.child import run_child
from rectrain.controller.stages.data import prepare_data
from rectrain.controller.stages.finished import keep_finished
from rectrain.controller.stages.limits import refuse_invalid, stop_at_deadline, suspend
from rectrain.controller.stages.outcome import take_outcome
from rectrain.controller.stages.refusal import answer_refusal

Stage = Callable[[Draft], bool]
"""One policy: looks at the draft and adds to it. True where it has settled the pass and no later stage has a say."""

_RESYNC = timedelta(minutes=10)

_STAGES: tuple[Stage, ...] = (
    keep_finished,
    refuse_invalid,
    take_outcome,
    stop_at_deadline,
    suspend,
    prepare_data,
    run_child,
)


def decide(job: Job, observed: Observed, now: datetime) -> Decision:
    """Return what to do about a job.

    It looks at what is, never at what has happened: any pass may be missed, repeated or interrupted anywhere. What may
    not be lost is in the status before its evidence goes: a failure is counted in one pass, and the failed PyTorchJob
    is deleted in a later one, because its attempt is no longer the status's.

    Args:
        job: The job.
        observed: What there is of it.
        now: The time, with a zone.

    Returns:
        Actions, the status, events, and when to look again.
    """
    if job.deleting:  # what it owns goes with it, by owner references
        return Decision(actions=(), status=job.status)
    draft = Draft(job, observed, now)
    if not draft.has_ended:
        _begin(draft)
    for stage in _STAGES:
        if stage(draft):
            break
    if observed.refusal is not None:
        answer_refusal(draft, observed.refusal)
    return draft.decision()


def _begin(draft: Draft) -> None:
    """State every condition, at first sight already, and the generation that this pass is about."""
    draft.update(observed_generation=draft.job.generation, attempt=draft.attempt)
    # Events can be lost, so every job is read anew now and then; not all of them at once.
    draft.look_again(draft.now + _RESYNC + timedelta(seconds=crc32(draft.job.uid.encode()) % _RESYNC.seconds))
    for type_ in (ConditionType.RESTARTING, ConditionType.SUCCEEDED, ConditionType.FAILED):
        if not draft.holds(type_):
            draft.set(type_, False, "NotFinished" if type_ is not ConditionType.RESTARTING else "NotNeeded")
