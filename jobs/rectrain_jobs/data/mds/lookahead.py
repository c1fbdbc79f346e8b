"""Bringing shards into the cache before the batches that need them are due."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from rectrain.api.errors import UserError

# A shard usually serves dozens of batches, so this is about one new shard per path through the data.
MOST_BATCHES_AHEAD = 64


@contextmanager
def fetching_ahead(
    fetch: Callable[[int], None],
    shards_of: Callable[[int], Sequence[int]],
    num_batches: int,
    shard_bytes: Sequence[int],
    most_bytes: int | None,
) -> Iterator[Callable[[int], None]]:
    """Fetch the shards of coming batches in a background thread, which ends with the context.

    Errors end the thread quietly: whoever gathers the batch meets the same one, at the right place in the order.

    Args:
        fetch: Brings in the shard with a number.
        shards_of: Gives the numbers of the shards that a batch needs.
        num_batches: How many batches there are.
        shard_bytes: Size of each shard.
        most_bytes: Most bytes that the shards of the batches ahead may take together, or None.

    Yields:
        A function to be told each batch, in order, once it has been gathered.
    """
    changed = threading.Condition()
    gathered = -1
    stopped = False

    def work() -> None:
        needed_until: dict[int, int] = {}  # the last batch seen to need a shard, for the shards fetched

        def due(batch: int, shard: int) -> bool:
            if stopped or batch <= gathered + 1:
                return True
            for finished in [known for known, last in needed_until.items() if last <= gathered]:
                del needed_until[finished]
            size = sum(shard_bytes[known] for known in needed_until) + shard_bytes[shard]
            return batch - gathered <= MOST_BATCHES_AHEAD and (most_bytes is None or size <= most_bytes)

        for batch in range(num_batches):
            for shard in shards_of(batch):
                if shard not in needed_until:
                    with changed:
                        changed.wait_for(partial(due, batch, shard))
                        if stopped:
                            return
                    try:
                        fetch(shard)
                    except UserError:
                        return
                needed_until[shard] = batch

    def tell(batch: int) -> None:
        nonlocal gathered
        with changed:
            gathered = batch
            changed.notify()

    thread = threading.Thread(target=work, name="mds-shards", daemon=True)
    thread.start()
    try:
        yield tell
    finally:
        with changed:
            stopped = True
            changed.notify()
        thread.join()
