"""What the controller reads from objects that the kubelet, the node controller and the Job controller have written."""

from typing import Any

import pytest
from controller_objects import T0

from rectrain.controller.observed import Phase, conversion_of, names_of, pod_of

TIME = T0.isoformat()
RUNNING = {"name": "pytorch", "ready": True, "state": {"running": {"startedAt": TIME}}}
ENDED = {"name": "pytorch", "ready": False, "state": {"terminated": {"exitCode": 1, "finishedAt": TIME}}}


def pod(phase: str, ready: dict[str, str] | None = None, *containers: dict[str, Any]) -> dict[str, Any]:
    conditions = [{"type": "Ready", **ready}] if ready else []
    status = {"phase": phase, "conditions": conditions, "containerStatuses": list(containers)}
    metadata = {"name": "clicks-master-0", "namespace": "team", "uid": "1", "creationTimestamp": TIME}
    return {"metadata": metadata, "status": status}


PODS = {
    "its node does not answer": (pod("Running", {"status": "False"}, RUNNING), True, True),
    "it runs": (pod("Running", {"status": "True"}, RUNNING), False, True),
    "its container has ended": (pod("Running", {"status": "False", "reason": "PodFailed"}, ENDED), False, False),
    "a readiness gate holds it back": (
        pod("Running", {"status": "False", "reason": "ReadinessGatesNotReady"}, RUNNING),
        False,
        True,
    ),
    "it has failed": (pod("Failed", {"status": "False", "reason": "PodFailed"}, ENDED), False, False),
    "it has no node yet": (pod("Pending"), False, False),
}


@pytest.mark.parametrize(("raw", "unreachable", "running"), PODS.values(), ids=PODS)
def test_pods_that_run_and_pods_that_nobody_hears_of(raw: dict[str, Any], unreachable: bool, running: bool) -> None:
    found = pod_of(raw)
    assert (found.unreachable, found.is_running) == (unreachable, running)


def conversion(suspend: bool = False, **status: Any) -> dict[str, Any]:
    return {"metadata": {"name": "convert", "uid": "1"}, "spec": {"suspend": suspend}, "status": status}


CONVERSIONS = {
    "it was just created": (conversion(), Phase.RUNNING, False, False),
    "it is held back": (conversion(suspend=True), Phase.RUNNING, True, False),
    "its pod does not run": (conversion(active=1, ready=0), Phase.RUNNING, False, True),
    "its pod runs": (conversion(active=1, ready=1), Phase.RUNNING, False, False),
    "it is done": (conversion(conditions=[{"type": "Complete", "status": "True"}]), Phase.SUCCEEDED, False, False),
}


@pytest.mark.parametrize(("raw", "phase", "suspended", "pod_waits"), CONVERSIONS.values(), ids=CONVERSIONS)
def test_conversions(raw: dict[str, Any], phase: Phase, suspended: bool, pod_waits: bool) -> None:
    found = conversion_of(raw)
    assert (found.phase, found.suspended, found.pod_waits) == (phase, suspended, pod_waits)


def test_three_names_stand_for_many() -> None:
    pods = [pod_of(pod("Running") | {"metadata": {"name": name, "uid": name}}) for name in "dacb"]
    assert names_of(pods) == "a, b, c ..."
    assert names_of(pods[:2]) == "a, d"
