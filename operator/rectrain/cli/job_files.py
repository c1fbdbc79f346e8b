"""Job files that commands are given: a path, or - for standard input."""

import sys

import click

from rectrain.api import RecTrainingJob, UserError, load_job, parse_job
from rectrain.api.loading import format_problem
from rectrain.manifests import Settings, memory_problem, unreachable_files

JOB_FILE = click.Path(allow_dash=True)
"""Type of an argument that names a job file."""


def read_job(file: str, overrides: tuple[str, ...] | list[str]) -> RecTrainingJob:
    """Return the job of a file, or of standard input.

    Raises:
        UserError: It cannot be read, or is not valid.
    """
    if file != "-":
        return load_job(file, overrides)
    try:
        text = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError:
        raise UserError("standard input: is not UTF-8 text") from None
    return parse_job(text, source="standard input", overrides=overrides)


def check_for_pods(job: RecTrainingJob, file: str, settings: Settings) -> None:
    """Refuse a job that cannot run in pods.

    Raises:
        UserError: It names files that pods cannot reach, or its tables cannot fit the devices that it declares.
    """
    problems = [format_problem(problem) for problem in unreachable_files(job, settings)]
    if (problem := memory_problem(job)) is not None:
        problems.append(problem)
    if problems:
        raise UserError("\n".join(f"{file}: {problem}" for problem in problems))
