"""Raw values: their canonical forms, what counts as missing, and the error for those that are refused."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from rectrain.api.errors import UserError

_LONGEST_SHOWN = 80


class ValueRefusedError(UserError):
    """A raw value that a feature or label does not take.

    Attributes:
        column: The feature or label.
        problem: What is wrong and what would be right, without the place.
        row: Position of the row in the batch that was transformed; None for a single value.
    """

    def __init__(self, column: str, problem: str, row: int | None = None) -> None:
        """Describe a refused value."""
        self.column = column
        self.problem = problem
        self.row = row
        super().__init__(f"{column}: {problem}")

    def at_row(self, row: int) -> "ValueRefusedError":
        """Return the same error for a known row of a batch."""
        return ValueRefusedError(self.column, self.problem, row)


def shown(value: object) -> str:
    """Return a value as it is shown in a message: on one line and not too long."""
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 3]}..."


def python_value(value: Any) -> Any:
    """Return a plain Python value for a numpy scalar, and None for what counts as a missing id: NaN and empty text."""
    if type(value) is str:  # the common case
        return value or None
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    if value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    return value


def canonical_text(value: Any) -> str:
    """Return the text that stands for an id, the same whether it came as a number or as text.

    Text stands for itself, an integer for its decimal digits, a number with a fraction of zero for that integer,
    another number for its shortest decimal form, True and False for 1 and 0.

    Raises:
        TypeError: The value is neither text nor a number.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(value)
    raise TypeError(f"is a {type(value).__name__}; an id is text or a number")


def integer_of(value: Any) -> int | None:
    """Return the integer that a number or text stands for, or None when it stands for none.

    Text stands for an integer when it is decimal digits with or without a minus sign.
    """
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    if isinstance(value, str):
        digits = value[1:] if value[:1] == "-" else value
        # int() takes at most 4300 digits, and no id has 40.
        return int(value) if digits.isascii() and digits.isdigit() and len(digits) <= 40 else None
    return None


def plain_array(column: Any) -> "pa.Array[Any]":
    """Return a column as one plain Arrow array: chunks joined, dictionaries decoded; numpy arrays and lists taken."""
    array: pa.Array[Any] = column if isinstance(column, pa.Array) else _arrow_array(column)
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if isinstance(array, pa.DictionaryArray):
        array = array.dictionary_decode()
    return array


def _arrow_array(column: Any) -> "pa.Array[Any]":
    joined: Any = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else pa.array(column)
    return joined  # type: ignore[no-any-return]


def integers_of_text(texts: Any) -> "pa.Array[Any] | None":
    """Return an Arrow array of texts as int64 if every one is an integer by `integer_of`, else None.

    Args:
        texts: Array of string or large_string.
    """
    text_type = np.int64 if pa.types.is_large_string(texts.type) else np.int32
    _, offsets_buffer, characters_buffer = texts.buffers()
    if texts.null_count or characters_buffer is None:
        return None
    offsets = np.frombuffer(offsets_buffer, text_type)[texts.offset : texts.offset + len(texts) + 1]
    characters = np.frombuffer(characters_buffer, np.uint8)[offsets[0] : offsets[-1]]
    # Arrow's cast takes more than digits, for instance 0x10.
    if not ((characters - np.uint8(ord("0")) < 10) | (characters == ord("-"))).all():
        return None
    try:
        return texts.cast(pa.int64())  # type: ignore[no-any-return]
    except pa.ArrowInvalid:
        return None


def first_failure(length: int, fails: Callable[[int, int], bool]) -> int:
    """Return the position of the first value for which a check of a range fails, by bisection.

    Args:
        length: Number of values; checking all of them fails.
        fails: Whether the check of the values from a first to before a last position fails.
    """
    low, high = 0, length
    while high - low > 1:
        middle = (low + high) // 2
        if fails(low, middle):
            high = middle
        else:
            low = middle
    return low


def first_that_is_no_text(array: Any) -> int:
    """Return the position of the first value of an Arrow array of bytes, of which one is not UTF-8, that is not."""

    def fails(low: int, high: int) -> bool:
        try:
            array.slice(low, high - low).cast(pa.large_string())
        except pa.ArrowInvalid:
            return True
        return False

    return first_failure(len(array), fails)


def at_least_one(value: Any, what: str) -> int:
    """Return a number that counts something.

    Raises:
        UserError: It is no integer, or below 1.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{what} is {value!r:.80}; must be an integer from 1")
    return value
