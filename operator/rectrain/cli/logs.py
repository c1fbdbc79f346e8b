"""`rectrain logs`: what a worker prints."""

import click

from rectrain.cli.cluster import JOB_NAME, client_of, cluster_options

_EPILOG = """\b
Examples:
  rectrain logs amazon-cds
  rectrain logs amazon-cds -f --tail 20
  rectrain logs amazon-cds --replica worker-1
"""


@click.command(epilog=_EPILOG)
@click.argument("name", type=JOB_NAME)
@click.option("-f", "--follow", is_flag=True, help="Go on until the job has ended, through restarts.")
@click.option("--replica", metavar="WORKER", help="Such as master-0 or worker-1. Default: the worker with rank 0.")
@click.option("--tail", type=click.IntRange(min=0), metavar="LINES", help="Begin with so many of the last lines.")
@cluster_options
def logs(
    name: str,
    follow: bool,
    replica: str | None,
    tail: int | None,
    namespace: str | None,
    context: str | None,
    kubeconfig: str | None,
) -> None:
    """Print the log of a job's worker."""
    client = client_of(namespace, context, kubeconfig)
    for line in client.logs(name, replica=replica, follow=follow, tail=tail):
        click.echo(line)
