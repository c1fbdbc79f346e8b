"""What the command line says, and the exit code it leaves, when something goes wrong."""

import traceback

import click

USER_ERROR_EXIT_CODE = 2
DEFECT_EXIT_CODE = 1
INTERRUPTED_EXIT_CODE = 130
"""128 + SIGINT, as shells have it."""


class CommandError(click.ClickException):
    """An error that is printed as ``error: ...`` lines on stderr, with a traceback only where `debug` asks for it."""

    def __init__(self, message: str, *, debug: bool = False) -> None:
        """Hold the message and whether the traceback of the exception that it is raised from is shown."""
        super().__init__(message)
        self._debug = debug

    def show(self, file: object = None) -> None:
        """Print the error on stderr."""
        if self._debug and self.__cause__ is not None:
            click.echo("".join(traceback.format_exception(self.__cause__)), err=True, nl=False)
        print_error(self.message)


class UserMistakeError(CommandError):
    """Something that was given is wrong or missing."""

    exit_code = USER_ERROR_EXIT_CODE


class DefectError(CommandError):
    """Something of ours is wrong."""

    exit_code = DEFECT_EXIT_CODE


def print_error(message: str) -> None:
    """Print each line of a message on stderr as ``error: ...``."""
    for line in message.splitlines() or [""]:
        click.echo(f"{click.style('error:', fg='red', bold=True)} {line}", err=True)


def readable_error(error: Exception, *, command: str | None, needs_worker: bool, debug: bool) -> CommandError:
    """Return what is shown for an exception that a command has let through.

    Args:
        error: The exception.
        command: Name of the command that was running.
        needs_worker: Whether that command belongs to the worker packages.
        debug: Whether to show tracebacks.
    """
    # Imported here because it brings all of the job's types, which `rectrain --help` does without.
    from rectrain.api.errors import UserError

    if isinstance(error, UserError):
        return UserMistakeError(str(error), debug=debug)
    if isinstance(error, ModuleNotFoundError) and needs_worker and not _is_ours(error.name):
        advice = f"pip install 'rectrain[cpu]' (no module named {error.name})"
        return UserMistakeError(f"rectrain {command} needs the worker packages: {advice}", debug=debug)
    summary = " ".join(f"unexpected {type(error).__name__}: {error}".split())
    advice = "" if debug else ". Please report it with the traceback that `rectrain --debug ...` shows"
    return DefectError(summary + advice, debug=debug)


def _is_ours(module: str | None) -> bool:
    return (module or "").partition(".")[0] in ("rectrain", "rectrain_jobs")
