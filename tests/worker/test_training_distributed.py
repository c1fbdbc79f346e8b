"""Agreements between ranks."""

import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from launch import run_on_ranks

from rectrain_jobs.training.distributed import Ranks


def ranks_that_give_up_after(seconds: float) -> Ranks:
    rank, world_size = dist.get_rank(), dist.get_world_size()
    control = dist.new_group(backend="gloo", timeout=timedelta(seconds=seconds))
    return Ranks(rank, world_size, rank, world_size, torch.device("cpu"), control)


def wait_for_a_slow_first_rank(patiently: bool) -> str | None:
    ranks = ranks_that_give_up_after(1)
    group = ranks.patience() if patiently else ranks
    if ranks.is_first:
        time.sleep(3)  # longer than ranks wait for each other otherwise
    return group.broadcast("done" if ranks.is_first else None)


def test_ranks_wait_for_what_the_first_does_alone_for_longer_than_for_each_other() -> None:
    assert run_on_ranks(wait_for_a_slow_first_rank, 2, True) == ["done", "done"]
    with pytest.raises(AssertionError, match=r"[Tt]imed out"):
        run_on_ranks(wait_for_a_slow_first_rank, 2, False)
