"""Jobs in a Kueue queue: admitted, preempted by a job of a higher priority, and admitted again."""

import json
from collections.abc import Iterator

import pytest
import yaml
from harness import kueue
from harness.cluster import Cluster
from installed import ENDLESS, Place

pytestmark = pytest.mark.timeout(1200)  # where Kueue has to be built first
OPEN = {"spec": {"stopPolicy": "None"}}
# Room for one job of two workers, which ask for 100m each.
QUEUE = """
apiVersion: kueue.x-k8s.io/v1beta2
kind: ResourceFlavor
metadata: {name: any}
---
apiVersion: kueue.x-k8s.io/v1beta2
kind: ClusterQueue
metadata: {name: training}
spec:
  namespaceSelector: {}
  stopPolicy: Hold
  preemption: {withinClusterQueue: LowerPriority}
  resourceGroups:
    - coveredResources: [cpu, memory]
      flavors: [{name: any, resources: [{name: cpu, nominalQuota: 250m}, {name: memory, nominalQuota: 8Gi}]}]
---
apiVersion: kueue.x-k8s.io/v1beta2
kind: WorkloadPriorityClass
metadata: {name: low}
value: 10
---
apiVersion: kueue.x-k8s.io/v1beta2
kind: WorkloadPriorityClass
metadata: {name: high}
value: 1000
"""


@pytest.fixture
def queue(place: Place, cluster: Cluster) -> Iterator[str]:
    """A queue of the place's namespace, which admits nothing yet."""
    with kueue.running(cluster):
        cluster.api.kubectl("apply", "-f", "-", stdin=QUEUE)
        local = {
            "apiVersion": "kueue.x-k8s.io/v1beta2",
            "kind": "LocalQueue",
            "metadata": {"name": "ours", "namespace": place.namespace},
            "spec": {"clusterQueue": "training"},
        }
        cluster.api.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(local))
        yield "ours"
        place.kubectl("delete", "rtj", "--all", "--timeout=90s")


def labels(queue: str, priority: str) -> dict[str, str]:
    return {"kueue.x-k8s.io/queue-name": queue, "kueue.x-k8s.io/priority-class": priority}


def waits(place: Place, name: str) -> bool:
    suspended = place.condition(name, "Suspended")
    return suspended["status"] == "True" and suspended["reason"] == "WaitingForAdmission"


def test_a_queued_job_is_admitted_preempted_and_admitted_again(place: Place, cluster: Cluster, queue: str) -> None:
    place.apply("low", ENDLESS, labels=labels(queue, "low"))
    place.wait_until("the conversion to wait", lambda: waits(place, "low"), 60)
    assert f"by queue {queue}" in place.condition("low", "Suspended")["message"]
    assert not place.kubectl("get", "pods", "-o", "name"), "nothing runs before it is admitted"

    cluster.api.kubectl("patch", "clusterqueue", "training", "--type=merge", "-p", json.dumps(OPEN))
    place.wait_for_step("low", 70)  # after a checkpoint
    child = place.uid("pytorchjob", "low")

    place.apply("high", 2, labels=labels(queue, "high"), data={"source": None})
    place.wait_until("the preemption", lambda: waits(place, "low"), 90)
    place.wait_for("high", "Succeeded")
    reached = place.status("low")["progress"]["step"]  # its pods have made room: none of them trains any more

    place.wait_for("low", "Running")
    place.wait_for_log("low-master-0", "continuing from the checkpoint of step")
    place.wait_for_step("low", reached + 20)
    status = place.status("low")
    assert (status["restarts"], status["attempt"]) == (0, 0), "a preemption is no failure, and no new attempt"
    assert place.uid("pytorchjob", "low") == child, "Kueue alone suspends and resumes"
    events = place.events("low")
    assert "WaitingForAdmission" in events and "Resumed" in events
