"""What a worker tells the controller: progress over HTTP, and results or a reason in the termination log."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import pytest
from training_runs import be_alone_in_a_pod, dlrm_job, succeed

from rectrain.api.status import Progress, Results
from rectrain.controller import classify
from rectrain_jobs.training import exit_codes
from rectrain_jobs.training.progress_server import PORT_VARIABLE, ProgressServer, progress_server
from rectrain_jobs.training.termination import PATH_VARIABLE, leave_reason, leave_results, results_text

PROGRESS = {
    "step": 3,
    "totalSteps": 10,
    "epoch": 0,
    "examplesPerSecond": 12.5,
    "loss": None,
    "estimatedRemainingSeconds": 4,
    "lastUpdateTime": "2026-03-01T12:00:00Z",
}


@pytest.fixture
def server() -> Iterator[ProgressServer]:
    server = ProgressServer(0)
    yield server
    server.close()


def fetch(server: ProgressServer, path: str) -> HTTPResponse | urllib.error.HTTPError:
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=5)
    except urllib.error.HTTPError as error:
        return error


def test_progress_is_what_the_controller_reads(server: ProgressServer) -> None:
    assert fetch(server, "/progress").status == 503
    server.update(PROGRESS)
    read = Progress.model_validate_json(fetch(server, "/progress").read())
    assert (read.step, read.total_steps, read.examples_per_second, read.loss) == (3, 10, 12.5, None)


def test_metrics_are_in_the_exposition_format(server: ProgressServer) -> None:
    assert fetch(server, "/metrics").read() == b""
    server.update(PROGRESS)
    lines = fetch(server, "/metrics").read().decode().splitlines()
    assert "rectrain_training_step 3" in lines
    assert "# TYPE rectrain_training_examples_per_second gauge" in lines
    assert not [line for line in lines if "loss" in line]


def test_nothing_else_is_served(server: ProgressServer) -> None:
    assert fetch(server, "/../etc/passwd").status == 404


def test_without_a_port_nothing_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PORT_VARIABLE, raising=False)
    assert progress_server() is None


@pytest.mark.parametrize("port", ["taken", "x", "70000"])
def test_a_port_that_cannot_be_had_does_not_keep_training_up(
    port: str, server: ProgressServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(PORT_VARIABLE, str(server.port) if port == "taken" else port)
    assert progress_server() is None
    assert "progress is not served" in caplog.text


def results_in(path: Path) -> Results:
    return Results.model_validate_json(path.read_text())


def leave(path: Path, monkeypatch: pytest.MonkeyPatch, metrics: dict[str, float]) -> None:
    monkeypatch.setenv(PATH_VARIABLE, str(path))
    leave_results(results_text(metrics, mlflow_run_id="run", checkpoint_uri=None, model_uri="s3://bucket/bundle"))


def test_results_leave_out_what_is_undefined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave(tmp_path / "log", monkeypatch, {"auc": float("nan"), "log_loss": 0.5})
    results = results_in(tmp_path / "log")
    assert [(m.name, m.value) for m in results.metrics] == [("log_loss", 0.5)]
    assert (results.mlflow_run_id, results.checkpoint_uri, results.model_uri) == ("run", None, "s3://bucket/bundle")


def test_results_fit_what_kubernetes_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave(tmp_path / "log", monkeypatch, {f"recall@{k}": 1 / 3 for k in range(200)})
    assert (tmp_path / "log").stat().st_size <= 4096
    assert results_in(tmp_path / "log").metrics[0].name == "recall@0"


def test_a_lost_peer_does_not_write_over_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PATH_VARIABLE, str(tmp_path / "log"))
    (tmp_path / "log").touch()
    reasons: list[tuple[int, str]] = [
        (exit_codes.FAILED, "lost a peer"),
        (exit_codes.USER_ERROR, "no bucket"),
        (exit_codes.FAILED, "lost a peer too"),
    ]
    for code, text in reasons:
        assert leave_reason(code, text)
    assert (tmp_path / "log").read_text() == "no bucket"


def test_of_a_long_reason_the_end_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PATH_VARIABLE, str(tmp_path / "log"))
    leave_reason(exit_codes.FAILED, "x" * 5000 + "the error")
    text = (tmp_path / "log").read_text()
    assert len(text) == 4096 and text.endswith("the error")


def test_without_a_log_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PATH_VARIABLE, raising=False)
    assert not leave_reason(exit_codes.USER_ERROR, "no bucket")


def test_the_controller_knows_the_workers_exit_codes() -> None:
    known: dict[str, Any] = {name: getattr(classify, name) for name in ("USER_ERROR", "DIVERGED", "STOPPED")}
    assert known == {name: getattr(exit_codes, name) for name in known}


def test_a_run_leaves_its_results(tmp_path: Path) -> None:
    job = dlrm_job(tmp_path, training={"batchSize": 16, "epochs": 1}, workers={"replicas": 1})
    ended = succeed(job, tmp_path / "out", ranks=1)
    results = Results.model_validate_json(ended.reasons[0])
    final = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert {m.name: m.value for m in results.metrics} == final
    assert results.model_uri == f"{tmp_path}/out/bundle"
    assert results.checkpoint_uri is not None and results.checkpoint_uri.startswith(f"{tmp_path}/out/checkpoints/step-")


def test_each_pod_has_the_results(tmp_path: Path) -> None:
    job = dlrm_job(tmp_path, training={"batchSize": 16, "epochs": 1})
    ended = succeed(job, tmp_path / "out", ranks=2, watch=be_alone_in_a_pod)
    assert ended.reasons[0] == ended.reasons[1]
    assert Results.model_validate_json(ended.reasons[1]).metrics
