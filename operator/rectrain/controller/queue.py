"""The queue of jobs to look at: each at most once in it, each with one worker at most, some of them later."""

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Hashable
from typing import Generic, NamedTuple, TypeVar

K = TypeVar("K", bound=Hashable)

_FIRST_DELAY, _MAX_DELAY = 0.05, 60.0
"""Seconds between attempts after errors: the first, doubling, and the longest."""


_EVENTS_IN_A_ROW = 8
"""Keys with events that go before one whose time has come."""


class Item(NamedTuple, Generic[K]):
    """A key whose turn it is.

    Attributes:
        key: The key.
        is_due: Whether time brought it up, not only an event: what events have told may be out of date.
    """

    key: K
    is_due: bool


class WorkQueue(Generic[K]):
    """A deduplicating, delayed, rate-limited queue for asyncio; the semantics are those of client-go's workqueue.

    A key that is added while a worker has it comes again when the worker is done with it. Keys with events go before
    those that are looked at because their time has come: after many jobs were created at once their looks come at once
    too, and what happens meanwhile should not wait for them.
    """

    def __init__(self) -> None:
        """Begin empty."""
        self._told: deque[K] = deque()
        self._looks: deque[K] = deque()
        self._in_a_row = 0
        self._queued: dict[K, deque[K]] = {}
        self._working: set[K] = set()
        self._again: set[K] = set()
        self._due: set[K] = set()
        self._timers: list[tuple[float, int, K]] = []
        self._when: dict[K, float] = {}
        self._failures: dict[K, int] = {}
        self._numbers = itertools.count()
        self._wake = asyncio.Event()
        self._stopped = False

    def __len__(self) -> int:
        """Return the number of keys whose turn it is, without those that workers have or that wait for their time."""
        return len(self._queued)

    def add(self, key: K) -> None:
        """Have a key looked at."""
        if key in self._working:
            self._again.add(key)
        elif self._queued.get(key) is not self._told:
            self._put(key, self._told)

    def add_at(self, key: K, when: float) -> None:
        """Have a key looked at later; the earliest of several times counts.

        Args:
            key: The key.
            when: Time of the event loop, in seconds.
        """
        if self._when.get(key, float("inf")) <= when:
            return
        self._when[key] = when
        heapq.heappush(self._timers, (when, next(self._numbers), key))
        self._wake.set()

    def add_after(self, key: K, seconds: float) -> None:
        """Have a key looked at in so many seconds."""
        self.add_at(key, asyncio.get_running_loop().time() + seconds)

    def retry(self, key: K) -> float:
        """Have a key looked at again after an error, later with each error in a row; return in how many seconds."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        delay = min(_FIRST_DELAY * 2.0 ** min(failures, 30), _MAX_DELAY)
        self.add_after(key, delay)
        return delay

    def forget_failures(self, key: K) -> None:
        """Take a key's errors as over."""
        self._failures.pop(key, None)

    async def get(self) -> Item[K] | None:
        """Return the next key, with which `done` has to be called afterwards; None once the queue is stopped."""
        while not self._stopped:
            self._take_due()
            if self._queued:
                key = self._next()
                self._working.add(key)
                is_due = key in self._due
                self._due.discard(key)
                if self._queued:
                    self._wake.set()  # for the next worker
                return Item(key, is_due)
            self._wake.clear()
            loop = asyncio.get_running_loop()
            timer = loop.call_at(self._timers[0][0], self._wake.set) if self._timers else None
            try:
                await self._wake.wait()
            finally:
                if timer is not None:
                    timer.cancel()
        self._wake.set()  # for the next worker
        return None

    def stop(self) -> None:
        """Give no more keys out."""
        self._stopped = True
        self._wake.set()

    def done(self, key: K) -> None:
        """Give a key back."""
        self._working.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    def _take_due(self) -> None:
        now = asyncio.get_running_loop().time()
        while self._timers and self._timers[0][0] <= now:
            when, _, key = heapq.heappop(self._timers)
            if self._when.get(key) == when:  # else it was given an earlier time
                del self._when[key]
                self._due.add(key)
                if key in self._working:
                    self._again.add(key)
                elif key not in self._queued:
                    self._put(key, self._looks)

    def _put(self, key: K, line: deque[K]) -> None:
        """Have a key wait in a line; where it waited in the other one, it is passed over there."""
        self._queued[key] = line
        line.append(key)
        self._wake.set()

    def _next(self) -> K:
        """Take the key whose turn it is."""
        while True:
            looks = bool(self._looks) and (not self._told or self._in_a_row >= _EVENTS_IN_A_ROW)
            line = self._looks if looks else self._told
            key = line.popleft()
            if self._queued.get(key) is line:
                self._in_a_row = 0 if looks else self._in_a_row + 1
                del self._queued[key]
                return key
