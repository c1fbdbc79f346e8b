"""Write a bundle: every rank writes the rows that it holds, rank 0 the rest, bundle.json last."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
import torch.distributed as dist
from torch.distributed._shard.sharded_tensor.api import ShardedTensor

from rectrain.api.job import RecTrainingJob
from rectrain_jobs.bundle.layout import (
    INDEX,
    ITEM_COUNTS,
    MANIFEST,
    Manifest,
    Parameter,
    Part,
    WeightsIndex,
    weights_file,
)
from rectrain_jobs.features import FeatureSet
from rectrain_jobs.storage import ObjectStore

FILE_BYTES = 1 << 28
"""Weights in one file, at most. Each file is made in memory, beside tables that fill it."""


def write_bundle(
    store: ObjectStore,
    job: RecTrainingJob,
    state: Mapping[str, Any],
    features: FeatureSet,
    *,
    metrics: dict[str, float],
    lineage: dict[str, Any],
    item_counts: torch.Tensor | None = None,
    group: dist.ProcessGroup,
) -> None:
    """Write a bundle; all ranks call it, and when it returns the bundle is complete.

    Args:
        store: Where the bundle is to be; what is there is replaced.
        job: The job.
        state: The bare model's state: plain tensors, the same on all ranks, and sharded ones.
        features: The feature definitions, as fitted.
        metrics: Final metrics.
        lineage: What the model was made from.
        item_counts: Retrieval models: int64 [rows of the item table] how many training rows have each item.
        group: A gloo group of all ranks.
    """
    rank = dist.get_rank(group)
    if rank == 0:
        store.delete([MANIFEST])
        store.delete_prefix("weights")
    dist.barrier(group=group)
    own = _write_own(store, state, rank).model_dump()
    of_ranks: list[dict[str, Any] | None] = [None] * dist.get_world_size(group) if rank == 0 else []
    dist.gather_object(own, of_ranks if rank == 0 else None, group=group)
    if rank == 0:
        index = _merge([WeightsIndex.model_validate(found) for found in of_ranks])
        store.write_bytes(INDEX, index.model_dump_json(indent=1).encode())
        features.save(store)
        counts = None if item_counts is None else safetensors.torch.save({"item_counts": item_counts.cpu().long()})
        if counts is not None:
            store.write_bytes(ITEM_COUNTS, counts)
        sections = {"model", "features", "labels"}
        manifest = Manifest(
            name=job.metadata.name,
            spec=job.spec.model_dump(mode="json", include=sections, exclude_defaults=True),
            metrics=metrics,
            lineage=lineage,
            item_counts_sha256=None if counts is None else hashlib.sha256(counts).hexdigest(),
        )
        store.write_bytes(MANIFEST, manifest.model_dump_json(indent=1).encode())
    dist.barrier(group=group)


@dataclass(frozen=True)
class _Piece:
    """Rows of a parameter that go into one file.

    Attributes:
        name: Name of the parameter.
        shape: Shape of the whole parameter.
        values: The rows, wherever they are.
        offsets: Where they begin in the parameter.
    """

    name: str
    shape: list[int]
    values: torch.Tensor
    offsets: list[int]

    @property
    def key(self) -> str:
        """Name in the file."""
        return f"{self.name}@{','.join(map(str, self.offsets))}"


def _write_own(store: ObjectStore, state: Mapping[str, Any], rank: int) -> WeightsIndex:
    """Write the rows that this rank holds, a file at a time, and return what is where."""
    index = WeightsIndex(files={}, parameters={})
    for number, pieces in enumerate(_files(_pieces(state, rank))):
        file = weights_file(rank, number)
        data = safetensors.torch.save({p.key: p.values.detach().cpu().contiguous().clone() for p in pieces})
        store.write_bytes(file, data)
        index.files[file] = hashlib.sha256(data).hexdigest()
        for piece in pieces:
            dtype = str(piece.values.dtype).removeprefix("torch.")
            whole = index.parameters.setdefault(piece.name, Parameter(shape=piece.shape, dtype=dtype, parts=[]))
            sizes = list(piece.values.shape)
            whole.parts.append(Part(file=file, tensor=piece.key, offsets=piece.offsets, sizes=sizes))
    return index


def _files(pieces: Iterable[_Piece]) -> Iterator[list[_Piece]]:
    """Put pieces together that go into one file."""
    file: list[_Piece] = []
    for piece in pieces:
        if file and sum(p.values.nbytes for p in file) + piece.values.nbytes > FILE_BYTES:
            yield file
            file = []
        file.append(piece)
    if file:
        yield file


def _pieces(state: Mapping[str, Any], rank: int) -> Iterator[_Piece]:
    """Cut the blocks of parameters that this rank is to write into pieces that fit a file."""
    for name, value in state.items():
        blocks: list[tuple[torch.Tensor, list[int]]] = []
        if isinstance(value, ShardedTensor):
            shape = list(value.metadata().size)
            blocks = [(shard.tensor, list(shard.metadata.shard_offsets)) for shard in value.local_shards()]
        else:
            shape = list(value.shape)
            if rank == 0:  # the same on all ranks
                blocks = [(value, [0] * value.ndim)]
        for tensor, offsets in blocks:
            if tensor.nbytes <= FILE_BYTES or tensor.ndim == 0:
                yield _Piece(name, shape, tensor, offsets)
                continue
            rows = max(1, FILE_BYTES // tensor[0].nbytes)
            for first in range(0, len(tensor), rows):
                yield _Piece(name, shape, tensor[first : first + rows], [offsets[0] + first, *offsets[1:]])


def _merge(of_ranks: list[WeightsIndex]) -> WeightsIndex:
    files: dict[str, str] = {}
    merged: dict[str, Parameter] = {}
    for index in of_ranks:
        files |= index.files
        for name, parameter in index.parameters.items():
            if name in merged:
                parameter = parameter.model_copy(update={"parts": [*merged[name].parts, *parameter.parts]})
            merged[name] = parameter
    return WeightsIndex(files=files, parameters=dict(sorted(merged.items())))
