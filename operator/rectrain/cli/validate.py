"""`rectrain validate`: check job files without running anything."""

import click

from rectrain.api import RecTrainingJob, UserError
from rectrain.api.yaml_text import dump_yaml
from rectrain.cli.errors import USER_ERROR_EXIT_CODE, print_error
from rectrain.cli.job_files import JOB_FILE, read_job


@click.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=JOB_FILE)
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
            job = read_job(file, overrides)
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


def _resolved(job: RecTrainingJob) -> str:
    # Fields that are null by default are absent: what they stand for is the reference's to say, not a value of theirs.
    return dump_yaml(job.model_dump(mode="json", exclude_none=True))


def _separator(files: tuple[str, ...]) -> str:
    return "---\n" if len(files) > 1 else ""
