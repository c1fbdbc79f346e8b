"""`rectrain suspend`, `resume` and `delete`: stop jobs for a while, let them go on, end them."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from rectrain.cli.cluster import JOB_NAME, client_of, cluster_options, object_name
from rectrain.cli.errors import USER_ERROR_EXIT_CODE, print_error

if TYPE_CHECKING:
    from rectrain.sdk import Client


@click.command(epilog="\b\nExample:\n  rectrain suspend amazon-cds")
@click.argument("names", metavar="NAME...", nargs=-1, required=True, type=JOB_NAME)
@cluster_options
def suspend(names: tuple[str, ...], namespace: str | None, context: str | None, kubeconfig: str | None) -> None:
    """Stop the workers of jobs; they save a checkpoint, from which `rectrain resume` continues."""
    _each(client_of(namespace, context, kubeconfig), names, lambda client, name: client.suspend(name), "suspended")


@click.command(epilog="\b\nExample:\n  rectrain resume amazon-cds")
@click.argument("names", metavar="NAME...", nargs=-1, required=True, type=JOB_NAME)
@cluster_options
def resume(names: tuple[str, ...], namespace: str | None, context: str | None, kubeconfig: str | None) -> None:
    """Let suspended jobs continue from their checkpoints."""
    _each(client_of(namespace, context, kubeconfig), names, lambda client, name: client.resume(name), "resumed")


@click.command(epilog="\b\nExample:\n  rectrain delete amazon-cds")
@click.argument("names", metavar="NAME...", nargs=-1, required=True, type=JOB_NAME)
@cluster_options
def delete(names: tuple[str, ...], namespace: str | None, context: str | None, kubeconfig: str | None) -> None:
    """Delete jobs and the pods that train them. Checkpoints, models and shards stay where they are."""
    _each(client_of(namespace, context, kubeconfig), names, lambda client, name: client.delete(name), "deleted")


def _each(client: "Client", names: tuple[str, ...], change: Callable[["Client", str], object], verbed: str) -> None:
    """Change one job after the other; what goes wrong with one is said, and keeps none of the others from it."""
    from rectrain.sdk import ClusterError, ClusterUnreachableError

    failed = False
    for name in names:
        try:
            change(client, name)
        except ClusterUnreachableError:
            raise
        except ClusterError as error:
            print_error(str(error))
            failed = True
        else:
            click.echo(f"{object_name(name)} {verbed}")
    if failed:
        raise click.exceptions.Exit(USER_ERROR_EXIT_CODE)
