"""The tracker against a real MLflow: a server on loopback that is there, comes late, dies or never comes; sqlite."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from minio import free_port
from mlflow import MlflowClient

from rectrain.api.job import RecTrainingJob
from rectrain_jobs.tracking import DatasetInput, MlflowTracker, Point, PointLog
from rectrain_jobs.tracking.parameters import MAX_PARAMETERS, MAX_VALUE

DEADLINE_SECONDS = 300
INPUTS = [
    DatasetInput("s3://bucket/train", "1" * 64, 1000, "training"),
    DatasetInput("s3://bucket/validation", "2" * 64, 200, "validation"),
]


class Server:
    """An MLflow server that keeps its port and its data when it is stopped and started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if self.process is not None:
            return
        command = [
            *(str(Path(sys.executable).with_name("mlflow")), "server", "--host", "127.0.0.1"),
            *("--port", str(self.port), "--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder}/server.db"),
            *("--artifacts-destination", str(self.folder / "artifacts")),
        ]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                start_new_session=True,
            )
        wait_until(self._is_healthy)

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def _is_healthy(self) -> bool:
        assert self.process is not None and self.process.poll() is None, (self.folder / "server.log").read_text()
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                return True
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False


def wait_until(condition, deadline=DEADLINE_SECONDS):
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def only_server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("mlflow"))
    yield server
    server.kill()


@pytest.fixture
def server(only_server):
    only_server.start()
    return only_server


@pytest.fixture(scope="module")
def sqlite_uri(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('sqlite')}/mlflow.db"


@pytest.fixture(params=["server", "sqlite"])
def uri(request):
    return request.getfixturevalue("server").uri if request.param == "server" else request.getfixturevalue("sqlite_uri")


@pytest.fixture
def name(tmp_path):
    return f"job-{abs(hash(tmp_path)):x}"


def job_named(name, features=1, **mlflow) -> RecTrainingJob:
    names = ["user_id", *(f"user_{i}" for i in range(1, features))]
    ids = [{"name": n, "kind": "Categorical", "side": "User", "cardinality": 10} for n in names]
    item = {"name": "item_id", "kind": "Categorical", "side": "Item", "cardinality": 20}
    spec = {
        "model": {"type": "TwoTower", "twoTower": {}},
        "features": [*ids, item],
        "data": {"train": {"uri": "s3://bucket/train"}},
        "tracking": {"mlflow": mlflow},
    }
    return RecTrainingJob.model_validate({"metadata": {"name": name}, "spec": spec})


def tracker_of(job, uri, folder, uid="uid-1", **arguments) -> tuple[MlflowTracker, PointLog]:
    folder.mkdir(exist_ok=True)
    points = PointLog(folder / "points.jsonl")
    tracker = MlflowTracker(
        job,
        uid=uid,
        tracking_uri=uri,
        points=points,
        state_path=folder / "mlflow.json",
        inputs=INPUTS,
        tags={"mlflow.source.git.commit": "abc"},
        **arguments,
    )
    return tracker, points


def point(step, **values) -> Point:
    return Point(step, 0, 1_700_000_000 + step, values or {"loss": 1 / step})


def runs_of(uri, name):
    client = MlflowClient(uri)
    return client.search_runs([client.get_experiment_by_name(name).experiment_id])


def history(uri, run_id, metric="loss"):
    return sorted((m.step, m.value, m.timestamp) for m in MlflowClient(uri).get_metric_history(run_id, metric))


def steps(uri, run_id):
    return [step for step, _, _ in history(uri, run_id)]


def sent_points(folder) -> int:
    path = folder / "mlflow.json"
    return json.loads(path.read_text())["sent_points"] if path.exists() else 0


def test_restarts_continue_one_run_found_by_its_uid(uri, name, tmp_path):
    first, points = tracker_of(job_named(name), uri, tmp_path / "a")
    points.append(point(1))
    first_summary = first.finish("KILLED")
    assert runs_of(uri, name)[0].info.status == "KILLED"
    second, points = tracker_of(job_named(name), uri, tmp_path / "b")  # a pod that has no file of the first
    points.append(point(2))
    wait_until(lambda: sent_points(tmp_path / "b") == 1)
    assert runs_of(uri, name)[0].info.status == "RUNNING"
    summary = second.finish("FINISHED")
    other, _ = tracker_of(job_named(name), uri, tmp_path / "c", uid="uid-2")
    other_summary = other.finish("FAILED")

    assert summary.run_id == first_summary.run_id != other_summary.run_id
    assert summary.error is None and summary.unsent_points == 0
    runs = {run.info.run_id: run for run in runs_of(uri, name)}
    assert len(runs) == 2
    run = runs[summary.run_id]
    assert run.info.status == "FINISHED" and runs[other_summary.run_id].info.status == "FAILED"
    assert run.info.run_name == name
    expected = {"rectrain.job_uid": "uid-1", "rectrain.job_name": name, "mlflow.source.git.commit": "abc"}
    assert expected.items() <= run.data.tags.items()
    assert steps(uri, summary.run_id) == [1, 2]


