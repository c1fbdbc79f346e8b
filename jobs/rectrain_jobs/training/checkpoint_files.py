"""torch's distributed checkpoints over an object store: each rank writes and reads its own files, to disk or S3."""

import errno
import io
import os
import pickle
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, cast

import torch
from torch.distributed.checkpoint.filesystem import FileSystemBase, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata

from rectrain.api.errors import UserError
from rectrain_jobs.storage import ObjectStore
from rectrain_jobs.storage.local import local_errors

_ALMOST_NOTHING = 1 << 20
"""A disk with fewer bytes free than this is full."""

_METADATA_NAMES = {
    *(
        ("torch.distributed.checkpoint.metadata", name)
        for name in (
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        )
    ),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.distributed._shard.sharded_tensor.metadata", "MEM_FORMAT_ENCODING"),
    ("torch.distributed._shard.sharded_tensor.metadata", "TensorProperties"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("pathlib", "PosixPath"),
    ("pathlib", "PurePosixPath"),
}


class StoreFileSystem(FileSystemBase):
    """The few file operations that torch's checkpoint writer and reader need, on an object store.

    Args:
        store: Where the checkpoint is; paths are keys in it.
    """

    def __init__(self, store: ObjectStore) -> None:
        """Hold the store."""
        self._store = store

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[io.IOBase]:
        """Open an object; a written one appears in a remote store when it is complete."""
        key = os.fspath(path)
        local = self._store.local_path(key)
        if local is not None:
            with local_errors(local):
                local.parent.mkdir(parents=True, exist_ok=True)
                with local.open(mode) as stream:
                    try:
                        yield cast(io.IOBase, stream)
                    except RuntimeError:  # torch's word for a write of which only a part was done
                        if "w" in mode and shutil.disk_usage(local.parent).free < _ALMOST_NOTHING:
                            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
                        raise
            return
        # The parts of a file are read by offset, so a remote one is on disk while it is open.
        with tempfile.TemporaryDirectory(prefix="rectrain-checkpoint-") as folder:
            copy = Path(folder) / "object"
            if "r" in mode:
                self._store.download(key, copy)
            with copy.open(mode) as stream:
                yield cast(io.IOBase, stream)
            if "w" in mode:
                self._store.upload(copy, key)

    def concat_path(self, path: str | os.PathLike[str], suffix: str) -> PurePosixPath:
        """Return the key of a file in a folder."""
        return PurePosixPath(path) / suffix

    def init_path(self, path: str | os.PathLike[str]) -> PurePosixPath:
        """Return a key as a path."""
        return PurePosixPath(path)

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        """Move an object."""
        source, target = self._store.local_path(os.fspath(path)), self._store.local_path(os.fspath(new_path))
        if source is not None and target is not None:
            source.replace(target)
            return
        self._store.write_bytes(os.fspath(new_path), self._store.read_bytes(os.fspath(path)))
        self._store.delete([os.fspath(path)])

    def mkdir(self, path: str | os.PathLike[str]) -> None:
        """Do nothing: folders come with their files."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Accept every key."""
        return True

    def exists(self, path: str | os.PathLike[str]) -> bool:
        """Tell whether an object exists."""
        return self._store.exists(os.fspath(path))

    def rm_file(self, path: str | os.PathLike[str]) -> None:
        """Delete an object."""
        self._store.delete([os.fspath(path)])


class StoreWriter(FileSystemWriter):
    """Writes a rank's part of a checkpoint to a folder of an object store."""

    def __init__(self, store: ObjectStore, folder: str) -> None:
        """Prepare to write below `folder`."""
        # A local file is on disk before the marker is, whatever the machine does; an object is when it is there at all.
        super().__init__(folder, sync_files=store.local_path(folder) is not None)
        self.fs = StoreFileSystem(store)  # type: ignore[assignment]  # any FileSystemBase does
        self.path = self.fs.init_path(folder)


class StoreReader(FileSystemReader):
    """Reads a rank's part of a checkpoint from a folder of an object store; loads no pickle but torch's own metadata.

    The metadata that torch writes is a pickle. It is read with an unpickler that knows only the classes of which that
    metadata consists, and tensors are read with `weights_only`. Metadata may not say that an entry is no tensor: torch
    would load that one as a pickle.
    """

    def __init__(self, store: ObjectStore, folder: str) -> None:
        """Prepare to read below `folder`."""
        super().__init__(folder)
        self.fs = StoreFileSystem(store)  # type: ignore[assignment]  # any FileSystemBase does
        self.path = self.fs.init_path(folder)
        self._where = store.uri_of(f"{folder}/.metadata")

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Read what the checkpoint holds.

        Raises:
            UserError: The metadata is damaged, or holds something else than metadata.
        """
        with self.fs.create_stream(self._get_metadata_path(), "rb") as stream:
            data = stream.read()
        try:
            metadata = _MetadataUnpickler(io.BytesIO(data)).load()
        except (pickle.UnpicklingError, EOFError, AttributeError, IndexError, ValueError, KeyError) as error:
            raise UserError(f"{self._where}: is no checkpoint metadata: {error}") from None
        if not isinstance(metadata, Metadata):
            raise UserError(f"{self._where}: is no checkpoint metadata but a {type(metadata).__name__}")
        return metadata


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Return a class that checkpoint metadata may hold."""
        constants = torch.dtype | torch.layout | torch.memory_format
        if (module, name) in _METADATA_NAMES or (
            module == "torch" and isinstance(getattr(torch, name, None), constants)
        ):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no metadata does")
