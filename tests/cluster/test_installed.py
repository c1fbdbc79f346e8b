"""The chart installed from its image on a real cluster, with jobs that train from object storage on two pods."""

import json
import secrets
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gotools
import mlflow
import pytest
import yaml
from harness import operator_image, services
from harness.cluster import WORKER_IMAGE, Cluster
from harness.node import HOST_RUNTIME
from harness.waiting import wait_until

CHART = Path(__file__).parents[2] / "charts" / "rectrain"
RELEASE, SYSTEM = "rectrain", "rectrain-system"
USERS, ITEMS = 400, 60
TRAIN_SECONDS = 240
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

    def values(self, **others: str) -> list[str]:
        values = {
            "image.repository": operator_image.NAME,
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


@pytest.fixture(scope="module")
def storage(running_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> services.Storage:
    if running_cluster.node is None:
        pytest.skip("about the node that the tests start, and RECTRAIN_TEST_KUBECONFIG names another")
    folder = tmp_path_factory.mktemp("services")
    with running_cluster.entered():
        services.start_mlflow(running_cluster.node, folder)
        return services.start_storage(running_cluster.node, folder)


@pytest.fixture(scope="module")
def release(running_cluster: Cluster, storage: services.Storage) -> Iterator[Release]:
    assert running_cluster.node is not None
    running_cluster.node.load_image(operator_image.build())
    installed = Release(running_cluster)
    with running_cluster.entered():
        installed.install()
    yield installed
    with running_cluster.entered():
        installed.helm("uninstall", RELEASE, "--wait")


@dataclass
class Place:
    """A namespace with a bucket, the credentials for it, and raw data in it."""

    cluster: Cluster
    namespace: str
    bucket: str
    storage: services.Storage

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return self.cluster.api.kubectl("-n", self.namespace, *arguments, stdin=stdin)

    def apply(self, name: str, epochs: int) -> None:
        self.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(self.job(name, epochs)))

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

    def wait_for_step(self, name: str, step: int) -> None:
        def is_there() -> bool:
            status = self.status(name)
            assert status.get("state") not in ("Failed", "Succeeded"), f"ended before step {step}: {self.told()}"
            return (status.get("progress") or {}).get("step", 0) >= step

        try:
            wait_until(f"step {step} of {name}", is_there, TRAIN_SECONDS, every=0.5)
        except TimeoutError as error:
            error.add_note(self.told())
            raise

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


@pytest.fixture
def place(release: Release, cluster: Cluster, namespace: str, storage: services.Storage) -> Place:
    bucket = f"test-{secrets.token_hex(4)}"
    s3 = storage.client()
    s3.create_bucket(Bucket=bucket)
    s3.put_object(Bucket=bucket, Key="raw/train.txt", Body=interactions(range(5)))
    s3.put_object(Bucket=bucket, Key="raw/test.txt", Body=interactions(range(5, 7)))
    made = Place(cluster, namespace, bucket, storage)
    keys = (f"AWS_ACCESS_KEY_ID={storage.access_key}", f"AWS_SECRET_ACCESS_KEY={storage.secret_key}")
    made.kubectl("create", "secret", "generic", "storage", *(f"--from-literal={key}" for key in keys))
    return made


def interactions(numbers: range) -> bytes:
    """Return users who go through the items from one of their own on."""
    return "".join(f"{u} {' '.join(str((u + 3 * n) % ITEMS) for n in numbers)}\n" for u in range(USERS)).encode()


def test_the_release_is_as_its_own_test_wants_it(release: Release, cluster: Cluster) -> None:
    assert "Phase:          Succeeded" in release.helm("test", RELEASE, "--timeout=60s")
    pods = json.loads(release.kubectl("get", "pods", "-l", f"app.kubernetes.io/instance={RELEASE}", "-o", "json"))
    assert len(pods["items"]) == 2
    lease = json.loads(release.kubectl("get", "lease", "rectrain-controller", "-o", "json"))
    leader = lease["spec"]["holderIdentity"].rpartition("_")[0]
    assert leader in {pod["metadata"]["name"] for pod in pods["items"]}


def test_raw_data_become_a_model_with_its_record(place: Place) -> None:
    place.apply("cds", epochs=4)
    place.wait_for("cds", "Succeeded")

    status = place.status("cds")
    assert place.condition("cds", "DataPrepared")["status"] == "True" and status["restarts"] == 0
    progress, results = status["progress"], status["results"]
    assert progress["step"] == progress["totalSteps"] == 4 * 10
    s3 = place.storage.client()
    assert results["modelUri"] == f"s3://{place.bucket}/runs/cds/bundle"
    stored = json.load(s3.get_object(Bucket=place.bucket, Key="runs/cds/metrics.json")["Body"])
    assert {m["name"]: m["value"] for m in results["metrics"]} == pytest.approx(stored) and stored["recall@20"] > 0
    bundle = {one["Key"] for one in s3.list_objects_v2(Bucket=place.bucket, Prefix="runs/cds/bundle/")["Contents"]}
    parts = ("bundle.json", "weights/rank-00000.safetensors", "weights/rank-00001.safetensors")
    assert bundle >= {f"runs/cds/bundle/{part}" for part in parts}, "each pod has written its part"

    run = mlflow.MlflowClient(services.MLFLOW_URL).get_run(results["mlflowRunId"])
    assert run.info.status == "FINISHED" and run.data.metrics["recall_at_20"] == pytest.approx(stored["recall@20"])
    owned = json.loads(place.kubectl("get", "jobs,pytorchjobs,configmaps", "-o", "json"))["items"]
    kinds = sorted(one["kind"] for one in owned if one["metadata"].get("ownerReferences"))
    assert kinds == ["ConfigMap", "Job", "PyTorchJob"]
    place.kubectl("delete", "rtj", "cds", "--timeout=60s")
    wait_until("what the job owned to go", lambda: not place.kubectl("get", "pytorchjobs,jobs", "-o", "name"), 60)


def test_a_job_goes_on_through_an_upgrade_a_lost_rank_and_a_suspension(place: Place, release: Release) -> None:
    place.apply("long", epochs=ENDLESS)
    place.wait_for_step("long", 70)  # after a checkpoint
    before = release.controllers()
    release.helm("upgrade", RELEASE, CHART, *release.values(**{"controller.workers": "4"}), "--wait", "--timeout=120s")
    wait_until("the old controllers to go", lambda: not before & release.controllers(), 60)
    assert place.status("long")["state"] == "Running" and place.status("long")["attempt"] == 0

    place.kubectl("exec", "long-worker-0", "-c", "pytorch", "--", "python", "-c", KILL_A_RANK)
    wait_until("the restart", lambda: place.status("long")["attempt"] == 1, 90)
    place.wait_for("long", "Running")
    assert place.status("long")["restarts"] == 1
    place.wait_for_step("long", place.status("long")["progress"]["step"] + 20)

    place.kubectl("patch", "rtj", "long", "--type=merge", "-p", '{"spec": {"runPolicy": {"suspend": true}}}')
    place.wait_for("long", "Suspended")
    wait_until("its pods to go", lambda: not place.kubectl("get", "pods", "-l", WORKERS, "-o", "name"), 90)
    release.helm("rollback", RELEASE, "1", "--wait", "--timeout=120s")
    reached = place.status("long")["progress"]["step"]
    place.kubectl("patch", "rtj", "long", "--type=merge", "-p", '{"spec": {"runPolicy": {"suspend": false}}}')
    place.wait_for("long", "Running")
    place.wait_for_step("long", reached + 40)
    assert "continuing from the checkpoint of step" in place.kubectl("logs", "long-master-0")
    assert place.status("long")["restarts"] == 1, "a suspension is no failure"

    client = mlflow.MlflowClient(services.MLFLOW_URL)
    experiments = [one.experiment_id for one in client.search_experiments()]
    (run,) = client.search_runs(experiments, "attributes.run_name = 'long'")

    def steps() -> list[int]:
        return sorted(point.step for point in client.get_metric_history(run.info.run_id, "loss"))

    wait_until("the points of the last attempt", lambda: steps()[-1] > reached, 60)
    recorded = steps()
    assert recorded == list(range(20, 20 * len(recorded) + 1, 20)), "each point once, over three attempts"
    place.kubectl("delete", "rtj", "long", "--timeout=90s")


KILL_A_RANK = """
import os, pathlib, signal
for folder in pathlib.Path("/proc").glob("[0-9]*"):
    command = (folder / "cmdline").read_bytes().split(b"\\0")
    if b"rectrain_jobs.training" in command and b"torchrun" not in b" ".join(command[:2]):
        os.kill(int(folder.name), signal.SIGKILL)
"""
WORKERS = "training.kubeflow.org/job-name=long"


def test_jobs_outlive_the_release(place: Place, release: Release) -> None:
    place.apply("lasting", epochs=ENDLESS)
    place.wait_for_step("lasting", 1)
    release.helm("uninstall", RELEASE, "--wait")
    assert "rectrainingjobs.rectrain.io" in place.cluster.api.kubectl("get", "crd", "-o", "name")
    assert place.status("lasting")["state"] == "Running"
    seen = place.status("lasting")["progress"]["step"]
    release.install()
    place.wait_for_step("lasting", seen + 1)
    assert place.status("lasting")["attempt"] == 0
    place.kubectl("delete", "rtj", "lasting", "--timeout=90s")
