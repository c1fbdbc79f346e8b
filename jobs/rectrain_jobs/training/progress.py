"""What rank 0 shows while training: a progress bar in a terminal, lines elsewhere, and progress.json for others."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

_LINE_SECONDS, _FILE_SECONDS = 10.0, 1.0


@dataclass(frozen=True)
class Snapshot:
    """Where training is.

    Attributes:
        step: Steps done.
        total_steps: Steps in all.
        epoch: Current epoch, from 0.
        epochs: Epochs in all.
        loss: Mean training loss since the last point, or None before the first.
        examples_per_second: Rows of all ranks in a second, over the last seconds.
        rows_per_step: Rows of all ranks in a step.
    """

    step: int
    total_steps: int
    epoch: int
    epochs: int
    loss: float | None
    examples_per_second: float
    rows_per_step: int


class ProgressDisplay:
    """Shows progress. Does nothing on ranks other than 0.

    Args:
        enabled: Whether this is rank 0.
        write: Called now and then with what progress.json holds.
    """

    def __init__(self, enabled: bool, write: Callable[[dict[str, Any]], None]) -> None:
        """Open the console."""
        self._enabled = enabled
        self._write = write
        self._console = Console(file=sys.stderr, highlight=False)
        self._bar: Progress | None = None
        self._task: Any = None
        self._last_line = self._last_file = 0.0

    def say(self, content: RenderableType) -> None:
        """Print a line or a table above the bar."""
        if self._enabled:
            (self._bar.console if self._bar else self._console).print(content, soft_wrap=isinstance(content, str))

    def start(self, snapshot: Snapshot) -> None:
        """Show the bar, in a terminal."""
        if self._enabled and self._console.is_terminal:
            self._bar = Progress(
                TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
                BarColumn(),
                TextColumn("step {task.completed}/{task.total}"),
                TextColumn("{task.fields[rate]:,.0f} examples/s"),
                TextColumn("loss {task.fields[loss]}"),
                TextColumn("{task.fields[left]} left"),
                console=self._console,
                transient=True,
            )
            self._task = self._bar.add_task("training", total=snapshot.total_steps, **_fields(snapshot))
            self._bar.start()

    def update(self, snapshot: Snapshot, *, now: bool = False) -> None:
        """Show a new state.

        Args:
            snapshot: Where training is.
            now: Also where nothing is due.
        """
        if not self._enabled:
            return
        clock = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, completed=snapshot.step, **_fields(snapshot))
        elif now or clock - self._last_line >= _LINE_SECONDS:
            self._last_line = clock
            fields = _fields(snapshot)
            self._console.print(
                f"epoch {fields['epoch']}/{snapshot.epochs}  step {snapshot.step}/{snapshot.total_steps}  "
                f"{fields['rate']:,.0f} examples/s  loss {fields['loss']}  {fields['left']} left",
                soft_wrap=True,
            )
        if now or clock - self._last_file >= _FILE_SECONDS:
            self._last_file = clock
            self._write(
                {
                    "step": snapshot.step,
                    "totalSteps": snapshot.total_steps,
                    "epoch": snapshot.epoch,
                    "examplesPerSecond": round(snapshot.examples_per_second, 1),
                    "loss": snapshot.loss,
                    "estimatedRemainingSeconds": _seconds_left(snapshot),
                    "lastUpdateTime": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                }
            )

    def stop(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def metrics_table(metrics: dict[str, float]) -> Table:
    """Return final metrics as a table."""
    table = Table(title="Metrics", title_justify="left")
    table.add_column("Metric")
    table.add_column("Value", justify="right")
    for name, value in metrics.items():
        table.add_row(name, f"{value:.5f}")
    return table


class Throughput:
    """Rows in a second over the last few seconds, so that a pause for evaluation is soon forgotten.

    Args:
        rows_per_step: Rows of all ranks in a step.
    """

    def __init__(self, rows_per_step: int) -> None:
        """Begin now."""
        self._rows = rows_per_step
        self.restart()

    def restart(self) -> None:
        """Forget the past, as after an evaluation."""
        self._since = time.monotonic()
        self._steps = 0
        self._rate = getattr(self, "_rate", 0.0)

    def step(self) -> None:
        """Count a step."""
        self._steps += 1
        passed = time.monotonic() - self._since
        if passed >= 2.0:
            self._rate = self._steps * self._rows / passed
            self._since, self._steps = time.monotonic(), 0

    @property
    def rate(self) -> float:
        """Rows in a second; 0 before anything was measured."""
        passed = time.monotonic() - self._since
        if self._rate == 0.0 and self._steps and passed > 0:
            return self._steps * self._rows / passed
        return self._rate


def _seconds_left(snapshot: Snapshot) -> int | None:
    if snapshot.examples_per_second <= 0 or snapshot.rows_per_step <= 0:
        return None
    return round((snapshot.total_steps - snapshot.step) * snapshot.rows_per_step / snapshot.examples_per_second)


def _fields(snapshot: Snapshot) -> dict[str, Any]:
    left = _seconds_left(snapshot)
    return {
        "epoch": min(snapshot.epoch + 1, snapshot.epochs),
        "epochs": snapshot.epochs,
        "rate": snapshot.examples_per_second,
        "loss": "-" if snapshot.loss is None else f"{snapshot.loss:.4f}",
        "left": "-" if left is None else f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}",
    }
