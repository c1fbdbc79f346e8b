"""The process group: who this rank is, its device, and small agreements between ranks."""

import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import psutil
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from rectrain.api.errors import UserError

_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


_PATIENCE = timedelta(hours=12)
"""A large bundle is sent to MLflow, and many items are put into an index, by rank 0 while the others wait."""


@dataclass(frozen=True)
class Ranks:
    """Where this process stands among the others.

    Attributes:
        rank: Number of this process, from 0.
        world_size: Number of processes.
        local_rank: Number of this process on this machine, from 0.
        local_world_size: Number of processes on this machine.
        device: What this process computes on.
        control: A gloo group for agreements on the CPU, whatever the device.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    device: torch.device
    control: dist.ProcessGroup

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which prints, tracks and publishes."""
        return self.rank == 0

    @property
    def num_nodes(self) -> int:
        """Number of machines."""
        return max(1, self.world_size // self.local_world_size)

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank. All ranks call it."""
        return self.begin_any(flag).result()

    def begin_any(self, flag: bool) -> "AnyRank":
        """Begin to find out whether the flag is set on any rank. All ranks call it."""
        value = torch.tensor([flag], dtype=torch.int32)
        return AnyRank(value, dist.all_reduce(value, dist.ReduceOp.MAX, group=self.control, async_op=True))

    def barrier(self) -> None:
        """Wait for every rank."""
        dist.barrier(group=self.control)

    def broadcast(self, value: str | None) -> str | None:
        """Return rank 0's text on every rank."""
        return _broadcast(value, self.control)

    def patience(self) -> "Patience":
        """Return a way to wait for what rank 0 does alone, however long that takes. All ranks call it beforehand."""
        return Patience(dist.new_group(backend="gloo", timeout=_PATIENCE))


@dataclass(frozen=True)
class Patience:
    """A group whose ranks wait for rank 0 for longer than they do in training; that it has died they see at once."""

    _group: dist.ProcessGroup

    def broadcast(self, value: str | None) -> str | None:
        """Return rank 0's text on every rank."""
        return _broadcast(value, self._group)


def _broadcast(value: str | None, group: dist.ProcessGroup) -> str | None:
    box = [value]
    dist.broadcast_object_list(box, src=0, group=group)
    return box[0]


@dataclass(frozen=True)
class AnyRank:
    """Whether a flag is set on any rank, which is being found out."""

    _value: torch.Tensor
    _work: dist.Work

    def result(self) -> bool:
        """Wait for it and return it; the same on every rank."""
        self._work.wait()
        return bool(self._value.item())


def join_ranks(timeout: timedelta = timedelta(minutes=10)) -> Ranks:
    """Join the process group that torchrun's environment variables describe; alone without them.

    CUDA devices use nccl, CPUs gloo.

    Raises:
        UserError: There are fewer GPUs than processes on this machine.
    """
    os.environ.setdefault("RANK", "0")
    os.environ.setdefault("WORLD_SIZE", "1")
    os.environ.setdefault("LOCAL_RANK", "0")
    os.environ.setdefault("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"])
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    local_rank, local_world_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if torch.cuda.is_available():
        if local_world_size > torch.cuda.device_count():
            raise UserError(
                f"workers.processesPerReplica: {local_world_size} processes on a machine with "
                f"{torch.cuda.device_count()} GPUs; must be at most one process for each GPU"
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    if "MASTER_PORT" not in os.environ:  # a process alone needs no agreed port
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo", store=HashStore(), rank=0, world_size=1, timeout=timeout
        )
    else:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timeout)
    return Ranks(
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        local_rank=local_rank,
        local_world_size=local_world_size,
        device=device,
        control=dist.new_group(backend="gloo", timeout=timeout),
    )


def host_memory_bytes() -> int:
    """Return the memory that this machine or container may use."""
    total = int(psutil.virtual_memory().total)
    for path in _CGROUP_LIMITS:
        try:
            limit = path.read_text().strip()
        except OSError:
            continue
        if limit.isdigit():
            total = min(total, int(limit))
    return total
