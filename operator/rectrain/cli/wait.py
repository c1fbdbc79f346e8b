"""`rectrain wait`: a job's progress until it has ended."""

import os
import re
import sys
from typing import TYPE_CHECKING, Any

import click

from rectrain.api.job import RecTrainingJob
from rectrain.api.status import State
from rectrain.cli.cluster import JOB_NAME, SECONDS, client_of, cluster_options, duration
from rectrain.cli.errors import print_error

if TYPE_CHECKING:
    from rectrain.sdk import Client

FAILED_EXIT_CODE, TIMEOUT_EXIT_CODE = 3, 124

_EPILOG = """\b
Examples:
  rectrain wait amazon-cds
  rectrain wait amazon-cds --timeout 2h

\b
Exit codes: 0 the job has succeeded; 3 it failed; 124 the time was over; 2 there is no such job or cluster.
"""


class _Duration(click.ParamType[float]):
    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", str(value))
        if match is None:
            self.fail(f"{value!r} is no length of time such as 90s, 30m or 2h", param, ctx)
        return float(match[1]) * SECONDS[match[2] or "s"]


@click.command(epilog=_EPILOG)
@click.argument("name", type=JOB_NAME)
@click.option("--timeout", type=_Duration(), metavar="TIME", help="Wait no longer, such as 30m. Default: for ever.")
@cluster_options
@click.pass_context
def wait(
    ctx: click.Context,
    name: str,
    timeout: float | None,
    namespace: str | None,
    context: str | None,
    kubeconfig: str | None,
) -> None:
    """Show a job's progress until it has ended, then its metrics."""
    ctx.exit(wait_for(client_of(namespace, context, kubeconfig), name, namespace=None, timeout=timeout))


def wait_for(client: "Client", name: str, *, namespace: str | None, timeout: float | None) -> int:
    """Wait for a job, with its progress on stderr and its results on stdout; return the exit code."""
    from rectrain.sdk import JobFailedError, WaitTimeoutError

    try:
        with _Display() as display:
            job = client.wait(name, namespace=namespace, timeout=timeout, on_progress=display.show)
    except JobFailedError as error:
        print_error(str(error))
        return FAILED_EXIT_CODE
    except WaitTimeoutError as error:
        print_error(str(error))
        return TIMEOUT_EXIT_CODE
    for line in results_of(job):
        click.echo(line)
    return 0


def summary_of(job: RecTrainingJob) -> str:
    """Return in a line how far a job is."""
    status = job.status
    if status is None:
        return str(State.PENDING)
    state = job.state
    parts = [str(state)]
    if state in (State.PENDING, State.SUSPENDED, State.RESTARTING):
        parts += [c.message for c in status.conditions if c.type == "Running" and c.message][:1]
    progress = status.progress
    if progress is not None:
        parts.append(f"step {progress.step:,}/{progress.total_steps:,} ({progress.completed})")
        parts.append(f"{progress.examples_per_second:,.0f} examples/s")
        if progress.loss is not None:
            parts.append(f"loss {progress.loss:.4f}")
        if progress.estimated_remaining_seconds is not None and state is State.RUNNING:
            parts.append(f"{duration(progress.estimated_remaining_seconds)} left")
    if status.restarts:
        parts.append(f"{status.restarts} restarts")
    return "  ".join(parts)


def results_of(job: RecTrainingJob) -> list[str]:
    """Return what a job has given, a line for each."""
    results = job.status.results if job.status is not None else None
    if results is None:
        return ["the workers left no results"]
    lines = [f"{metric.name:<20} {metric.value:.5f}" for metric in results.metrics]
    for label, value in (
        ("MLflow run", results.mlflow_run_id),
        ("Model", results.model_uri),
        ("Checkpoint", results.checkpoint_uri),
        ("Index", results.index_name),
    ):
        if value is not None:
            lines.append(f"{label:<20} {value}")
    return lines


class _Display:
    """The progress on stderr: one line that changes in a terminal, elsewhere a line when the state or 10% are new."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._told: object = None

    def __enter__(self) -> "_Display":
        return self

    def __exit__(self, *_: object) -> None:
        if self._live and self._told is not None:
            click.echo(err=True)

    def show(self, job: RecTrainingJob) -> None:
        """Show how far the job is."""
        line = summary_of(job)
        if self._live:
            click.echo(f"\r\x1b[K{_fitted(line)}", err=True, nl=False)
            self._told = line
            return
        progress = job.status.progress if job.status is not None else None
        tenth = None if progress is None else 10 * progress.step // max(1, progress.total_steps)
        if (job.state, tenth) != self._told:
            self._told = (job.state, tenth)
            click.echo(line, err=True)


def _fitted(line: str) -> str:
    """Return what of a line fits in one of the terminal, without what moves its cursor: only so is it replaced."""
    shown = "".join(character if character.isprintable() else " " for character in line)
    columns = os.get_terminal_size(sys.stderr.fileno()).columns
    return shown if not 0 < columns <= len(shown) else f"{shown[: columns - 4]}..."
