"""From a row's values to one vector."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from rectrain_jobs.pipeline.one_hot import OneHot
from rectrain_jobs.pipeline.stage import State, register
from rectrain_jobs.pipeline.transformer import ColumnTransformer, VectorTransformer
from rectrain_jobs.pipeline.vectors import SparseVector, VectorBatch

VectorStage = ColumnTransformer | OneHot


@register("dictionary_vectorizer")
class DictionaryVectorizer(VectorTransformer[Mapping[str, Any]]):
    """A dictionary of a row's values as one vector: what its stages make of them, side by side.

    A stage for a number has one slot, one for several numbers so many, and `OneHot` a slot for each id. A column may
    have several stages. Values that are absent or None are missing.
    """

    output = "features"

    def __init__(self, stages: Sequence[VectorStage]) -> None:
        """Put stages side by side.

        Args:
            stages: In the order of their slots.
        """
        self.stages = list(stages)
        widths = [_width(stage) for stage in self.stages]
        self.offsets = [sum(widths[:position]) for position in range(len(widths))]
        self.width = sum(widths)
        self.needs_fit = any(stage.needs_fit for stage in self.stages)
        self.inputs = list(dict.fromkeys(name for stage in self.stages for name in stage.inputs or ()))
        # What a request walks through; a single column is looked up here, so that no call is needed for it.
        self._steps: list[tuple[str | None, VectorStage, int, Callable[[Any], Any], str]] = [
            (_only_input(stage), stage, offset, stage.transform_func, _form(stage))
            for stage, offset in zip(self.stages, self.offsets, strict=True)
        ]

    def state(self) -> State:
        """Return the stages."""
        return State(stages={str(position): stage for position, stage in enumerate(self.stages)})

    @classmethod
    def from_state(cls, state: State, version: int) -> "DictionaryVectorizer":
        """Return the vectorizer with its stages in their order."""
        stages: Any = [state.stages[str(position)] for position in range(len(state.stages))]
        return cls(stages)

    def partial_fit(self, values: Any) -> None:
        """Let the stages learn from a batch of rows."""
        for stage in self.stages:
            if stage.needs_fit:
                stage.partial_fit(stage.read(values))

    def finish_fit(self) -> None:
        """Settle what they learnt."""
        for stage in self.stages:
            if stage.needs_fit:
                stage.finish_fit()

    def transform_func(self, value: Mapping[str, Any]) -> SparseVector:
        """Return the vector of one row."""
        indices: list[int] = []
        values: list[float] = []
        get = value.get
        for name, stage, offset, function, form in self._steps:
            made = function(get(name) if name is not None else stage.value_of(value))
            if form == "number":
                indices.append(offset)
                values.append(float(made))
            elif form == "vector":
                indices += [offset + index for index in made.indices]
                values += made.values
            else:
                indices += range(offset, offset + len(made))
                values += made.tolist()
        return SparseVector(indices, values, self.width)

    def transform_vectorized(self, values: pa.RecordBatch) -> VectorBatch:
        """Return the vectors of a batch of rows."""
        parts = [_vectors(stage, stage.transform_batch(stage.read(values))) for stage in self.stages]
        lengths = [np.diff(part.starts) for part in parts]
        starts = np.zeros(values.num_rows + 1, np.int64)
        np.cumsum(sum(lengths), out=starts[1:])
        indices, numbers = np.empty(starts[-1], np.int64), np.empty(starts[-1])
        at = starts[:-1].copy()
        for part, offset, length in zip(parts, self.offsets, lengths, strict=True):
            places = np.repeat(at - part.starts[:-1], length) + np.arange(len(part.indices))
            indices[places] = part.indices + offset
            numbers[places] = part.values
            at += length
        return VectorBatch(starts, indices, numbers, self.width)


def _only_input(stage: VectorStage) -> str | None:
    return stage.inputs[0] if stage.inputs is not None and len(stage.inputs) == 1 else None


def _form(stage: VectorStage) -> str:
    if isinstance(stage, OneHot):
        return "vector"
    return "numbers" if stage.shape else "number"


def _width(stage: VectorStage) -> int:
    if isinstance(stage, OneHot):
        return stage.width
    return int(np.prod(stage.shape, dtype=np.int64))


def _vectors(stage: VectorStage, made: Any) -> VectorBatch:
    """Return what a stage made of a batch as vectors over its own slots."""
    if isinstance(made, VectorBatch):
        return made
    width = _width(stage)
    starts = np.arange(len(made) + 1) * width
    return VectorBatch(starts, np.tile(np.arange(width), len(made)), made.reshape(-1).astype(np.float64), width)
