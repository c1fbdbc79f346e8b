"""What clusters do to jobs: each fault on a real kubelet, under the real training operator."""

from collections.abc import Iterator
from pathlib import Path

import controller_runs
import mlflow
import pytest
from controller_runs import Controller
from harness import services
from harness.cluster import WORKER_IMAGE, Cluster
from installed import ENDLESS, RELEASE, Place, Release

NO_DATA = {"source": None}  # for jobs whose workers do not come so far as to read any
ONE_WORKER = {"replicas": 1}


def test_a_worker_out_of_memory_is_tried_again_and_says_what_to_raise(place: Place) -> None:
    # Enough for the launcher; the rank that it starts is what the kernel kills.
    resources = {"requests": None, "limits": {"memory": "500Mi"}}
    place.apply("greedy", data=NO_DATA, workers=ONE_WORKER | {"resources": resources}, runPolicy={"maxRestarts": 1})
    place.wait_for("greedy", "Failed", 150)
    failed, status = place.condition("greedy", "Failed"), place.status("greedy")
    assert failed["reason"] == "MaxRestartsExceeded" and (status["restarts"], status["attempt"]) == (1, 1)
    cause = "pod greedy-master-0: needed more memory than its limit, workers.resources.limits.memory"
    assert cause in failed["message"]
    assert {"OOMKilled", "MaxRestartsExceeded"} <= place.events("greedy")


def test_an_image_that_is_not_there_is_named_and_waited_for(place: Place) -> None:
    image = "rectrain.test/absent:1"
    nothing = {"train": {"uri": f"s3://{place.bucket}/nothing"}}
    place.apply("training", data=NO_DATA | nothing, workers=ONE_WORKER | {"image": image})
    place.apply("misnamed", data=NO_DATA, workers=ONE_WORKER | {"image": "rectrain.test/Not An Image"})
    place.apply("converting", workers=ONE_WORKER | {"image": image})

    place.wait_for("misnamed", "Failed", 60)
    assert place.condition("misnamed", "Failed")["reason"] == "InvalidImageName"
    said = place.wait_for_reason("training", "Running", "ImagePullBackOff")
    assert "pod training-master-0" in said and image in said
    said = place.wait_for_reason("converting", "Running", "ImagePullBackOff")
    assert "pod rectrain-data-" in said and image in said
    assert place.status("training")["state"] == place.status("converting")["state"] == "Pending"
    for name in ("training", "converting"):
        assert "ImagePullBackOff" in place.events(name)

    assert place.cluster.node is not None
    place.cluster.node.tag_image(WORKER_IMAGE, image)
    place.wait_for("converting", "DataPrepared", 120)
    # There is nothing to train on for the other, which its worker says as soon as it is let in.
    place.wait_for("training", "Failed", 120)
    assert place.condition("training", "Failed")["reason"] == "UserError"
    assert "nothing" in place.condition("training", "Failed")["message"]


def test_raw_data_that_cannot_be_converted_are_named(place: Place) -> None:
    place.storage.client().put_object(Bucket=place.bucket, Key="raw/train.txt", Body=b"0 1 2\n1 two\n")
    place.apply("wrong")
    place.wait_for("wrong", "Failed", 120)
    failed = place.condition("wrong", "Failed")
    assert failed["reason"] == "ConversionFailed"
    assert "pod rectrain-data-" in failed["message"] and "raw/train.txt" in failed["message"], failed["message"]


def test_a_job_is_stopped_at_its_deadline_and_deleted_after_its_time_to_live(place: Place) -> None:
    place.apply("late", ENDLESS, runPolicy={"activeDeadlineSeconds": 5, "ttlSecondsAfterFinished": 60})
    place.wait_for("late", "Failed")
    assert place.condition("late", "Failed")["reason"] == "DeadlineExceeded"
    # Whatever the pods were at, they do not take the time that a checkpoint may take.
    place.wait_until("its pods to go", lambda: not place.pods("late"), 60)
    place.change("late", ttlSecondsAfterFinished=1)
    place.kubectl("wait", "--for=delete", "rtj/late", "--timeout=30s")
    owned = ("get", "pytorchjobs,jobs,pods,configmaps", "-l", "rectrain.io/job=late")
    place.wait_until("what the job owned to go", lambda: not place.kubectl(*owned), 60)


