"""The chart installed from its image on a real cluster, and a namespace in which jobs train from object storage."""

import json
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gotools
import yaml
from harness import built_images, services
from harness.cluster import WORKER_IMAGE, Cluster
from harness.node import HOST_RUNTIME
from harness.waiting import wait_until

CHART = Path(__file__).parents[2] / "charts" / "rectrain"
RELEASE, SYSTEM = "rectrain", "rectrain-system"
USERS, ITEMS = 400, 60
TRAIN_SECONDS = 240
REASONS = "jsonpath={.items[*].reason}"
ENDLESS = 100_000  # epochs: such a job is stopped by what the test does


@dataclass
class Release:
    """The installed chart."""

    cluster: Cluster

    def helm(self, *arguments: str | Path) -> str:
        command = [gotools.build("helm")["helm"], "--kubeconfig", self.cluster.api.kubeconfig, "-n", SYSTEM, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"helm {arguments[0]}: {done.stderr}{self.kubectl('get', 'pods', '-o', 'wide')}"
        return done.stdout

    def install(self) -> None:
        self.helm("install", RELEASE, CHART, "--create-namespace", *self.values(), "--wait", "--timeout=120s")

    def upgrade(self, **values: str) -> None:
        """Change what the chart is installed with; what is not given is as at first."""
        self.helm("upgrade", RELEASE, CHART, *self.values(**values), "--wait", "--timeout=180s")

    def values(self, **others: str) -> list[str]:
        values = {
            "image.repository": built_images.name_of("operator"),
            "replicas": "2",
            "controller.progressSeconds": "1",
            "networkPolicy.enabled": "true",
            "jobDefaults.workerImage": WORKER_IMAGE,
            "jobDefaults.mlflowTrackingUri": services.MLFLOW_URL,
        } | others
        return [f"--set={name}={value}" for name, value in values.items()]

    def kubectl(self, *arguments: str) -> str:
        return self.cluster.api.kubectl("-n", SYSTEM, *arguments)

    def controllers(self) -> set[str]:
        return set(self.kubectl("get", "pods", "-l", f"app.kubernetes.io/instance={RELEASE}", "-o", "name").split())


@dataclass
class Place:
    """A namespace with a bucket, the credentials for it, and raw data in it."""

    cluster: Cluster
    namespace: str
    bucket: str
    storage: services.Storage

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return self.cluster.api.kubectl("-n", self.namespace, *arguments, stdin=stdin)

    def apply(self, name: str, epochs: int = 1, *, labels: Mapping[str, str] | None = None, **spec: Any) -> None:
        """Apply a job that trains on the raw data; `spec` is merged into its own, where None takes a field away."""
        job = self.job(name, epochs)
        job["metadata"]["labels"] = dict(labels or {})
        job["spec"] = merged(job["spec"], spec)
        self.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(job))

    def job(self, name: str, epochs: int) -> dict[str, Any]:
        uri = f"s3://{self.bucket}"
        secret = {"name": "storage"}
        return {
            "apiVersion": "rectrain.io/v1alpha1",
            "kind": "RecTrainingJob",
            "metadata": {"name": name},
            "spec": {
                "model": {"type": "TwoTower", "twoTower": {"embeddingDim": 16, "hiddenDims": []}},
                "features": [
                    {"name": "user_id", "kind": "Categorical", "side": "User", "cardinality": USERS},
                    {"name": "item_id", "kind": "Categorical", "side": "Item", "cardinality": ITEMS},
                ],
                "data": {
                    "source": {
                        "format": "Interactions",
                        "uri": f"{uri}/raw/train.txt",
                        "validationUri": f"{uri}/raw/test.txt",
                    },
                    "train": {"uri": f"{uri}/shards/train"},
                    "validation": {"uri": f"{uri}/shards/validation"},
                    "storage": {"endpointUrl": services.STORAGE_URL, "credentialsSecretRef": secret},
                },
                "training": {
                    "batchSize": 100,
                    "epochs": epochs,
                    "logEverySteps": 20,
                    "checkpoint": {"everySteps": 60},
                },
                "evaluation": {"metrics": ["recall@20"]},
                "output": {"uri": f"{uri}/runs/{name}"},
                "workers": {
                    "replicas": 2,
                    "resources": {"requests": {"cpu": "100m", "memory": "1Gi"}},
                    "template": {
                        "spec": {
                            "runtimeClassName": HOST_RUNTIME,
                            "containers": [{"name": "pytorch", "env": [{"name": "OMP_NUM_THREADS", "value": "1"}]}],
                        }
                    },
                },
                "runPolicy": {"maxRestarts": 2},
            },
        }

    def change(self, name: str, **run_policy: Any) -> None:
        """Change what may change of a job."""
        self.kubectl("patch", "rtj", name, "--type=merge", "-p", json.dumps({"spec": {"runPolicy": run_policy}}))

    def uid(self, *of: str) -> str:
        """Return the identity of an object."""
        return self.kubectl("get", *of, "-o", "jsonpath={.metadata.uid}")

    def pods(self, name: str) -> list[str]:
        """Return the worker pods of a job."""
        return self.kubectl("get", "pods", "-l", f"training.kubeflow.org/job-name={name}", "-o", "name").split()

    def events(self, name: str) -> set[str]:
        """Return the reasons of a job's events."""
        about = f"involvedObject.kind=RecTrainingJob,involvedObject.name={name}"
        return set(self.kubectl("get", "events", f"--field-selector={about}", "-o", REASONS).split())

    def status(self, name: str) -> dict[str, Any]:
        found = self.cluster.api.get("-n", self.namespace, "rtj", name).get("status", {})
        assert isinstance(found, dict)
        return found

    def condition(self, name: str, type_: str) -> dict[str, Any]:
        conditions = self.status(name).get("conditions", [])
        return next((one for one in conditions if one["type"] == type_), {"status": "Unknown"})

    def wait_for(self, name: str, type_: str, seconds: float = TRAIN_SECONDS) -> None:
        try:
            self.kubectl("wait", f"--for=condition={type_}", f"rtj/{name}", f"--timeout={seconds:.0f}s")
        except subprocess.CalledProcessError as error:
            error.add_note(self.told())
            raise

    def wait_for_reason(self, name: str, type_: str, reason: str, seconds: float = 60) -> str:
        """Wait until a condition has a reason, and return its message."""
        self.wait_until(f"{type_}: {reason}", lambda: self.condition(name, type_).get("reason") == reason, seconds)
        return str(self.condition(name, type_)["message"])

    def wait_until(self, what: str, condition: Callable[[], bool], seconds: float) -> None:
        """Wait, and where it is in vain, tell all there is to know."""
        try:
            wait_until(what, condition, seconds, every=0.5)
        except TimeoutError as error:
            error.add_note(self.told())
            raise

    def wait_for_step(self, name: str, step: int) -> None:
        def is_there() -> bool:
            status = self.status(name)
            assert status.get("state") not in ("Failed", "Succeeded"), f"ended before step {step}: {self.told()}"
            return (status.get("progress") or {}).get("step", 0) >= step

        self.wait_until(f"step {step} of {name}", is_there, TRAIN_SECONDS)

    def wait_for_log(self, pod: str, text: str, seconds: float = TRAIN_SECONDS) -> str:
        """Wait until a worker has said something, and return what it has said."""

        def said() -> str:
            try:
                return self.kubectl("logs", pod)
            except subprocess.CalledProcessError:  # its container is about to start
                return ""

        self.wait_until(f"{text!r} in the log of {pod}", lambda: text in said(), seconds)
        return said()

    def told(self) -> str:
        """Return what there is to know about why a job does not do what was expected."""
        lines = [self.kubectl("get", "rtj,pytorchjobs,jobs,pods", "-o", "wide")]
        lines.append(self.kubectl("get", "rtj", "-o", "yaml"))
        lines.append(self.kubectl("get", "events", "--sort-by=.lastTimestamp"))
        for pod in self.kubectl("get", "pods", "-o", "name").split():
            try:
                lines.append(f"{pod}: {self.kubectl('logs', pod, '--tail=40', '--all-containers')}")
            except subprocess.CalledProcessError as error:
                lines.append(f"{pod}: {error.stderr}")
        return "\n".join(lines)


def merged(base: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mapping with a JSON merge patch (RFC 7386) applied to it."""
    result = {name: value for name, value in base.items() if patch.get(name, "") is not None}
    for name, value in patch.items():
        if isinstance(value, Mapping):
            result[name] = merged(result.get(name, {}), value)
        elif value is not None:
            result[name] = value
    return result


def interactions(numbers: range) -> bytes:
    """Return users who go through the items from one of their own on."""
    return "".join(f"{u} {' '.join(str((u + 3 * n) % ITEMS) for n in numbers)}\n" for u in range(USERS)).encode()
