"""A bounded directory of shard files, shared by the processes of a machine.

Layout, below a folder of its own so that nothing else is ever removed: `<name>` is a complete file;
`<name>.partial/` is one being brought in, whose file `owner` holds the bytes it will need and is locked by the process
at work; `.lock` guards the accounting.
All locks are flock(2): the kernel drops them when a process dies, however it dies, so nothing has to be cleaned up by
the one that was killed.

No process waits for room while it keeps a file in use, so processes that share a directory cannot block each other
for good.
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rectrain.api.errors import UserError
from rectrain_jobs.storage.local import local_errors

_FOLDER = "mds-shards"
_PARTIAL = ".partial"
_OWNER = "owner"
_LOCK = ".lock"


class Lease:
    """A complete file of the cache that cannot be evicted while the lease is held.

    Attributes:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        """Open and hold `path`.

        Raises:
            FileNotFoundError: It is not in the cache.
        """
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(self._descriptor, fcntl.LOCK_SH)
        os.utime(self._descriptor)

    def renew(self) -> bool:
        """Hold the file again after `release`; False if it was evicted in between."""
        fcntl.flock(self._descriptor, fcntl.LOCK_SH)
        if self.evicted:
            self.release()
            return False
        os.utime(self._descriptor)  # eviction takes the file that was used longest ago
        return True

    def release(self) -> None:
        """Let the file be evicted."""
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    @property
    def evicted(self) -> bool:
        """Whether the file is gone from the cache."""
        return os.fstat(self._descriptor).st_nlink == 0

    def __del__(self) -> None:
        """Close the file, which also releases it."""
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)


class ShardCache:
    """Files brought in on demand, the least recently used ones removed when they exceed a limit."""

    def __init__(self, directory: Path, limit: int | None, largest: int) -> None:
        """Use `directory`, which is created when the first file is brought in: local shards need none.

        Args:
            directory: Where the files lie; several datasets and processes may share it.
            limit: Most bytes that the directory may take, or None.
            largest: Most bytes that bringing in one file takes.

        Raises:
            UserError: The limit is less than the largest file needs.
        """
        if limit is not None and limit < largest:
            raise UserError(
                f"shard cache {directory}: the size limit of {limit} bytes is below the {largest} bytes that the "
                f"largest shard needs; raise it to at least that, better a multiple"
            )
        self.directory = directory / _FOLDER
        self.limit = limit

    def acquire(self, name: str, footprint: int, fill: Callable[[Path], Path]) -> Lease:
        """Return a held lease on the file `name`, brought in first if it is absent.

        When another process is bringing it in, or all the room is in use, this waits.

        Args:
            name: Path below the directory.
            footprint: Most bytes that `fill` takes on disk.
            fill: Writes into the folder it is given, and returns the complete file in it.

        Raises:
            UserError: The disk is full, or whatever `fill` raises; nothing is left behind then.
        """
        while True:
            lease = self.try_acquire(name, footprint, fill)
            if isinstance(lease, Lease):
                return lease
            _wait_for(lease)

    def try_acquire(self, name: str, footprint: int, fill: Callable[[Path], Path]) -> Lease | Path:
        """Do as `acquire`, but where that would wait return the file that someone holds."""
        path = self.directory / name
        partial = path.with_name(path.name + _PARTIAL)
        with self._accounting():
            with suppress(FileNotFoundError):
                return Lease(path)
            blocker = self._claim(partial, footprint)
        if isinstance(blocker, Path):
            return blocker
        try:
            with local_errors(path):
                complete = fill(partial)
                with self._accounting():
                    complete.replace(path)
                    return Lease(path)
        finally:
            with self._accounting():
                shutil.rmtree(partial, ignore_errors=True)
            os.close(blocker)

    def _claim(self, partial: Path, footprint: int) -> int | Path:
        """Reserve `footprint` bytes for `partial`: return its locked descriptor, or the file whose lock to wait for."""
        owner = partial / _OWNER
        if partial.exists() and not _remove_if_abandoned(partial):
            return owner
        blocker = self._make_room(footprint)
        if blocker is not None:
            return blocker
        with local_errors(partial):
            partial.mkdir(parents=True)
            descriptor = os.open(owner, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            os.write(descriptor, str(footprint).encode())
        return descriptor

    def _make_room(self, footprint: int) -> Path | None:
        """Evict until `footprint` more bytes fit; return a file to wait for if all that could go is in use."""
        if self.limit is None:
            return None
        used = 0
        complete: list[tuple[float, int, Path]] = []
        blockers: list[Path] = []
        for folder, folders, names in os.walk(self.directory):
            for partial in [Path(folder, name) for name in folders if name.endswith(_PARTIAL)]:
                folders.remove(partial.name)
                if not _remove_if_abandoned(partial):
                    used += _reserved(partial)
                    blockers.append(partial / _OWNER)
            for name in names:
                if name != _LOCK:
                    path = Path(folder, name)
                    stat = path.stat()
                    used += stat.st_size
                    complete.append((stat.st_mtime, stat.st_size, path))
        for _, size, path in sorted(complete):
            if used + footprint <= self.limit:
                break
            if _evict(path):
                used -= size
            else:
                blockers.append(path)
        if used + footprint <= self.limit:
            return None
        return blockers[0]

    @contextmanager
    def _accounting(self) -> Iterator[None]:
        lock = self.directory / _LOCK
        with local_errors(lock):
            self.directory.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _evict(path: Path) -> bool:
    """Remove a complete file unless someone holds it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        path.unlink()
        return True
    finally:
        os.close(descriptor)


def _remove_if_abandoned(partial: Path) -> bool:
    """Remove a file being brought in if the process at work is gone; False if it is alive."""
    try:
        descriptor = os.open(partial / _OWNER, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:  # killed before it had claimed the folder: claims are made under the accounting lock
        shutil.rmtree(partial, ignore_errors=True)
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        shutil.rmtree(partial, ignore_errors=True)
        return True
    finally:
        os.close(descriptor)


def _reserved(partial: Path) -> int:
    try:
        return int((partial / _OWNER).read_text())
    except (FileNotFoundError, ValueError):
        return 0


def _wait_for(path: Path) -> None:
    """Return once nobody holds `path`, or it is gone."""
    with suppress(FileNotFoundError):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        finally:
            os.close(descriptor)
