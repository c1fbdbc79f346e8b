"""The controller as a process, beside a test that plays training operator, kubelet and garbage collector."""

import re
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.api_server import ApiServer, free_ports
from harness.processes import Service
from harness.waiting import wait_until
from kubernetes import client, config

GROUPS = {"rectrainingjobs": ("rectrain.io", "v1alpha1"), "pytorchjobs": ("kubeflow.org", "v1")}
ROOT = Path(__file__).parents[2]
JOB_TYPE = ROOT / "charts/rectrain/files/rectrainingjobs.rectrain.io.yaml"


@dataclass
class Controller:
    """A controller process, and its HTTP server's address."""

    service: Service
    address: str

    def start(self) -> None:
        self.service.start()
        self.service.wait_until(lambda: self.fetch("/healthz") == "ok\n", 60)

    def kill(self) -> None:
        self.service.kill()

    def stop(self) -> int:
        """Send SIGTERM, and return the exit code."""
        assert self.service.process is not None
        self.service.process.send_signal(signal.SIGTERM)
        return self.service.process.wait(30)

    def fetch(self, path: str) -> str:
        try:
            with urllib.request.urlopen(f"http://{self.address}{path}", timeout=2) as response:
                return str(response.read().decode())
        except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
            return str(error)

    def metric(self, name: str) -> float:
        """Return the sum of a metric's samples whose line begins so; 0 where there is none."""
        lines = re.findall(rf"^{re.escape(name)}\S* (\S+)$", self.fetch("/metrics"), re.MULTILINE)
        return sum(map(float, lines))


