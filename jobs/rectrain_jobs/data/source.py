"""Raw input files: found by path, folder or pattern, locally or in S3, read compressed or not, and digested."""

import fnmatch
import glob
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa

from rectrain.api.errors import UserError
from rectrain_jobs.storage import ObjectStore, Storage, open_store

_PATTERN_CHARACTERS = "*?["
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_DIGEST_BLOCK = 1 << 20


@dataclass(frozen=True)
class SourceFile:
    """One raw file.

    Attributes:
        uri: Where it is, as given in messages.
        size: Bytes.
        modified: Time of the last write, seconds since the epoch.
        store: The remote store that holds it; None for a local file.
        key: Its key in the store, or its local path.
    """

    uri: str
    size: int
    modified: float
    store: ObjectStore | None
    key: str

    @property
    def name(self) -> str:
        """Its last name without a compression suffix, lower-case; formats are told by its end."""
        name = Path(self.key).name.lower()
        suffix = Path(name).suffix
        return name.removesuffix(suffix) if suffix in _COMPRESSIONS else name

    @contextmanager
    def local(self) -> Iterator[Path]:
        """Give the file as a local one; a remote one is downloaded, and removed afterwards."""
        if self.store is None:
            yield Path(self.key)
            return
        with tempfile.TemporaryDirectory(prefix="rectrain-source-") as folder:
            path = Path(folder, Path(self.key).name)
            self.store.download(self.key, path)
            yield path

    @contextmanager
    def open(self) -> Iterator[Any]:
        """Give the uncompressed bytes as an Arrow input stream.

        Raises:
            UserError: The file cannot be read, or its compressed bytes are damaged; also while the stream is read.
        """
        with self.local() as path, self.stream(path) as stream:
            yield stream

    @contextmanager
    def stream(self, path: Path) -> Iterator[Any]:
        """Give the uncompressed bytes of the file's local copy, as `open`."""
        compression: Any = _COMPRESSIONS.get(path.suffix.lower())
        try:
            with pa.input_stream(str(path), compression=compression) as stream:
                yield stream
        except pa.ArrowInvalid:  # what the bytes say, not whether they can be read
            raise
        except OSError as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{self.uri}: cannot be read: {reason}") from None

    def sha256(self) -> str:
        """Return the digest of the file's bytes as they are stored, in hex."""
        digest = hashlib.sha256()
        with self.local() as path:
            try:
                with path.open("rb") as file:
                    while block := file.read(_DIGEST_BLOCK):
                        digest.update(block)
            except OSError as error:
                raise UserError(f"{self.uri}: cannot be read: {error.strerror}") from None
        return digest.hexdigest()


def find_files(uri: str, storage: Storage) -> list[SourceFile]:
    """Find the files of a raw input, ordered by name.

    Args:
        uri: A file, a folder (all files below it but hidden ones and those that begin with an underscore), or a
            pattern with `*`, `?` or `[...]`; local, `file://` or `s3://`.
        storage: How S3 is reached.

    Raises:
        UserError: There is no such file, one is empty, or one cannot be looked at.
    """
    scheme = urlsplit(uri).scheme
    if scheme == "s3":
        files = _remote_files(uri, storage)
    else:
        if "://" in uri and scheme != "file":
            raise UserError(f"{uri}: has the unsupported scheme {scheme!r}; use s3://, file:/// or a plain path")
        path = unquote(urlsplit(uri).path) if scheme == "file" else uri
        try:
            files = [_local_file(found) for found in _local_paths(path)]
        except OSError as error:
            raise UserError(f"{uri}: cannot be read: {error.strerror}") from None
    if not files:
        raise UserError(f"{uri}: there is no such file, and no file below it or that matches it")
    empty = [file.uri for file in files if file.size == 0]
    if empty:
        raise UserError(f"{empty[0]}: is empty; raw data has at least one row")
    return files


def is_read_as_input(folder: ObjectStore, uri: str) -> bool:
    """Tell whether files in a folder would be found below a raw input that is a folder too.

    Args:
        folder: The folder.
        uri: The raw input, as `find_files` takes it.
    """
    if urlsplit(uri).scheme == "s3":
        parent, child = uri.rstrip("/"), folder.uri
    else:
        path = folder.local_path("x")
        parent = os.path.realpath(unquote(urlsplit(uri).path) if urlsplit(uri).scheme == "file" else uri)
        child = os.path.realpath(path.parent) if path is not None else ""
    return child == parent or (child.startswith(f"{parent}/") and _is_shown(Path(child.removeprefix(f"{parent}/"))))


def _local_paths(path: str) -> list[Path]:
    if any(character in path for character in _PATTERN_CHARACTERS) and not Path(path).exists():
        return sorted(Path(found) for found in glob.glob(path, recursive=True) if Path(found).is_file())
    if Path(path).is_dir():
        return sorted(
            found for found in Path(path).rglob("*") if found.is_file() and _is_shown(found.relative_to(path))
        )
    if Path(path).exists() and not Path(path).is_file():
        raise UserError(f"{path}: is neither a file nor a folder; raw data is read more than once")
    return [Path(path)] if Path(path).exists() else []


def _is_shown(path: Path) -> bool:
    return not any(part.startswith((".", "_")) for part in path.parts)


def _local_file(path: Path) -> SourceFile:
    stat = path.stat()
    return SourceFile(str(path), stat.st_size, stat.st_mtime, None, str(path))


def _remote_files(uri: str, storage: Storage) -> list[SourceFile]:
    parts = urlsplit(uri)
    # urlsplit takes what follows `?` for a query; in a pattern it is a character.
    key = uri.removeprefix(f"s3://{parts.netloc}").strip("/")
    first = min((key.index(character) for character in _PATTERN_CHARACTERS if character in key), default=len(key))
    folder = key[:first].rpartition("/")[0]
    store = open_store(f"s3://{parts.netloc}/{folder}", storage)
    rest = key.removeprefix(folder).lstrip("/")
    listed = store.list()
    if first < len(key):
        found = [info for info in listed if fnmatch.fnmatchcase(info.key, rest)]
    else:
        found = [info for info in listed if info.key == rest] or [
            info
            for info in listed
            if (not rest or info.key.startswith(f"{rest}/"))
            and _is_shown(Path(info.key.removeprefix(rest).lstrip("/")))
        ]
    return [SourceFile(store.uri_of(info.key), info.size, info.modified, store, info.key) for info in found]
