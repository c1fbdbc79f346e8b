"""`rectrain top`: how fast the running jobs train."""

import time

import click

from rectrain.api.job import RecTrainingJob
from rectrain.api.status import State
from rectrain.cli.cluster import NONE, aligned, client_of, cluster_options, duration

_EPILOG = """\b
Examples:
  rectrain top
  rectrain top -A --watch
"""
_COLUMNS = ["NAME", "STEP", "PROGRESS", "EXAMPLES/S", "LOSS", "LEFT"]


@click.command(epilog=_EPILOG)
@click.option("-A", "--all-namespaces", is_flag=True, help="Jobs of every namespace.")
@click.option("-w", "--watch", "watches", is_flag=True, help="Show it again every 2 seconds, until Ctrl-C.")
@cluster_options
def top(
    all_namespaces: bool, watches: bool, namespace: str | None, context: str | None, kubeconfig: str | None
) -> None:
    """Show the throughput and the time left of the jobs that run, the fastest first."""
    client = client_of(namespace, context, kubeconfig)
    while True:
        jobs = client.list(all_namespaces=all_namespaces)
        if watches:
            click.clear()
        click.echo(running_jobs(jobs, with_namespace=all_namespaces))
        if not watches:
            return
        time.sleep(2)


def running_jobs(jobs: list[RecTrainingJob], *, with_namespace: bool) -> str:
    """Return a table of the jobs that run, the fastest first."""
    running = []
    for job in jobs:
        if job.status is not None and job.state is State.RUNNING:
            progress = job.status.progress
            rate = progress.examples_per_second if progress is not None else 0.0
            cells = [job.metadata.name, *([NONE] * (len(_COLUMNS) - 1))]
            if progress is not None:
                left = progress.estimated_remaining_seconds
                cells[1:] = [
                    f"{progress.step}/{progress.total_steps}",
                    progress.completed,
                    f"{rate:,.0f}",
                    NONE if progress.loss is None else f"{progress.loss:.4f}",
                    NONE if left is None else duration(left),
                ]
            running.append((rate, [job.metadata.namespace or NONE, *cells] if with_namespace else cells))
    if not running:
        return "No job runs."
    columns = ["NAMESPACE", *_COLUMNS] if with_namespace else _COLUMNS
    return aligned([columns, *(cells for _, cells in sorted(running, key=lambda item: -item[0]))])
