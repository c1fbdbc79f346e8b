"""The place that shards are written to: what is there already, and what may be removed."""

import json
import re
from dataclasses import dataclass

from rectrain.api.errors import UserError
from rectrain_jobs.data.mds.index import INDEX_NAME
from rectrain_jobs.data.record import RECORD_FILE
from rectrain_jobs.features.feature_set import FEATURES_FILE
from rectrain_jobs.storage import ObjectStore

MARKER_FILE = "conversion.json"
"""There while a conversion is under way: without an index beside it, one that was cut off."""

_OURS = re.compile(
    r"(v\d+\.)?shard\.\d+\.mds(\.\w+)?|vocabulary\.\w+\.parquet|"
    + "|".join(map(re.escape, (INDEX_NAME, RECORD_FILE, FEATURES_FILE, MARKER_FILE)))
)


@dataclass(frozen=True)
class Target:
    """What is in the folder of a dataset.

    Attributes:
        store: The folder.
        ours: Keys that a conversion writes.
        others: Other keys of the folder itself; folders below it are not looked at.
    """

    store: ObjectStore
    ours: frozenset[str]
    others: frozenset[str]

    @classmethod
    def look(cls, store: ObjectStore) -> "Target":
        """List what is there."""
        keys = {info.key for info in store.list() if "/" not in info.key}
        ours = {key for key in keys if _OURS.fullmatch(key)}
        return cls(store, frozenset(ours), frozenset(keys - ours))

    @property
    def is_complete(self) -> bool:
        """Whether there is a dataset that can be read."""
        return INDEX_NAME in self.ours

    @property
    def is_cut_off(self) -> bool:
        """Whether a conversion began here and did not end."""
        return MARKER_FILE in self.ours and not self.is_complete

    def refuse_to_replace(self) -> None:
        """Raise an error that says what is there, if anything is.

        Raises:
            UserError: The folder is not empty.
        """
        where = self.store.uri
        shards = sum(".mds" in key for key in self.ours)
        if self.is_complete:
            found = f"already holds a dataset ({shards} shards and {INDEX_NAME})"
        elif self.ours:
            found = f"is half-written: it holds {shards} shards but no {INDEX_NAME}"
        elif self.others:
            names = sorted(self.others)
            found = f"is not empty: it holds {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"
        else:
            return
        raise UserError(f"{where}: {found}; choose another place, or give --overwrite to replace it")

    def content(self, name: str) -> bytes | None:
        """Return what a file of an earlier conversion holds; None when there is no such file."""
        return self.store.read_bytes(name) if name in self.ours else None

    def mark(self, version: str) -> None:
        """Leave the mark of a conversion that is under way."""
        self.store.write_bytes(MARKER_FILE, json.dumps({"rectrainVersion": version}).encode())

    def remove_old(self, kept: set[str]) -> None:
        """Remove what earlier conversions wrote, and the mark.

        Args:
            kept: Keys that stay.
        """
        self.store.delete(sorted((self.ours - kept) | {MARKER_FILE}))
