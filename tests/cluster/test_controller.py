"""The controller against a real API server. There is no kubelet and no training operator: the tests play them."""

import json
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml
from controller_runs import JOB_TYPE, Place
from harness import api_server as servers
from harness.api_server import ApiServer, served
from harness.waiting import wait_until

PROGRESS_PORT = 8471
RESULTS = {"metrics": [{"name": "auc", "value": 0.75}], "mlflowRunId": "run-1", "modelUri": "s3://bucket/out/bundle"}


@pytest.fixture(scope="module")
def typed_server(api_server: ApiServer) -> ApiServer:
    return with_job_type(api_server)


def with_job_type(server: ApiServer) -> ApiServer:
    server.kubectl("apply", "--server-side", "-f", JOB_TYPE)
    wait_until("RecTrainingJobs to be served", lambda: served(server, "rectrainingjobs.rectrain.io"), 30)
    return server


@pytest.fixture
def place(typed_server: ApiServer, tmp_path: Path) -> Iterator[Place]:
    yield from a_place(typed_server, tmp_path)


def a_place(server: ApiServer, folder: Path) -> Iterator[Place]:
    name = f"test-{secrets.token_hex(4)}"
    server.kubectl("create", "namespace", name)
    place = Place(server, name, folder)
    try:
        yield place
    finally:
        for controller in place.controllers:
            controller.kill()


