"""``python -m rectrain_jobs.training --job FILE``: one rank of a job, started by torchrun or `rectrain run`."""

import os
import sys
import traceback
from pathlib import Path

import click

from rectrain.api import UserError, load_job
from rectrain_jobs.logs import configure_logging
from rectrain_jobs.training import exit_codes
from rectrain_jobs.training.termination import leave_reason

_EPILOG = """\b
Example:
  torchrun --nproc-per-node 2 -m rectrain_jobs.training --job examples/amazon-cds/job.yaml
"""


@click.command(epilog=_EPILOG)
@click.option("--job", "job_file", required=True, type=click.Path(), help="The job file.")
@click.option("--output", default=None, help="Folder of the results. Default: the job's output.uri, or runs/<name>.")
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Override a field of the job.")
def main(job_file: str, output: str | None, overrides: tuple[str, ...]) -> None:
    """Train one rank of a job.

    Torchrun's environment variables say which rank this is; without them it is alone.
    """
    configure_logging()
    sys.exit(_run(job_file, output, overrides))


def _run(job_file: str, output: str | None, overrides: tuple[str, ...]) -> int:
    from rectrain_jobs.installation import check_kernels
    from rectrain_jobs.resolution import resolve_paths

    try:
        check_kernels()
    except UserError as error:
        return _end(exit_codes.USER_ERROR, str(error))
    from rectrain_jobs.training.run import DivergedError, StopRequestedError, run_worker

    try:
        job = resolve_paths(load_job(job_file, overrides), Path(job_file).parent)
        run_worker(job, output or job.spec.output.uri or f"runs/{job.metadata.name}")
    except UserError as error:
        return _end(exit_codes.USER_ERROR, str(error))
    except DivergedError as error:
        return _end(exit_codes.DIVERGED, str(error))
    except StopRequestedError as error:
        return _end(exit_codes.STOPPED, str(error))
    except Exception:
        return _end(exit_codes.FAILED, traceback.format_exc())
    return exit_codes.SUCCEEDED


def _end(code: int, message: str) -> int:
    """Leave the reason where the launcher looks for it, or print it."""
    if not leave_reason(code, message):
        print(f"error: {message}", file=sys.stderr)
    sys.stderr.flush()
    # The other ranks may wait for this one in a collective that it will not join; leaving at once lets them see it.
    os._exit(code)


if __name__ == "__main__":
    main()
