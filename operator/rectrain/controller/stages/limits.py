"""What ends or holds a job whatever its workers do: a spec that is not valid, the deadline, suspension."""

from datetime import timedelta

from rectrain.controller.conditions import ConditionType
from rectrain.controller.draft import Draft


def refuse_invalid(draft: Draft) -> bool:
    """Settle the pass if the spec is not valid, though the API server has let it through.

    A job that a controller has understood before is left as it is, suspended ones too: it may be of a newer version,
    seen by an older controller after a rollback.
    """
    if draft.job.definition is not None:
        return False
    if draft.observed.child is None and not draft.job.status.conditions:
        draft.fail("InvalidSpec", draft.job.problem)
    else:
        draft.set(
            ConditionType.RUNNING,
            draft.holds(ConditionType.RUNNING),
            "SpecNotUnderstood",
            f"the job is left as it is: {draft.job.problem}",
        )
    return True


def stop_at_deadline(draft: Draft) -> bool:
    """Fail the job when it has run for longer than it may; the pods are stopped in the next pass."""
    seconds, start = draft.definition.spec.run_policy.active_deadline_seconds, draft.status.start_time
    if seconds is None or start is None:
        return False
    until = start + timedelta(seconds=seconds)
    if draft.now < until:
        draft.look_again(until)
        return False
    if draft.definition.spec.run_policy.suspend:  # it is about to stop, and its time with it
        return False
    draft.fail("DeadlineExceeded", f"ran for longer than runPolicy.activeDeadlineSeconds, {seconds} s")
    return True


def suspend(draft: Draft) -> bool:
    """Stop the pods of a suspended job. It goes on from its checkpoint, and its deadline counts anew, when resumed.

    The PyTorchJob is deleted, not suspended: it is created and deleted and never changed, so that Kueue alone has a say
    in its fields, and a resumed job is rendered from the spec as it is then.
    """
    if not draft.definition.spec.run_policy.suspend:
        return False
    draft.set(ConditionType.SUSPENDED, True, "SuspendedByUser", "runPolicy.suspend is true")
    draft.set(ConditionType.RUNNING, False, "Suspended", "runPolicy.suspend is true")
    draft.update(start_time=None)
    draft.stop_child()
    return True
