"""What follows when the API server does not do what was decided."""

from datetime import timedelta

from rectrain.controller.conditions import ConditionType
from rectrain.controller.draft import Draft
from rectrain.controller.observed import Refusal

_RETRY = timedelta(seconds=30)


def answer_refusal(draft: Draft, refusal: Refusal) -> None:
    """Say it in a condition, and try again later unless the answer would be the same."""
    draft.actions.clear()
    if draft.has_ended:
        draft.look_again(draft.now + _RETRY)
        return
    if refusal.permanent:
        draft.fail(refusal.reason, refusal.message)
        return
    draft.update(start_time=draft.job.status.start_time)  # nothing was let run
    draft.set(ConditionType.RUNNING, False, refusal.reason, refusal.message)
    draft.look_again(draft.now + _RETRY)