def test_a_job_goes_on_while_the_api_server_and_etcd_are_away(place: Place, release: Release, cluster: Cluster) -> None:
    plane = cluster.plane
    assert plane is not None
    place.apply("steady", epochs=120)
    place.wait_for_step("steady", 1)
    before = place.uid("pytorchjob", "steady"), place.uid("pod", "steady-worker-0")
    plane.kube_apiserver.kill()
    plane.etcd.kill()
    try:
        # Long enough for the controllers to lose their lease.
        place.wait_until("training to go on", lambda: last_recorded_step("steady") >= 400, 120)
    finally:
        plane.start()
    place.wait_for("steady", "Succeeded")
    assert (place.uid("pytorchjob", "steady"), place.uid("pod", "steady-worker-0")) == before
    status = place.status("steady")
    assert (status["attempt"], status["restarts"]) == (0, 0) and status["results"]["metrics"]
    release.kubectl("rollout", "status", f"deployment/{RELEASE}", "--timeout=90s")


def last_recorded_step(run: str) -> int:
    """Return the step of the last point that a job has sent to MLflow, which is not in the cluster."""
    client = mlflow.MlflowClient(services.MLFLOW_URL)
    experiments = [one.experiment_id for one in client.search_experiments()]
    points = [
        point.step
        for found in client.search_runs(experiments, f"attributes.run_name = '{run}'")
        for point in client.get_metric_history(found.info.run_id, "loss")
    ]
    return max(points, default=0)


LOST_NODE = "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute"


def apart(name: str) -> dict[str, object]:
    """Return a pod template for a worker on each node, which is given up as soon as its node is."""
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "DoNotSchedule",
        "nodeTaintsPolicy": "Honor",
        "labelSelector": {"matchLabels": {"rectrain.io/job": name}},
    }
    at_once = {
        "key": "node.kubernetes.io/unreachable",
        "operator": "Exists",
        "effect": "NoExecute",
        "tolerationSeconds": 0,
    }
    # A rank that waits for one on the lost node does not come to its checkpoint.
    grace = {"terminationGracePeriodSeconds": 10}
    return {"spec": {"topologySpreadConstraints": [spread], "tolerations": [at_once], **grace}}


def test_a_job_that_loses_a_node_goes_on_elsewhere_and_no_failure_is_counted(place: Place, cluster: Cluster) -> None:
    with cluster.second_node() as node:
        place.apply("spread", ENDLESS, workers={"template": apart("spread")}, runPolicy={"maxRestarts": 0})
        place.wait_for_step("spread", 70)  # after a checkpoint
        nodes = {pod: place.kubectl("get", pod, "-o", "jsonpath={.spec.nodeName}") for pod in place.pods("spread")}
        (lost,) = (pod.removeprefix("pod/") for pod, where in nodes.items() if where == node.name)
        node.namespace.close()
        # The eviction and the end of the other pod are seen in either order.
        reasons = ("DeletionByTaintManager", "NodeLost")
        place.wait_until("the restart", lambda: place.condition("spread", "Restarting").get("reason") in reasons, 120)
        assert f"pod {lost}" in place.condition("spread", "Restarting")["message"]
        held = f"the node of {lost} does not answer"
        place.wait_until(held, lambda: held in place.condition("spread", "Running")["message"], 60)
        # What an administrator, or a cloud, says once the machine is known to be off.
        cluster.api.kubectl("taint", "node", node.name, LOST_NODE)
        place.wait_for("spread", "Running")
        place.wait_for_log("spread-master-0", "continuing from the checkpoint of step")
        status = place.status("spread")
        assert (status["restarts"], status["attempt"]) == (0, 1)
        place.kubectl("delete", "rtj", "spread", "--timeout=90s")


