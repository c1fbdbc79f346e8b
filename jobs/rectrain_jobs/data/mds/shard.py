"""One decoded shard: a memory-mapped file and the rows that are gathered from it."""

import json
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rectrain.api.errors import UserError
from rectrain_jobs.data.mds.index import Column
from rectrain_jobs.data.mds.upstream import streaming_module

# File layout (little-endian), as written by streaming's MDSWriter.encode_joint_shard:
#   u32 n | u32[n + 1] offsets of the samples in the file | JSON configuration | samples
# and a sample is the u32 sizes of its columns of varying size, then all columns' values in order.
_U32 = np.dtype("<u4")


class Shard:
    """Gathers rows of one uncompressed shard file, which stays memory-mapped as long as this object lives.

    Attributes:
        path: The file.
        num_samples: How many samples it holds.
    """

    def __init__(self, path: Path, columns: Sequence[Column], num_samples: int, num_bytes: int) -> None:
        """Map the file and check its header against the index.

        Args:
            path: The uncompressed shard file.
            columns: The columns of the dataset, in order.
            num_samples: Number of samples that the index gives.
            num_bytes: File size that the index gives.

        Raises:
            UserError: The file is missing, truncated, corrupt, or belongs to another dataset.
        """
        self.path = path
        self.columns = tuple(columns)
        self.num_samples = num_samples
        self._bytes = _map(path, num_bytes)
        self._offsets = self._checked_offsets()
        self._check_configuration()
        self._heads = _U32.itemsize * sum(column.size is None for column in columns)
        self.stride = None if self._heads else sum(column.size or 0 for column in columns)
        if self.stride is not None:
            self._check_stride(self.stride)

    @property
    def file_bytes(self) -> npt.NDArray[np.uint8]:
        """The content of the file, uint8 `[num_bytes]`."""
        return self._bytes

    def records(self) -> npt.NDArray[np.uint8]:
        """View the samples of a shard without columns of varying size as uint8 `[num_samples, stride]`."""
        assert self.stride is not None
        begin = int(self._offsets[0])
        return self._bytes[begin : begin + self.num_samples * self.stride].reshape(self.num_samples, self.stride)

    def gather(self, rows: npt.NDArray[np.int64], names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
        """Decode rows of a shard that has columns of varying size.

        Args:
            rows: Positions in this shard, int64 `[n]`.
            names: The columns wanted.

        Returns:
            One array per column: `[n, *shape]` of its dtype, or objects `[n]` for a column of varying size.

        Raises:
            UserError: A sample's sizes do not add up, or a value cannot be decoded.
        """
        begins = self._offsets[rows].astype(np.int64)
        ends = self._offsets[rows + 1].astype(np.int64)
        starts = self._column_starts(begins, ends)
        gathered: dict[str, npt.NDArray[Any]] = {}
        for number, column in enumerate(self.columns):
            if column.name in names:
                first, last = starts[number], starts[number + 1]
                gathered[column.name] = (
                    self._decode_each(column, first, last) if column.size is None else self._take(column, first)
                )
        return gathered

    def _column_starts(self, begins: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return where each column of each sample begins, int64 `[num_columns + 1, n]`; the last row is the end."""
        if np.any(ends - begins < self._heads):
            raise UserError(f"{self.path}: corrupt: a sample is shorter than the {self._heads} bytes of its sizes")
        heads = self._bytes[begins[:, None] + np.arange(self._heads)].view(_U32).astype(np.int64)
        sizes = np.empty((len(self.columns) + 1, len(begins)), np.int64)
        sizes[0] = begins + self._heads
        varying = iter(heads.T)
        for number, column in enumerate(self.columns, start=1):
            sizes[number] = next(varying) if column.size is None else column.size
        starts = sizes.cumsum(axis=0)
        if not np.array_equal(starts[-1], ends):
            bad = int(np.flatnonzero(starts[-1] != ends)[0])
            raise UserError(
                f"{self.path}: corrupt: the columns of the sample at byte {begins[bad]} end at byte {starts[-1, bad]}, "
                f"the sample at byte {ends[bad]}"
            )
        return starts

    def _take(self, column: Column, starts: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        assert column.size is not None
        values = self._bytes[starts[:, None] + np.arange(column.size)].view(column.dtype)
        return values.reshape(len(starts), *column.shape)

    def _decode_each(
        self, column: Column, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]
    ) -> npt.NDArray[Any]:
        decode = streaming_module("format.mds.encodings")._get_coder(column.encoding).decode
        values = np.empty(len(starts), object)
        buffer = self._bytes.data
        try:
            for row, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
                values[row] = decode(bytes(buffer[start:end]))
        except (ValueError, ArithmeticError, LookupError, OSError) as error:
            raise UserError(
                f"{self.path}: corrupt: column {column.name!r} ({column.encoding}) at bytes {start}..{end} "
                f"cannot be decoded: {error}"
            ) from error
        return values

    def _checked_offsets(self) -> npt.NDArray[np.uint32]:
        header = _U32.itemsize * (self.num_samples + 2)
        size = len(self._bytes)
        found = int(self._bytes[:4].view(_U32)[0]) if size >= _U32.itemsize else 0
        if found != self.num_samples or size < header:
            raise UserError(
                f"{self.path}: corrupt: its header says {found} samples in {size} bytes, "
                f"the index says {self.num_samples} samples"
            )
        offsets: npt.NDArray[np.uint32] = self._bytes[_U32.itemsize : header].view(_U32)
        if offsets[0] < header or offsets[-1] != size or np.any(offsets[1:] < offsets[:-1]):
            raise UserError(
                f"{self.path}: corrupt: its sample offsets run from {offsets[0]} to {offsets[-1]}; "
                f"expected them to rise from at least {header} to {size}"
            )
        return offsets

    def _check_configuration(self) -> None:
        """Tell a shard of another dataset, which may well have the same sizes."""
        begin = _U32.itemsize * (self.num_samples + 2)
        try:
            configuration = json.loads(self._bytes[begin : int(self._offsets[0])].tobytes())
            found = list(zip(configuration["column_names"], configuration["column_encodings"], strict=True))
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(f"{self.path}: corrupt: its header is not the JSON of an MDS shard ({error})") from error
        expected = [(column.name, column.encoding) for column in self.columns]
        if found != expected:
            raise UserError(f"{self.path}: its columns are {found}; the index says {expected}")

    def _check_stride(self, stride: int) -> None:
        lengths = np.diff(self._offsets)
        if np.any(lengths != stride):
            bad = int(np.flatnonzero(lengths != stride)[0])
            raise UserError(f"{self.path}: corrupt: sample {bad} has {lengths[bad]} bytes; its columns need {stride}")


def _map(path: Path, num_bytes: int) -> npt.NDArray[np.uint8]:
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            if size != num_bytes:
                raise UserError(
                    f"{path}: has {size} bytes, the index says {num_bytes}; the shard is truncated or was replaced"
                )
            if size == 0:
                raise UserError(f"{path}: is empty; expected an MDS shard")
            mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file, but the index names it") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    return np.frombuffer(mapped, np.uint8)
