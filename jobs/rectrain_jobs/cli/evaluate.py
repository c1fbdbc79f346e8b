"""`rectrain evaluate`: measure a bundle on data."""

import json
from pathlib import Path

import click

from rectrain.api import UserError, load_job

_EPILOG = """\b
Examples:
  rectrain evaluate examples/amazon-cds/job.yaml --bundle runs/amazon-cds-two-tower-1a2b3c4d/bundle
  rectrain evaluate job.yaml --bundle out/bundle --set evaluation.metrics=[recall@50]
  rectrain evaluate job.yaml --bundle out/bundle --index
"""


@click.command(epilog=_EPILOG)
@click.argument("job_file", metavar="JOB", type=click.Path())
@click.option("--bundle", required=True, metavar="URI", help="The model bundle that `rectrain run` left.")
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Override a field of the job.")
@click.option("--index", "through_index", is_flag=True, help="Find items through the job's index, not by exact search.")
@click.option("--json", "as_json", is_flag=True, help="Print the metrics as JSON.")
def evaluate(job_file: str, bundle: str, overrides: tuple[str, ...], through_index: bool, as_json: bool) -> None:
    """Evaluate a model bundle on the validation data of a job, in one process."""
    job = load_job(job_file, overrides)
    if job.spec.data.validation is None or not job.spec.metrics:
        raise UserError(f"{job_file}: spec.data.validation: is required: metrics are measured on it")
    from rectrain_jobs.installation import check_kernels

    check_kernels()
    from rich.console import Console

    from rectrain_jobs.bundle import load_bundle
    from rectrain_jobs.logs import configure_logging
    from rectrain_jobs.resolution import resolve_paths, storage_options
    from rectrain_jobs.retrieval.opening import open_index, served_index
    from rectrain_jobs.training.distributed import join_ranks
    from rectrain_jobs.training.progress import metrics_table
    from rectrain_jobs.training.publish import check_data, searcher_of
    from rectrain_jobs.training.validation import Validation

    configure_logging()
    job = resolve_paths(job, Path(job_file).parent)
    loaded = load_bundle(bundle, storage_options(job))
    if loaded.spec.model != job.spec.model:
        raise UserError(f"--bundle {bundle}: holds a model of other settings than {job_file}")
    check_data(loaded, job)
    if through_index and (not job.spec.model.is_retrieval or "mrr" in job.spec.metrics):
        what = "mrr without a cut-off" if job.spec.model.is_retrieval else f"a {job.spec.model.type} model"
        raise UserError(f"--index: {what} cannot be measured through an index, which gives the first K items")
    searcher = searcher_of(served_index(open_index(job)), loaded) if through_index else None
    ranks = join_ranks()
    metrics = Validation(job, ranks).evaluate(loaded.model.to(ranks.device), searcher)
    if as_json:
        click.echo(json.dumps(metrics))
    else:
        Console(highlight=False).print(metrics_table(metrics))
