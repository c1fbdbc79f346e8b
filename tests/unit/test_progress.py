"""What people see of a conversion and of a training: a bar in a terminal, lines elsewhere."""

import io
import json
import re
from functools import partial

import pytest
from rich.console import Console

from rectrain_jobs.cli.data import conversion_progress
from rectrain_jobs.training import progress
from rectrain_jobs.training.progress import ProgressDisplay, Snapshot

SNAPSHOT = Snapshot(
    step=30, total_steps=100, epoch=1, epochs=4, loss=0.25, examples_per_second=2000.0, rows_per_step=400
)


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """A terminal, as far as rich can tell."""
    written = io.StringIO()
    terminal = partial(Console, file=written, force_terminal=True, width=160)
    monkeypatch.setattr("rich.console.Console", lambda **_: terminal())
    monkeypatch.setattr(progress, "Console", lambda **_: terminal())
    return written


def seen(screen: io.StringIO) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())


def test_a_terminal_has_a_bar_with_epoch_step_rate_loss_and_time_left(screen: io.StringIO) -> None:
    display = ProgressDisplay(True, lambda _: None)
    display.start(SNAPSHOT)
    display.update(SNAPSHOT)
    display.say("evaluating")
    display.stop()
    for part in ("epoch 2/4", "step 30/100", "2,000 examples/s", "loss 0.2500", "0:00:14 left", "evaluating"):
        assert part in seen(screen)


def test_elsewhere_there_are_lines_and_others_read_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    told: list[dict] = []
    display = ProgressDisplay(True, told.append)
    display.start(SNAPSHOT)
    display.update(SNAPSHOT)
    display.stop()
    expected = "epoch 2/4  step 30/100  2,000 examples/s  loss 0.2500  0:00:14 left\n"
    assert capsys.readouterr().err == expected
    assert {**told[0], "lastUpdateTime": ""} == {
        "step": 30,
        "totalSteps": 100,
        "epoch": 1,
        "examplesPerSecond": 2000.0,
        "loss": 0.25,
        "estimatedRemainingSeconds": 14,
        "lastUpdateTime": "",
    }
    json.dumps(told)


def test_before_the_first_point_nothing_is_made_up(capsys: pytest.CaptureFixture[str]) -> None:
    display = ProgressDisplay(True, lambda _: None)
    display.update(Snapshot(0, 100, 0, 4, None, 0.0, 400))
    assert capsys.readouterr().err == "epoch 1/4  step 0/100  0 examples/s  loss -  - left\n"


def test_ranks_other_than_the_first_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    display = ProgressDisplay(False, pytest.fail)
    display.start(SNAPSHOT)
    display.update(SNAPSHOT, now=True)
    display.say("evaluating")
    display.stop()
    assert capsys.readouterr().err == ""


def test_a_conversion_shows_the_rows_of_each_stage(screen: io.StringIO) -> None:
    with conversion_progress() as bars:
        bars.say("Converting.")
        bars.advance("fit", 1000)
        bars.advance("train", 1500)
        bars.advance("train", 500)
    for part in ("Converting.", "fit", "1,000 rows", "train", "2,000 rows"):
        assert part in seen(screen)
