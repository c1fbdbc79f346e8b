"""Jobs of the installed chart that train from object storage on two pods, and the life of the release around them."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml
from harness import services
from harness.cluster import Cluster
from harness.waiting import wait_until
from installed import CHART, ENDLESS, RELEASE, Place, Release, merged

from rectrain import Client
from rectrain_jobs.bundle.online import BundlePredictor
from rectrain_jobs.storage import Storage


def test_the_release_is_as_its_own_test_wants_it(release: Release, cluster: Cluster) -> None:
    assert "Phase:          Succeeded" in release.helm("test", RELEASE, "--timeout=60s")
    pods = json.loads(release.kubectl("get", "pods", "-l", f"app.kubernetes.io/instance={RELEASE}", "-o", "json"))
    assert len(pods["items"]) == 2
    lease = json.loads(release.kubectl("get", "lease", "rectrain-controller", "-o", "json"))
    leader = lease["spec"]["holderIdentity"].rpartition("_")[0]
    assert leader in {pod["metadata"]["name"] for pod in pods["items"]}


EXAMPLE = CHART.parents[1] / "examples" / "amazon-cds"


def example(place: Place) -> dict[str, Any]:
    """Return the job of the example with its raw data in object storage, for a look."""
    job: dict[str, Any] = yaml.safe_load((EXAMPLE / "job.yaml").read_text())
    for file in ("train.txt.gz", "test.txt.gz"):
        place.storage.client().upload_file(str(EXAMPLE / file), place.bucket, f"amazon/{file}")
    name, uri = job["metadata"]["name"], f"s3://{place.bucket}/amazon"
    ours = place.job(name, 1)["spec"]
    data = {"uri": f"{uri}/train.txt.gz", "validationUri": f"{uri}/test.txt.gz"}
    changed = {
        "data": {**{part: ours["data"][part] for part in ("train", "validation", "storage")}, "source": data},
        "training": {"maxSteps": 100},
        **{part: ours[part] for part in ("output", "workers")},
    }
    return {**job, "spec": merged(job["spec"], changed)}


def test_the_raw_data_of_the_example_become_a_model_with_its_record(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = example(place)
    name = job["metadata"]["name"]
    place.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(job))
    place.wait_for_step(name, 1)
    seen = place.status(name)
    assert seen["state"] == "Running" and seen["progress"]["totalSteps"] == 100
    place.wait_for(name, "Succeeded")

    status = place.status(name)
    assert place.condition(name, "DataPrepared")["status"] == "True" and status["restarts"] == 0
    progress, results = status["progress"], status["results"]
    assert progress["step"] == progress["totalSteps"] == 100
    s3 = place.storage.client()
    assert results["modelUri"] == f"s3://{place.bucket}/runs/{name}/bundle"
    stored = json.load(s3.get_object(Bucket=place.bucket, Key=f"runs/{name}/metrics.json")["Body"])
    assert {m["name"]: m["value"] for m in results["metrics"]} == pytest.approx(stored) and stored["recall@20"] > 0
    for rank in range(2):
        s3.head_object(Bucket=place.bucket, Key=f"runs/{name}/bundle/weights/rank-0000{rank}-00000.safetensors")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", place.storage.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", place.storage.secret_key)
    predictor = BundlePredictor.open(results["modelUri"], Storage(endpoint_url=services.STORAGE_URL))
    scores = [predictor.score({"user_id": 0, "item_id": item, "history": [3, 4]}) for item in (1, 35647)]
    assert all(-10 <= score <= 10 for score in scores) and scores[0] != scores[1], "cosines over a temperature of 0.1"

    run = mlflow.MlflowClient(services.MLFLOW_URL).get_run(results["mlflowRunId"])
    assert run.info.status == "FINISHED" and run.data.metrics["recall_at_20"] == pytest.approx(stored["recall@20"])
    owned = json.loads(place.kubectl("get", "jobs,pytorchjobs,configmaps", "-o", "json"))["items"]
    kinds = sorted(one["kind"] for one in owned if one["metadata"].get("ownerReferences"))
    assert kinds == ["ConfigMap", "Job", "PyTorchJob"]
    place.kubectl("delete", "rtj", name, "--timeout=60s")
    wait_until("what the job owned to go", lambda: not place.kubectl("get", "pytorchjobs,jobs", "-o", "name"), 60)


def test_a_killed_worker_pod_costs_time_and_nothing_else(place: Place) -> None:
    epochs = 100
    place.apply("calm", epochs)
    place.wait_for("calm", "Succeeded")
    place.apply("hurt", epochs, data={"source": None})
    client = Client(place.namespace, kubeconfig=str(place.cluster.api.kubeconfig))
    followed: list[str] = []
    place.wait_for("hurt", "Running")
    follower = threading.Thread(target=lambda: followed.extend(client.logs("hurt", follow=True)))
    follower.start()
    place.wait_for_step("hurt", 70)  # after a checkpoint
    place.kubectl("delete", "pod", "hurt-worker-0", "--grace-period=0", "--force")
    place.wait_for("hurt", "Succeeded")

    status = place.status("hurt")
    # The kubelet tells a container to stop before it kills it: where the ranks have saved by then, they were stopped,
    # and have not failed.
    assert status["attempt"] == 1 and status["restarts"] <= 1
    assert status["results"]["metrics"] == place.status("calm")["results"]["metrics"]
    follower.join(60)
    assert not follower.is_alive(), "it ends with the job"
    said = "\n".join(followed)
    begun, continued = said.index("Sharding plan"), said.index("continuing from the checkpoint of step")
    assert begun < continued < said.index("recall@20"), "the log goes on in the pod of the next attempt"

    # As a plugin of kubectl, which finds it by its name; the log of another worker, and its end alone.
    scripts = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{scripts}:{os.environ['PATH']}"}
    where = ("-n", place.namespace, "--kubeconfig", place.cluster.api.kubeconfig)
    command = [place.cluster.api.kubectl_binary, "rectrain", "logs", "hurt", *where, "--tail", "1"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == followed[-1:]


def test_a_job_goes_on_through_an_upgrade_a_lost_rank_and_a_suspension(place: Place, release: Release) -> None:
    place.apply("long", epochs=ENDLESS)
    place.wait_for_step("long", 70)  # after a checkpoint
    before = release.controllers()
    release.upgrade(**{"controller.workers": "4"})
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
    if b"rectrain_jobs.training" in command and b"torchrun" not in b" ".join(command):
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