def test_an_elastic_job_takes_in_a_worker_and_is_restarted_without_one(place: Place, cluster: Cluster) -> None:
    alone = {"labelSelector": {"matchLabels": {"rectrain.io/job": "grown"}}, "topologyKey": "kubernetes.io/hostname"}
    apart = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [alone]}}
    workers = {"elastic": {"minReplicas": 1, "maxReplicas": 2}, "template": {"spec": {"affinity": apart}}}
    place.apply("grown", ENDLESS, workers=workers)
    place.wait_for_step("grown", 1)
    assert "grown-worker-1" in place.condition("grown", "Running")["message"], "there is no node for it"
    uid = place.uid("pod", "grown-worker-0")
    with cluster.second_node():
        place.wait_for_log("grown-worker-0", "continuing from the checkpoint of step")
        place.wait_for_log("grown-worker-0", "Sharding plan for 2 cpu ranks")
        assert place.status("grown")["attempt"] == 0 and place.uid("pod", "grown-worker-0") == uid
        place.wait_for_step("grown", place.status("grown")["progress"]["step"] + 60)
        cluster.api.kubectl("cordon", "node-2")
        place.kubectl("delete", "pod", "grown-worker-1")
        place.wait_until("the restart", lambda: place.status("grown")["attempt"] == 1, 120)
        assert place.status("grown")["restarts"] == 0, "it was stopped, and saved a checkpoint"
        place.wait_for_step("grown", place.status("grown")["progress"]["step"] + 20)
        place.kubectl("delete", "rtj", "grown", "--timeout=90s")


@pytest.fixture
def controller(place: Place, release: Release, tmp_path: Path) -> Iterator[Controller]:
    """A controller that a test may kill, in the place of the release's; not started yet."""
    deployment = f"deployment/{RELEASE}"
    release.kubectl("scale", deployment, "--replicas=0")
    place.wait_until("the controllers of the release to go", lambda: not release.controllers(), 60)
    own = controller_runs.Place(place.cluster.api, place.namespace, tmp_path)
    where = ("--namespaces", place.namespace, "--worker-image", WORKER_IMAGE)
    controller = own.controller(*where, "--mlflow-tracking-uri", services.MLFLOW_URL)
    yield controller
    controller.kill()
    release.kubectl("scale", deployment, "--replicas=2")
    release.kubectl("rollout", "status", deployment, "--timeout=90s")


def test_an_elastic_job_comes_to_its_end_though_its_controller_is_killed_at_each_step(
    place: Place, controller: Controller
) -> None:
    def goes_on_alone(wanted: str, *condition: str) -> None:
        """Kill the controller, and start it again when the cluster has gone on without it."""
        controller.kill()
        place.kubectl("wait", f"--for=condition={wanted}", *condition, "--timeout=180s")
        controller.start()

    place.apply("hard", 2, workers={"elastic": {"minReplicas": 1, "maxReplicas": 2}})
    controller.start()
    place.wait_until("a conversion", lambda: bool(place.kubectl("get", "jobs", "-o", "name")), 60)
    goes_on_alone("Complete", "job", "-l", "rectrain.io/job=hard")
    place.wait_until("the PyTorchJob", lambda: bool(place.kubectl("get", "pytorchjobs", "-o", "name")), 60)
    child = place.uid("pytorchjob", "hard")
    goes_on_alone("Running", "pytorchjob/hard")
    place.wait_for("hard", "Running")
    assert place.pods("hard") == ["pod/hard-worker-0", "pod/hard-worker-1"], "elastic workers have no master"
    goes_on_alone("Succeeded", "pytorchjob/hard")
    place.wait_for("hard", "Succeeded")
    controller.kill()

    status = place.status("hard")
    assert (status["attempt"], status["restarts"]) == (0, 0) and place.uid("pytorchjob", "hard") == child
    assert status["results"]["metrics"] and status["results"]["mlflowRunId"]
    place.change("hard", ttlSecondsAfterFinished=1)
    controller.start()
    place.kubectl("wait", "--for=delete", "rtj/hard", "--timeout=60s")
