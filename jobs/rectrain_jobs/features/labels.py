"""Labels: checked against their task and laid out as the loss reads them."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rectrain.api.features import Label, Task
from rectrain_jobs.pipeline.dense import Unscaled
from rectrain_jobs.pipeline.values import ValueRefusedError, plain_array, shown


class LabelEncoder:
    """Checks and encodes one label.

    Attributes:
        label: The label.
        name: Its name.
        dtype: int64 for MultiClass, else float32.
        shape: `(num_classes,)` for MultiLabel, else empty.
    """

    def __init__(self, label: Label) -> None:
        """Describe the label."""
        self.label = label
        self.name = label.name
        self.dtype = np.dtype(np.int64 if label.task is Task.MULTI_CLASS else np.float32)
        self.shape = (label.num_classes,) if label.task is Task.MULTI_LABEL and label.num_classes else ()
        self._numbers = Unscaled(label.name)

    def encode(self, array: "pa.Array[Any]") -> npt.NDArray[Any]:
        """Return the labels of a batch, `[rows, *shape]` of `dtype`.

        Raises:
            ValueRefusedError: A label is missing, no finite number, or outside what its task allows.
        """
        array = plain_array(array)
        if self.label.task is Task.MULTI_LABEL:
            return self._multi_label(array)
        if array.null_count:
            row = int(np.argmin(array.is_valid().to_numpy(zero_copy_only=False)))
            raise ValueRefusedError(self.name, f"is missing; it must be {self.expected}", row)
        try:
            values = self._numbers.raw(array)
        except ValueRefusedError as error:
            value = array[error.row or 0].as_py()
            raise ValueRefusedError(self.name, f"value {shown(value)} is not {self.expected}", error.row) from None
        with np.errstate(over="ignore"):
            encoded = values.astype(self.dtype)
        right = self.allows(values) & np.isfinite(encoded)
        if not right.all():
            row = int(np.argmin(right))
            raise ValueRefusedError(self.name, f"value {shown(array[row].as_py())} is not {self.expected}", row)
        return encoded

    def allows(self, values: npt.NDArray[Any]) -> Any:
        """Tell of each value whether the task allows it, bool of the shape of `values`."""
        match self.label.task:
            case Task.BINARY | Task.MULTI_LABEL:
                return (values == 0) | (values == 1)
            case Task.MULTI_CLASS:
                assert self.label.num_classes is not None
                return (values >= 0) & (values < self.label.num_classes) & (values == np.floor(values))
            case Task.REGRESSION:
                return np.isfinite(values)

    @property
    def expected(self) -> str:
        """What the task allows, for a message."""
        match self.label.task:
            case Task.BINARY:
                return "0 or 1 (task Binary)"
            case Task.REGRESSION:
                return "a finite number that fits 32 bits (task Regression)"
            case Task.MULTI_CLASS:
                classes = self.label.num_classes or 0
                return f"a class from 0 to {classes - 1} (task MultiClass)"
            case Task.MULTI_LABEL:
                return f"a list of {self.label.num_classes} zeros and ones (task MultiLabel)"

    def _multi_label(self, array: Any) -> npt.NDArray[Any]:
        classes = self.label.num_classes or 0
        if pa.types.is_fixed_size_list(array.type):
            array = array.cast(pa.list_(array.type.value_type))
        if not (pa.types.is_list(array.type) or pa.types.is_large_list(array.type)):
            raise ValueRefusedError(self.name, f"has type {array.type}; it must be {self.expected}", row=0)
        lengths = array.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        wrong = lengths != classes
        if wrong.any():
            row = int(np.argmax(wrong))
            raise ValueRefusedError(self.name, f"has {lengths[row]} values; it must be {self.expected}", row)
        elements = array.flatten()
        try:
            values = self._numbers.raw(elements)
        except ValueRefusedError as error:
            raise ValueRefusedError(
                self.name, f"{error.problem}; it must be {self.expected}", (error.row or 0) // classes
            ) from None
        right = self.allows(values)
        if elements.null_count:
            right &= elements.is_valid().to_numpy(zero_copy_only=False)
        if not right.all():
            position = int(np.argmin(right))
            raise ValueRefusedError(
                self.name,
                f"holds {shown(elements[position].as_py())}; it must be {self.expected}",
                position // classes,
            )
        return values.reshape(-1, classes).astype(self.dtype)
