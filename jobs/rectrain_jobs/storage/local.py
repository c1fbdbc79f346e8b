"""Objects as files in a local directory."""

import errno
import fcntl
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from rectrain_jobs.storage.base import ObjectInfo, ObjectNotFoundError, StorageError, checked_key, folder_prefix

# Files being written; never listed, so that what a killed process left behind is no object. `exclusive` removes them.
TEMPORARY_PREFIX = ".tmp-"


class LocalStore:
    """A directory whose files are the objects."""

    def __init__(self, root: Path) -> None:
        """Open the directory `root`, which is created by the first write."""
        self.root = root.absolute()

    @property
    def uri(self) -> str:
        """Where the store lies, without a trailing slash."""
        return str(self.root)

    def uri_of(self, key: str) -> str:
        """Return the full path of `key`, as used in messages."""
        return str(self.root / key)

    def local_path(self, key: str) -> Path | None:
        """Return the object's file, whether it exists or not."""
        return self.root / checked_key(key)

    def read_bytes(self, key: str) -> bytes:
        """Read a whole object."""
        path = self.root / checked_key(key)
        with local_errors(path):
            return path.read_bytes()

    def write_bytes(self, key: str, data: bytes) -> None:
        """Create or replace an object by writing beside it and renaming."""
        publish(self.root / checked_key(key), lambda file: file.write(data))

    def download(self, key: str, path: Path) -> None:
        """Copy an object to the file `path`, which appears only once it is complete."""
        copy_file(self.root / checked_key(key), path)

    def upload(self, path: Path, key: str) -> None:
        """Copy the file `path` to an object, which appears only once it is complete."""
        copy_file(path, self.root / checked_key(key))

    def stat(self, key: str) -> ObjectInfo:
        """Return an object's size and time of last write."""
        path = self.root / checked_key(key)
        with local_errors(path):
            stat = path.stat()
        return ObjectInfo(key, stat.st_size, stat.st_mtime)

    def exists(self, key: str) -> bool:
        """Tell whether an object exists."""
        path = self.root / checked_key(key)
        with local_errors(path):
            return path.is_file()

    def list(self, prefix: str = "") -> list[ObjectInfo]:
        """List the objects in the folder `prefix` and below, ordered by key; a missing folder is empty."""
        found = []
        folder = self.root / folder_prefix(prefix)
        for directory, _, names in os.walk(folder):
            for name in names:
                if name.startswith(TEMPORARY_PREFIX):
                    continue
                path = Path(directory, name)
                try:
                    stat = path.stat()
                except FileNotFoundError:  # deleted while we were walking
                    continue
                found.append(ObjectInfo(path.relative_to(self.root).as_posix(), stat.st_size, stat.st_mtime))
        return sorted(found, key=lambda info: info.key)

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; those already absent are passed over."""
        for key in keys:
            path = self.root / checked_key(key)
            with local_errors(path):
                path.unlink(missing_ok=True)

    def delete_prefix(self, prefix: str) -> None:
        """Delete every object in the folder `prefix` and below, and the folder."""
        folder = self.root / folder_prefix(prefix)
        with local_errors(folder):
            if folder.is_dir():
                shutil.rmtree(folder)

    @contextmanager
    def exclusive(self, when_taken: Callable[[], None], below: Iterable[str] = ()) -> Iterator[None]:
        """Hold the directory, which is created if need be, and removed again if nothing was written to it.

        Args:
            when_taken: Called once when another process holds it; returns to wait for it, or raises.
            below: Folders in it that its holder alone writes to, too; `*` in a name stands for any.
        """
        with local_errors(self.root):
            missing = [folder for folder in (self.root, *self.root.parents) if not folder.exists()]
        with _locked(self.root, when_taken):
            for place in ("", *map(folder_prefix, below)):
                for leftover in self.root.glob(f"{place}{TEMPORARY_PREFIX}*"):
                    with local_errors(leftover):
                        leftover.unlink(missing_ok=True)
                    if place:
                        with suppress(OSError):  # one that holds something stays
                            leftover.parent.rmdir()
            try:
                yield
            finally:
                with suppress(OSError):  # from the innermost on; one that holds something stays
                    for folder in missing:
                        folder.rmdir()


@contextmanager
def _locked(folder: Path, when_taken: Callable[[], None]) -> Iterator[None]:
    """Hold a flock(2) on a directory, which the kernel drops when the process dies, however it dies."""
    while True:
        with local_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                when_taken()
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            except OSError:
                pass  # a network file system without such locks
            if _is_at(folder, descriptor):
                yield
                return
        finally:
            os.close(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    """Tell whether an open file is still the one at a path: whoever held it before may have removed it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def publish(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Create or replace the file `path` with what `write` puts out, by a rename once it is complete and on disk.

    Raises:
        StorageError: The file cannot be written, for instance because the disk is full.
    """
    with temporary_beside(path) as temporary, local_errors(path):
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


def copy_file(source: Path, target: Path) -> None:
    """Copy `source` to `target`, which appears only once it is complete.

    Raises:
        ObjectNotFoundError: `source` does not exist.
        StorageError: Either file cannot be used, for instance because the disk is full.
    """
    with local_errors(source):
        file = source.open("rb")
    with file:
        publish(target, lambda out: shutil.copyfileobj(file, out, 1 << 20))


@contextmanager
def temporary_beside(path: Path) -> Iterator[Path]:
    """Give an unused file name in the folder of `path`, which is created; whatever is left there is removed."""
    with local_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def local_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's errors about `path` into one-line errors for the user."""
    try:
        yield
    except FileNotFoundError as error:
        raise ObjectNotFoundError(f"{path}: no such file") from error
    except PermissionError as error:
        raise StorageError(f"{path}: permission denied; give this user access") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(f"{path}: no space left on the disk; free some or choose another directory") from error
        raise StorageError(f"{path}: {error.strerror or error}") from error
