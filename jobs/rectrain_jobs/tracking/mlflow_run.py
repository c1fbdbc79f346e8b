"""The run in MLflow, kept up to date by a thread that training never waits for.

Everything to be recorded is on disk first (the point log, and a small state file of what MLflow already has), so a
server that is down costs nothing but lateness: points are sent when it is back, in this process or the next one.
"""

import json
import logging
import math
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rectrain.api.job import RecTrainingJob
from rectrain_jobs.tracking.credentials import without_credentials
from rectrain_jobs.tracking.parameters import metric_key, parameters_of
from rectrain_jobs.tracking.points import PointLog
from rectrain_jobs.tracking.system_metrics import SYSTEM_PREFIX, SystemSampler

if TYPE_CHECKING:
    from mlflow import MlflowClient

UID_TAG, NAME_TAG = "rectrain.job_uid", "rectrain.job_name"
_BATCH = 500
_SYNC_SECONDS = 5.0
_LONGEST_WAIT_SECONDS = 60.0
_MAX_MESSAGE = 300
_MAX_BUNDLE_BYTES = 512 * 2**20

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DatasetInput:
    """A dataset that the run read.

    Attributes:
        uri: Where its shards are.
        digest: SHA-256 of its index.
        rows: Number of rows.
        context: training or validation.
    """

    uri: str
    digest: str
    rows: int
    context: str


@dataclass(frozen=True)
class TrackingSummary:
    """How the run is recorded.

    Attributes:
        tracking_uri: Server or store, without credentials.
        run_id: The run; None when MLflow was never reached.
        unsent_points: Points that are only on disk.
        error: Why the rest could not be sent.
        model_version: Version of the registered model that was made.
    """

    tracking_uri: str
    run_id: str | None
    unsent_points: int
    error: str | None
    model_version: str | None = None


@dataclass
class _State:
    """What MLflow has, as the state file holds it."""

    run_id: str | None = None
    described: bool = False
    sent_points: int = 0
    artifacts: list[str] = field(default_factory=list)
    model_version: str | None = None
    status: str | None = None


@dataclass(frozen=True)
class _Ending:
    status: str
    artifacts: Sequence[Path]
    bundle: Path | None
    bundle_uri: str | None


