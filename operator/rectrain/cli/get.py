"""`rectrain get`: jobs of the cluster as kubectl shows them."""

import json
from typing import Any

import click

from rectrain.api.crd import PLURAL
from rectrain.api.yaml_text import dump_yaml
from rectrain.cli.cluster import JOB_NAME, NONE, age, aligned, client_of, cluster_options, object_name

_EPILOG = """\b
Examples:
  rectrain get
  rectrain get amazon-cds -o yaml
  rectrain get -A -o wide
"""


@click.command(epilog=_EPILOG)
@click.argument("name", required=False, type=JOB_NAME)
@click.option("-o", "--output", type=click.Choice(["wide", "name", "json", "yaml"]), help="Form of the output.")
@click.option("-A", "--all-namespaces", is_flag=True, help="Jobs of every namespace.")
@click.option("-l", "--selector", default="", metavar="LABELS", help="Only jobs with these labels, such as team=ads.")
@cluster_options
def get(
    name: str | None,
    output: str | None,
    all_namespaces: bool,
    selector: str,
    namespace: str | None,
    context: str | None,
    kubeconfig: str | None,
) -> None:
    """List the jobs of a namespace, or show one."""
    if name is not None and (all_namespaces or selector):
        raise click.UsageError("a NAME is looked for in one namespace: leave out --all-namespaces and --selector")
    client = client_of(namespace, context, kubeconfig)
    if output in (None, "wide"):
        table = client.table(name, all_namespaces=all_namespaces, selector=selector)
        if not table["rows"]:
            where = "" if all_namespaces else f" in namespace {client.namespace}"
            click.echo(f"No {PLURAL} found{where}.", err=True)
            return
        click.echo(aligned(rows_of(table, wide=output == "wide", with_namespace=all_namespaces)))
        return
    if name is not None:
        found: Any = client.get_raw(name)
        jobs = [found]
    else:
        jobs = client.list_raw(all_namespaces=all_namespaces, selector=selector)
        found = {"apiVersion": "v1", "kind": "List", "items": jobs}
    if output == "name":
        for job in jobs:
            click.echo(object_name(job["metadata"]["name"]))
    else:
        click.echo(dump_yaml(found) if output == "yaml" else json.dumps(found, indent=4), nl=output != "yaml")


def rows_of(table: dict[str, Any], *, wide: bool, with_namespace: bool) -> list[list[str]]:
    """Return the cells of a meta.k8s.io Table, column names first, as kubectl prints them."""
    columns = [
        (number, column)
        for number, column in enumerate(table["columnDefinitions"])
        if wide or not column.get("priority")
    ]
    rows = [[column["name"].upper() for _, column in columns]]
    rows += [[_cell(row["cells"][number], column) for number, column in columns] for row in table["rows"]]
    if with_namespace:
        namespaces = [row["object"]["metadata"]["namespace"] for row in table["rows"]]
        rows = [[first, *row] for first, row in zip(["NAMESPACE", *namespaces], rows, strict=True)]
    return rows


def _cell(value: Any, column: dict[str, Any]) -> str:
    if value is None or value == "":
        return NONE
    if column.get("type") == "date" and isinstance(value, str) and value[:4].isdigit() and "T" in value:
        return age(value)
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 100 else f"{value:.4g}"
    return str(value)
