"""Start a job's ranks as processes of this machine, and end as they end.

torchrun starts the ranks in a pod. On a laptop its agent would hide the ranks' exit codes behind its own and print its
own traceback over a user's error, so `rectrain run` starts the same entry point itself, with the same environment.
"""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rectrain_jobs.training import exit_codes

_GRACE_SECONDS, _STOP_SECONDS = 10.0, 120.0
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def run_ranks(arguments: Sequence[str], world_size: int) -> tuple[int, str]:
    """Run `python -m rectrain_jobs.training` on several ranks until all have ended.

    SIGTERM and SIGINT are passed on, so that the ranks save a checkpoint. When one rank fails, the others are ended.

    Args:
        arguments: Arguments of the entry point.
        world_size: Number of ranks.

    Returns:
        Exit code, and the reason that the failed rank gave, or an empty text.
    """
    with tempfile.TemporaryDirectory(prefix="rectrain-ranks-") as folder:
        reasons = [Path(folder) / f"rank-{rank}" for rank in range(world_size)]
        port = _free_port()
        ranks = [
            subprocess.Popen(
                [sys.executable, "-m", "rectrain_jobs.training", *arguments],
                env=_environment(rank, world_size, port, reasons[rank]),
                start_new_session=True,  # Ctrl-C reaches the ranks through this process alone
                preexec_fn=_end_with_parent,
            )
            for rank in range(world_size)
        ]
        with _passing_on_signals(ranks):
            code, failed = _wait(ranks)
        reason = reasons[failed].read_text() if failed is not None and reasons[failed].exists() else ""
        return code, reason


def _end_with_parent() -> None:
    """Have the kernel kill this rank when its launcher is killed: it must not write on beside the next run."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _environment(rank: int, world_size: int, port: int, reason: Path) -> dict[str, str]:
    threads = max(1, (os.cpu_count() or 1) // world_size)
    return {
        "OMP_NUM_THREADS": str(threads),
        "GLOO_SOCKET_IFNAME": "lo",  # a laptop's host name often resolves to nothing that can be reached
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RECTRAIN_TERMINATION_LOG": str(reason),
    }


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _wait(ranks: Sequence[subprocess.Popen[bytes]]) -> tuple[int, int | None]:
    """Wait for all ranks; return the exit code and the rank that failed first."""
    failed: int | None = None
    failed_at = 0.0
    while True:
        codes = [rank.poll() for rank in ranks]
        if failed is None:
            # A rank that gives a reason says more than one that only lost its peers, so those are looked at first.
            bad = sorted((c == exit_codes.FAILED or c < 0, r) for r, c in enumerate(codes) if c not in (None, 0))
            if bad:
                failed, failed_at = bad[0][1], time.monotonic()
        if all(code is not None for code in codes):
            break
        if failed is not None:
            grace = _STOP_SECONDS if codes[failed] == exit_codes.STOPPED else _GRACE_SECONDS
            if time.monotonic() - failed_at > grace:
                for rank in ranks:
                    if rank.poll() is None:
                        rank.kill()
        time.sleep(0.05)
    if failed is None:
        return exit_codes.SUCCEEDED, None
    final = [rank.returncode for rank in ranks]
    told = [r for r, code in enumerate(final) if code in (exit_codes.USER_ERROR, exit_codes.DIVERGED)]
    failed = told[0] if told else failed
    code = final[failed]
    return (code if code > 0 else exit_codes.ENDED_BY_SIGNAL - code), failed


@contextlib.contextmanager
def _passing_on_signals(ranks: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    def pass_on(*_: object) -> None:
        for rank in ranks:
            if rank.poll() is None:
                rank.send_signal(signal.SIGTERM)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
