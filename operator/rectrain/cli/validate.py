"""`rectrain validate`: check job files without running anything."""

import sys
from pathlib import Path

import click

from rectrain.api import RecTrainingJob, UserError, load_job, parse_job
from rectrain.api.yaml_text import dump_yaml
from rectrain.cli.errors import USER_ERROR_EXIT_CODE, print_error


@click.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(allow_dash=True))
@click.option(
    "--set",
    "overrides",
    metavar="PATH=VALUE",
    multiple=True,
    help="Change a field before the check, such as training.maxSteps=50. May be given again.",
)
@click.option("--print", "print_resolved", is_flag=True, help="Print the job as YAML with every default filled in.")
@click.pass_context
def validate(ctx: click.Context, files: tuple[str, ...], overrides: tuple[str, ...], print_resolved: bool) -> None:
    """Check job files and name every problem: its path, the value there, and what would be right.

    FILE is a YAML or JSON file, or - for standard input. Exits with 0 when every file is valid, else with 2.
    """
    failed = False
    for file in files:
        try:
            job = _read(file, overrides)
        except UserError as error:
            print_error(str(error))
            failed = True
            continue
        if print_resolved:
            click.echo(_separator(files) + _resolved(job), nl=False)
        else:
            click.echo(f"{file}: valid RecTrainingJob {job.metadata.name}")
    if failed:
        ctx.exit(USER_ERROR_EXIT_CODE)


def _read(file: str, overrides: tuple[str, ...]) -> RecTrainingJob:
    if file != "-":
        return load_job(Path(file), overrides)
    try:
        text = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError:
        raise UserError("standard input: is not UTF-8 text") from None
    return parse_job(text, source="standard input", overrides=overrides)


def _resolved(job: RecTrainingJob) -> str:
    # Fields that are null by default are absent: what they stand for is the reference's to say, not a value of theirs.
    return dump_yaml(job.model_dump(mode="json", exclude_none=True))


def _separator(files: tuple[str, ...]) -> str:
    return "---\n" if len(files) > 1 else ""
