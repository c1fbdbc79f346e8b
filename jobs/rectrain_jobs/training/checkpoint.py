"""Checkpoints: sharded, complete or absent, a few kept.

Every rank writes torch's distributed checkpoint files for the rows it holds, and rank 0 last of all the marker. What
has no marker is passed over when training continues and removed when the next checkpoint is saved. The marker also
holds what is no tensor: the job, the position in the data and the evaluation so far.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load as load_checkpoint
from torch.distributed.checkpoint.state_dict_saver import save as save_checkpoint

from rectrain.api.errors import UserError
from rectrain_jobs.storage import ObjectStore
from rectrain_jobs.training.checkpoint_files import StoreReader, StoreWriter
from rectrain_jobs.training.checkpoint_listing import (
    FORMAT_VERSION,
    MARKER,
    SavedCheckpoint,
    best_of,
    folder_of,
    folders_without_marker,
    list_checkpoints,
    remove_checkpoint,
)
from rectrain_jobs.training.distributed import Ranks
from rectrain_jobs.training.identity import first_difference


class Checkpointer:
    """Saves and restores a run's state.

    Args:
        store: Where the checkpoints are.
        ranks: The process group.
        identity: What a checkpoint has to agree with; one of another model or other data is refused.
        data_digest: Digest of the training data: a position in other rows, and ids of other values, mean nothing.
        keep: Number of newest checkpoints that are kept.
        keep_best: Whether the best one is kept as well.
    """

    def __init__(
        self,
        store: ObjectStore,
        ranks: Ranks,
        *,
        identity: dict[str, Any],
        data_digest: str,
        keep: int,
        keep_best: bool,
    ) -> None:
        """Hold the settings; nothing is read yet."""
        self._store = store
        self._ranks = ranks
        self._identity = identity
        self._data_digest = data_digest
        self._keep = keep
        self._keep_best = keep_best

    def save(self, step: int, tensors: dict[str, Any], marker: dict[str, Any]) -> None:
        """Save a checkpoint; all ranks call it. When it returns, the checkpoint is complete.

        Args:
            step: Steps done.
            tensors: State of tensors and sharded tensors, nested by name.
            marker: What is no tensor, as JSON.
        """
        folder = folder_of(step)
        if self._ranks.is_first:  # what an interrupted attempt left
            self._store.delete_prefix(folder)
        self._ranks.barrier()
        writer = StoreWriter(self._store, folder)
        where = f"{self._store.uri_of(folder)}: cannot be written"
        with self._failing_together(where):
            save_checkpoint(tensors, storage_writer=writer, process_group=self._ranks.control)
        if self._ranks.is_first:
            content = {
                "formatVersion": FORMAT_VERSION,
                "step": step,
                "worldSize": self._ranks.world_size,
                "job": self._identity,
                "dataDigest": self._data_digest,
                **marker,
            }
            self._store.write_bytes(f"{folder}/{MARKER}", json.dumps(content, indent=2).encode())
            self._remove_old()
        self._ranks.barrier()

    def load(self, checkpoint: SavedCheckpoint, tensors: dict[str, Any]) -> None:
        """Read a checkpoint into the tensors given; all ranks call it. The number of ranks may differ from the save's.

        Raises:
            UserError: The checkpoint is damaged, or is of another model.
        """
        reader = StoreReader(self._store, checkpoint.folder)
        where = f"{self._store.uri_of(checkpoint.folder)}: cannot be read; remove it to continue from the one before"
        with self._failing_together(where):
            load_checkpoint(tensors, storage_reader=reader, process_group=self._ranks.control)

    def latest(self) -> SavedCheckpoint | None:
        """Return the newest complete checkpoint; the same on every rank.

        Raises:
            UserError: It is of another job or of other data, or its marker is damaged.
        """
        found = None
        if self._ranks.is_first:
            found = max(list_checkpoints(self._store), key=lambda c: c.step, default=None)
            if found is not None:
                self._check_job(found)
        return self._on_every_rank(found)

    def best(self) -> SavedCheckpoint | None:
        """Return the complete checkpoint of the best evaluation, if any was evaluated; the same on every rank."""
        return self._on_every_rank(best_of(list_checkpoints(self._store)) if self._ranks.is_first else None)

    def _on_every_rank(self, found: SavedCheckpoint | None) -> SavedCheckpoint | None:
        text = self._ranks.broadcast(None if found is None else json.dumps([found.step, found.marker]))
        return None if text is None else SavedCheckpoint(*json.loads(text))

    def _check_job(self, checkpoint: SavedCheckpoint) -> None:
        difference = first_difference(checkpoint.marker.get("job"), self._identity)
        if difference is not None:
            raise UserError(
                f"{self._store.uri_of(checkpoint.folder)}: is of another job: {difference}; give each job a "
                "training.checkpoint.uri of its own, or --restart to remove the checkpoints there"
            )
        if checkpoint.marker.get("dataDigest") != self._data_digest:
            raise UserError(
                f"{self._store.uri_of(checkpoint.folder)}: is of other training data: those that the job names have "
                "changed since; --restart trains anew on them"
            )

    def newest_uri(self) -> str | None:
        """Return where the newest complete checkpoint is, or None; a question for one rank alone."""
        complete = list_checkpoints(self._store)
        return self._store.uri_of(complete[-1].folder) if complete else None

    @contextmanager
    def _failing_together(self, what: str) -> Iterator[None]:
        """Turn what failed on some rank into one line for the user, on every rank; see `what` for how it begins."""
        try:
            yield
        except CheckpointException as error:
            causes = error.failures.values()
            cause = next((c for c, _ in map(_as_pair, causes)), error)
            if isinstance(cause, UserError):
                raise cause from None
            text = " ".join(str(cause).split())
            raise UserError(f"{what}: {type(cause).__name__}: {text[:100]}") from cause

    def _remove_old(self) -> None:
        complete = list_checkpoints(self._store)
        kept = {c.step for c in complete[-self._keep :]}
        best = best_of(complete)
        if self._keep_best and best is not None:
            kept.add(best.step)
        newest = complete[-1].step
        for checkpoint in complete:
            if checkpoint.step not in kept:
                remove_checkpoint(self._store, checkpoint.folder)
        for folder in folders_without_marker(self._store):
            if folder < folder_of(newest):
                self._store.delete_prefix(folder)


def rng_tensors(ranks: Ranks) -> dict[str, Any]:
    """Return this rank's random number generators, under names of its own."""
    state = {f"cpu-{ranks.rank}": torch.get_rng_state()}
    if ranks.device.type == "cuda":
        state[f"cuda-{ranks.rank}"] = torch.cuda.get_rng_state(ranks.device)
    return state


def restore_rng(state: dict[str, Any], ranks: Ranks) -> None:
    """Set this rank's random number generators."""
    torch.set_rng_state(state[f"cpu-{ranks.rank}"])
    if ranks.device.type == "cuda":
        torch.cuda.set_rng_state(state[f"cuda-{ranks.rank}"], ranks.device)


def _as_pair(failure: Any) -> tuple[BaseException, Any]:
    return failure if isinstance(failure, tuple) else (failure, None)
