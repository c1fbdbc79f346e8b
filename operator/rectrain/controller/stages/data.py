"""The shards are made before training, by one conversion for all jobs that want the same ones."""

from datetime import timedelta

from rectrain.controller.classify import cause_in
from rectrain.controller.conditions import ConditionType
from rectrain.controller.decision import CreateConfigMap, CreateConversion, DeleteConversion, JoinConversion
from rectrain.controller.draft import Draft
from rectrain.controller.observed import Conversion, Phase
from rectrain.controller.pending import pending_reason

_WAITING = "the data are being converted to shards"
_PATIENCE = timedelta(seconds=5)
_PODS_PATIENCE = timedelta(seconds=15)
"""After which the pods of a conversion that does not run are looked at again: they are not watched."""

_FOREIGN_PATIENCE = timedelta(seconds=30)


def prepare_data(draft: Draft) -> bool:
    """Settle the pass while the job's shards are being made. Once they are, this job never asks again."""
    source = draft.definition.spec.data.source
    if source is None or draft.holds(ConditionType.DATA_PREPARED):
        return False
    conversion = draft.observed.conversion
    is_ours = conversion is not None and draft.job.uid in conversion.owner_uids
    if conversion is not None and is_ours and conversion.phase is Phase.SUCCEEDED:
        draft.set(ConditionType.DATA_PREPARED, True, "Converted", f"{source.format} data are in shards")
        return False
    if conversion is not None and not conversion.is_managed:
        message = f"Job {conversion.name} exists and was not made by rectrain; it is left alone: delete it"
        draft.set(ConditionType.DATA_PREPARED, False, "NameTaken", message)
        draft.set(ConditionType.RUNNING, False, "NameTaken", message)
        draft.look_again(draft.now + _FOREIGN_PATIENCE)
        return True
    _report(draft, conversion)
    if conversion is None:
        draft.actions += [CreateConfigMap(), CreateConversion()]
    elif conversion.deleting:
        draft.look_again(draft.now + _PATIENCE)  # its name is free when it is gone
    elif not conversion.phase.is_final:
        if not is_ours:
            draft.actions.append(JoinConversion(conversion.name, conversion.uid, conversion.config_map))
    elif is_ours:
        cause = cause_in(draft.observed.conversion_pods)
        message = cause.message if cause is not None else conversion.message
        draft.set(ConditionType.DATA_PREPARED, False, "ConversionFailed", message)
        draft.fail("ConversionFailed", f"Job {conversion.name}: {message}")
    else:
        # It ended before this job asked, and the raw data may have changed since. Another one looks at them again, and
        # does nothing where the shards are right.
        draft.actions.append(DeleteConversion(conversion.name, conversion.uid))
        draft.look_again(draft.now + _PATIENCE)
    return True


def _report(draft: Draft, conversion: Conversion | None) -> None:
    """Say how the conversion is."""
    reason, message, queue = "Converting", _WAITING, draft.job.queue
    # One that is about to be created is suspended where there is a queue; no event says so later.
    suspended = queue is not None if conversion is None else conversion.suspended and not conversion.phase.is_final
    if suspended:
        reason = "WaitingForAdmission"
        message = f"the conversion waits for admission by queue {queue}" if queue else "the conversion is suspended"
        draft.set(ConditionType.SUSPENDED, True, reason, message)
    else:
        draft.set(ConditionType.SUSPENDED, False, "NotSuspended")
    if conversion is not None and conversion.pod_waits and not conversion.phase.is_final:
        reason, message = pending_reason(draft.observed.conversion_pods) or (reason, message)
        draft.look_again(draft.now + _PODS_PATIENCE)
    draft.set(ConditionType.DATA_PREPARED, False, "Converting", message)
    draft.set(ConditionType.RUNNING, False, reason, message)
