"""What the controller believes of objects, from events that may be merged and answers that may be older."""

from typing import Any

from controller_objects import CHILD_UID, KEY, T0

from rectrain.api.pod_template import CHILD_NAME_LABEL
from rectrain.controller.kinds import Kind
from rectrain.controller.store import Store


def metadata(name: str, version: int, **more: Any) -> dict[str, Any]:
    return {"namespace": KEY.namespace, "name": name, "resourceVersion": str(version), "uid": f"{name}-uid", **more}


def child(version: int) -> dict[str, Any]:
    return {"metadata": {**metadata(KEY.name, version), "uid": CHILD_UID}, "spec": {}}


def pod(version: int, phase: str, **state: Any) -> dict[str, Any]:
    labels = {CHILD_NAME_LABEL: KEY.name}
    return {
        "metadata": metadata("clicks-worker-0", version, labels=labels, creationTimestamp=T0.isoformat()),
        "status": {"phase": phase, "containerStatuses": [{"name": "pytorch", "ready": False, "state": state}]},
    }


def test_how_a_pod_ended_is_known_though_only_its_deletion_is_told() -> None:
    # The kubelet says how it ended and removes it at once; of two events of an object that wait, the last is told.
    store = Store()
    store.take_event(Kind.CHILD, child(1))
    store.take_event(Kind.POD, pod(2, "Running", running={}))
    ended = {"exitCode": 143, "finishedAt": T0.isoformat()}
    assert store.take_event(Kind.POD, pod(5, "Failed", terminated=ended), deleted=True) == {KEY}
    (left,) = store.pods(KEY)
    assert left.gone and left.phase == "Failed" and left.termination is not None and left.termination.exit_code == 143


def test_a_pod_that_is_gone_is_forgotten_with_its_pytorchjob() -> None:
    store = Store()
    store.take_event(Kind.CHILD, child(1))
    store.take_event(Kind.POD, pod(2, "Running", running={}))
    store.take_event(Kind.POD, pod(3, "Running", running={}), deleted=True)
    assert [left.gone for left in store.pods(KEY)] == [True]
    store.take_event(Kind.CHILD, child(4), deleted=True)
    assert store.pods(KEY) == ()
    store.take_event(Kind.POD, pod(2, "Running", running={}))
    assert store.pods(KEY) == (), "an answer from before the deletion does not bring it back"
