"""Checkpoints: sharded, complete or absent, a few kept.

A checkpoint is a folder ``step-<number>`` of torch's distributed checkpoint files, which every rank writes for the rows
it holds, and last of all the marker ``complete.json``. What has no marker does not exist: it is passed over when
training continues and removed when the next checkpoint is saved. The marker also holds what is no tensor: the position
in the data and the evaluation so far.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load as load_checkpoint
from torch.distributed.checkpoint.state_dict_saver import save as save_checkpoint

from rectrain.api.errors import UserError
from rectrain_jobs.storage import ObjectNotFoundError, ObjectStore
from rectrain_jobs.training.checkpoint_files import StoreReader, StoreWriter
from rectrain_jobs.training.distributed import Ranks

MARKER = "complete.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class SavedCheckpoint:
    """A complete checkpoint.

    Attributes:
        step: Steps done.
        marker: What the marker holds.
    """

    step: int
    marker: dict[str, Any]

    @property
    def folder(self) -> str:
        """Its folder in the store."""
        return folder_of(self.step)

    @property
    def goodness(self) -> float | None:
        """How good the metric is that the best checkpoint is chosen by, higher is better; None if not evaluated."""
        value = self.marker.get("goodness")
        return None if value is None else float(value)


def folder_of(step: int) -> str:
    """Return the folder of a step's checkpoint."""
    return f"step-{step:010d}"


class Checkpointer:
    """Saves and restores a run's state.

    Args:
        store: Where the checkpoints are.
        ranks: The process group.
        keep: Number of newest checkpoints that are kept.
        keep_best: Whether the best one is kept as well.
    """

    def __init__(self, store: ObjectStore, ranks: Ranks, *, keep: int, keep_best: bool) -> None:
        """Hold the settings; nothing is read yet."""
        self._store = store
        self._ranks = ranks
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
        self._together(lambda: save_checkpoint(tensors, storage_writer=writer, process_group=self._ranks.control))
        if self._ranks.is_first:
            content = {"formatVersion": FORMAT_VERSION, "step": step, "worldSize": self._ranks.world_size, **marker}
            self._store.write_bytes(f"{folder}/{MARKER}", json.dumps(content, indent=2).encode())
            self._remove_old()
        self._ranks.barrier()

    def load(self, checkpoint: SavedCheckpoint, tensors: dict[str, Any]) -> None:
        """Read a checkpoint into the tensors given; all ranks call it. The number of ranks may differ from the save's.

        Raises:
            UserError: The checkpoint is damaged, or is of another model.
        """
        reader = StoreReader(self._store, checkpoint.folder)
        self._together(lambda: load_checkpoint(tensors, storage_reader=reader, process_group=self._ranks.control))

    def latest(self) -> SavedCheckpoint | None:
        """Return the newest complete checkpoint; the same on every rank."""
        found: str | None = None
        if self._ranks.is_first:
            complete = list_checkpoints(self._store)
            found = json.dumps([complete[-1].step, complete[-1].marker]) if complete else None
        found = self._ranks.broadcast(found)
        return None if found is None else SavedCheckpoint(*json.loads(found))

    def newest_uri(self) -> str | None:
        """Return where the newest complete checkpoint is, or None; a question for one rank alone."""
        complete = list_checkpoints(self._store)
        return self._store.uri_of(complete[-1].folder) if complete else None

    def _together(self, work: Callable[[], None]) -> None:
        try:
            work()
        except CheckpointException as error:
            causes = error.failures.values()
            cause = next((c for c, _ in map(_as_pair, causes)), error)
            if isinstance(cause, UserError):
                raise cause from None
            text = " ".join(str(cause).split())
            raise UserError(f"{self._store.uri}: checkpoint: {type(cause).__name__}: {text[:300]}") from cause

    def _remove_old(self) -> None:
        complete = list_checkpoints(self._store)
        kept = {c.step for c in complete[-self._keep :]}
        judged = [c for c in complete if c.goodness is not None]
        if self._keep_best and judged:
            kept.add(max(judged, key=lambda c: (c.goodness, c.step)).step)
        newest = complete[-1].step
        for checkpoint in complete:
            if checkpoint.step not in kept:
                # The marker goes first: a removal that is interrupted leaves no checkpoint that looks complete.
                self._store.delete([f"{checkpoint.folder}/{MARKER}"])
                self._store.delete_prefix(checkpoint.folder)
        for folder in _folders_without_marker(self._store):
            if folder < folder_of(newest):
                self._store.delete_prefix(folder)


def list_checkpoints(store: ObjectStore) -> list[SavedCheckpoint]:
    """Return the complete checkpoints in a store, oldest first.

    Raises:
        UserError: A marker is damaged or of a newer format.
    """
    found = []
    for info in store.list():
        folder, _, name = info.key.partition("/")
        if name != MARKER or not folder.startswith("step-"):
            continue
        try:
            marker = json.loads(store.read_bytes(info.key))
            version, step = marker["formatVersion"], int(marker["step"])
        except ObjectNotFoundError:
            continue  # removed since it was listed
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{store.uri_of(info.key)}: is no checkpoint marker; remove the folder {folder}") from None
        if version != FORMAT_VERSION:
            raise UserError(f"{store.uri_of(info.key)}: has format version {version}; this rectrain reads 1")
        found.append(SavedCheckpoint(step, marker))
    return sorted(found, key=lambda c: c.step)


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


def _folders_without_marker(store: ObjectStore) -> list[str]:
    folders: dict[str, bool] = {}
    for info in store.list():
        folder, _, name = info.key.partition("/")
        if folder.startswith("step-"):
            folders[folder] = folders.get(folder, False) or name == MARKER
    return [folder for folder, complete in folders.items() if not complete]