def test_metrics_have_step_time_and_names_that_mlflow_takes(uri, name, tmp_path):
    tracker, points = tracker_of(job_named(name), uri, tmp_path)
    for step in range(1, 1201):  # more than MLflow takes at once
        points.append(point(step))
    points.append(point(1200, **{"recall@20": 0.5, "auc": float("nan")}))
    summary = tracker.finish("FINISHED")
    assert summary.unsent_points == 0
    expected = [(step, 1 / step, (1_700_000_000 + step) * 1000) for step in range(1, 1201)]
    assert history(uri, summary.run_id) == expected
    assert [m[:2] for m in history(uri, summary.run_id, "recall_at_20")] == [(1200, 0.5)]
    assert history(uri, summary.run_id, "auc") == []


def test_resumed_run_repeats_no_point(uri, name, tmp_path):
    first, points = tracker_of(job_named(name), uri, tmp_path)
    for step in (1, 2, 3):
        points.append(point(step))
    first.finish("KILLED")
    points.truncate_after(2)  # the checkpoint was saved at step 2
    second, points = tracker_of(job_named(name), uri, tmp_path)
    for step in (3, 4):
        points.append(point(step))
    summary = second.finish("FINISHED")
    assert steps(uri, summary.run_id) == [1, 2, 3, 4]


def test_a_machine_without_the_first_ones_files_repeats_no_point(uri, name, tmp_path):
    first, points = tracker_of(job_named(name), uri, tmp_path / "a")
    for step in (1, 2, 3):
        points.append(point(step))
    run_id = first.finish("KILLED").run_id
    second, points = tracker_of(job_named(name), uri, tmp_path / "b")
    for step in (3, 4):  # the checkpoint was saved at step 2
        points.append(point(step))
    summary = second.finish("FINISHED")
    assert summary.run_id == run_id and summary.unsent_points == 0
    assert steps(uri, run_id) == [1, 2, 3, 4]


def test_system_metrics_are_recorded_when_asked_for_and_go_on_after_a_restart(uri, name, tmp_path):
    keys = ("system/cpu_utilization_percentage", "system/system_memory_usage_megabytes")
    for folder in ("a", "b"):
        tracker, _ = tracker_of(job_named(name, systemMetrics=True), uri, tmp_path / folder)
        run_id = tracker.finish("KILLED").run_id
    for key in keys:
        samples = [step for step, _, _ in history(uri, run_id, key)]
        assert samples == list(range(len(samples))) and len(samples) >= 2
    plain, _ = tracker_of(job_named(name), uri, tmp_path / "c", uid="uid-2")
    assert not MlflowClient(uri).get_run(plain.finish("KILLED").run_id).data.metrics


@pytest.mark.parametrize("features", [3, 1999])
def test_parameters_and_inputs_are_recorded_within_limits(uri, name, tmp_path, features):
    tracker, _ = tracker_of(job_named(name, features), uri, tmp_path)
    summary = tracker.finish("FINISHED")
    assert summary.error is None
    run = MlflowClient(uri).get_run(summary.run_id)
    assert run.data.params["model.twoTower.embeddingDim"] == "64"
    if features == 1999:
        assert run.data.params["features"] == "2000 features"
    else:
        assert run.data.params["features.user_2.cardinality"] == "10"
    assert len(run.data.params) <= MAX_PARAMETERS and max(map(len, run.data.params.values())) <= MAX_VALUE
    found = {i.tags[0].value: i.dataset for i in run.inputs.dataset_inputs}
    assert {context: json.loads(dataset.source)["uri"] for context, dataset in found.items()} == {
        "training": "s3://bucket/train",
        "validation": "s3://bucket/validation",
    }
    assert json.loads(found["training"].profile) == {"num_rows": 1000}
    assert found["training"].digest == "1" * 32