class Worker:
    """Rank 0 of a job, as far as the controller sees it: a server on an own address of loopback."""

    def __init__(self) -> None:
        self.step = 0
        self.address = f"127.{secrets.randbelow(200) + 1}.{secrets.randbelow(250)}.{secrets.randbelow(250) + 1}"
        worker = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(json.dumps(worker.progress()).encode())

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer((self.address, PROGRESS_PORT), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def progress(self) -> dict[str, object]:
        time = "2026-03-01T12:00:00Z"
        return {"step": self.step, "totalSteps": 10, "epoch": 0, "examplesPerSecond": 5.0, "lastUpdateTime": time}


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.server.shutdown()
    worker.server.server_close()


def test_a_job_runs_and_succeeds(place: Place, worker: Worker) -> None:
    controller = place.started()
    place.apply("clicks")
    child = place.wait_for_child("clicks")
    assert child["metadata"]["annotations"]["rectrain.io/attempt"] == "0"
    place.wait_for("clicks", "Running", "False", "Pending")
    place.run_pod("clicks", worker.address)
    place.set_child("clicks", "Running")
    place.wait_for("clicks", "Running", "True", "Training")
    worker.step = 4
    wait_until("progress", lambda: place.status("clicks").get("progress", {}).get("step") == 4, 30)
    assert controller.metric('rectrain_jobs{state="Running"}') == 1
    assert controller.metric("rectrain_examples_per_second") == 5.0
    place.end_pod("clicks", 0, json.dumps(RESULTS))
    place.set_child("clicks", "Succeeded")
    waiting = ("wait", "--for=condition=Succeeded", "rtj/clicks", "--timeout=30s", "-n", place.namespace)
    assert place.server.kubectl(*waiting) == "rectrainingjob.rectrain.io/clicks condition met\n"
    assert place.status("clicks")["results"] == RESULTS
    wait_until("events", lambda: place.reasons_told("clicks") == ["Pending", "Training", "TrainingCompleted"], 10)
    assert controller.stop() == 0


def test_nothing_is_written_when_nothing_changes(place: Place) -> None:
    place.started().kill()
    controller = place.started()
    place.apply("clicks")
    place.wait_for_child("clicks")
    place.set_child("clicks", "Running")
    place.wait_for("clicks", "Running", "True", "Training")
    controller.kill()
    before = place.get("rectrainingjobs", "clicks"), place.child("clicks"), place.reasons_told("clicks")
    again = place.started()
    wait_until("a pass", lambda: again.metric("rectrain_controller_reconcile_total") >= 1, 30)
    wait_until("no other", lambda: again.metric("rectrain_workqueue_depth") == 0, 30)
    assert again.metric('rectrain_controller_api_requests_total{code="200",kind="rectrainingjobs",verb="PATCH"}') == 0
    assert (place.get("rectrainingjobs", "clicks"), place.child("clicks"), place.reasons_told("clicks")) == before


def test_a_failure_restarts_all_workers(place: Place) -> None:
    place.started()
    place.apply("clicks", maxRestarts=1)
    first = place.wait_for_child("clicks")
    for attempt in ("0", "1"):
        place.wait_for_child("clicks", lambda child: child["metadata"]["annotations"]["rectrain.io/attempt"] == attempt)  # noqa: B023
        place.run_pod("clicks", "10.0.0.1")
        place.set_child("clicks", "Running")
        place.wait_for("clicks", "Running", "True", "Training")
        place.end_pod("clicks", 1, "ConnectionError: lost a peer", "Error")
        place.set_child("clicks", "Failed")
        if attempt == "0":
            said = place.wait_for("clicks", "Restarting", "True", "WorkerFailed")
            assert said == "pod clicks-master-0: exit code 1: ConnectionError: lost a peer"
            wait_until("the deletion", lambda: place.is_being_deleted("clicks"), 30)
            place.collect_garbage("clicks")
    said = place.wait_for("clicks", "Failed", "True", "MaxRestartsExceeded")
    assert "failed after 1 restarts" in said
    assert place.status("clicks")["restarts"] == 1
    last = place.child("clicks")
    assert last is not None and last["metadata"]["uid"] != first["metadata"]["uid"]


def test_a_users_error_is_not_tried_again(place: Place) -> None:
    place.started()
    place.apply("clicks")
    place.wait_for_child("clicks")
    place.run_pod("clicks", "10.0.0.1")
    place.end_pod("clicks", 2, "spec.data.train: there is no bucket", "Error")
    place.set_child("clicks", "Failed")
    assert "there is no bucket" in place.wait_for("clicks", "Failed", "True", "UserError")


def test_suspend_and_resume(place: Place) -> None:
    place.started()
    place.apply("clicks")
    first = place.wait_for_child("clicks")
    place.change("clicks", suspend=True)
    place.wait_for("clicks", "Suspended", "True", "SuspendedByUser")
    wait_until("the deletion", lambda: place.is_being_deleted("clicks") or place.child("clicks") is None, 30)
    if place.child("clicks") is not None:
        place.collect_garbage("clicks")
    place.change("clicks", suspend=False)
    place.wait_for("clicks", "Suspended", "False", "NotSuspended")
    second = place.wait_for_child("clicks", lambda child: child["metadata"]["uid"] != first["metadata"]["uid"])
    assert second["metadata"]["annotations"]["rectrain.io/attempt"] == "0"


def test_time_to_live_and_deadline(place: Place) -> None:
    place.started()
    place.apply("short", activeDeadlineSeconds=1, ttlSecondsAfterFinished=2)
    place.wait_for_child("short")
    place.wait_for("short", "Failed", "True", "DeadlineExceeded")
    wait_until("the job to be deleted", lambda: place.get("rectrainingjobs", "short") is None, 30)


def test_anothers_child_is_left_alone(place: Place) -> None:
    container = {"name": "pytorch", "image": "none"}
    spec = {"pytorchReplicaSpecs": {"Master": {"template": {"spec": {"containers": [container]}}}}}
    body = {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "metadata": {"name": "clicks"}, "spec": spec}
    before = place.objects.create_namespaced_custom_object("kubeflow.org", "v1", place.namespace, "pytorchjobs", body)
    place.started()
    place.apply("clicks")
    said = place.wait_for("clicks", "Running", "False", "NameTaken")
    assert said.startswith("PyTorchJob clicks exists and belongs to nobody")
    place.change("clicks", suspend=True)
    place.wait_for("clicks", "Suspended", "True", "SuspendedByUser")
    assert place.child("clicks") == before


def test_a_template_that_the_api_server_refuses_fails_the_job(place: Place) -> None:
    place.started()
    place.apply("clicks", workers={"template": {"spec": {"nodeSelector": {"a": "b"}, "tolerations": [{"key": 5}]}}})
    said = place.wait_for("clicks", "Failed", "True", "InvalidPodTemplate")
    assert "tolerations" in said


def test_a_misspelt_field_of_a_template_fails_the_job(place: Place) -> None:
    place.started()
    place.apply("clicks", workers={"template": {"spec": {"nodeSelektor": {"a": "b"}}}})
    assert "nodeSelektor" in place.wait_for("clicks", "Failed", "True", "InvalidPodTemplate")


def test_pods_that_cannot_be_created_are_told_in_the_words_of_the_event(place: Place) -> None:
    place.started()
    place.apply("clicks")
    child = place.wait_for_child("clicks")
    about = {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "name": "clicks", "namespace": place.namespace}
    event = {
        "metadata": {"name": "clicks.refused"},
        "involvedObject": {**about, "uid": child["metadata"]["uid"]},
        "type": "Warning",
        "reason": "FailedCreatePod",
        "message": 'Error creating: pods "clicks-master-0" is forbidden: exceeded quota: gpus',
        "lastTimestamp": "2026-03-01T12:00:00Z",
    }
    place.core.create_namespaced_event(place.namespace, event)
    assert "exceeded quota: gpus" in place.wait_for("clicks", "Running", "False", "PodsRefused", 60)
    place.run_pod("clicks", "10.0.0.1")
    place.wait_for("clicks", "Running", "False", "Pending")


def test_a_config_map_that_was_deleted_before_the_pods_began_is_made_again(place: Place) -> None:
    def config_maps() -> set[str]:
        return {each.metadata.name for each in place.core.list_namespaced_config_map(place.namespace).items}

    place.started()
    place.apply("clicks")
    place.wait_for_child("clicks")
    made = config_maps()
    for name in made:
        place.core.delete_namespaced_config_map(name, place.namespace)
    place.create_pod("clicks")
    assert made and not config_maps()
    wait_until("the ConfigMap", lambda: config_maps() == made, 90)


def test_a_missing_pytorchjob_type_is_said_and_waited_for(tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    with servers.running(tmp_path / "server") as plane:
        with_job_type(plane.api)
        crd = json.dumps(plane.api.get("crd", "pytorchjobs.kubeflow.org"))
        plane.api.kubectl("delete", "crd", "pytorchjobs.kubeflow.org")
        for place in a_place(plane.api, tmp_path):
            controller = place.started("--log-level", "info")  # cluster-wide: it sees types that come later
            place.apply("clicks")
            said = place.wait_for("clicks", "Running", "False", "PyTorchJobNotInstalled")
            assert "install the Kubeflow training operator" in said
            assert controller.fetch("/healthz") == "ok\n"
            plane.api.kubectl("create", "-f", "-", stdin=without_server_fields(crd))
            place.wait_for("clicks", "Running", "False", "Pending", 60)
            place.set_child("clicks", "Running")
            # The API server may end the storage that a watch of a new type began on, and tell the watch nothing of it.
            # kopf begins a watch anew that has been silent for 70 s, but a job that was just created is looked at.
            place.wait_for("clicks", "Running", "True", "Training", 60)


RESOURCES = "rectrainingjobs.rectrain.io", "pytorchjobs.kubeflow.org", "pods", "jobs.batch"


@pytest.mark.parametrize(
    ("everywhere", "missing"),
    [(False, RESOURCES), (False, ("jobs.batch",)), (True, RESOURCES)],
    ids=["a namespace", "a part of a namespace", "the cluster"],
)
def test_a_controller_that_may_not_watch_says_where_and_what_and_ends(
    place: Place, tmp_path: Path, everywhere: bool, missing: tuple[str, ...]
) -> None:
    kubectl, own, other = place.server.kubectl, place.namespace, f"{place.namespace}-other"
    kubectl("create", "namespace", other)
    kubectl("create", "serviceaccount", "controller", "-n", own)
    allow(place.server, own, own, RESOURCES)
    allow(place.server, own, other, [each for each in RESOURCES if each not in missing])
    options = ("--log-level", "info") if everywhere else ("--namespaces", f"{own},{other}")
    controller = place.controller(*options)
    token = {"token": kubectl("create", "token", "controller", "-n", own).strip()}
    kubeconfig = yaml.safe_load(place.server.kubeconfig.read_text())
    kubeconfig["users"][0]["user"] = token
    (tmp_path / "controller.conf").write_text(yaml.safe_dump(kubeconfig))
    controller.service.prefix = ("env", f"KUBECONFIG={tmp_path / 'controller.conf'}")
    controller.service.start()
    assert controller.service.process is not None
    assert controller.service.process.wait(60) == 1
    lines = [json.loads(line) for line in controller.service.log.read_text().splitlines()]
    [said] = [line["message"] for line in lines if line["level"] == "error"]
    where = "all namespaces" if everywhere else f"namespace {other}"
    assert said.startswith(
        f"{where}: the right to list and watch {', '.join(missing)} is missing: {missing[0]} is forb"
    )
    if not everywhere:
        allow(place.server, own, other, missing)
        controller.start()


def allow(server: ApiServer, own: str, namespace: str, resources: Sequence[str]) -> None:
    """Let the account `controller` of a namespace list and watch these in another, and wait until it may."""
    account = f"{own}:controller"
    for resource in resources:
        name = f"watch-{resource}"
        server.kubectl("create", "role", name, "-n", namespace, "--verb=list,watch", f"--resource={resource}")
        server.kubectl("create", "rolebinding", name, "-n", namespace, f"--role={name}", f"--serviceaccount={account}")
    for resource in resources:
        wait_until(f"the right to list {resource}", lambda: may_list(server, account, namespace, resource), 30)  # noqa: B023


def may_list(server: ApiServer, account: str, namespace: str, resource: str) -> bool:
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": f"system:serviceaccount:{account}",
            "resourceAttributes": {
                "namespace": namespace,
                "verb": "list",
                "group": resource.partition(".")[2],
                "resource": resource.partition(".")[0],
            },
        },
    }
    answer = json.loads(server.kubectl("create", "-f", "-", "-o", "json", stdin=json.dumps(review)))
    return bool(answer["status"]["allowed"])


