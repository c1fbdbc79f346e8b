"""`rectrain run`: a whole job on this machine."""

import hashlib
import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rectrain.api import RecTrainingJob, UserError, load_job

if TYPE_CHECKING:
    from rectrain_jobs.training.output import RunOutput

_EPILOG = """\b
Examples:
  rectrain run examples/amazon-cds/job.yaml
  rectrain run examples/amazon-cds/job.yaml --set training.maxSteps=50
  rectrain run job.yaml --output out --set workers.replicas=4
  rectrain run job.yaml --output s3://bucket/runs/today

\b
Exit codes: 0 done; 2 something in the job, the data or the environment is wrong; 4 the loss is not finite;
143 stopped by SIGTERM or Ctrl-C, with a checkpoint from which the next run continues.
"""


@click.command(epilog=_EPILOG)
@click.argument("job_file", metavar="JOB", type=click.Path())
@click.option(
    "--output",
    metavar="URI",
    help="Folder of the results. Default: the job's output.uri, or runs/<name>-<digest of the job>.",
)
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Override a field of the job.")
@click.option("--restart", is_flag=True, help="Remove what an earlier run left in the output folder, and begin anew.")
def run(job_file: str, output: str | None, overrides: tuple[str, ...], restart: bool) -> None:
    """Train a job on this machine: convert its data if need be, train, evaluate, record.

    Run again, it continues from the newest checkpoint; a run that has ended shows its results.
    """
    if output is not None and not output.strip():
        raise UserError("--output: must name the folder of the results, and is empty")
    job = load_job(job_file, overrides)
    from rectrain_jobs.installation import check_kernels
    from rectrain_jobs.resolution import absolute_uri, resolve_paths, storage_options
    from rectrain_jobs.training.launch import run_ranks
    from rectrain_jobs.training.output import RunOutput

    default = Path("runs") / f"{job.metadata.name}-{_digest(job)}"
    job = resolve_paths(job, Path(job_file).parent)
    output = output or job.spec.output.uri or str(default)
    run_output = RunOutput(absolute_uri(output, Path.cwd()), storage_options(job))
    with run_output.exclusive():
        if restart:
            _remove(run_output, job)
        run_output.identity(job)
        click.echo(f"output {output}", err=True)
        if (result := run_output.read_result()) is not None and not result.get("unsentPoints"):
            _show(result, run_output.read_metrics(), _change_of_data(job))
            return
        check_kernels()
        _convert(job)
        resolved = run_output.write_job(job)
        code, reason = run_ranks(["--job", str(resolved), "--output", run_output.uri], job.spec.workers.world_size)
    if reason:
        click.echo(f"error: {reason}" if code != 143 else reason, err=True)
    elif code not in (0, 143):
        click.echo(f"error: a rank ended with exit code {code}" + _hint(code), err=True)
    sys.exit(code)


def _remove(output: "RunOutput", job: RecTrainingJob) -> None:
    """Remove a run: its folder, and its checkpoints where the job has them elsewhere."""
    from rectrain_jobs.resolution import storage_options
    from rectrain_jobs.storage import open_store
    from rectrain_jobs.training.checkpoint_listing import remove_all_checkpoints

    output.remove()
    if job.spec.training.checkpoint.uri is not None:
        remove_all_checkpoints(open_store(job.spec.training.checkpoint.uri, storage_options(job)))


def _change_of_data(job: RecTrainingJob) -> str | None:
    """Return what has changed of a job's raw data since it was converted, or None; also where it is no longer there."""
    from rectrain_jobs.data.convert import needs_conversion

    with suppress(UserError):
        return needs_conversion(job.spec)
    return None


def _show(result: dict[str, Any], metrics: dict[str, float], change: str | None) -> None:
    """Print what a run that has ended left, and that its data are others now if they are."""
    from rich.console import Console

    from rectrain_jobs.training.progress import metrics_table

    console = Console(highlight=False)
    console.print(f"this run has ended after step {result['step']}; --restart trains anew", soft_wrap=True)
    if change is not None:
        console.print(f"its data have changed since: {change}", soft_wrap=True)
    if metrics:
        console.print(metrics_table(metrics))
    if result["mlflowRunId"] is not None:
        console.print(f"MLflow run  {result['mlflowRunId']} at {result['trackingUri']}", soft_wrap=True)
    console.print(f"Bundle      {result['bundle']}", soft_wrap=True)


def _convert(job: RecTrainingJob) -> None:
    if job.spec.data.source is None:
        return
    from rectrain_jobs.cli.data import conversion_progress
    from rectrain_jobs.data.convert import ensure_converted

    with conversion_progress() as progress:
        ensure_converted(job.spec, progress)


def _hint(code: int) -> str:
    return ": it was killed, perhaps for want of memory; run again to continue" if code == 137 else ""


def _digest(job: RecTrainingJob) -> str:
    spec = job.spec.model_dump(mode="json", exclude_defaults=True)
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:8]
