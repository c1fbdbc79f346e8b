"""Which checkpoints are in a store. Knows their folders and markers, and needs no torch.

A checkpoint is a folder ``step-<number>`` whose marker ``complete.json`` is written last and removed first: what has no
marker does not exist.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rectrain.api.errors import UserError
from rectrain_jobs.storage import ObjectNotFoundError, ObjectStore

MARKER = "complete.json"
FORMAT_VERSION = 1
_FOLDER_PREFIX = "step-"


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
    return f"{_FOLDER_PREFIX}{step:010d}"


def list_checkpoints(store: ObjectStore) -> list[SavedCheckpoint]:
    """Return the complete checkpoints in a store, oldest first.

    Raises:
        UserError: A marker is damaged or of a newer format.
    """
    found = []
    for info in store.list():
        folder, _, name = info.key.partition("/")
        if name != MARKER or not folder.startswith(_FOLDER_PREFIX):
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


def best_of(checkpoints: Iterable[SavedCheckpoint]) -> SavedCheckpoint | None:
    """Return the best checkpoint of those that were evaluated, the later one of equals; None where none was."""
    judged = [c for c in checkpoints if c.goodness is not None]
    return max(judged, key=lambda c: (c.goodness, c.step), default=None)


def remove_checkpoint(store: ObjectStore, folder: str) -> None:
    """Remove a checkpoint; an interrupted removal leaves none that looks complete."""
    store.delete([f"{folder}/{MARKER}"])
    store.delete_prefix(folder)


def remove_all_checkpoints(store: ObjectStore) -> None:
    """Remove every checkpoint in a store, also damaged ones, and nothing else."""
    folders = {info.key.partition("/")[0] for info in store.list()}
    for folder in sorted(folder for folder in folders if folder.startswith(_FOLDER_PREFIX)):
        remove_checkpoint(store, folder)


def folders_without_marker(store: ObjectStore) -> list[str]:
    """Return the folders of checkpoints that were never completed, or not wholly removed."""
    folders: dict[str, bool] = {}
    for info in store.list():
        folder, _, name = info.key.partition("/")
        if folder.startswith(_FOLDER_PREFIX):
            folders[folder] = folders.get(folder, False) or name == MARKER
    return [folder for folder, complete in folders.items() if not complete]
