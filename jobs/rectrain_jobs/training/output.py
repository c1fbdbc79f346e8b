"""The folder that a run leaves: points, plan, metrics, bundle, and the identity that a restart continues."""

import json
import math
import tempfile
import uuid
from pathlib import Path
from typing import Any

from rectrain.api.errors import UserError
from rectrain.api.job import RecTrainingJob
from rectrain_jobs.storage import ObjectStore, Storage, StorageError, open_store
from rectrain_jobs.training.identity import first_difference, identity_of

IDENTITY = "run.json"
PLAN = "plan.json"


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

    def remove(self) -> None:
        """Remove everything, so that a run begins anew; its identity goes last, for an interrupted removal goes on.

        Raises:
            UserError: The folder holds something else than a run.
        """
        keys = [info.key for info in self.store.list()]
        if keys and IDENTITY not in keys:
            raise UserError(
                f"--restart: {self.uri} holds no run of rectrain; remove it yourself or use another --output"
            )
        for folder in sorted({key.partition("/")[0] for key in keys if "/" in key}):
            self.store.delete_prefix(folder)
        self.store.delete(key for key in keys if "/" not in key and key != IDENTITY)
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
            UserError: The folder holds a run of another job.
        """
        wanted = identity_of(job)
        if self.store.exists(IDENTITY):
            found = json.loads(self.store.read_bytes(IDENTITY))
            difference = first_difference(found["job"], wanted)
            if difference is None:
                return str(found["uid"])
            if self.store.exists(PLAN):
                raise UserError(
                    f"{self.uri}: holds the run of another job: {difference}; "
                    "use another --output, or --restart to remove it"
                )
        uid = job.metadata.uid or str(uuid.uuid4())
        self._write(IDENTITY, {"uid": uid, "name": job.metadata.name, "job": wanted})
        return uid

    def write_metrics(self, metrics: dict[str, float]) -> None:
        """Write metrics.json: final metrics by name, null where one is undefined."""
        self._write("metrics.json", {k: None if math.isnan(v) else v for k, v in metrics.items()})

    def write_plan(self, plan: dict[str, Any]) -> None:
        """Write plan.json."""
        self._write(PLAN, plan)

    def write_progress(self, progress: dict[str, Any]) -> None:
        """Write progress.json, on this machine only."""
        partial = self.local / "progress.json.partial"
        partial.write_text(json.dumps(progress))
        partial.replace(self.local / "progress.json")

    def write_result(self, result: dict[str, Any]) -> None:
        """Write result.json: how the run ended."""
        self._write("result.json", result)

    def read_result(self) -> dict[str, Any] | None:
        """Return how the run ended, or None if it has not."""
        if not self.store.exists("result.json"):
            return None
        return json.loads(self.store.read_bytes("result.json"))  # type: ignore[no-any-return]

    def read_metrics(self) -> dict[str, float]:
        """Return the final metrics that an ended run left."""
        found = json.loads(self.store.read_bytes("metrics.json"))
        return {name: math.nan if value is None else float(value) for name, value in found.items()}

    def _write(self, key: str, content: dict[str, Any]) -> None:
        try:
            self.store.write_bytes(key, json.dumps(content, indent=2).encode())
        except StorageError as error:
            raise UserError(f"--output: {error}") from None
