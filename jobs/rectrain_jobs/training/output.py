"""The folder that a run leaves: points, plan, metrics, bundle, and the identity that a restart continues."""

import json
import math
import tempfile
import uuid
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from rectrain.api.errors import UserError
from rectrain.api.job import RecTrainingJob
from rectrain.api.loading import dump_job
from rectrain_jobs.storage import ObjectStore, Storage, StorageError, open_store
from rectrain_jobs.storage.local import local_errors
from rectrain_jobs.training.checkpoint_listing import remove_all_checkpoints
from rectrain_jobs.training.identity import first_difference, identity_of

IDENTITY = "run.json"
JOB = "job.yaml"
PLAN = "plan.json"
POINTS = "points.jsonl"
METRICS = "metrics.json"
RESULT = "result.json"
PROGRESS = "progress.json"
TRACKING_STATE = "mlflow.json"
BUNDLE = "bundle"
CHECKPOINTS = "checkpoints"

_FILES = (JOB, PLAN, POINTS, METRICS, RESULT, PROGRESS, TRACKING_STATE)
_PARTIAL_FILES = ("points.partial", f"{PROGRESS}.partial", "mlflow.partial")


class RunOutput:
    """Where a run's results go, on this machine or in S3.

    Attributes:
        uri: The folder.
        store: The folder as an object store.
        local: A folder on this machine: the output itself, or a scratch folder when that is remote.
    """

    def __init__(self, uri: str, storage: Storage) -> None:
        """Open the folder, which need not exist.

        Raises:
            UserError: The folder cannot be written.
        """
        self._storage = storage
        self.store: ObjectStore = open_store(uri, storage)
        self.uri = self.store.uri
        inside = self.store.local_path("x")
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        if inside is not None:
            self.local = inside.parent
        else:
            self._scratch = tempfile.TemporaryDirectory(prefix="rectrain-run-")
            self.local = Path(self._scratch.name)
        try:
            self.local.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--output {uri}: cannot be written: {error.strerror}") from None

    def exclusive(self) -> AbstractContextManager[None]:
        """Hold the folder, if it is on this machine: two runs that write to one would each spoil the other.

        Raises:
            UserError: Another process holds it.
        """

        def refuse() -> None:
            raise UserError(
                f"{self.uri}: another `rectrain run` is writing there; wait for its end, or use another --output"
            )

        return self.store.exclusive(refuse, below=[BUNDLE])

    def remove(self) -> None:
        """Remove what a run wrote, and nothing else; its identity goes last, for an interrupted removal goes on.

        Raises:
            UserError: The folder holds something else than a run.
        """
        if not self.store.exists(IDENTITY):
            if self.store.list():
                raise UserError(
                    f"--restart: {self.uri} holds no run of rectrain; remove it yourself or use another --output"
                )
            return
        self.store.delete_prefix(BUNDLE)
        remove_all_checkpoints(open_store(f"{self.uri}/{CHECKPOINTS}", self._storage))
        self.store.delete([*_FILES, *_PARTIAL_FILES])
        self.store.delete([IDENTITY])

    @property
    def is_remote(self) -> bool:
        """Whether the output is not on this machine."""
        return self._scratch is not None

    def fetch(self, name: str) -> None:
        """Bring a file of the output to the scratch folder, if it is remote and has one."""
        if self.is_remote and self.store.exists(name):
            self.store.download(name, self.local / name)

    def keep(self, name: str) -> None:
        """Bring a file of the scratch folder to the output, if that is remote."""
        if self.is_remote and (self.local / name).exists():
            self.store.upload(self.local / name, name)

    def identity(self, job: RecTrainingJob) -> str:
        """Return the run's uid; the first process makes it, a restart finds it.

        A run that has not begun to train, for its data was wrong, leaves its folder to a corrected job.

        Raises:
            UserError: The folder holds a run of another job, or files that a run would replace.
        """
        wanted = identity_of(job)
        if self.store.exists(IDENTITY):
            found = self._read(IDENTITY, ("job", "uid"))
            difference = first_difference(found["job"], wanted)
            if difference is None:
                return str(found["uid"])
            if self.store.exists(PLAN):
                raise UserError(
                    f"{self.uri}: holds the run of another job: {difference}; "
                    "use another --output, or --restart to remove it"
                )
        else:
            self._refuse_foreign()
        uid = job.metadata.uid or str(uuid.uuid4())
        self._write(IDENTITY, {"uid": uid, "name": job.metadata.name, "job": wanted})
        return uid

    def _refuse_foreign(self) -> None:
        """Refuse a folder with files under the names of a run's that no run wrote: they would be written over."""
        for name in (*_FILES, f"{BUNDLE}/bundle.json"):
            if self.store.exists(name):
                raise UserError(
                    f"{self.store.uri_of(name)}: is not of a run, which would replace it; use another --output"
                )

    def write_metrics(self, metrics: dict[str, float]) -> None:
        """Write metrics.json: final metrics by name, null where one is undefined."""
        self._write(METRICS, {k: None if math.isnan(v) else v for k, v in metrics.items()})

    def write_plan(self, plan: dict[str, Any]) -> None:
        """Write plan.json."""
        self._write(PLAN, plan)

    def write_progress(self, progress: dict[str, Any]) -> None:
        """Write progress.json, on this machine only."""
        partial = self.local / f"{PROGRESS}.partial"
        with local_errors(partial):
            partial.write_text(json.dumps(progress))
            partial.replace(self.local / PROGRESS)

    def write_job(self, job: RecTrainingJob) -> Path:
        """Write job.yaml, the job as it is run, and return where it is on this machine."""
        self._write_bytes(JOB, dump_job(job).encode())
        self.fetch(JOB)
        return self.local / JOB

    def write_result(self, result: dict[str, Any]) -> None:
        """Write result.json: how the run ended."""
        self._write(RESULT, result)

    def read_result(self) -> dict[str, Any] | None:
        """Return how the run ended, or None if it has not."""
        return self._read(RESULT, ("step", "mlflowRunId", "bundle")) if self.store.exists(RESULT) else None

    def read_metrics(self) -> dict[str, float]:
        """Return the final metrics that an ended run left."""
        found = self._read(METRICS, ())
        return {name: math.nan if value is None else float(value) for name, value in found.items()}

    def _read(self, key: str, fields: Sequence[str]) -> dict[str, Any]:
        try:
            content = json.loads(self.store.read_bytes(key))
            if isinstance(content, dict) and all(field in content for field in fields):
                return content
        except ValueError:
            pass
        raise UserError(f"{self.store.uri_of(key)}: is damaged, or of another program; use another --output")

    def _write(self, key: str, content: dict[str, Any]) -> None:
        self._write_bytes(key, json.dumps(content, indent=2).encode())

    def _write_bytes(self, key: str, data: bytes) -> None:
        try:
            self.store.write_bytes(key, data)
        except StorageError as error:
            raise UserError(f"--output: {error}") from None
