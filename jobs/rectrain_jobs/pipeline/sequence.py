"""Sequences: a list of ids becomes a row of fixed length."""

from collections.abc import Mapping, Set
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rectrain.api.features import Padding
from rectrain_jobs.pipeline.categorical import Categorical
from rectrain_jobs.pipeline.stage import State, register
from rectrain_jobs.pipeline.transformer import ColumnTransformer
from rectrain_jobs.pipeline.values import ValueRefusedError, at_least_one, plain_array, shown

PADDING = -1
"""Fills a short sequence; it is no id."""


@register("sequence")
class Sequence(ColumnTransformer):
    """The last `max_length` elements of a list, each encoded as an id; a missing list is an empty one."""

    def __init__(
        self, name: str, elements: Categorical, max_length: int, padding: Padding | str = Padding.RIGHT
    ) -> None:
        """Describe the feature.

        Args:
            name: Name of the feature.
            elements: Encodes the elements; another feature's own with `of`.
            max_length: The longest list that is kept.
            padding: The side on which a shorter one is filled.

        Raises:
            UserError: The length is none.
        """
        self.name = name
        self.elements = elements
        self.max_length = at_least_one(max_length, f"{name}: max_length")
        self.padding = Padding(padding)
        self.dtype = elements.dtype
        self.shape = (max_length,)
        self.owns_elements = elements.name == name
        self.needs_fit = self.owns_elements and elements.needs_fit

    def state(self) -> State:
        """Return the arguments."""
        config = {"name": self.name, "max_length": self.max_length, "padding": self.padding}
        return State(config, stages={"elements": self.elements})

    def partial_fit(self, values: Any) -> None:
        """Let the elements learn, unless they are another feature's."""
        if self.needs_fit:
            lists = self._lists(values)
            if lists is not None:
                try:
                    self.elements.partial_fit(lists.flatten())
                except ValueRefusedError as error:
                    ends = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).cumsum()
                    raise error.at_row(int(np.searchsorted(ends, error.row or 0, side="right"))) from None

    def finish_fit(self) -> None:
        """Settle what the elements learnt."""
        if self.needs_fit:
            self.elements.finish_fit()

    def transform_vectorized(self, values: Any) -> npt.NDArray[Any]:
        """Return the rows of a batch of lists, `[rows, max_length]`, -1 where there is no element."""
        out = np.full((len(values), self.max_length), PADDING, self.dtype)
        lists = self._lists(values)
        if lists is None:
            return out
        offsets = lists.offsets.to_numpy().astype(np.int64)
        starts, ends = offsets[:-1], offsets[1:]
        if lists.null_count:
            ends = np.where(lists.is_valid().to_numpy(zero_copy_only=False), ends, starts)
        starts = np.maximum(starts, ends - self.max_length)
        steps = np.arange(self.max_length)
        if self.padding is Padding.LEFT:
            positions = ends[:, None] - self.max_length + steps
            present = positions >= starts[:, None]
        else:
            positions = starts[:, None] + steps
            present = positions < ends[:, None]
        kept = lists.values.take(pa.array(positions[present]))
        try:
            out[present] = self.elements.transform_vectorized(kept)
        except ValueRefusedError as error:
            # The values are in row order, so the row is the one whose elements reach past the value.
            row = int(np.searchsorted(present.sum(axis=1).cumsum(), error.row or 0, side="right"))
            raise ValueRefusedError(self.name, error.problem, row) from None
        return out

    def transform_func(self, value: Any) -> Any:
        """Return the row of one list, `[max_length]`."""
        out = np.full(self.max_length, PADDING, self.dtype)
        if value is None:
            return out
        if isinstance(value, str | bytes | Mapping | Set) or not hasattr(value, "__len__"):
            raise ValueRefusedError(self.name, f"value {shown(value)} is not a list of ids")
        kept = value[-self.max_length :]
        if len(kept):
            row_of = self.elements.row_of
            try:
                rows = [row_of(element) for element in kept]
            except ValueRefusedError as error:
                raise ValueRefusedError(self.name, error.problem) from None
            if self.padding is Padding.LEFT:
                out[-len(rows) :] = rows
            else:
                out[: len(rows)] = rows
        return out

    def to_json(self) -> dict[str, Any]:
        """Return what the elements learnt."""
        return self.elements.to_json() if self.owns_elements else {}

    def _lists(self, array: "pa.Array[Any]") -> Any:
        """Return a batch as an Arrow list array, or None when every list is missing."""
        array = plain_array(array)
        if pa.types.is_null(array.type):
            return None
        if pa.types.is_fixed_size_list(array.type):
            array = array.cast(pa.list_(array.type.value_type))
        if not (pa.types.is_list(array.type) or pa.types.is_large_list(array.type)):
            raise ValueRefusedError(self.name, f"has type {array.type}; a sequence is a list of ids", row=0)
        return array
