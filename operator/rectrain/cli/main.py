"""The `rectrain` command: its own commands, and those that installed packages add."""

import errno
from typing import Any

import click

from rectrain.cli.errors import INTERRUPTED_EXIT_CODE, readable_error
from rectrain.cli.lazy import command_of, entry_point_commands, lazy_command


class RectrainGroup(click.Group):
    """A group that finds further commands through entry points and turns exceptions into readable errors."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return sorted({*super().list_commands(ctx), *entry_point_commands()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command of ours, or else of an entry point; it is imported only when it is used."""
        own = super().get_command(ctx, cmd_name)
        if own is not None:
            return own
        entry = entry_point_commands().get(cmd_name)
        return None if entry is None else command_of(entry)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; what it lets through becomes an error message and an exit code."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            click.echo(err=True)
            raise click.exceptions.Exit(INTERRUPTED_EXIT_CODE) from None
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise  # click ends quietly when the reader of a pipe has gone
            command = ctx.invoked_subcommand
            raise readable_error(
                error,
                command=command,
                needs_worker=command in entry_point_commands(),
                debug=ctx.params["debug"],
            ) from error


@click.group(
    "rectrain",
    cls=RectrainGroup,
    commands=[
        lazy_command("validate", "Check job files and name every problem.", "rectrain.cli.validate:validate"),
        lazy_command("explain", "Show what a field of the job means.", "rectrain.cli.explain:explain"),
        lazy_command("render", "Print the Kubernetes objects of a job.", "rectrain.cli.render:render"),
        lazy_command("schema", "Print the JSON Schema of job files, for editors.", "rectrain.cli.schema:schema"),
    ],
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option("--debug", is_flag=True, envvar="RECTRAIN_DEBUG", help="Show tracebacks of errors. [env: RECTRAIN_DEBUG]")
@click.version_option(package_name="rectrain", message="%(prog)s %(version)s")
def cli(debug: bool) -> None:
    """Train recommender models from one job file, on this machine or on Kubernetes."""


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit: 0 success, 1 a defect of ours, 2 a mistake in what was given, 130 interrupted.

    Args:
        args: Arguments without the program's name. Default: those of the process.
    """
    cli.main(args, prog_name="rectrain")
