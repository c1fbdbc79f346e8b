"""Measure the controller with many jobs on a real etcd and kube-apiserver on this machine.

Run `python benchmarks/control_plane.py`; `--json` prints one JSON object on the last line. The jobs are applied before
the controller is started, so that what is measured is how fast it brings them about: each takes a ConfigMap, a
PyTorchJob, a status and an event. There is no training operator; the benchmark plays it, by patching the status of
PyTorchJobs one after the other, and sees by a watch when the job says so. All runs beside each other on the same cores.

What peers publish was measured by them, elsewhere; nothing of theirs is run here. CPU times say what a job costs, also
where other work slows it down.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests/cluster"), str(ROOT / "tools")]

from controller_runs import JOB_TYPE, Controller, Place  # noqa: E402
from harness import api_server as servers  # noqa: E402
from harness.api_server import ControlPlane, served  # noqa: E402
from harness.processes import Service  # noqa: E402
from harness.waiting import wait_until  # noqa: E402
from kubernetes import client, config, watch  # noqa: E402

NAMESPACE = "benchmark"
WRITES = ("POST", "PATCH", "PUT", "DELETE")
LOOKS_AGAIN = 20.0
PUBLISHED = {"Kueue's workloads": 42.7, "KubeRay's clusters": 6.6}
"""What others publish of their own controllers, a second."""


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1000, help="number of jobs")
    parser.add_argument("--quiet-seconds", type=float, default=60.0, help="how long to watch that nothing happens")
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rectrain-bench-") as folder, servers.running(Path(folder)) as plane:
        plane.api.kubectl("apply", "--server-side", "-f", JOB_TYPE)
        wait_until("the type", lambda: served(plane.api, "rectrainingjobs.rectrain.io"), 60)
        plane.api.kubectl("create", "namespace", NAMESPACE)
        place = Place(plane.api, NAMESPACE, Path(folder))
        names = [f"job-{number:05d}" for number in range(arguments.jobs)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(place.apply, names))
        print(f"{len(names)} jobs are applied; the controller starts", flush=True)
        controller = place.controller("--log-level", "warning")
        try:
            report = measure(place, plane, controller, names, arguments.quiet_seconds)
        finally:
            controller.kill()
    for name, value in report.items():
        print(f"{name:60} {value}")
    if arguments.json:
        print(json.dumps(report))


def measure(
    place: Place, plane: ControlPlane, controller: Controller, names: list[str], quiet: float
) -> dict[str, Any]:
    """Return the figures of one controller's life."""
    report: dict[str, Any] = {"jobs": len(names), "machine": f"{os.cpu_count()} cores, {platform.machine()}"}
    report["load average before"] = round(os.getloadavg()[0], 1)
    servers_cpu = {service.name: cpu_seconds(service) for service in (plane.kube_apiserver, plane.etcd)}
    started = time.monotonic()
    controller.start()
    report["seconds to healthy"] = round(time.monotonic() - started, 2)
    rate = creation_rate(controller, len(names))
    report["PyTorchJobs created per second"] = round(rate, 1)
    for name, published in PUBLISHED.items():
        report[f"... over {name}, {published} as published"] = round(rate / published, 2)
    wait_until("all statuses", lambda: writes(controller) >= 4 * len(names), 600)
    report["API calls per job"] = round(controller.metric("rectrain_controller_api_requests_total") / len(names), 2)
    report["CPU per job, controller, ms"] = round(1000 * cpu_seconds(controller.service) / len(names), 1)
    for service in (plane.kube_apiserver, plane.etcd):
        used = cpu_seconds(service) - servers_cpu[service.name]
        report[f"CPU per job, {service.name}, ms"] = round(1000 * used / len(names), 1)
    report["RSS after creation, MB"] = memory(controller, "VmRSS")
    half = len(names) // 2
    report |= visible("among looks at what is new", latencies(place, names[:half]))
    wait_until("nothing to be done", lambda: rests(controller), 600)
    report |= visible("at rest", latencies(place, names[half:]))
    wait_until("nothing to be done", lambda: rests(controller), 600)
    before, cpu = calls(controller), cpu_seconds(controller.service)
    time.sleep(quiet)  # the figure is what happens in this time
    after = calls(controller)
    report["API writes at steady state"] = int(sum(after[verb] - before[verb] for verb in WRITES))
    report["API reads at steady state"] = int(after["GET"] - before["GET"])
    report["CPU at steady state, %"] = round(100 * (cpu_seconds(controller.service) - cpu) / quiet, 2)
    report["RSS at most, MB"] = memory(controller, "VmHWM")
    return report


