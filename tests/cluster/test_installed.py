"""Jobs of the installed chart that train from object storage on two pods, and the life of the release around them."""

import json

import mlflow
import pytest
from harness import services
from harness.cluster import Cluster
from harness.waiting import wait_until
from installed import ENDLESS, RELEASE, Place, Release


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
    parts = ("bundle.json", "weights/rank-00000-00000.safetensors", "weights/rank-00001-00000.safetensors")
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
