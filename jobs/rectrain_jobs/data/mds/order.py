"""Which samples each rank reads, and when: StreamingDataset's order for training, a plain pass for evaluation."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from rectrain.api.errors import UserError
from rectrain_jobs.data.mds.upstream import streaming_module

PADDING = -1
PARTITION_ALGORITHM = "relaxed"
SHUFFLE_ALGORITHMS = ("naive", "py1br", "py1e", "py1s", "py2s")
# These two split the epoch into many short paths, one per canonical node, and so want more of them.
_FINE_ALGORITHMS = ("py1s", "py2s")


@dataclass(frozen=True)
class World:
    """The processes that share an epoch, and which of them this is.

    Attributes:
        num_nodes: Number of machines (or pods).
        ranks_per_node: Processes on each.
        rank: This process, 0 to `num_ranks` - 1, numbered node by node.
    """

    num_nodes: int = 1
    ranks_per_node: int = 1
    rank: int = 0

    @property
    def num_ranks(self) -> int:
        """Number of processes."""
        return self.num_nodes * self.ranks_per_node


@dataclass(frozen=True)
class Order:
    """How an epoch is shuffled; the defaults are StreamingDataset's, but for `shuffle`, which is on.

    Attributes:
        shuffle: Whether to shuffle at all.
        algorithm: Name of the streaming library's shuffle.
        seed: Seed of the run; the epoch is added to it.
        block_size: Samples in a unit of the shuffle; None means `max(4_000_000 // canonical nodes, 1 << 18)`.
        num_canonical_nodes: Number of equal parts the samples are divided into before they are dealt to the nodes;
            None means the number of nodes of the first run (64 times as many for py1s and py2s).
    """

    shuffle: bool = True
    algorithm: str = "py1e"
    seed: int = 9176
    block_size: int | None = None
    num_canonical_nodes: int | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        if self.algorithm not in SHUFFLE_ALGORITHMS:
            raise UserError(f"shuffle algorithm {self.algorithm!r} is unknown; use {', '.join(SHUFFLE_ALGORITHMS)}")
        if self.seed < 0:
            raise UserError(f"shuffle seed {self.seed} is negative; use 0 or more")


@dataclass(frozen=True)
class Position:
    """Where training stands in its data; with the same fields as StreamingDataset's state.

    Attributes:
        epoch: Epoch, from 0.
        sample_in_epoch: Samples of this epoch that all ranks together have read, repeated ones included.
        shuffle_seed: Seed of the run; None until it is settled by the first epoch.
        num_canonical_nodes: Canonical nodes of the run; None likewise.
        initial_physical_nodes: Number of nodes that the run began with; None likewise.
    """

    epoch: int = 0
    sample_in_epoch: int = 0
    shuffle_seed: int | None = None
    num_canonical_nodes: int | None = None
    initial_physical_nodes: int | None = None

    def state_dict(self) -> dict[str, int | None]:
        """Return the fields under StreamingDataset's names, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> "Position":
        """Read what `state_dict` of this class or of StreamingDataset wrote.

        Raises:
            UserError: `epoch` or `sample_in_epoch` is missing or negative.
        """
        for name in ("epoch", "sample_in_epoch"):
            if not isinstance(state.get(name), int) or state[name] < 0:
                raise UserError(f"data position: {name} is {state.get(name)!r}; expected an integer of 0 or more")
        return cls(
            epoch=state["epoch"],
            sample_in_epoch=state["sample_in_epoch"],
            shuffle_seed=state.get("shuffle_seed"),
            num_canonical_nodes=state.get("num_canonical_nodes"),
            initial_physical_nodes=state.get("initial_physical_nodes"),
        )

    def settled(self, order: Order, world: World) -> "Position":
        """Fill in what the first epoch settles for the whole run: seed, canonical nodes, number of nodes."""
        nodes_per_world = 64 if order.algorithm in _FINE_ALGORITHMS else 1
        default_nodes = order.num_canonical_nodes or nodes_per_world * world.num_nodes
        return replace(
            self,
            shuffle_seed=order.seed if self.shuffle_seed is None else self.shuffle_seed,
            num_canonical_nodes=self.num_canonical_nodes or default_nodes,
            initial_physical_nodes=self.initial_physical_nodes or world.num_nodes,
        )

    def next_epoch(self) -> "Position":
        """Return the beginning of the next epoch."""
        return replace(self, epoch=self.epoch + 1, sample_in_epoch=0)


