"""Batch: what a model reads in one step, made from the columns of shards without a loop over rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from rectrain.api.features import Feature, FeatureKind, Side, Task
from rectrain.api.job import RecTrainingJobSpec


@dataclass
class Batch(Pipelineable):  # type: ignore[misc]  # torchrec has no types
    """The rows of one step on one rank.

    Attributes:
        dense: float32 [rows + num_negatives, number of Dense features], in the job's order.
        sparse: The Categorical and Sequence features that have embeddings, in the job's order; one key a feature,
            values are rows of the feature's embedding table. A padded sequence position is absent, not a value.
        labels: By label name: float32 [rows] for Binary and Regression, int64 [rows] for MultiClass, float32 [rows,
            classes] for MultiLabel.
        valid: bool [rows]; False for rows that pad the last batch. They count neither in the loss nor in metrics.
        item_ids: int64 [rows + num_negatives] rows of the item table that identify each row's item; empty for models
            without items.
        num_negatives: So many rows at the end hold only item features: negatives drawn for this step. They have no
            label and no valid flag.
    """

    dense: Tensor
    sparse: KeyedJaggedTensor
    labels: dict[str, Tensor]
    valid: Tensor
    item_ids: Tensor
    num_negatives: int = 0

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:
        """Return the batch on another device."""
        return replace(
            self,
            dense=self.dense.to(device, non_blocking=non_blocking),
            sparse=self.sparse.to(device, non_blocking=non_blocking),
            labels={name: label.to(device, non_blocking=non_blocking) for name, label in self.labels.items()},
            valid=self.valid.to(device, non_blocking=non_blocking),
            item_ids=self.item_ids.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> Self:
        """Return the batch in page-locked memory, from which copies to a GPU are asynchronous."""
        return replace(
            self,
            dense=self.dense.pin_memory(),
            sparse=self.sparse.pin_memory(),
            labels={name: label.pin_memory() for name, label in self.labels.items()},
            valid=self.valid.pin_memory(),
            item_ids=self.item_ids.pin_memory(),
        )

    def record_stream(self, stream: Any) -> None:
        """Tell the allocator that a stream uses these tensors."""
        for tensor in (self.dense, self.valid, self.item_ids, *self.labels.values()):
            tensor.record_stream(stream)
        self.sparse.record_stream(stream)


class BatchBuilder:
    """Turns the columns of a batch of rows into a Batch.

    Args:
        spec: The job.
        sides: Only the features of these sides have values; the others are empty, so that one model can be asked for
            user vectors or item vectors alone. None for all.
    """

    def __init__(self, spec: RecTrainingJobSpec, sides: Sequence[Side] | None = None) -> None:
        """Choose the features."""
        self.features = [f for f in spec.features if f.side is not Side.NONE]
        self.labels = spec.labels if sides is None else []
        self.item_id = spec.model.item_id if spec.model.is_retrieval else None
        self._sides = sides

    @property
    def columns(self) -> list[str]:
        """Names of the columns that are read."""
        return [f.name for f in self.features if self._reads(f)] + [label.name for label in self.labels]

    def build(
        self,
        columns: Mapping[str, np.ndarray[Any, Any]],
        valid: np.ndarray[Any, Any],
        negatives: Mapping[str, np.ndarray[Any, Any]] | None = None,
    ) -> Batch:
        """Build a batch.

        Args:
            columns: By name: [rows] for scalars, [rows, length] for sequences (-1 is padding) and MultiLabel.
            valid: bool [rows]; False for padding rows.
            negatives: Item-side columns of further rows that have no user and no label.
        """
        rows = len(valid)
        extra = 0 if not negatives else len(next(iter(negatives.values())))
        dense = []
        for feature in self.features:
            if feature.kind is FeatureKind.DENSE:
                values_and_tail = np.zeros(rows + extra, np.float32)
                if self._reads(feature):
                    values_and_tail[:rows] = columns[feature.name]
                if negatives and feature.name in negatives:
                    values_and_tail[rows:] = negatives[feature.name]
                dense.append(values_and_tail)
        keys, values, lengths = [], [], []
        for feature in self.features:
            if feature.kind is FeatureKind.DENSE:
                continue
            column = columns[feature.name] if self._reads(feature) else None
            tail = negatives.get(feature.name) if negatives else None
            for part, count in ((column, rows), (tail, extra)):
                part_values, part_lengths = _jagged(part, count)
                values.append(part_values)
                lengths.append(part_lengths)
            keys.append(feature.name)
        item_ids = np.empty(0, np.int64)
        if self.item_id is not None and self.item_id in columns:
            item_ids = columns[self.item_id]
            if negatives:
                item_ids = np.concatenate([item_ids, negatives[self.item_id]])
        return Batch(
            dense=torch.from_numpy(np.stack(dense, axis=1)) if dense else torch.empty(rows + extra, 0),
            sparse=KeyedJaggedTensor(
                keys=keys,
                values=torch.from_numpy(np.concatenate(values)),
                lengths=torch.from_numpy(np.concatenate(lengths)),
                stride=rows + extra,
            ),
            labels={label.name: _tensor(columns[label.name], _LABEL_DTYPES[label.task]) for label in self.labels},
            valid=_tensor(valid, np.dtype(np.bool_)),
            item_ids=torch.from_numpy(item_ids.astype(np.int64)),
            num_negatives=extra,
        )

    def _reads(self, feature: Feature) -> bool:
        return self._sides is None or feature.side in self._sides


_LABEL_DTYPES: dict[Task, np.dtype[Any]] = {
    Task.BINARY: np.dtype(np.float32),
    Task.REGRESSION: np.dtype(np.float32),
    Task.MULTI_CLASS: np.dtype(np.int64),
    Task.MULTI_LABEL: np.dtype(np.float32),
}


def _tensor(column: np.ndarray[Any, Any], dtype: np.dtype[Any]) -> Tensor:
    """Return a column as a tensor; columns of shards are often read-only views, which tensors must not be."""
    return torch.from_numpy(np.require(column, dtype, ["C_CONTIGUOUS", "WRITEABLE"]))


def _jagged(
    column: np.ndarray[Any, Any] | None, rows: int
) -> tuple[np.ndarray[Any, np.dtype[np.int64]], np.ndarray[Any, np.dtype[np.int32]]]:
    """Return the values and lengths of a column; -1 in a sequence is padding, no column is all empty."""
    if column is None:
        return np.empty(0, np.int64), np.zeros(rows, np.int32)
    if column.ndim == 1:
        return column.astype(np.int64), np.ones(rows, np.int32)
    present = column >= 0
    return column[present].astype(np.int64), present.sum(axis=1, dtype=np.int32)
