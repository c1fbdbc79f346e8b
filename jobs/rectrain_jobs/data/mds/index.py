"""The index.json of an MDS dataset: which shards there are and what is in them."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from rectrain.api.errors import UserError

INDEX_NAME = "index.json"
FORMAT_VERSION = 2

_SCALARS = {
    "int": "<i8",
    **{f"int{bits}": f"<i{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"<u{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"<f{bits // 8}" for bits in (16, 32, 64)},
}
_TEXT = ("bytes", "str", "json", "str_int", "str_float", "str_decimal")
_IMAGES = ("pil", "jpeg", "png", "jpeg_array", "jpegarray", "list[pil]", "list[jpeg]", "list[png]")
_COMPRESSIONS = frozenset({"br", "bz2", "gz", "snappy", "zstd"})


@dataclass(frozen=True)
class Column:
    """One column of the samples.

    Attributes:
        name: Its name.
        encoding: MDS encoding, such as `float32` or `ndarray:int64:26`.
        dtype: Type of the values; `object` when their size varies from sample to sample.
        shape: Shape of one sample's value; empty for scalars and for columns of varying size.
        size: Bytes of one sample's value, or None when it varies.
    """

    name: str
    encoding: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    size: int | None


@dataclass(frozen=True)
class FileInfo:
    """One file of a shard: its key below the dataset, its size in bytes, and its hex digests by algorithm."""

    basename: str
    bytes: int
    hashes: Mapping[str, str]


@dataclass(frozen=True)
class ShardInfo:
    """One shard: how many samples, and the files that hold it.

    Attributes:
        samples: Number of samples.
        compression: Algorithm, with or without `:level`, or None.
        raw: The uncompressed file; with compression it usually exists only once decompressed.
        zip: The compressed file, if any.
    """

    samples: int
    compression: str | None
    raw: FileInfo
    zip: FileInfo | None


@dataclass(frozen=True)
class MDSIndex:
    """A parsed index.json.

    Attributes:
        columns: Columns in the order in which samples hold them.
        shards: Shards in the order in which their samples are numbered.
        digest: SHA-256 of the bytes of index.json, in hex: the identity of the dataset.
    """

    columns: tuple[Column, ...]
    shards: tuple[ShardInfo, ...]
    digest: str

    @cached_property
    def samples_per_shard(self) -> npt.NDArray[np.int64]:
        """Number of samples of each shard, int64 `[num_shards]`."""
        return np.array([shard.samples for shard in self.shards], np.int64)

    @cached_property
    def content_digest(self) -> str:
        """SHA-256 of what the shards hold, as far as the index tells it, whatever they are called."""
        shards = [(shard.samples, shard.raw.bytes, sorted(shard.raw.hashes.items())) for shard in self.shards]
        columns = [(column.name, column.encoding) for column in self.columns]
        return hashlib.sha256(json.dumps([columns, shards]).encode()).hexdigest()

    @cached_property
    def shard_ends(self) -> npt.NDArray[np.int64]:
        """One past the last sample id of each shard, int64 `[num_shards]`."""
        return self.samples_per_shard.cumsum()

    @property
    def num_samples(self) -> int:
        """Number of samples of the dataset."""
        return int(self.samples_per_shard.sum())

    @cached_property
    def largest_footprint(self) -> int:
        """Most bytes that bringing in one shard takes: the raw file, beside the compressed one if there is one."""
        return max(shard.raw.bytes + (shard.zip.bytes if shard.zip else 0) for shard in self.shards)


def parse_index(data: bytes, source: str) -> MDSIndex:
    """Parse and check an index.json of any MDS writer.

    Args:
        data: The content of the file.
        source: Its path or URI, for messages.

    Raises:
        UserError: The file is no MDS index, or describes something that cannot be read.
    """
    try:
        document = json.loads(data)
    except ValueError as error:
        raise UserError(
            f"{source}: not valid JSON ({error}); it is truncated or was not written by MDSWriter"
        ) from error
    if not isinstance(document, dict) or not isinstance(document.get("shards"), list):
        raise UserError(f"{source}: not an MDS index; expected an object with a list 'shards'")
    if document.get("version") != FORMAT_VERSION:
        raise UserError(
            f"{source}: MDS version {document.get('version')!r} is not supported; expected {FORMAT_VERSION}"
        )
    if not document["shards"]:
        raise UserError(f"{source}: the dataset has no shards")

    columns = _parse_columns(document["shards"][0], f"{source}: shards[0]")
    shards = []
    for number, entry in enumerate(document["shards"]):
        where = f"{source}: shards[{number}]"
        if number and _parse_columns(entry, where) != columns:
            raise UserError(f"{where}: its columns differ from those of shards[0]; all shards need the same columns")
        shards.append(_parse_shard(entry, where))
    if not any(shard.samples for shard in shards):
        raise UserError(f"{source}: the dataset has no samples")
    return MDSIndex(columns, tuple(shards), hashlib.sha256(data).hexdigest())


def parse_encoding(encoding: str) -> tuple[np.dtype[Any], tuple[int, ...], int | None]:
    """Return the dtype, the shape and the fixed size in bytes (None: it varies) of an MDS encoding.

    Raises:
        ValueError: The encoding is unknown, or could run code when decoded.
    """
    kind, *arguments = encoding.split(":")
    if kind == "pkl":
        raise ValueError(
            "pickled values are never loaded, since they can run code; write the column as json or ndarray"
        )
    if encoding in _SCALARS:
        dtype = np.dtype(_SCALARS[encoding])
        return dtype, (), dtype.itemsize
    if encoding in _TEXT or encoding in _IMAGES:
        return np.dtype(object), (), None
    if (
        kind != "ndarray"
        or len(arguments) > 2
        or (arguments and arguments[0] not in _SCALARS)
        or arguments[:1] == ["int"]
    ):
        raise ValueError("unknown encoding")
    if len(arguments) < 2:
        return np.dtype(object), (), None
    dtype = np.dtype(_SCALARS[arguments[0]])
    shape = tuple(int(dimension) for dimension in arguments[1].split(","))
    if min(shape) < 1:
        raise ValueError("every dimension must be at least 1")
    return dtype, shape, dtype.itemsize * math.prod(shape)


def _parse_columns(entry: Any, where: str) -> tuple[Column, ...]:
    names = _field(entry, "column_names", list, where)
    encodings = _field(entry, "column_encodings", list, where)
    sizes = _field(entry, "column_sizes", list, where)
    if not names or not len(names) == len(encodings) == len(sizes) or len(set(map(str, names))) != len(names):
        raise UserError(f"{where}: column_names, column_encodings and column_sizes do not match, or names repeat")
    if not all(isinstance(name, str) for name in names):
        raise UserError(f"{where}: column_names are {names!r}; expected texts")
    columns = []
    for name, encoding, size in zip(names, encodings, sizes, strict=True):
        try:
            dtype, shape, expected = parse_encoding(str(encoding))
        except ValueError as error:
            raise UserError(f"{where}: column {name!r} has encoding {encoding!r}: {error}") from error
        if size != expected:
            raise UserError(
                f"{where}: column {name!r} ({encoding}) has size {size!r}; the encoding makes it {expected!r}"
            )
        columns.append(Column(str(name), str(encoding), dtype, shape, expected))
    return tuple(columns)


def _parse_shard(entry: Any, where: str) -> ShardInfo:
    if entry.get("format") != "mds" or entry.get("version") != FORMAT_VERSION:
        raise UserError(
            f"{where}: format {entry.get('format')!r} version {entry.get('version')!r} is not supported; "
            f"expected 'mds' version {FORMAT_VERSION}"
        )
    samples = _field(entry, "samples", int, where)
    if not 0 <= samples < 2**32:  # as a shard has it
        raise UserError(f"{where}: samples is {samples}; expected a count below 2**32")
    compression = entry.get("compression")
    if compression is not None and str(compression).partition(":")[0] not in _COMPRESSIONS:
        known = ", ".join(sorted(_COMPRESSIONS))
        raise UserError(f"{where}: compression {compression!r} is not supported; expected one of {known}")
    raw = _parse_file(entry.get("raw_data"), f"{where}.raw_data")
    zipped = _parse_file(entry["zip_data"], f"{where}.zip_data") if entry.get("zip_data") else None
    if (compression is None) != (zipped is None):
        raise UserError(f"{where}: compression is {compression!r} but zip_data is {entry.get('zip_data')!r}")
    return ShardInfo(samples, compression, raw, zipped)


def _parse_file(entry: Any, where: str) -> FileInfo:
    basename = _field(entry, "basename", str, where)
    size = _field(entry, "bytes", int, where)
    hashes = entry.get("hashes") or {}
    path = PurePosixPath(basename)
    if not path.name or path.is_absolute() or ".." in path.parts:
        raise UserError(f"{where}: basename {basename!r} is not a file below the dataset")
    if size < 0 or not isinstance(hashes, dict):
        raise UserError(f"{where}: bytes {size!r} and hashes {hashes!r} do not describe a file")
    return FileInfo(basename, size, {str(algorithm): str(value) for algorithm, value in hashes.items()})


def _field(entry: Any, name: str, kind: type, where: str) -> Any:
    value = entry.get(name) if isinstance(entry, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UserError(f"{where}: {name} is {value!r}; expected {kind.__name__}")
    return value
