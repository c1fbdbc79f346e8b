"""An MDS dataset read by columns: rows are gathered for a whole batch at once."""

import hashlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rectrain.api.errors import UserError
from rectrain_jobs.data.mds.batches import BatchReader
from rectrain_jobs.data.mds.cache import ShardCache
from rectrain_jobs.data.mds.files import ShardFiles
from rectrain_jobs.data.mds.index import INDEX_NAME, Column, MDSIndex, parse_index
from rectrain_jobs.data.mds.lookahead import fetching_ahead
from rectrain_jobs.data.mds.order import PADDING, Order, Position, World, evaluation_order, training_order
from rectrain_jobs.storage import ObjectNotFoundError, Storage, open_store

CACHE_VARIABLE = "RECTRAIN_CACHE"
"""Environment variable of the folder for copies of shards, where no job names one."""


@dataclass(frozen=True)
class _Run:
    """Neighbouring columns of one scalar type, or one array column: what a single copy takes out of the records."""

    names: tuple[str, ...]
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    begin: int
    end: int


class MDSDataset:
    """The samples of an MDS dataset in `s3://`, `file://` or a directory.

    Attributes:
        uri: Where it lies.
        index: Its index.
        columns: Its columns by name.
    """

    def __init__(
        self,
        uri: str,
        storage: Storage | None = None,
        cache_dir: Path | None = None,
        cache_limit: int | None = None,
        verify_hashes: bool = True,
    ) -> None:
        """Read the index.

        Args:
            uri: Folder that holds index.json.
            storage: How to reach S3.
            cache_dir: Where remote and compressed shards are kept; processes and datasets may share it. None means
                $RECTRAIN_CACHE, or ~/.cache/rectrain/shards.
            cache_limit: Most bytes that `cache_dir` may take, or None.
            verify_hashes: Whether to check each shard once against the strongest hash that the index lists.

        Raises:
            UserError: The index is missing, corrupt or describes something that cannot be read; the store cannot be
                reached; or the cache limit is less than the largest shard.
        """
        self.uri = uri
        store = open_store(uri, storage)
        source = store.uri_of(INDEX_NAME)
        try:
            modified = store.stat(INDEX_NAME).modified
            data = store.read_bytes(INDEX_NAME)
        except ObjectNotFoundError as error:
            raise UserError(f"{source}: not found; an MDS dataset has an {INDEX_NAME} beside its shards") from error
        self.index: MDSIndex = parse_index(data, source)
        self.columns: dict[str, Column] = {column.name: column for column in self.index.columns}
        directory = cache_dir or Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/rectrain/shards").expanduser()
        self._cache_limit = cache_limit
        cache = ShardCache(directory, cache_limit, self.index.largest_footprint)
        # A dataset written anew without hashes may have the very same index, but index.json is written last of all.
        cache_key = hashlib.sha256(f"{store.uri} {self.digest} {modified}".encode()).hexdigest()[:32]
        self._files = ShardFiles(store, self.index, cache, cache_key, verify_hashes)
        self._fixed = all(column.size is not None for column in self.index.columns)
        self._runs: dict[tuple[str, ...], tuple[_Run, ...]] = {}
        self._stride = sum(column.size or 0 for column in self.index.columns)

    @property
    def num_samples(self) -> int:
        """Number of samples."""
        return self.index.num_samples

    @property
    def digest(self) -> str:
        """SHA-256 of index.json in hex: the identity of the dataset."""
        return self.index.digest

    def gather(
        self, sample_ids: npt.NDArray[np.int64], columns: Sequence[str] | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        """Read samples by their numbers.

        Args:
            sample_ids: int64 `[n]`, in any order, repeated or not; -1 stands for a row of padding.
            columns: Names of the columns wanted; None means all.

        Returns:
            One array per column: `[n, *shape]` of the column's dtype, or `[n]` objects for a column whose values vary
            in size. Rows of padding are zero, or None.

        Raises:
            UserError: A column does not exist, or a shard cannot be fetched or is corrupt.
            IndexError: A sample id is out of range.
        """
        names = tuple(self.columns) if columns is None else tuple(columns)
        unknown = [name for name in names if name not in self.columns]
        if unknown:
            raise UserError(f"{self.uri}: no column {unknown[0]!r}; it has {', '.join(self.columns)}")
        ids = np.asarray(sample_ids, np.int64)
        lowest, highest = (int(ids.min()), int(ids.max())) if len(ids) else (0, 0)
        if lowest < PADDING or highest >= self.num_samples:
            raise IndexError(f"{self.uri}: sample ids {lowest}..{highest} are not within 0..{self.num_samples - 1}")
        if lowest == PADDING:
            return self._gather_padded(ids, names)
        if self._fixed:
            if names not in self._runs:
                self._runs[names] = _find_runs(self.index.columns, names)
            return _split(self._gather_records(ids), self._runs[names])
        return self._gather_varying(ids, names)

    def training_epoch(
        self,
        position: Position,
        *,
        batch_size: int,
        world: World | None = None,
        order: Order | None = None,
        columns: Sequence[str] | None = None,
        prefetch: int = 2,
    ) -> BatchReader:
        """Read an epoch, or the rest of it, in StreamingDataset's order.

        A run that continues with other numbers of nodes or ranks sees the same global batches, as long as the global
        batch size stays the same.

        Args:
            position: Where to begin. What it has settled (seed, canonical nodes) overrides `order`.
            batch_size: Samples in a batch of one rank.
            world: The processes; None means this one alone.
            order: How to shuffle; None means StreamingDataset's defaults, shuffled.
            columns: Names of the columns wanted; None means all.
            prefetch: Batches to prepare ahead in a background thread; 0 means none, and no thread.

        Raises:
            UserError: The position does not fit the dataset or the world.
        """
        world, order = world or World(), order or Order()
        start = position.settled(order, world)
        ids = training_order(self.index.samples_per_shard, batch_size, world, order, start)
        valid_before = np.concatenate([[0], (ids != PADDING).sum(axis=(0, 2)).cumsum()])
        return BatchReader(self, ids[world.rank], start, start.sample_in_epoch + valid_before, columns, prefetch)

    def evaluation_pass(
        self,
        *,
        batch_size: int,
        world: World | None = None,
        columns: Sequence[str] | None = None,
        prefetch: int = 2,
    ) -> BatchReader:
        """Read every sample exactly once over all ranks, in order.

        Args:
            batch_size: Samples in a batch of one rank.
            world: The processes; None means this one alone.
            columns: Names of the columns wanted; None means all.
            prefetch: As for `training_epoch`.
        """
        world = world or World()
        ids = evaluation_order(self.num_samples, batch_size, world)
        global_batch = batch_size * world.num_ranks
        read = np.minimum(np.arange(len(ids) + 1, dtype=np.int64) * global_batch, self.num_samples)
        return BatchReader(self, ids, Position(), read, columns, prefetch)

    @contextmanager
    def fetching_ahead(self, sample_ids: npt.NDArray[np.int64]) -> Iterator[Callable[[int], None]]:
        """Bring the shards of coming batches into the cache in the background, as long as the context lasts.

        Args:
            sample_ids: The batches, int64 `[num_batches, batch_size]`, -1 for padding.

        Yields:
            A function to be told each batch, in order, once it has been gathered.
        """
        if self._files.all_in_place:
            yield lambda batch: None
            return

        def shards_of(batch: int) -> list[int]:
            ids = sample_ids[batch]
            shards = np.searchsorted(self.index.shard_ends, ids[ids != PADDING], side="right")
            return [int(shard) for shard in np.unique(shards)]

        sizes = [shard.raw.bytes for shard in self.index.shards]
        # The other half is for the shards in use and for the other processes.
        most = None if self._cache_limit is None else self._cache_limit // 2
        with fetching_ahead(self._files.fetch, shards_of, len(sample_ids), sizes, most) as tell_gathered:
            yield tell_gathered

    def _segments(self, ids: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64] | None, list[tuple[int, int, int]]]:
        """Group ids by shard: the permutation that sorts them (None if they are), and (shard, begin, end) of each."""
        shards = np.searchsorted(self.index.shard_ends, ids, side="right").astype(np.uint32)
        if len(ids) == 0 or shards.min() == shards.max():
            return None, [(int(shards[0]), 0, len(ids))] if len(ids) else []
        permutation = None
        if np.any(shards[1:] < shards[:-1]):
            permutation = np.argsort(
                shards.astype(np.uint16) if len(self.index.shards) < 1 << 16 else shards, kind="stable"
            )
            shards = shards[permutation]
        bounds = [0, *(np.flatnonzero(shards[1:] != shards[:-1]) + 1).tolist(), len(ids)]
        return permutation, [(int(shards[begin]), begin, end) for begin, end in itertools.pairwise(bounds)]

    def _gather_records(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Copy whole samples without columns of varying size, uint8 `[n, stride]`."""
        permutation, segments = self._segments(ids)
        ordered = ids if permutation is None else ids[permutation]
        records = np.empty((len(ids), self._stride), np.uint8)
        for number, begin, end in segments:
            rows = ordered[begin:end] - self._first(number)
            with self._files.shard(number) as shard:
                # "clip" skips a second check of the rows, and with it a buffer for the output.
                shard.records().take(rows, axis=0, out=records[begin:end], mode="clip")
        if permutation is None:
            return records
        unsorted = np.empty_like(records)
        unsorted[permutation] = records
        return unsorted

    def _gather_varying(self, ids: npt.NDArray[np.int64], names: tuple[str, ...]) -> dict[str, npt.NDArray[Any]]:
        permutation, segments = self._segments(ids)
        ordered = ids if permutation is None else ids[permutation]
        out = self._empty(len(ids), names)
        for number, begin, end in segments:
            with self._files.shard(number) as shard:
                part = shard.gather(ordered[begin:end] - self._first(number), names)
            rows = slice(begin, end) if permutation is None else permutation[begin:end]
            for name in names:
                out[name][rows] = part[name]
        return out

    def _gather_padded(self, ids: npt.NDArray[np.int64], names: tuple[str, ...]) -> dict[str, npt.NDArray[Any]]:
        valid = np.flatnonzero(ids != PADDING)
        gathered = self.gather(ids[valid], names)
        out = self._empty(len(ids), names)
        for name in names:
            out[name][valid] = gathered[name]
        return out

    def _empty(self, rows: int, names: tuple[str, ...]) -> dict[str, npt.NDArray[Any]]:
        out: dict[str, npt.NDArray[Any]] = {}
        for name in names:
            column = self.columns[name]
            empty = np.empty if column.size is None else np.zeros  # an empty array of objects is full of None
            out[name] = empty((rows, *column.shape), column.dtype)
        return out

    def _first(self, number: int) -> int:
        return int(self.index.shard_ends[number] - self.index.samples_per_shard[number])


def _find_runs(columns: tuple[Column, ...], names: tuple[str, ...]) -> tuple[_Run, ...]:
    """Find the runs that cover the columns wanted."""
    runs: list[_Run] = []
    begin = 0
    for column in columns:
        assert column.size is not None
        end = begin + column.size
        if column.name in names:
            last = runs[-1] if runs else None
            if last and last.end == begin and last.dtype == column.dtype and not last.shape and not column.shape:
                runs[-1] = _Run((*last.names, column.name), column.dtype, (), last.begin, end)
            else:
                runs.append(_Run((column.name,), column.dtype, column.shape, begin, end))
        begin = end
    return tuple(runs)


def _split(records: npt.NDArray[np.uint8], runs: tuple[_Run, ...]) -> dict[str, npt.NDArray[Any]]:
    """Take the columns out of `records`, uint8 `[n, stride]`; each array is contiguous."""
    columns: dict[str, npt.NDArray[Any]] = {}
    for run in runs:
        values = records[:, run.begin : run.end].view(run.dtype)
        if run.shape:
            columns[run.names[0]] = np.ascontiguousarray(values).reshape(len(records), *run.shape)
        else:
            columns.update(zip(run.names, np.ascontiguousarray(values.T), strict=True))
    return columns
