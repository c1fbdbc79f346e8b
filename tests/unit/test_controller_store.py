"""What is believed of objects, from events and answers that come in any order."""

from typing import Any

from controller_objects import KEY

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
