"""Shard files: finding, bringing in, decompressing and verifying them, and keeping them mapped."""

import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy.typing as npt

from rectrain.api.errors import UserError
from rectrain_jobs.data.mds.cache import Lease, ShardCache
from rectrain_jobs.data.mds.index import FileInfo, MDSIndex, ShardInfo
from rectrain_jobs.data.mds.shard import Shard
from rectrain_jobs.data.mds.upstream import streaming_module
from rectrain_jobs.storage import ObjectStore
from rectrain_jobs.storage.local import publish

# From the strongest; those of one line are about as strong as each other.
_HASH_ORDER = (
    *("sha512", "sha3_512", "blake2b", "sha384", "sha3_384"),
    *("sha256", "sha3_256", "blake2s", "sha224", "sha3_224"),
    *("sha1", "md5"),
    *("xxh3_128", "xxh128"),
    *("xxh3_64", "xxh64"),
    "xxh32",
)
# A mapped shard takes up to two file descriptors.
_MOST_OPEN = 512


class ShardFiles:
    """The shards of a dataset as mapped files, at most so many at a time.

    Uncompressed shards of a local dataset are mapped where they lie. All others pass through the cache.
    """

    def __init__(
        self, store: ObjectStore, index: MDSIndex, cache: ShardCache, cache_key: str, verify_hashes: bool
    ) -> None:
        """Describe the files; nothing is read yet.

        Args:
            store: Where the dataset lies.
            index: Its index.
            cache: Where shards are brought to.
            cache_key: Folder in the cache; differs whenever the shards may.
            verify_hashes: Whether to check the hashes that the index lists.
        """
        self._store = store
        self._index = index
        self._cache = cache
        self._cache_key = cache_key
        self._verify_hashes = verify_hashes
        self._open: OrderedDict[int, tuple[Shard, Lease | None]] = OrderedDict()
        self._most_open = min(_MOST_OPEN, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
        self._verified: set[int] = set()
        self._in_use = threading.Lock()  # of the one shard in use
        self._table = threading.Lock()  # of the table of open shards
        self._process = os.getpid()

    @contextmanager
    def shard(self, number: int) -> Iterator[Shard]:
        """Give shard `number`, which stays on disk until the end of the context.

        One shard at a time: a second call from another thread waits. So a process never waits for room in the cache
        while it keeps another file from being evicted.

        Raises:
            UserError: The shard cannot be fetched, or is not what the index says.
        """
        with self._in_use:
            if self._process != os.getpid():  # locks on files are shared with the parent, so a child takes its own
                self._open.clear()
                self._process = os.getpid()
            shard, lease = self._opened(number)
            try:
                yield shard
            finally:
                if lease is not None:
                    lease.release()

    def fetch(self, number: int) -> None:
        """Bring shard `number` into the cache if it has to come and nobody is at it; safe beside `shard`.

        Raises:
            UserError: As for `shard`.
        """
        info = self._index.shards[number]
        if self._in_place(info) is None:
            lease = self._cache.try_acquire(*self._cache_request(info))
            if isinstance(lease, Lease):
                lease.release()

    @property
    def all_in_place(self) -> bool:
        """Whether no shard passes through the cache."""
        return all(self._in_place(info) is not None for info in self._index.shards)

    def _opened(self, number: int) -> tuple[Shard, Lease | None]:
        with self._table:
            entry = self._open.get(number)
            if entry is not None and (entry[1] is None or entry[1].renew()):
                self._open.move_to_end(number)
                return entry
            self._open.pop(number, None)
            while len(self._open) >= self._most_open:
                self._open.popitem(last=False)
        info = self._index.shards[number]
        path, lease = self._in_place(info), None
        if path is None:
            lease = self._cache.acquire(*self._cache_request(info))
            path = lease.path
            self._verified.add(number)
        shard = Shard(path, self._index.columns, info.samples, info.raw.bytes)
        if number not in self._verified:
            self._check_hash(shard.file_bytes, info.raw, str(path))
            self._verified.add(number)
        with self._table:
            self._open[number] = shard, lease
        return shard, lease

    def _in_place(self, info: ShardInfo) -> Path | None:
        """Return the shard's file in a local dataset, or None if it has to pass through the cache."""
        path = self._store.local_path(info.raw.basename)
        return None if path is None or (info.zip is not None and not path.exists()) else path

    def _cache_request(self, info: ShardInfo) -> tuple[str, int, Callable[[Path], Path]]:
        name = f"{self._cache_key}/{info.raw.basename.replace('/', '__')}"
        return name, _footprint(info), lambda folder: self._bring_in(info, folder)

    def _bring_in(self, info: ShardInfo, folder: Path) -> Path:
        """Write the uncompressed shard into `folder`, checked, and return its path."""
        # Room was just made: an evicted file frees its space only once it is no longer mapped.
        with self._table:
            for number in [number for number, (_, lease) in self._open.items() if lease is not None and lease.evicted]:
                del self._open[number]
        file = info.zip or info.raw
        uri = self._store.uri_of(file.basename)
        source = self._store.local_path(file.basename)
        if source is None:
            source = folder / "download"
            self._store.download(file.basename, source)
        data = _read(source, file, uri)
        self._check_hash(data, file, uri)
        if info.zip is None:
            return source
        try:
            raw = streaming_module("compression").decompress(info.compression, data)
        except Exception as error:  # each library has its own errors; all of them mean the same
            message = " ".join(str(error).split())
            raise UserError(f"{uri}: corrupt: cannot be decompressed ({info.compression}): {message}") from error
        if len(raw) != info.raw.bytes:
            raise UserError(f"{uri}: corrupt: decompresses to {len(raw)} bytes, the index says {info.raw.bytes}")
        self._check_hash(raw, info.raw, f"{uri}, decompressed")
        target = folder / "raw"
        publish(target, lambda out: out.write(raw))
        return target

    def _check_hash(self, data: bytes | npt.NDArray[Any], file: FileInfo, where: str) -> None:
        algorithm = next((name for name in _HASH_ORDER if name in file.hashes), None)
        if not self._verify_hashes or algorithm is None:
            return
        found = streaming_module("hashing").get_hash(algorithm, data)
        if found != file.hashes[algorithm]:
            raise UserError(f"{where}: corrupt: its {algorithm} is {found}, the index says {file.hashes[algorithm]}")


def _footprint(info: ShardInfo) -> int:
    return info.raw.bytes + (info.zip.bytes if info.zip else 0)


def _read(path: Path, file: FileInfo, where: str) -> bytes:
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{where}: no such file, but the index names it") from error
    except OSError as error:
        raise UserError(f"{where}: cannot be read: {error.strerror or error}") from error
    if len(data) != file.bytes:
        raise UserError(f"{where}: has {len(data)} bytes, the index says {file.bytes}; it is truncated or was replaced")
    return data
