"""`rectrain index`: the versions of an item index."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rectrain.api import UserError, load_job
from rectrain.api.job import RecTrainingJob

if TYPE_CHECKING:
    from rectrain_jobs.retrieval.base import IndexStore, IndexVersion
    from rectrain_jobs.retrieval.publishing import Items

_Command = Callable[..., None]


def _with_job(command: _Command) -> _Command:
    """Add what every command takes: the job, whose spec.publish.index names the index."""
    command = click.option(
        "--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Override a field of the job."
    )(command)
    return click.argument("job_file", metavar="JOB", type=click.Path())(command)


def _with_bundle(command: _Command) -> _Command:
    return click.option("--bundle", required=True, metavar="URI", help="The model bundle that `rectrain run` left.")(
        command
    )


_EPILOG = """\b
Examples:
  rectrain index publish job.yaml --bundle runs/mind-1a2b3c4d/bundle
  rectrain index info job.yaml
  rectrain index rollback job.yaml
  rectrain index publish job.yaml --bundle out/bundle --set "publish.index={type: Faiss, uri: index}"
"""


@click.group(epilog=_EPILOG)
def index() -> None:
    """Build, publish and look after the item index that a job names in spec.publish.index.

    A version is built and verified before searches go to it, by one atomic step; the last few are kept to go back to.
    """


@index.command()
@_with_job
@_with_bundle
def publish(job_file: str, overrides: tuple[str, ...], bundle: str) -> None:
    """Build a version of a bundle's items, verify it, and direct searches to it."""
    from rectrain_jobs.retrieval.publishing import publish as publish_items

    job, store = _open(job_file, overrides)
    publish_items(store, _items(job, bundle), keep=_keep(job), say=click.echo)


@index.command()
@_with_job
@_with_bundle
def build(job_file: str, overrides: tuple[str, ...], bundle: str) -> None:
    """Build and verify a version of a bundle's items; `rollback --to` directs searches to it."""
    from rectrain_jobs.retrieval.publishing import build as build_items

    job, store = _open(job_file, overrides)
    build_items(store, _items(job, bundle), say=click.echo)


@index.command()
@_with_job
@_with_bundle
def verify(job_file: str, overrides: tuple[str, ...], bundle: str) -> None:
    """Check that the served version is a bundle's: its model, number of items, and what sampled searches find."""
    from rectrain_jobs.retrieval.opening import served_index
    from rectrain_jobs.retrieval.publishing import verify as verify_items

    job, store = _open(job_file, overrides)
    opened = served_index(store)
    recall = verify_items(opened, _items(job, bundle))
    name, items = opened.version.name, opened.version.items
    click.echo(f"{name} is right: {items:,} items, {recall:.4f} of the exact neighbours found")


@index.command()
@_with_job
@click.option("--to", metavar="VERSION", help="The version to serve. Default: the newest older than the served one.")
def rollback(job_file: str, overrides: tuple[str, ...], to: str | None) -> None:
    """Direct searches to an older version, or to any by its name."""
    from rectrain_jobs.retrieval.publishing import rollback as roll_back

    _, store = _open(job_file, overrides)
    click.echo(f"serving {roll_back(store, to).name}")


@index.command()
@_with_job
@click.argument("version")
def drop(job_file: str, overrides: tuple[str, ...], version: str) -> None:
    """Remove a version that is not served."""
    from rectrain_jobs.retrieval.publishing import drop as drop_version

    _, store = _open(job_file, overrides)
    drop_version(store, version)
    click.echo(f"removed {version}")


@index.command()
@_with_job
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def info(job_file: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """List the versions, and how many items the served one has."""
    from rectrain_jobs.retrieval.opening import served_index

    _, store = _open(job_file, overrides)
    served, versions, unfinished = store.served(), store.versions(), store.unfinished()
    count, problem = 0, None
    if served is not None:
        try:
            count = served_index(store).count()
        except UserError as error:  # the versions to go back to are shown all the same
            problem = error
    if as_json:
        found = {
            "served": served,
            "count": count,
            "versions": [version.model_dump(by_alias=True) for version in versions],
            "unfinished": unfinished,
        }
        click.echo(json.dumps(found, indent=2))
    else:
        _show(store.uri, versions, served, count)
        if unfinished:
            click.echo(f"unfinished or damaged, removed by the next publishing: {', '.join(unfinished)}")
    if problem is not None:
        raise problem


def _show(title: str, versions: "list[IndexVersion]", served: str | None, count: int) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("Version", no_wrap=True)  # what the other commands take; it ends in the model's version
    for heading in ("Served", "Items", "Dim", "Algorithm", "Recall", "Job"):
        justify = "right" if heading in ("Items", "Dim", "Recall") else "left"
        table.add_column(heading, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for version in versions:
        is_served = version.name == served
        table.add_row(*_cells(version, is_served, count if is_served else version.items))
    Console(highlight=False).print(table)


def _cells(version: "IndexVersion", is_served: bool, count: int) -> list[str]:
    algorithm = " ".join([version.algorithm, *(f"{name}={value}" for name, value in version.parameters.items())])
    recall = "" if version.recall is None else f"{version.recall:.4f}"
    mark = "yes" if is_served else ""
    return [version.name, mark, f"{count:,}", str(version.dim), algorithm, recall, version.job]


def _open(job_file: str, overrides: tuple[str, ...]) -> tuple[RecTrainingJob, "IndexStore"]:
    job = load_job(job_file, overrides)
    if job.spec.publish.index is None:
        raise UserError(
            f"{job_file}: spec.publish.index: is required: where the index is, such as {{type: Faiss, uri: index}}"
        )
    from rectrain_jobs.logs import configure_logging
    from rectrain_jobs.resolution import resolve_paths
    from rectrain_jobs.retrieval.opening import open_index

    configure_logging()
    job = resolve_paths(job, Path(job_file).parent)
    return job, open_index(job)


def _items(job: RecTrainingJob, bundle: str) -> "Items":
    from rectrain_jobs.installation import check_kernels

    check_kernels()
    from rectrain_jobs.bundle import load_bundle
    from rectrain_jobs.resolution import storage_options
    from rectrain_jobs.training.publish import items_of

    return items_of(load_bundle(bundle, storage_options(job)), job)


def _keep(job: RecTrainingJob) -> int:
    from rectrain_jobs.retrieval.opening import index_of

    return index_of(job).keep
