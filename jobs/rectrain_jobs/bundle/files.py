"""What a bundle's files say, read without torch: manifest, job, features, and weights into whatever holds them."""

import hashlib
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy
from pydantic import BaseModel, ValidationError

from rectrain.api.errors import UserError
from rectrain.api.job import RecTrainingJobSpec
from rectrain_jobs.bundle.layout import (
    FORMAT_VERSION,
    INDEX,
    ITEM_COUNTS,
    MANIFEST,
    Manifest,
    Parameter,
    WeightsIndex,
)
from rectrain_jobs.features import FeatureSet
from rectrain_jobs.storage import ObjectNotFoundError, ObjectStore

# A spec without data is none; serving reads no shards, so this stands in for them.
_NO_DATA = {"train": {"uri": "none"}}
_T = TypeVar("_T", bound=BaseModel)


@dataclass(frozen=True)
class BundleFiles:
    """A bundle whose weights are still in its files.

    Attributes:
        store: The bundle's folder.
        manifest: What the bundle is.
        version: Tells this bundle from every other; what is derived from it, such as an item index, carries it.
        spec: The job's model, features and labels.
        features: The feature definitions, as fitted.
        index: Where every parameter is.
    """

    store: ObjectStore
    manifest: Manifest
    version: str
    spec: RecTrainingJobSpec
    features: FeatureSet
    index: WeightsIndex

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Read all parameters as numpy arrays, by name.

        Raises:
            UserError: A file is damaged.
        """
        held = {name: np.empty(p.shape, np.dtype(p.dtype)) for name, p in self.index.parameters.items()}
        self.load_weights(held, "np")
        return held

    def load_weights(self, into: Mapping[str, Any], framework: Literal["np", "pt"]) -> None:
        """Fill arrays or tensors, which are as the index says by name and shape, with the weights.

        Raises:
            UserError: A parameter is missing, superfluous or of another shape, or a file is damaged.
        """
        store, index = self.store, self.index
        if missing := sorted(into.keys() - index.parameters.keys()):
            raise UserError(f"{store.uri_of(INDEX)}: has no parameter {missing[0]}, which the model has")
        if unknown := sorted(index.parameters.keys() - into.keys()):
            raise UserError(f"{store.uri_of(INDEX)}: has a parameter {unknown[0]}, which the model has not")
        files: dict[str, list[tuple[str, Parameter, int]]] = {}
        for name, parameter in index.parameters.items():
            _check_shape(store, name, parameter, into[name])
            for number, part in enumerate(parameter.parts):
                files.setdefault(part.file, []).append((name, parameter, number))
        with tempfile.TemporaryDirectory(prefix="rectrain-bundle-") as folder:
            for key, wanted in files.items():
                path = store.local_path(key)
                if path is None:
                    path = Path(folder) / "weights"
                    store.download(key, path)
                _check_digest(store.uri_of(key), path, index.files.get(key))
                _load_file(store.uri_of(key), path, wanted, into, framework)

    def item_counts(self) -> npt.NDArray[np.int64] | None:
        """Return how many training rows have each item, [rows of the item table]; None where the bundle does not say.

        Raises:
            UserError: They are damaged.
        """
        if self.manifest.item_counts_sha256 is None:
            return None
        where = self.store.uri_of(ITEM_COUNTS)
        data = self.store.read_bytes(ITEM_COUNTS)
        if hashlib.sha256(data).hexdigest() != self.manifest.item_counts_sha256:
            raise UserError(f"{where}: is damaged: its SHA-256 is not that of {MANIFEST}")
        counts: npt.NDArray[np.int64] = safetensors.numpy.load(data)["item_counts"]
        return counts


def trained(rows: npt.NDArray[np.int64], counts: npt.NDArray[np.int64] | None) -> npt.NDArray[np.int64]:
    """Return those rows of the item table that a training row has: the vectors of others are as they were drawn.

    Args:
        rows: Rows of items of which nothing but the id is known.
        counts: As of `BundleFiles.item_counts`; None takes all rows.
    """
    return rows if counts is None else rows[counts[rows] > 0]


def bundle_version(store: ObjectStore) -> str:
    """Return the version of the bundle in a folder.

    Raises:
        UserError: There is no bundle.
    """
    return _version(_bytes(store, MANIFEST), _bytes(store, INDEX))


def open_bundle(store: ObjectStore) -> BundleFiles:
    """Read everything of a bundle but its weights.

    Raises:
        UserError: There is no bundle, it is damaged, or it is of a newer format.
    """
    described, indexed = _bytes(store, MANIFEST), _bytes(store, INDEX)
    manifest = _parse(store, MANIFEST, described, Manifest)
    if manifest.format_version != FORMAT_VERSION:
        raise UserError(
            f"{store.uri_of(MANIFEST)}: has format version {manifest.format_version}; this rectrain reads "
            f"{FORMAT_VERSION}"
        )
    try:
        spec = RecTrainingJobSpec.model_validate({**manifest.spec, "data": _NO_DATA})
    except ValidationError as error:
        raise UserError(f"{store.uri_of(MANIFEST)}: spec is not valid: {error.errors()[0]['msg']}") from None
    index = _parse(store, INDEX, indexed, WeightsIndex)
    return BundleFiles(store, manifest, _version(described, indexed), spec, FeatureSet.load(store), index)


def _version(manifest: bytes, index: bytes) -> str:
    return hashlib.sha256(manifest + index).hexdigest()[:12]


def _bytes(store: ObjectStore, key: str) -> bytes:
    try:
        return store.read_bytes(key)
    except ObjectNotFoundError:
        raise UserError(f"{store.uri}: is no model bundle: it has no {key}") from None


def _parse(store: ObjectStore, key: str, data: bytes, kind: type[_T]) -> _T:
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{store.uri_of(key)}: is damaged at {where or 'its beginning'}: {first['msg']}") from None


def _check_digest(uri: str, path: Path, expected: str | None) -> None:
    try:
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{uri}: cannot be read: {error.strerror}") from None
    if found != expected:
        raise UserError(f"{uri}: is damaged: its SHA-256 is {found}, and {INDEX} says {expected}")


def _load_file(
    uri: str, path: Path, wanted: list[tuple[str, Parameter, int]], into: Mapping[str, Any], framework: str
) -> None:
    try:
        with safetensors.safe_open(path, framework=framework) as tensors:
            for name, parameter, number in wanted:
                part = parameter.parts[number]
                block = tuple(slice(first, first + size) for first, size in zip(part.offsets, part.sizes, strict=True))
                into[name][block] = tensors.get_tensor(part.tensor)
    except (OSError, safetensors.SafetensorError, RuntimeError, ValueError) as error:
        raise UserError(f"{uri}: cannot be read: {' '.join(str(error).split())}") from None


def _check_shape(store: ObjectStore, name: str, parameter: Parameter, held: Any) -> None:
    covered = sum(math.prod(part.sizes) for part in parameter.parts)
    if parameter.shape != list(held.shape) or covered != math.prod(parameter.shape):
        raise UserError(
            f"{store.uri_of(INDEX)}: parameter {name} has shape {parameter.shape} with {covered} values in its parts; "
            f"the model's is {list(held.shape)}"
        )