def training_order(
    samples_per_shard: npt.NDArray[np.int64], batch_size: int, world: World, order: Order, position: Position
) -> npt.NDArray[np.int64]:
    """Compute the rest of an epoch for all ranks: what StreamingDataset with one stream would read.

    This is `generate_work` of mosaicml-streaming (batching method "random", one stream that is neither up- nor
    down-sampled, no DataLoader workers), made of the same two functions: samples are partitioned over the canonical
    nodes, nodes and ranks, and their numbers are then replaced by shuffled ones. The last samples are repeated where
    the samples do not divide evenly, so that every rank has as many.

    Args:
        samples_per_shard: int64 `[num_shards]`.
        batch_size: Samples in a batch of one rank.
        world: The processes.
        order: How to shuffle.
        position: Where to begin; settled, see `Position.settled`.

    Returns:
        Sample ids, int64 `[num_ranks, num_batches, batch_size]`; -1 pads the last batch.

    Raises:
        UserError: The position is past the end, or the nodes or the global batch do not divide as they must.
    """
    if batch_size < 1:
        raise UserError(f"batch size {batch_size} is not positive")
    num_samples = int(samples_per_shard.sum())
    canonical_nodes = position.num_canonical_nodes
    assert canonical_nodes is not None and position.shuffle_seed is not None
    try:
        ids = streaming_module("partition").get_partitions(
            PARTITION_ALGORITHM,
            num_samples,
            canonical_nodes,
            world.num_nodes,
            world.ranks_per_node,
            1,
            batch_size,
            position.sample_in_epoch,
            position.initial_physical_nodes,
        )
    except ValueError as error:
        message = " ".join(str(error).split())
        raise UserError(
            f"data order over {world.num_nodes} nodes of {world.ranks_per_node} ranks: {message}"
        ) from error
    ids = ids.reshape(world.num_ranks, -1, batch_size)
    if order.shuffle and ids.size:
        block_size = order.block_size or max(4_000_000 // canonical_nodes, 1 << 18)
        try:
            shuffled = streaming_module("shuffle").get_shuffle(
                order.algorithm,
                samples_per_shard[samples_per_shard > 0],
                canonical_nodes,
                position.shuffle_seed,
                position.epoch,
                block_size,
            )
        except ValueError as error:
            raise UserError(
                f"shuffling {num_samples} samples over {canonical_nodes} canonical nodes: {error}"
            ) from error
        ids = np.where(ids == PADDING, PADDING, shuffled[ids])
    return np.ascontiguousarray(ids, np.int64)


def evaluation_order(num_samples: int, batch_size: int, world: World) -> npt.NDArray[np.int64]:
    """Return this rank's part of one pass in which every sample is read exactly once, in order.

    Batch b of all ranks together holds the samples from `b * num_ranks * batch_size`, each rank a run of them.

    Args:
        num_samples: Samples in the dataset.
        batch_size: Samples in a batch of one rank.
        world: The processes.

    Returns:
        Sample ids, int64 `[num_batches, batch_size]`, as many batches on every rank; -1 pads the last ones.
    """
    if batch_size < 1:
        raise UserError(f"batch size {batch_size} is not positive")
    global_batch = batch_size * world.num_ranks
    num_batches = -(-num_samples // global_batch)
    first = np.arange(num_batches, dtype=np.int64)[:, None] * global_batch + world.rank * batch_size
    ids = first + np.arange(batch_size, dtype=np.int64)
    ids[ids >= num_samples] = PADDING
    return ids
