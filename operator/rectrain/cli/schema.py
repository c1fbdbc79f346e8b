"""`rectrain schema`: the JSON Schema of job files."""

import json

import click

from rectrain.api.schema import job_schema


@click.command()
def schema() -> None:
    """Print the JSON Schema of job files, with which editors complete and check them.

    For an editor with yaml-language-server: rectrain schema > job.schema.json, and as the first line of the job file
    # yaml-language-server: $schema=job.schema.json
    """
    click.echo(json.dumps(job_schema(), indent=2, ensure_ascii=False))
