"""Write a bundle: every rank writes the rows that it holds, rank 0 the rest, bundle.json last."""

import hashlib
from collections.abc import Mapping
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
    parameters, tensors = _own_parts(state, rank)
    files: dict[str, str] = {}
    if tensors:
        data = safetensors.torch.save(tensors)
        store.write_bytes(weights_file(rank), data)
        files[weights_file(rank)] = hashlib.sha256(data).hexdigest()
    own = WeightsIndex(files=files, parameters=parameters).model_dump()
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


def _own_parts(state: Mapping[str, Any], rank: int) -> tuple[dict[str, Parameter], dict[str, torch.Tensor]]:
    parameters: dict[str, Parameter] = {}
    tensors: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        blocks: list[tuple[torch.Tensor, list[int]]] = []
        if isinstance(value, ShardedTensor):
            shape = list(value.metadata().size)
            blocks = [(shard.tensor, list(shard.metadata.shard_offsets)) for shard in value.local_shards()]
        else:
            shape = list(value.shape)
            if rank == 0:  # the same on all ranks
                blocks = [(value, [0] * value.ndim)]
        parts = []
        for tensor, offsets in blocks:
            key = f"{name}@{','.join(map(str, offsets))}"
            tensors[key] = tensor.detach().cpu().contiguous().clone()
            parts.append(Part(file=weights_file(rank), tensor=key, offsets=offsets, sizes=list(tensor.shape)))
        if parts:
            dtype = str(blocks[0][0].dtype).removeprefix("torch.")
            parameters[name] = Parameter(shape=shape, dtype=dtype, parts=parts)
    return parameters, tensors


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
