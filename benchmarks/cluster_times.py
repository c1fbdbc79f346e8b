"""Measure how long a user waits on a real node: for the chart, for the controller, for the pods of a job.

Run `python benchmarks/cluster_times.py` as root on a machine that can run the cluster tests; `--json` prints one JSON
object on the last line. The node, its kubelet and the training operator are those of the tests; the operator's image is
the one that `images/build` makes, and is on the node before the clock starts. The jobs' own image is nowhere, so that
nothing but the creation of their pods is waited for. All runs beside each other on the same cores.
"""

import argparse
import json
import os
import platform
import secrets
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests/cluster"), str(ROOT / "tools")]

from controller_runs import Place  # noqa: E402
from harness import built_images, requirements  # noqa: E402
from harness import cluster as clusters  # noqa: E402
from harness.cluster import Cluster  # noqa: E402
from harness.waiting import wait_until  # noqa: E402
from installed import RELEASE, SYSTEM, Release  # noqa: E402
from kubernetes import client, config, watch  # noqa: E402

WORKERS = 4


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=10, help="number of jobs, one after the other")
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    arguments = parser.parse_args()
    if lack := requirements.missing():
        sys.exit(lack)
    image = built_images.build("operator")
    with clusters.running() as cluster:
        assert cluster.node is not None
        cluster.node.load_image(image)
        with cluster.entered():
            report = measure(cluster, arguments.jobs)
    for name, value in report.items():
        print(f"{name:44} {value}")
    if arguments.json:
        print(json.dumps(report))


def measure(cluster: Cluster, jobs: int) -> dict[str, Any]:
    """Return the figures."""
    report: dict[str, Any] = {"machine": f"{os.cpu_count()} cores, {platform.machine()}"}
    report["load average before"] = round(os.getloadavg()[0], 1)
    release, started = Release(cluster), time.monotonic()
    release.install()
    report["helm install to ready, 2 controllers, s"] = round(time.monotonic() - started, 1)
    report["new pod to ready controller, s"] = round(start_of_a_pod(release), 1)
    seconds = pods_of_jobs(cluster, jobs)
    report[f"apply to {WORKERS} pods created, p50 s"] = round(statistics.median(seconds), 2)
    report[f"apply to {WORKERS} pods created, most of {jobs} jobs, s"] = round(max(seconds), 2)
    return report


def start_of_a_pod(release: Release) -> float:
    """Return the seconds from the order for one controller, where there is none, until it is ready."""
    deployment = f"deployment/{RELEASE}"
    release.kubectl("scale", deployment, "--replicas=0")
    wait_until("the controllers to go", lambda: not release.controllers(), 60)
    core = client.CoreV1Api(config.new_client_from_config(str(release.cluster.api.kubeconfig)))
    pods = Pods(core, SYSTEM, f"app.kubernetes.io/instance={RELEASE}")
    started = time.monotonic()
    release.kubectl("scale", deployment, "--replicas=1")
    return pods.wait_for(1, is_ready) - started


def pods_of_jobs(cluster: Cluster, jobs: int) -> list[float]:
    """Return for each job the seconds from `kubectl apply` until all of its pods are there."""
    namespace = f"benchmark-{secrets.token_hex(4)}"
    cluster.api.kubectl("create", "namespace", namespace)
    place = Place(cluster.api, namespace, Path())
    seconds = []
    for number in range(jobs):
        name = f"job-{number}"
        job = json.dumps(place.job(name, {"replicas": WORKERS, "image": "benchmark.invalid/absent:1"}, {}))
        pods = Pods(place.core, namespace, f"training.kubeflow.org/job-name={name}")
        started = time.monotonic()
        cluster.api.kubectl("-n", namespace, "apply", "-f", "-", stdin=job)
        seconds.append(pods.wait_for(WORKERS, lambda _: True) - started)
        cluster.api.kubectl("-n", namespace, "delete", "rtj", name, "--timeout=60s")
    return seconds


class Pods:
    """The pods that come after this was made."""

    def __init__(self, core: client.CoreV1Api, namespace: str, label: str) -> None:
        """Remember the time at which there is none of them."""
        self.core, self.namespace, self.label = core, namespace, label
        found = core.list_namespaced_pod(namespace, label_selector=label)
        assert not found.items, f"there are pods with {label}"
        self.version = found.metadata.resource_version

    def wait_for(self, number: int, wanted: Callable[[Any], bool]) -> float:
        """Return the time at which so many have been as wanted."""
        seen = set()
        filters = {"label_selector": self.label, "resource_version": self.version, "timeout_seconds": 120}
        for event in watch.Watch().stream(self.core.list_namespaced_pod, self.namespace, **filters):
            if wanted(event["object"]):
                seen.add(event["object"].metadata.uid)
            if len(seen) == number:
                return time.monotonic()
        raise TimeoutError(f"{len(seen)} of {number} pods with {self.label} in 120 s")


def is_ready(pod: Any) -> bool:
    """Return whether a pod's containers answer."""
    return any(one.type == "Ready" and one.status == "True" for one in pod.status.conditions or [])


if __name__ == "__main__":
    main()
