"""Read a bundle on one process, without torchrec's sharding and without pickle."""

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import torch
from pydantic import BaseModel, ValidationError
from torch import nn

from rectrain.api.errors import UserError
from rectrain.api.job import RecTrainingJobSpec
from rectrain_jobs.bundle.layout import FORMAT_VERSION, INDEX, MANIFEST, Manifest, Parameter, WeightsIndex
from rectrain_jobs.features import FeatureSet
from rectrain_jobs.models.registry import Model, build_model
from rectrain_jobs.storage import ObjectNotFoundError, ObjectStore, Storage, open_store

# A spec without data is none; serving reads no shards, so this stands in for them.
_NO_DATA = {"train": {"uri": "none"}}
_T = TypeVar("_T", bound=BaseModel)


@dataclass(frozen=True)
class Bundle:
    """A trained model, ready to predict.

    Attributes:
        manifest: What the bundle is.
        spec: The job's model, features and labels.
        features: The feature definitions, as fitted.
        model: The bare model, in evaluation mode.
    """

    manifest: Manifest
    spec: RecTrainingJobSpec
    features: FeatureSet
    model: Model


def load_bundle(uri: str, storage: Storage | None = None, device: torch.device | str = "cpu") -> Bundle:
    """Load a bundle.

    Args:
        uri: Folder of bundle.json.
        storage: How to reach S3.
        device: Where the model is to be.

    Raises:
        UserError: There is no bundle, it is damaged, or it is of a newer format.
    """
    store = open_store(uri, storage)
    manifest = _read(store, MANIFEST, Manifest)
    if manifest.format_version != FORMAT_VERSION:
        raise UserError(
            f"{store.uri_of(MANIFEST)}: has format version {manifest.format_version}; this rectrain reads "
            f"{FORMAT_VERSION}"
        )
    try:
        spec = RecTrainingJobSpec.model_validate({**manifest.spec, "data": _NO_DATA})
    except ValidationError as error:
        raise UserError(f"{store.uri_of(MANIFEST)}: spec is not valid: {error.errors()[0]['msg']}") from None
    model = build_model(spec, torch.device("cpu"))
    _load_weights(store, _read(store, INDEX, WeightsIndex), model)
    return Bundle(manifest, spec, FeatureSet.load(store), model.eval().to(device))


def _read(store: ObjectStore, key: str, kind: type[_T]) -> _T:
    try:
        return kind.model_validate_json(store.read_bytes(key))
    except ObjectNotFoundError:
        raise UserError(f"{store.uri}: is no model bundle: it has no {key}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{store.uri_of(key)}: is damaged at {where or 'its beginning'}: {first['msg']}") from None


def _load_weights(store: ObjectStore, index: WeightsIndex, model: nn.Module) -> None:
    state = model.state_dict()
    if missing := sorted(state.keys() - index.parameters.keys()):
        raise UserError(f"{store.uri_of(INDEX)}: has no parameter {missing[0]}, which the model has")
    if unknown := sorted(index.parameters.keys() - state.keys()):
        raise UserError(f"{store.uri_of(INDEX)}: has a parameter {unknown[0]}, which the model has not")
    files: dict[str, list[tuple[str, Parameter, int]]] = {}
    for name, parameter in index.parameters.items():
        _check_shape(store, name, parameter, state[name])
        for number, part in enumerate(parameter.parts):
            files.setdefault(part.file, []).append((name, parameter, number))
    with tempfile.TemporaryDirectory(prefix="rectrain-bundle-") as folder:
        for key, wanted in files.items():
            path = store.local_path(key)
            if path is None:
                path = Path(folder) / "weights"
                store.download(key, path)
            _load_file(store.uri_of(key), path, wanted, state)
    model.load_state_dict(state)


def _load_file(uri: str, path: Path, wanted: list[tuple[str, Parameter, int]], state: dict[str, torch.Tensor]) -> None:
    try:
        with safetensors.safe_open(path, framework="pt") as tensors:
            for name, parameter, number in wanted:
                part = parameter.parts[number]
                block = tuple(slice(first, first + size) for first, size in zip(part.offsets, part.sizes, strict=True))
                state[name][block] = tensors.get_tensor(part.tensor)
    except (OSError, safetensors.SafetensorError, RuntimeError) as error:
        raise UserError(f"{uri}: cannot be read: {' '.join(str(error).split())}") from None


def _check_shape(store: ObjectStore, name: str, parameter: Parameter, tensor: Any) -> None:
    covered = sum(math.prod(part.sizes) for part in parameter.parts)
    if parameter.shape != list(tensor.shape) or covered != math.prod(parameter.shape):
        raise UserError(
            f"{store.uri_of(INDEX)}: parameter {name} has shape {parameter.shape} with {covered} values in its parts; "
            f"the model's is {list(tensor.shape)}"
        )
