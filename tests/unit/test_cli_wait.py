"""`rectrain wait` in a terminal, as a user sees it."""

import fcntl
import os
import pty
import re
import struct
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from controller_objects import T0, document

from rectrain import RecTrainingJob
from rectrain.cli import wait as module
from rectrain.cli.main import cli
from rectrain.sdk import JobFailedError
from rectrain.sdk.stored import job_of

COLUMNS = 80
RESULTS = {"metrics": [{"name": "auc", "value": 0.75}], "modelUri": "s3://bucket/out/bundle"}


class Screen:
    """What a terminal of so many columns shows, and everything that it was sent."""

    def __init__(self) -> None:
        self.lines = [""]
        self.sent = ""
        self._column = 0

    def take(self, text: str) -> None:
        self.sent += text
        for part in re.findall(r"\x1b\[K|\x1b\[[0-9;]*m|.", text, re.DOTALL):
            if part.endswith("m") and len(part) > 1:  # a colour
                continue
            if part == "\x1b[K":
                self.lines[-1] = self.lines[-1][: self._column]
            elif part == "\r":
                self._column = 0
            elif part == "\n":
                self.lines.append("")
            else:
                if self._column == COLUMNS:
                    self.lines.append("")
                    self._column = 0
                line = self.lines[-1]
                self.lines[-1] = line[: self._column] + part + line[self._column + 1 :]
                self._column += 1


class Terminal:
    """A pseudo-terminal as standard error and output, and what is on its screen."""

    def __init__(self) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
        self.stream = os.fdopen(slave, "w")
        self.screen = Screen()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        data = b""
        while True:
            try:
                piece = os.read(self._master, 4096)
            except OSError:  # the other end is closed
                break
            data += piece
        self.screen.take(data.decode())

    def close(self) -> None:
        if not self.stream.closed:
            self.stream.close()
            self._reader.join(30)
            os.close(self._master)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    terminal.close()


def job(state: str, *, says: str = "", step: int | None = None, **status: Any) -> RecTrainingJob:
    """Return a job as a cluster has it, its workers at a step of 1,000."""
    time = T0.isoformat()
    condition = {"type": "Running", "status": "False", "reason": "R", "message": says, "lastTransitionTime": time}
    done = {} if state != "Succeeded" else {**condition, "type": "Succeeded", "status": "True"}
    running = {**condition, "status": "True"} if state == "Running" else condition
    status |= {"state": state, "conditions": [running, *([done] if done else [])]}
    if step is not None:
        speed = {"examplesPerSecond": 5000, "loss": 0.5, "estimatedRemainingSeconds": 90}
        status["progress"] = {"step": step, "totalSteps": 1000, "epoch": 0, "lastUpdateTime": time, **speed}
    return job_of({**document(), "status": status})


class Client:
    """Stands for a client whose job goes through these states; then it has ended so."""

    def __init__(self, states: list[RecTrainingJob], end: RecTrainingJob | Exception) -> None:
        self._states, self._end = states, end

    def wait(self, name: str, *, on_progress: Callable[[RecTrainingJob], None], **_: Any) -> RecTrainingJob:
        assert name == "clicks"
        for state in self._states:
            on_progress(state)
        if isinstance(self._end, Exception):
            raise self._end
        return self._end


def shown(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, states: list[RecTrainingJob], end: Any
) -> tuple[int, Screen]:
    """Run the command, and return its exit code and the screen."""
    monkeypatch.setattr(module, "client_of", lambda *_: Client(states, end))
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, terminal.stream)
    with pytest.raises(SystemExit) as ended:
        cli.main(["wait", "clicks"])
    terminal.close()
    return int(str(ended.value.code)), terminal.screen


def test_a_terminal_has_one_line_that_changes_then_the_results(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = [job("Pending", says="the worker pods are being created"), job("Running", step=3), job("Running", step=4)]
    code, screen = shown(terminal, monkeypatch, states, job("Succeeded", results=RESULTS))
    assert code == 0
    assert [line.rstrip() for line in screen.lines] == [
        "Running  step 4/1,000 (0%)  5,000 examples/s  loss 0.5000  90s left",
        f"{'auc':<20} 0.75000",
        f"{'Model':<20} s3://bucket/out/bundle",
        "",
    ]
    for seen in ("Pending  the worker pods are being created", "step 3/1,000 (0%)"):
        assert seen in screen.sent


@pytest.mark.parametrize(
    "says",
    [
        "0/3 nodes are available: " + "3 Insufficient nvidia.com/gpu, " * 9,
        "first\nsecond\r\nthird",
        "\x1b[2J\x1b[1A gone",
    ],
    ids=["longer than the terminal is wide", "of several lines", "with codes that move the cursor"],
)
def test_whatever_a_condition_says_nothing_of_it_stays(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, says: str
) -> None:
    states = [job("Pending", says=says), job("Pending", says="short")]
    _, screen = shown(terminal, monkeypatch, states, job("Succeeded", results=RESULTS))
    assert screen.lines[0] == "Pending  short"
    assert set(re.findall(r"\x1b.{2}", screen.sent)) == {"\x1b[K"}


def test_an_error_has_a_line_of_its_own(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    code, screen = shown(terminal, monkeypatch, [job("Running", step=3)], JobFailedError("it failed", "WorkerFailed"))
    assert code == module.FAILED_EXIT_CODE
    assert screen.lines[1:] == ["error: it failed", ""]
    assert screen.lines[0].startswith("Running  step 3/1,000")