def test_artifacts_and_registered_model(uri, name, tmp_path):
    job = job_named(name, registeredModel=f"model-{name}", alias="champion")
    (tmp_path / "bundle").mkdir()
    for file in ("plan.json", "metrics.json", "bundle/bundle.json"):
        (tmp_path / file).write_text("{}")
    versions = []
    for uid in ("uid-1", "uid-2"):
        tracker, _ = tracker_of(job, uri, tmp_path / uid, uid=uid)
        summary = tracker.finish(
            "FINISHED",
            artifacts=[tmp_path / "plan.json", tmp_path / "metrics.json", tmp_path / "absent.json"],
            bundle=tmp_path / "bundle",
            bundle_uri=str(tmp_path / "bundle"),
        )
        assert summary.error is None
        client = MlflowClient(uri)
        assert {f.path for f in client.list_artifacts(summary.run_id)} == {"plan.json", "metrics.json", "bundle"}
        assert [f.path for f in client.list_artifacts(summary.run_id, "bundle")] == ["bundle/bundle.json"]
        version = client.get_model_version_by_alias(f"model-{name}", "champion")
        assert str(version.version) == summary.model_version and version.run_id == summary.run_id
        assert version.source.endswith("/bundle")
        versions.append(int(version.version))
    assert versions == [1, 2]


def test_a_machine_without_the_first_ones_files_registers_no_second_version(uri, name, tmp_path):
    job = job_named(name, registeredModel=f"model-{name}", alias="champion")
    for folder in ("a", "b"):  # a pod that is killed after it has registered the model leaves no state file behind
        tracker, _ = tracker_of(job, uri, tmp_path / folder)
        assert tracker.finish("FINISHED", bundle_uri="s3://bucket/bundle").model_version == "1"
    (version,) = MlflowClient(uri).search_model_versions(f"name = 'model-{name}'")
    assert MlflowClient(uri).get_model_version_by_alias(f"model-{name}", "champion").version == version.version


def test_bundle_elsewhere_is_recorded_by_a_pointer(uri, name, tmp_path):
    tracker, _ = tracker_of(job_named(name), uri, tmp_path)
    summary = tracker.finish("FINISHED", bundle_uri="s3://bucket/bundle")
    pointer = MlflowClient(uri).download_artifacts(summary.run_id, "bundle/pointer.json", str(tmp_path))
    assert json.loads(Path(pointer).read_text()) == {"uri": "s3://bucket/bundle", "bytes": None}


def test_points_of_a_server_that_comes_late_are_kept_and_sent(only_server, name, tmp_path, caplog):
    only_server.kill()
    tracker, points = tracker_of(job_named(name), only_server.uri, tmp_path)
    points.append(point(1))
    wait_until(lambda: "training goes on, points are kept" in caplog.text)
    only_server.start()
    wait_until(lambda: sent_points(tmp_path) == 1)
    points.append(point(2))
    summary = tracker.finish("FINISHED")
    assert summary.error is None and summary.unsent_points == 0
    assert steps(only_server.uri, summary.run_id) == [1, 2]


def test_points_of_a_server_that_never_comes_are_sent_by_a_later_run(only_server, name, tmp_path):
    only_server.kill()
    first, points = tracker_of(job_named(name), only_server.uri, tmp_path, give_up_seconds=0.0)
    points.append(point(1))
    points.append(point(2))
    summary = first.finish("FINISHED")
    assert summary.run_id is None and summary.unsent_points == 2
    assert summary.error is not None and "refused" in summary.error
    only_server.start()
    second, _ = tracker_of(job_named(name), only_server.uri, tmp_path)
    summary = second.finish("FINISHED")
    assert summary.error is None and summary.unsent_points == 0
    assert steps(only_server.uri, summary.run_id) == [1, 2]
    assert runs_of(only_server.uri, name)[0].info.status == "FINISHED"


def test_server_killed_in_the_middle_loses_and_repeats_nothing(server, name, tmp_path, caplog):
    tracker, points = tracker_of(job_named(name), server.uri, tmp_path)
    points.append(point(1))
    wait_until(lambda: sent_points(tmp_path) == 1)
    server.kill()
    points.append(point(2))
    wait_until(lambda: "training goes on, points are kept" in caplog.text)
    server.start()
    points.append(point(3))
    summary = tracker.finish("FINISHED")
    assert summary.error is None and summary.unsent_points == 0
    assert steps(server.uri, summary.run_id) == [1, 2, 3]
    assert len(runs_of(server.uri, name)) == 1


def test_credentials_of_the_uri_are_used_and_never_shown(name, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    uri = f"http://someone:hunter2@127.0.0.1:{free_port()}"
    tracker, points = tracker_of(job_named(name), uri, tmp_path, give_up_seconds=0.0)
    points.append(point(1))
    summary = tracker.finish("FINISHED")
    assert summary.error is not None
    assert summary.tracking_uri.startswith("http://***@127.0.0.1:")
    shown = caplog.text + str(summary) + "".join(p.read_text() for p in tmp_path.iterdir())
    assert "hunter2" not in shown and "someone" not in shown