class MlflowTracker:
    """Keeps one MLflow run up to date with the point log.

    Args:
        job: The job.
        uid: Identity of the job: restarts with the same one continue the same run.
        tracking_uri: Server or store.
        points: The point log.
        state_path: File that remembers what MLflow has.
        inputs: Datasets of the run.
        tags: Further tags.
        give_up_seconds: How long `finish` tries to reach a server that does not answer.
    """

    def __init__(
        self,
        job: RecTrainingJob,
        *,
        uid: str,
        tracking_uri: str,
        points: PointLog,
        state_path: Path,
        inputs: Sequence[DatasetInput],
        tags: dict[str, str],
        give_up_seconds: float = 30.0,
    ) -> None:
        """Read what an earlier process sent, and begin to send in the background."""
        self._job = job
        self._uid = uid
        self._uri = tracking_uri
        self._points = points
        self._state_path = state_path
        self._inputs = inputs
        self._tags = tags
        self._give_up_seconds = give_up_seconds
        self._state = _read_state(state_path)
        self._client: MlflowClient | None = None
        self._sampler: SystemSampler | None = None
        self._system_samples = 0
        self._known_steps: dict[str, set[int]] = {}
        self._error: str | None = None
        self._ending: _Ending | None = None
        self._ended_at = 0.0
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mlflow", daemon=True)
        self._thread.start()

    @property
    def run_id(self) -> str | None:
        """The run, once MLflow was reached."""
        return self._state.run_id

    def finish(
        self,
        status: str,
        *,
        artifacts: Sequence[Path] = (),
        bundle: Path | None = None,
        bundle_uri: str | None = None,
    ) -> TrackingSummary:
        """Send what is left and end the run; gives up on an unreachable server after a while.

        Args:
            status: FINISHED, FAILED or KILLED; a killed run is resumed by the next process.
            artifacts: Files to be recorded.
            bundle: Local folder of the model bundle; recorded whole, or by a pointer when it is large.
            bundle_uri: Where the bundle is.
        """
        self._ending = _Ending(status, artifacts, bundle, bundle_uri)
        self._ended_at = time.monotonic()
        self._wake.set()
        self._thread.join()
        unsent = max(0, len(self._points.read()) - self._state.sent_points)
        uri = without_credentials(self._uri)
        return TrackingSummary(uri, self._state.run_id, unsent, self._error, self._state.model_version)

    def _run(self) -> None:
        wait = 0.0
        while True:
            self._wake.wait(wait)
            ending = self._ending
            try:
                self._sync()
                if ending is not None:
                    self._end(ending)
                self._error = None
                if ending is not None:
                    return
                wait = _SYNC_SECONDS
            except Exception as error:  # whatever MLflow's stores raise, training goes on
                message = _brief(without_credentials(" ".join(str(error).split())))
                if self._error is None:
                    logger.warning(
                        "MLflow at %s: %s: %s; training goes on, points are kept",
                        without_credentials(self._uri),
                        type(error).__name__,
                        message,
                    )
                self._error = f"{type(error).__name__}: {message}"
                self._client = None
                wait = min(_LONGEST_WAIT_SECONDS, max(1.0, 2 * wait))
                if ending is not None:
                    if time.monotonic() - self._ended_at > self._give_up_seconds:
                        return
                    self._wake.clear()
                    wait = min(wait, 5.0)

    def _sync(self) -> None:
        client = self._connected()
        if not self._state.described:
            self._describe(client)
        self._send_points(client)
        if self._job.spec.tracking.mlflow.system_metrics:
            self._send_system_metrics(client)

    def _connected(self) -> "MlflowClient":
        if self._client is not None:
            return self._client
        # MLflow's own defaults keep a call to a dead server for minutes; waiting is this thread's loop's to do.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        from mlflow import MlflowClient  # takes seconds to import

        for name in ("alembic", "mlflow"):
            logging.getLogger(name).setLevel(logging.ERROR)
        client = MlflowClient(tracking_uri=self._uri)
        if self._state.run_id is None:
            self._state.run_id = self._find_or_create_run(client)
            self._save_state()
        else:
            client.update_run(self._state.run_id, status="RUNNING")
        self._read_known_steps(client, self._state.run_id)
        self._client = client
        return client

    def _read_known_steps(self, client: "MlflowClient", run_id: str) -> None:
        """Ask what MLflow has: the state file may be another machine's, or a call took effect without its answer."""
        self._known_steps = {
            key: {metric.step for metric in client.get_metric_history(run_id, key)}
            for key in client.get_run(run_id).data.metrics
        }
        last_samples = [max(steps) for key, steps in self._known_steps.items() if key.startswith(SYSTEM_PREFIX)]
        self._system_samples = max(last_samples, default=-1) + 1

    def _find_or_create_run(self, client: "MlflowClient") -> str:
        name = self._job.spec.tracking.mlflow.experiment or self._job.metadata.name
        experiment = client.get_experiment_by_name(name)
        experiment_id = (
            experiment.experiment_id
            if experiment is not None
            else client.create_experiment(name, artifact_location=_artifact_location(self._uri))
        )
        found = client.search_runs([experiment_id], filter_string=f"tags.`{UID_TAG}` = '{self._uid}'", max_results=1)
        if found:
            run_id = str(found[0].info.run_id)
            client.update_run(run_id, status="RUNNING")
            return run_id
        tags = {
            UID_TAG: self._uid,
            NAME_TAG: self._job.metadata.name,
            "mlflow.source.type": "JOB",
            "mlflow.source.name": self._job.metadata.name,
            **self._tags,
        }
        return str(client.create_run(experiment_id, run_name=self._job.metadata.name, tags=tags).info.run_id)

    def _describe(self, client: "MlflowClient") -> None:
        from mlflow.entities import Dataset, InputTag, Param
        from mlflow.entities import DatasetInput as MlflowInput

        assert self._state.run_id is not None
        parameters = [Param(key, value) for key, value in parameters_of(self._job).items()]
        for first in range(0, len(parameters), 100):
            client.log_batch(self._state.run_id, params=parameters[first : first + 100])
        inputs = [
            MlflowInput(
                Dataset(
                    name=f"{self._job.metadata.name}-{given.context}",
                    digest=given.digest[:32],
                    source_type="mds",
                    source=json.dumps({"uri": given.uri}),
                    profile=json.dumps({"num_rows": given.rows}),
                ),
                [InputTag("mlflow.data.context", given.context)],
            )
            for given in self._inputs
        ]
        client.log_inputs(self._state.run_id, inputs)
        self._state.described = True
        self._save_state()

    def _send_points(self, client: "MlflowClient") -> None:
        from mlflow.entities import Metric

        assert self._state.run_id is not None
        # A run that continues from a checkpoint writes the same points again, so how many were sent is all to know.
        points = self._points.read()
        while self._state.sent_points < len(points):
            batch: list[Metric] = []
            sent = self._state.sent_points
            while sent < len(points) and len(batch) + len(points[sent].values) <= _BATCH:
                point = points[sent]
                batch += [
                    Metric(metric_key(name), value, int(point.time * 1000), point.step)
                    for name, value in point.values.items()
                    if not math.isnan(value)  # MLflow's stores differ in what they make of it
                    and point.step not in self._known_steps.get(metric_key(name), ())
                ]
                sent += 1
            client.log_batch(self._state.run_id, metrics=batch)
            self._state.sent_points = sent
            self._save_state()

    def _send_system_metrics(self, client: "MlflowClient") -> None:
        from mlflow.entities import Metric

        assert self._state.run_id is not None
        if self._sampler is None:
            self._sampler = SystemSampler()
        now = int(time.time() * 1000)
        # As in MLflow's own monitor the step is the number of the sample, not a step of training.
        samples = [Metric(k, v, now, self._system_samples) for k, v in self._sampler.sample().items()]
        client.log_batch(self._state.run_id, metrics=samples)
        self._system_samples += 1

    def _end(self, ending: _Ending) -> None:
        client = self._connected()
        run_id = self._state.run_id
        assert run_id is not None
        for path in ending.artifacts:
            if path.exists() and path.name not in self._state.artifacts:
                client.log_artifact(run_id, str(path))
                self._state.artifacts.append(path.name)
                self._save_state()
        if ending.bundle_uri is not None and "bundle" not in self._state.artifacts:
            self._record_bundle(client, run_id, ending)
            self._state.artifacts.append("bundle")
            self._save_state()
        registered = self._job.spec.tracking.mlflow.registered_model
        if registered is not None and ending.bundle_uri is not None and self._state.model_version is None:
            self._state.model_version = self._register(client, registered, run_id)
            self._save_state()
        if ending.status == "KILLED":
            client.update_run(run_id, status="KILLED")
        else:
            client.set_terminated(run_id, status=ending.status)
        self._state.status = ending.status
        self._save_state()

    def _record_bundle(self, client: "MlflowClient", run_id: str, ending: _Ending) -> None:
        size = sum(f.stat().st_size for f in ending.bundle.rglob("*") if f.is_file()) if ending.bundle else None
        if ending.bundle is not None and size is not None and size <= _MAX_BUNDLE_BYTES:
            client.log_artifacts(run_id, str(ending.bundle), "bundle")
        else:
            client.log_dict(run_id, {"uri": ending.bundle_uri, "bytes": size}, "bundle/pointer.json")

    def _register(self, client: "MlflowClient", name: str, run_id: str) -> str:
        from mlflow.exceptions import MlflowException

        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        # The state file may be gone with the machine that registered it, or be older: the run has one version.
        of_run = [found for found in client.search_model_versions(f"run_id = '{run_id}'") if found.name == name]
        source = f"{client.get_run(run_id).info.artifact_uri}/bundle"
        version = of_run[0] if of_run else client.create_model_version(name, source, run_id=run_id)
        alias = self._job.spec.tracking.mlflow.alias
        if alias is not None:
            client.set_registered_model_alias(name, alias, version.version)
        return str(version.version)

    def _save_state(self) -> None:
        partial = self._state_path.with_suffix(".partial")
        partial.write_text(json.dumps(vars(self._state), indent=1))
        partial.replace(self._state_path)


def _brief(message: str) -> str:
    """Return a message without its middle if it is long: what failed is said first, and why last."""
    half = _MAX_MESSAGE // 2
    return message if len(message) <= _MAX_MESSAGE else f"{message[:half]} … {message[-half:]}"


def _artifact_location(tracking_uri: str) -> str | None:
    """Return where a local sqlite store keeps artifacts: beside its file. A server has its own place."""
    if not tracking_uri.startswith("sqlite:///"):
        return None
    return (Path(tracking_uri.removeprefix("sqlite:///")).absolute().parent / "mlartifacts").as_uri()


def _read_state(path: Path) -> _State:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        return _State(**content)
    except (FileNotFoundError, ValueError, TypeError):
        return _State()