@dataclass
class Place:
    """A namespace of an API server, and everything in it that a test looks at or does."""

    server: ApiServer
    namespace: str
    folder: Path
    controllers: list[Controller] = field(default_factory=list)

    def __post_init__(self) -> None:
        api = config.new_client_from_config(str(self.server.kubeconfig))
        self.objects = client.CustomObjectsApi(api)
        self.core = client.CoreV1Api(api)
        self.events = client.EventsV1Api(api)

    # The controller

    def controller(self, *options: str, elected: bool = False) -> Controller:
        """Return a controller of this namespace, not started yet."""
        address = f"127.0.0.1:{free_ports(1)[0]}"
        name = f"controller-{len(self.controllers)}"
        command = [sys.executable, "-m", "rectrain.controller", "--listen", address, "--progress-seconds", "1"]
        command += ["--lease-namespace", self.namespace] if elected else ["--no-leader-election"]
        command += options or ["--namespaces", self.namespace]
        prefix = ("env", f"KUBECONFIG={self.server.kubeconfig}")
        controller = Controller(Service(name, command, self.folder / f"{name}.log", prefix), address)
        self.controllers.append(controller)
        return controller

    def started(self, *options: str, elected: bool = False) -> Controller:
        controller = self.controller(*options, elected=elected)
        controller.start()
        return controller

    # Users

    def apply(self, name: str, *, workers: dict[str, Any] | None = None, **run_policy: Any) -> None:
        self.objects.create_namespaced_custom_object(
            *GROUPS["rectrainingjobs"], self.namespace, "rectrainingjobs", self.job(name, workers or {}, run_policy)
        )

    def job(self, name: str, workers: dict[str, Any], run_policy: dict[str, Any]) -> dict[str, Any]:
        return {
            "apiVersion": "rectrain.io/v1alpha1",
            "kind": "RecTrainingJob",
            "metadata": {"name": name},
            "spec": {
                "model": {"type": "DLRM", "dlrm": {"embeddingDim": 16, "denseDims": [16, 16]}},
                "features": [
                    {"name": "age", "kind": "Dense"},
                    {"name": "item", "kind": "Categorical", "cardinality": 1000},
                ],
                "labels": [{"name": "label", "task": "Binary"}],
                "data": {"train": {"uri": "s3://bucket/train"}},
                "output": {"uri": "s3://bucket/out"},
                "training": {"checkpoint": {"uri": "s3://bucket/checkpoints"}},
                "workers": workers,
                "runPolicy": run_policy,
            },
        }

    def change(self, name: str, **run_policy: Any) -> None:
        body = {"spec": {"runPolicy": run_policy}}
        self.objects.patch_namespaced_custom_object(
            *GROUPS["rectrainingjobs"], self.namespace, "rectrainingjobs", name, body
        )

    def get(self, plural: str, name: str) -> dict[str, Any] | None:
        try:
            found = self.objects.get_namespaced_custom_object(*GROUPS[plural], self.namespace, plural, name)
        except client.ApiException as error:
            if error.status == 404:
                return None
            raise
        assert isinstance(found, dict)
        return found

    def status(self, name: str) -> dict[str, Any]:
        found = self.get("rectrainingjobs", name)
        return {} if found is None else found.get("status", {})

    def condition(self, name: str, type_: str) -> tuple[str, str, str] | None:
        """Return status, reason and message of a condition."""
        for condition in self.status(name).get("conditions", []):
            if condition["type"] == type_:
                return condition["status"], condition["reason"], condition.get("message", "")
        return None

    def wait_for(self, name: str, type_: str, status: str, reason: str, seconds: float = 30) -> str:
        """Wait for a condition, and return its message."""
        wanted = (status, reason)
        wait_until(
            f"{name}: {type_} {wanted}, not {self.status(name)}",
            lambda: (self.condition(name, type_) or ("", ""))[:2] == wanted,
            seconds,
        )
        found = self.condition(name, type_)
        assert found is not None
        return found[2]

    def reasons_told(self, name: str) -> list[str]:
        """Return the reasons of a job's events, in the order that they were told."""
        events = self.events.list_namespaced_event(self.namespace).items
        mine = [e for e in events if e.regarding.name == name and e.regarding.kind == "RecTrainingJob"]
        return [e.reason for e in sorted(mine, key=lambda e: e.event_time)]

    # The rest of the cluster

    def child(self, name: str) -> dict[str, Any] | None:
        return self.get("pytorchjobs", name)

    def wait_for_child(self, name: str, wanted: Callable[[dict[str, Any]], bool] = lambda _: True) -> dict[str, Any]:
        def is_there() -> bool:
            found = self.child(name)
            return found is not None and wanted(found)

        wait_until(f"PyTorchJob {name}", is_there, 30)
        found = self.child(name)
        assert found is not None
        return found

    def set_child(self, name: str, type_: str) -> None:
        """Have the training operator set a PyTorchJob's newest condition."""
        time = "2026-03-01T12:00:00Z"
        conditions = [
            {"type": t, "status": "True", "reason": t, "message": f"it is {t}", "lastTransitionTime": time}
            for t in ("Created", type_)
        ]
        status = {"conditions": conditions, "replicaStatuses": {}}
        self.objects.patch_namespaced_custom_object_status(
            *GROUPS["pytorchjobs"], self.namespace, "pytorchjobs", name, {"status": status}
        )

    def run_pod(self, name: str, address: str) -> None:
        """Have the training operator create the master pod, and the kubelet run it."""
        self.create_pod(name)
        self._set_pod(name, {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]})

    def create_pod(self, name: str) -> None:
        """Have the training operator create the master pod."""
        child = self.child(name)
        assert child is not None
        owner = {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "name": name, "uid": child["metadata"]["uid"]}
        labels = {"job-name": name, "replica-type": "master", "replica-index": "0"}
        pod = {
            "metadata": {
                "name": f"{name}-master-0",
                "labels": {f"training.kubeflow.org/{label}": value for label, value in labels.items()},
                "ownerReferences": [{**owner, "controller": True}],
            },
            "spec": {"containers": [{"name": "pytorch", "image": "none"}]},
        }
        self.core.create_namespaced_pod(self.namespace, pod)

    def end_pod(self, name: str, exit_code: int, message: str = "", reason: str = "Completed") -> None:
        ended = {"exitCode": exit_code, "message": message, "reason": reason, "finishedAt": "2026-03-01T12:00:00Z"}
        container = {"name": "pytorch", "image": "none", "imageID": "", "ready": False, "restartCount": 0}
        state = {**container, "state": {"terminated": ended}}
        self._set_pod(name, {"phase": "Failed" if exit_code else "Succeeded", "containerStatuses": [state]})

    def _set_pod(self, name: str, status: dict[str, Any]) -> None:
        self.core.patch_namespaced_pod_status(f"{name}-master-0", self.namespace, {"status": status})

    def is_being_deleted(self, name: str) -> bool:
        child = self.child(name)
        return child is not None and "deletionTimestamp" in child["metadata"]

    def collect_garbage(self, name: str) -> None:
        """Have the garbage collector finish the foreground deletion of a PyTorchJob."""
        for pod in self.core.list_namespaced_pod(self.namespace).items:
            self.core.delete_namespaced_pod(pod.metadata.name, self.namespace, grace_period_seconds=0)
        self.objects.patch_namespaced_custom_object(
            *GROUPS["pytorchjobs"], self.namespace, "pytorchjobs", name, {"metadata": {"finalizers": None}}
        )