def visible(when: str, seconds: list[float]) -> dict[str, float]:
    """Return the figures of latencies."""
    ordered = sorted(seconds)
    return {
        f"status change visible {when}, p50 ms": round(1000 * statistics.median(ordered), 1),
        f"status change visible {when}, p99 ms": round(1000 * ordered[int(0.99 * (len(ordered) - 1))], 1),
    }


def rests(controller: Controller) -> bool:
    """Return whether no call is made for longer than the controller waits before it looks at what it created."""
    before = calls(controller)
    time.sleep(LOOKS_AGAIN)
    return calls(controller) == before


def creation_rate(controller: Controller, number: int) -> float:
    """Return PyTorchJobs a second, from the first that is seen to the last."""
    created = 'rectrain_controller_actions_total{action="CreateChild"}'
    first: tuple[float, float] | None = None
    deadline = time.monotonic() + 900
    while time.monotonic() < deadline:
        count, now = controller.metric(created), time.monotonic()
        if count and first is None:
            first = (count, now)
        if first is not None and count >= number:
            return (count - first[0]) / (now - first[1])
        time.sleep(0.1)
    raise TimeoutError(f"{number} PyTorchJobs were not created in 900 s")


def latencies(place: Place, names: list[str]) -> list[float]:
    """Return for each job the seconds from the change of its PyTorchJob's status to the job's own."""
    seen: dict[str, float] = {}
    wanted = set(names)
    listening = threading.Event()

    def listen() -> None:
        api = client.CustomObjectsApi(config.new_client_from_config(str(place.server.kubeconfig)))
        where = ("rectrain.io", "v1alpha1", place.namespace, "rectrainingjobs")
        version = api.list_namespaced_custom_object(*where)["metadata"]["resourceVersion"]
        listening.set()
        for event in watch.Watch().stream(
            api.list_namespaced_custom_object, *where, resource_version=version, timeout_seconds=300
        ):
            job = event["object"]
            if job["metadata"]["name"] in wanted and job.get("status", {}).get("state") == "Running":
                seen.setdefault(job["metadata"]["name"], time.monotonic())
            if len(seen) == len(names):
                return

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    listening.wait(60)
    sent = {}
    for name in names:
        place.set_child(name, "Running")
        sent[name] = time.monotonic()
    listener.join(300)
    return [max(seen[name] - sent[name], 0.0) for name in names]


def calls(controller: Controller) -> dict[str, float]:
    """Return the number of calls of the controller by verb."""
    name = "rectrain_controller_api_requests_total"
    lines = [line for line in controller.fetch("/metrics").splitlines() if line.startswith(f"{name}{{")]
    return {
        verb: sum(float(line.rpartition(" ")[2]) for line in lines if f'verb="{verb}"' in line)
        for verb in ("GET", *WRITES)
    }


def writes(controller: Controller) -> float:
    """Return the number of calls of the controller that write."""
    by_verb = calls(controller)
    return sum(by_verb[verb] for verb in WRITES)


def memory(controller: Controller, field: str) -> int:
    """Return a figure of /proc/PID/status, in MB."""
    text = Path(f"/proc/{pid(controller.service)}/status").read_text()
    line = next(line for line in text.splitlines() if line.startswith(field))
    return round(int(line.split()[1]) / 1024)


def cpu_seconds(service: Service) -> float:
    """Return the CPU time that a program has taken."""
    fields = Path(f"/proc/{pid(service)}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def pid(service: Service) -> int:
    """Return the process of a program."""
    assert service.process is not None
    return service.process.pid


if __name__ == "__main__":
    main()