def without_server_fields(crd: str) -> str:
    document = json.loads(crd)
    document["metadata"] = {"name": document["metadata"]["name"], "annotations": document["metadata"]["annotations"]}
    del document["status"]
    return json.dumps(document)


@pytest.mark.parametrize(("crashes", "seconds"), [(True, 20), (False, 6)], ids=["crash", "shutdown"])
def test_the_other_controller_takes_over(place: Place, crashes: bool, seconds: float) -> None:
    first = place.started(elected=True)
    wait_until("the lease", lambda: first.metric("rectrain_controller_leader") == 1, 30)
    second = place.started(elected=True)
    place.apply("one")
    place.wait_for_child("one")
    assert second.metric("rectrain_controller_leader") == 0
    if crashes:
        first.kill()
    else:
        assert first.stop() == 0
    since = time.monotonic()
    place.apply("two")
    wait_until("the other to act", lambda: place.child("two") is not None, seconds)
    assert time.monotonic() - since <= seconds
    assert second.metric("rectrain_controller_leader") == 1


def test_a_controller_that_loses_its_lease_ends(place: Place) -> None:
    controller = place.started(elected=True)
    wait_until("the lease", lambda: controller.metric("rectrain_controller_leader") == 1, 30)
    thief = json.dumps({"spec": {"holderIdentity": "thief"}})
    place.server.kubectl("patch", "lease", "rectrain-controller", "-n", place.namespace, "--type=merge", "-p", thief)
    assert controller.service.process is not None
    assert controller.service.process.wait(30) == 1


