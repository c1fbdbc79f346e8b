"""Jobs, children and pods for the controller's tests, each with what a test does not care about filled in."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from rectrain.api import validate_job
from rectrain.api.status import Status, find_condition
from rectrain.controller.conditions import ConditionType
from rectrain.controller.observed import Child, Conversion, Job, Key, Phase, Pod, Termination

T0 = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
KEY = Key("team", "clicks")
JOB_UID, CHILD_UID = "job-uid", "child-uid"
SOURCE = {"format": "Triples", "uri": "s3://bucket/raw.csv"}


def document(
    *,
    name: str = KEY.name,
    uid: str = JOB_UID,
    run_policy: dict[str, Any] | None = None,
    source: dict[str, Any] | None = None,
    labels: dict[str, str] | None = None,
    **spec: Any,
) -> dict[str, Any]:
    """Return a RecTrainingJob as the API server has it, without a status."""
    data = {"train": {"uri": "s3://bucket/train"}} | ({"source": source} if source is not None else {})
    return {
        "apiVersion": "rectrain.io/v1alpha1",
        "kind": "RecTrainingJob",
        "metadata": {"namespace": KEY.namespace, "name": name, "uid": uid, "generation": 1, "labels": labels or {}},
        "spec": {
            "model": {"type": "DLRM", "dlrm": {"embeddingDim": 16, "denseDims": [16, 16]}},
            "features": [
                {"name": "age", "kind": "Dense"},
                {"name": "item", "kind": "Categorical", "cardinality": 1000},
            ],
            "labels": [{"name": "label", "task": "Binary"}],
            "data": data,
            "output": {"uri": "s3://bucket/out"},
            "training": {"checkpoint": {"uri": "s3://bucket/checkpoints"}},
            "runPolicy": run_policy or {},
            **spec,
        },
    }


def job(status: Status | None = None, *, queue: str | None = None, deleting: bool = False, **arguments: Any) -> Job:
    """Return a job as decide() gets it."""
    raw = document(**arguments)
    return Job(
        key=KEY,
        uid=JOB_UID,
        generation=1,
        queue=queue,
        deleting=deleting,
        status=status or Status(),
        definition=validate_job(raw, source="test"),
    )


def child(phase: Phase = Phase.RUNNING, **fields: Any) -> Child:
    """Return the job's own PyTorchJob."""
    whole = Child(uid=CHILD_UID, owner_uid=JOB_UID, attempt=0, suspended=False, deleting=False, phase=phase)
    return replace(whole, **fields)


def pod(name: str = "clicks-master-0", *, exit_code: int | None = None, **fields: Any) -> Pod:
    """Return a pod of the job's own PyTorchJob; with an exit code, one that has ended with it."""
    whole = Pod(
        name=name,
        uid=f"{name}-uid",
        owner_uid=CHILD_UID,
        is_master="master" in name,
        phase="Running" if exit_code is None else "Failed" if exit_code else "Succeeded",
        since=T0,
    )
    if exit_code is not None:
        ended = {n: fields.pop(n) for n in ("reason", "message", "finished_at") if n in fields}
        whole = replace(whole, termination=Termination(exit_code, **ended))
    return replace(whole, **fields)


def conversion(phase: Phase = Phase.RUNNING, *, owners: tuple[str, ...] = (JOB_UID,), **fields: Any) -> Conversion:
    """Return the job's conversion."""
    whole = Conversion(
        name="convert",
        uid="conversion-uid",
        owner_uids=frozenset(owners),
        deleting=False,
        phase=phase,
        config_map="first-0123456789",
    )
    return replace(whole, **fields)


def condition(status: Status, type_: ConditionType) -> tuple[str, str]:
    """Return the status and reason of a condition."""
    found = find_condition(status.conditions, type_)
    assert found is not None, f"no condition {type_}"
    return str(found.status), found.reason


def message(status: Status, type_: ConditionType) -> str:
    """Return the message of a condition."""
    found = find_condition(status.conditions, type_)
    assert found is not None, f"no condition {type_}"
    return found.message
