"""The values that a column's ids were learnt from."""

from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from rectrain_jobs.pipeline.values import canonical_text, integer_of, python_value


class Vocabulary:
    """The values learnt for one embedding table, by falling frequency; shared by the features of the table.

    Attributes:
        name: Name of the feature that owns it; the file that keeps it is named after it.
        limit: The most values that are kept.
        min_count: Values seen fewer times are left out.
        values: Canonical texts in the order of their rows.
        counts: How often each was seen in the training data.
    """

    def __init__(self, name: str, limit: int, min_count: int = 1) -> None:
        """Describe a vocabulary that has not learnt yet."""
        self.name = name
        self.limit = limit
        self.min_count = min_count
        self.values: list[str] = []
        self.counts: list[int] = []
        self.rows: dict[str, int] = {}
        self._seen: dict[str, int] = {}

    def count(self, values: Iterable[tuple[Any, int]]) -> None:
        """Add to the number of times that values were seen; missing values do not count."""
        seen = self._seen
        for value, times in values:
            value = python_value(value)
            if value is not None:
                text = canonical_text(value)
                seen[text] = seen.get(text, 0) + times

    @property
    def counting(self) -> bool:
        """Whether values were counted since it was last settled."""
        return bool(self._seen)

    def settle(self) -> None:
        """Keep the most frequent values; of equally frequent ones the smaller, numbers (if all are) by value."""
        numbers = all(_is_integer_text(text) for text in self._seen)
        kept = [item for item in self._seen.items() if item[1] >= self.min_count]
        kept.sort(key=(lambda item: (-item[1], int(item[0]))) if numbers else (lambda item: (-item[1], item[0])))
        del kept[self.limit :]
        self.restore([text for text, _ in kept], [times for _, times in kept])
        self._seen = {}

    def restore(self, values: list[str], counts: list[int]) -> None:
        """Set what was learnt."""
        self.values, self.counts = values, counts
        self.rows = {text: row for row, text in enumerate(values)}

    def to_table(self) -> pa.Table:
        """Return what was learnt: the columns value and count, in the order of the rows."""
        return pa.table({"value": pa.array(self.values, pa.string()), "count": pa.array(self.counts, pa.int64())})

    def restore_table(self, table: pa.Table) -> None:
        """Set what was learnt to the content of a table that `to_table` gave."""
        columns: Any = table
        self.restore(columns.column("value").to_pylist(), columns.column("count").to_pylist())


def _is_integer_text(text: str) -> bool:
    number = integer_of(text)
    return number is not None and str(number) == text
