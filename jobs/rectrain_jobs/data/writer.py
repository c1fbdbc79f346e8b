"""Shards: columns of rows written as MDS, a shard at a time, without a loop over rows.

The bytes are those of mosaicml-streaming's MDSWriter for the same rows, columns and settings. That writer takes samples
one by one, encodes each value of each by itself, and brings in the whole package; rows whose columns all have fixed
widths are in memory as they are in the file already.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from rectrain_jobs.storage import ObjectStore

SHARD_BYTES = 1 << 26
HASH = "xxh3_64"
_MDS_VERSION = 2
_U32 = np.dtype("<u4")

ColumnTypes = Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]
"""Type and shape of a row's value, by column."""


def mds_encoding(dtype: np.dtype[Any], shape: tuple[int, ...]) -> str:
    """Return the MDS encoding of a column: its type, or for rows that are arrays `ndarray:<type>:<shape>`."""
    return f"ndarray:{dtype.name}:{','.join(map(str, shape))}" if shape else dtype.name


class ShardWriter:
    """Writes the shards of one dataset into a store; there is no dataset before its index is written.

    The names of the shards do not meet those of shards that are there already, so that a dataset that is replaced stays
    whole until its index is.

    Attributes:
        rows: Rows written so far.
        keys: Names of the shards that are in the store.
    """

    def __init__(self, store: ObjectStore, columns: ColumnTypes, shard_bytes: int = SHARD_BYTES) -> None:
        """Prepare a dataset.

        Args:
            store: Where it goes.
            columns: The columns of a row.
            shard_bytes: The largest shard, below 2**32.
        """
        self.store = store
        self.rows = 0
        self.keys: list[str] = []
        # Columns sorted by name without gaps: how a sample lies in a shard.
        self._dtype = np.dtype([(name, dtype, shape) for name, (dtype, shape) in sorted(columns.items())])
        self._configuration = _configuration(columns, shard_bytes)
        self._header = json.dumps(self._configuration, sort_keys=True).encode()
        per_row = self._dtype.itemsize + _U32.itemsize
        self._rows_per_shard = max(1, (shard_bytes - 2 * _U32.itemsize - len(self._header)) // per_row)
        self._prefix = _unused_prefix({info.key for info in store.list()})
        self._entries: list[dict[str, Any]] = []
        self._waiting: list[npt.NDArray[Any]] = []
        self._num_waiting = 0

    def write(self, columns: Mapping[str, npt.NDArray[Any]]) -> None:
        """Add a batch of rows.

        Args:
            columns: `[rows, *shape]` by column.

        Raises:
            UserError: The disk is full, or the store refuses.
        """
        records = np.empty(len(next(iter(columns.values()))), self._dtype)
        for name in self._dtype.names or ():
            records[name] = columns[name]
        self.rows += len(records)
        while self._num_waiting + len(records) > self._rows_per_shard:
            room = self._rows_per_shard - self._num_waiting
            self._waiting.append(records[:room])
            records = records[room:]
            self._write_shard()
        self._waiting.append(records)
        self._num_waiting += len(records)

    def finish(self) -> bytes:
        """Write the last shard and return the content of index.json, which is left to write.

        Raises:
            UserError: The disk is full, or the store refuses.
        """
        if self._num_waiting:
            self._write_shard()
        return json.dumps({"version": _MDS_VERSION, "shards": self._entries}, sort_keys=True).encode()

    def discard(self) -> None:
        """Remove the shards again."""
        self.store.delete(self.keys)

    def _write_shard(self) -> None:
        rows = sum(map(len, self._waiting))
        offsets = np.arange(rows + 1, dtype=np.int64) * self._dtype.itemsize
        offsets += _U32.itemsize * (rows + 2) + len(self._header)
        parts = [np.array([rows], _U32).tobytes(), offsets.astype(_U32).tobytes(), self._header]
        data = b"".join([*parts, *(records.tobytes() for records in self._waiting)])
        name = f"{self._prefix}shard.{len(self._entries):05}.mds"
        self.keys.append(name)
        self.store.write_bytes(name, data)
        raw = {"basename": name, "bytes": len(data), "hashes": {HASH: xxhash.xxh3_64_hexdigest(data)}}
        self._entries.append({"samples": rows, "raw_data": raw, "zip_data": None, **self._configuration})
        self._waiting, self._num_waiting = [], 0


def index_digest(index: bytes) -> str:
    """Return the digest of the content of index.json."""
    return hashlib.sha256(index).hexdigest()


def _configuration(columns: ColumnTypes, shard_bytes: int) -> dict[str, Any]:
    """Return what MDSWriter keeps about its settings in every shard."""
    names = sorted(columns)
    return {
        "version": _MDS_VERSION,
        "format": "mds",
        "compression": None,
        "hashes": [HASH],
        "size_limit": shard_bytes,
        "column_names": names,
        "column_encodings": [mds_encoding(*columns[name]) for name in names],
        "column_sizes": [columns[name][0].itemsize * int(np.prod(columns[name][1], dtype=np.int64)) for name in names],
    }


def _unused_prefix(taken: set[str]) -> str:
    """Return what shard names begin with, such that no object has such a name yet."""
    if not any(key.startswith("shard.") for key in taken):
        return ""
    number = 1
    while any(key.startswith(f"v{number}.shard.") for key in taken):
        number += 1
    return f"v{number}."
