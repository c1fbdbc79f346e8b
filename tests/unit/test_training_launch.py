"""Ranks as processes: their exit codes and reasons, and what becomes of the others."""

import os
import signal
import stat
import sys
import threading
from pathlib import Path

import pytest

from rectrain_jobs.training import launch
from rectrain_jobs.training.launch import run_ranks

PREAMBLE = """#!{python}
import os, signal, sys, time
from pathlib import Path
rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
def end(code, reason=""):
    if reason:
        Path(os.environ["RECTRAIN_TERMINATION_LOG"]).write_text(reason)
    os._exit(code)
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a script in the place of the trainer on so many ranks; arguments are those of the entry point."""

    def start(script: str, ranks: int = 2, arguments=("--job", "x")) -> tuple[int, str]:
        program = tmp_path / "rank"
        program.write_text(PREAMBLE.format(python=sys.executable) + script)
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(launch.sys, "executable", str(program))
        return run_ranks(arguments, ranks)

    return start


def test_each_rank_is_told_who_it_is(run, tmp_path):
    script = f"""
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
Path({str(tmp_path)!r}, f"rank-{{rank}}").write_text(" ".join([*(os.environ[n] for n in names), *sys.argv[1:]]))
Path({str(tmp_path)!r}, f"port-{{rank}}").write_text(os.environ["MASTER_PORT"])
"""
    assert run(script, 3) == (0, "")
    for rank in range(3):
        said = (tmp_path / f"rank-{rank}").read_text()
        assert said == f"{rank} {rank} 3 3 127.0.0.1 -m rectrain_jobs.training --job x"
    assert len({(tmp_path / f"port-{rank}").read_text() for rank in range(3)}) == 1


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ('end(2, "spec.x: is wrong")', (2, "spec.x: is wrong")),
        ('end(4, "the loss is not finite") if rank == 1 else end(1, "lost its peer")', (4, "the loss is not finite")),
        ('end(2, "spec.x: is wrong") if rank == 0 else end(1, "lost its peer")', (2, "spec.x: is wrong")),
        ('end(1, "Traceback") if rank == 1 else end(0)', (1, "Traceback")),
        ("os.kill(os.getpid(), signal.SIGKILL) if rank == 0 else end(0)", (137, "")),
    ],
    ids=["all", "the one that diverged", "the one that says why", "a defect", "killed"],
)
def test_the_run_ends_as_the_rank_that_says_most(run, script, expected):
    assert run(script) == expected


def test_a_rank_that_waits_for_a_failed_one_is_ended(run, monkeypatch):
    monkeypatch.setattr(launch, "_GRACE_SECONDS", 0.1)
    assert run('end(1, "Traceback") if rank == 1 else signal.pause()') == (1, "Traceback")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_passed_on_as_sigterm_and_handlers_put_back(run, tmp_path, number):
    ready = tmp_path / "ready"
    os.mkfifo(ready)
    script = f"""
signal.signal(signal.SIGTERM, lambda *_: end(143, "stopped by SIGTERM"))
Path({str(ready)!r}).open("w").write("x")
while True:
    signal.pause()
"""

    def when_ready() -> None:
        said = ""
        while len(said) < 2:
            said += Path(ready).read_text()
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    sender = threading.Thread(target=when_ready)
    sender.start()
    assert run(script) == (143, "stopped by SIGTERM")
    sender.join()
    assert signal.getsignal(number) is before
