"""What the controller believes of objects, from events and answers that come late, merged or in any order."""

from typing import Any

from controller_objects import CHILD_UID, KEY, T0

from rectrain.api.pod_template import CHILD_NAME_LABEL
from rectrain.controller.kinds import Kind
from rectrain.controller.observed import Key
from rectrain.controller.store import Store

CONVERSION = Key(KEY.namespace, "rectrain-data-0123456789")


def conversion(version: int, **labels: str) -> dict[str, Any]:
    metadata = {"namespace": CONVERSION.namespace, "name": CONVERSION.name, "uid": "1", "resourceVersion": str(version)}
    return {"metadata": {**metadata, "labels": labels}}


OURS = {"app.kubernetes.io/managed-by": "rectrain"}


def test_a_watch_owes_what_an_answer_has_told() -> None:
    now = [0.0]
    store = Store(clock=lambda: now[0])
    store.take_answer(Kind.CONVERSION, conversion(1, **OURS))
    now[0] = 30.0
    assert store.lag() == 30.0
    store.take_event(Kind.CONVERSION, conversion(1, **OURS))
    assert store.lag() == 0.0


def test_no_watch_owes_anothers_job_of_a_conversions_name() -> None:
    now = [0.0]
    store = Store(clock=lambda: now[0])
    store.take_answer(Kind.CONVERSION, conversion(1))
    now[0] = 3600.0
    assert store.lag() == 0.0, "a user's Job would have the kubelet restart the controller for ever"
    found = store.conversion(CONVERSION)
    assert found is not None
    assert not found.is_managed


def test_a_conversion_that_lost_its_label_is_there_though_its_watch_says_that_it_is_gone() -> None:
    store = Store()
    store.take_event(Kind.CONVERSION, conversion(1, **OURS))
    store.take_event(Kind.CONVERSION, conversion(2), deleted=True)
    assert store.conversion(CONVERSION) is None
    store.take_answer(Kind.CONVERSION, conversion(2))
    assert store.conversion(CONVERSION) is not None


def test_an_event_that_is_late_brings_nothing_back() -> None:
    store = Store()
    store.take_event(Kind.CONVERSION, conversion(1, **OURS))
    store.take_absence(Kind.CONVERSION, CONVERSION, 1)
    assert store.take_event(Kind.CONVERSION, conversion(1, **OURS)) == set()
    assert store.conversion(CONVERSION) is None


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