def test_killed_between_all_steps(place: Place) -> None:
    """A controller that is killed as soon as it has done a thing is replaced by one that does the next."""
    controller = place.started()
    place.apply("clicks", maxRestarts=1)
    place.wait_for_child("clicks")
    controller.kill()
    place.run_pod("clicks", "10.0.0.1")
    place.set_child("clicks", "Running")
    controller.start()
    place.wait_for("clicks", "Running", "True", "Training")
    controller.kill()
    place.end_pod("clicks", 1)
    place.set_child("clicks", "Failed")
    controller.start()
    place.wait_for("clicks", "Restarting", "True", "WorkerFailed")
    controller.kill()
    assert place.status("clicks")["restarts"] == 1
    controller.start()
    wait_until("the deletion", lambda: place.is_being_deleted("clicks"), 30)
    controller.kill()
    place.collect_garbage("clicks")
    controller.start()
    child = place.wait_for_child("clicks", lambda child: "deletionTimestamp" not in child["metadata"])
    controller.kill()
    assert child["metadata"]["annotations"]["rectrain.io/attempt"] == "1"
    place.run_pod("clicks", "10.0.0.1")
    place.end_pod("clicks", 0, "{not json")
    place.set_child("clicks", "Succeeded")
    controller.start()
    said = place.wait_for("clicks", "Succeeded", "True", "TrainingCompleted")
    assert said == "the model is trained; the workers left no results"
    assert place.status("clicks")["restarts"] == 1
