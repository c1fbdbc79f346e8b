"""Batches of columns, prepared ahead by a background thread."""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from rectrain_jobs.data.mds.order import PADDING, Position


class _Source(Protocol):
    def gather(
        self, sample_ids: npt.NDArray[np.int64], columns: Sequence[str] | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        """Read samples by their numbers."""
        ...

    def fetching_ahead(self, sample_ids: npt.NDArray[np.int64]) -> AbstractContextManager[Callable[[int], None]]:
        """Prepare for the batches `[num_batches, batch_size]`, in order; is told which have been gathered."""
        ...


@dataclass(frozen=True)
class ColumnBatch:
    """One rank's batch.

    Attributes:
        columns: By name, `[batch_size, *shape]` of the column's dtype, or `[batch_size]` objects for a column whose
            values vary in size. Rows from `num_valid` on are padding: zero, or None.
        sample_ids: int64 `[batch_size]`, -1 for padding.
        num_valid: How many rows are samples; they come first.
        position: Where a run that stops after this batch continues.
    """

    columns: dict[str, npt.NDArray[Any]]
    sample_ids: npt.NDArray[np.int64]
    num_valid: int
    position: Position

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """Which rows are samples, bool `[batch_size]`."""
        return np.not_equal(self.sample_ids, PADDING)


class BatchReader:
    """The batches of one rank for one epoch, or the rest of one; as many on every rank.

    Iterating starts a thread that prepares batches ahead, and another that brings in shards if they are not local.
    Both end with the iteration, also when that is broken off, and what goes wrong in them is raised by the iteration.
    """

    def __init__(
        self,
        source: _Source,
        sample_ids: npt.NDArray[np.int64],
        start: Position,
        samples_read: npt.NDArray[np.int64],
        columns: Sequence[str] | None,
        prefetch: int,
    ) -> None:
        """Describe the batches.

        Args:
            source: Where the samples are gathered from.
            sample_ids: int64 `[num_batches, batch_size]`, -1 for padding.
            start: Position before the first batch.
            samples_read: `sample_in_epoch` before each batch and after the last, int64 `[num_batches + 1]`.
            columns: Names of the columns wanted; None means all.
            prefetch: Batches to prepare ahead; 0 means none, and no thread.
        """
        self.start = start
        self._source = source
        self._columns = columns
        self._prefetch = prefetch
        self._samples_read = samples_read
        # When a run continues on other numbers of nodes, padding can lie between the samples of the last batch.
        is_padding = sample_ids == PADDING
        if np.any(is_padding[:, :-1] & ~is_padding[:, 1:]):
            sample_ids = np.take_along_axis(sample_ids, np.argsort(is_padding, axis=1, kind="stable"), axis=1)
        self._sample_ids = sample_ids

    @property
    def sample_ids(self) -> npt.NDArray[np.int64]:
        """The ids of all batches, int64 `[num_batches, batch_size]`, -1 for padding."""
        return self._sample_ids

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self._sample_ids)

    def __iter__(self) -> Iterator[ColumnBatch]:
        """Read the batches from the first."""
        if self._prefetch < 1 or len(self) == 0:
            return map(self._read, range(len(self)))
        return self._read_ahead()

    def _read(self, number: int) -> ColumnBatch:
        ids = self._sample_ids[number]
        position = replace(self.start, sample_in_epoch=int(self._samples_read[number + 1]))
        return ColumnBatch(self._source.gather(ids, self._columns), ids, int((ids != PADDING).sum()), position)

    def _read_ahead(self) -> Iterator[ColumnBatch]:
        ready: queue.SimpleQueue[ColumnBatch | BaseException] = queue.SimpleQueue()
        room = threading.Semaphore(self._prefetch)
        stop = threading.Event()

        def work() -> None:
            try:
                with self._source.fetching_ahead(self._sample_ids) as tell_gathered:
                    for number in range(len(self)):
                        room.acquire()
                        if stop.is_set():
                            return
                        ready.put(self._read(number))
                        tell_gathered(number)
            except BaseException as error:  # raised again where the batches are consumed
                ready.put(error)

        thread = threading.Thread(target=work, name="mds-batches", daemon=True)
        thread.start()
        try:
            for _ in range(len(self)):
                batch = ready.get()
                if isinstance(batch, BaseException):
                    raise batch
                room.release()
                yield batch
        finally:
            stop.set()
            room.release()
            thread.join()
