"""Negatives drawn by popularity: a log-uniform distribution over the ranks of the items by frequency."""

import numpy as np
import numpy.typing as npt


class LogUniformSampler:
    """Draws distinct items; the more frequent an item is in the training data, the more often.

    The item of rank r (from 0, by falling frequency, equal ones by id) has probability log((r + 2) / (r + 1)) /
    log(items + 1) in each draw: Zipf's law, about. Repeats are drawn again. Both are those of TensorFlow's
    log_uniform_candidate_sampler with unique=True, which takes ids for ranks; here the ranks come from the data, so ids
    may have any order.

    Attributes:
        num_items: Number of items that can be drawn: those of the training data.
        log_q: float64 [rows of the item table]: log of the expected number of times (at most 1) that a row is among
            the items of a step. A row that is never drawn has the value of the rarest item.
    """

    def __init__(self, counts: npt.NDArray[np.int64], num_ids: int, draws: int) -> None:
        """Rank the items.

        Args:
            counts: [rows of the item table] how often each is in the training data.
            num_ids: Only rows below are items; those after stand for unknown and missing ones.
            draws: Items wanted for a step; where there are no more, every step has all of them.
        """
        by_frequency = np.argsort(-counts[:num_ids], kind="stable")
        self._items = by_frequency[: max(1, int((counts[:num_ids] > 0).sum()))]
        self.num_items = len(self._items)
        self.draws = min(draws, self.num_items)
        ranks = np.arange(self.num_items)
        probabilities = np.log((ranks + 2) / (ranks + 1)) / np.log(self.num_items + 1)
        if self.draws < self.num_items:
            self._tries = _tries(probabilities, self.draws)
            expected = _expected(probabilities, self._tries)
        else:
            expected = np.ones(self.num_items)
        self.log_q = np.full(len(counts), np.log(expected[-1]))
        self.log_q[self._items] = np.log(expected)

    def draw(self, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """Return distinct items, int64 [draws]."""
        if self.draws == self.num_items:
            return self._items
        drawn = np.empty(0, np.int64)
        block = int(1.1 * self._tries) + 16
        while True:
            ranks = np.exp(rng.random(block) * np.log(self.num_items + 1)).astype(np.int64) - 1
            drawn = np.concatenate([drawn, ranks.clip(0, self.num_items - 1)])
            distinct, first = np.unique(drawn, return_index=True)
            if len(distinct) >= self.draws:
                found: npt.NDArray[np.int64] = self._items[drawn[np.sort(first)[: self.draws]]]
                return found


def _expected(probabilities: npt.NDArray[np.float64], tries: float) -> npt.NDArray[np.float64]:
    """Return the probability that each item is drawn at least once in so many tries."""
    expected: npt.NDArray[np.float64] = -np.expm1(tries * np.log1p(-probabilities))
    return expected


def _tries(probabilities: npt.NDArray[np.float64], draws: int) -> float:
    """Return the number of tries after which as many distinct items as wanted are expected, by bisection."""
    low = high = float(draws)
    while _expected(probabilities, high).sum() < draws:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _expected(probabilities, middle).sum() < draws else (low, middle)
    return high
