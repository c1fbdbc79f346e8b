"""`rectrain submit`: create a job on the cluster."""

import click

from rectrain.cli.cluster import client_of, cluster_options, object_name
from rectrain.cli.job_files import JOB_FILE, check_for_pods, read_job
from rectrain.manifests import Settings

_EPILOG = """\b
Examples:
  rectrain submit job.yaml
  rectrain submit job.yaml -n team-a --set training.epochs=20 --wait
  rectrain submit job.yaml --dry-run
"""


@click.command(epilog=_EPILOG)
@click.argument("job_file", metavar="JOB", type=JOB_FILE)
@click.option("--set", "overrides", metavar="PATH=VALUE", multiple=True, help="Override a field of the job.")
@click.option("--dry-run", is_flag=True, help="Only ask the API server whether it would take the job.")
@click.option("--wait", "waits", is_flag=True, help="Show its progress until it has ended, as `rectrain wait` does.")
@cluster_options
@click.pass_context
def submit(
    ctx: click.Context,
    job_file: str,
    overrides: tuple[str, ...],
    dry_run: bool,
    waits: bool,
    namespace: str | None,
    context: str | None,
    kubeconfig: str | None,
) -> None:
    """Create a job on the cluster. JOB is a file, or - for standard input.

    What it refers to is checked first: files that pods cannot reach are refused.
    """
    job = read_job(job_file, overrides)
    # The operator may have an output folder for jobs that name none. Where it has not, the job's condition says so.
    check_for_pods(job, job_file, Settings(output_uri=None if job.spec.output.uri else "s3://of-the-operator"))
    client = client_of(namespace, context, kubeconfig)
    created = client.submit(job, namespace=namespace, dry_run=dry_run)
    name = created.metadata.name
    click.echo(f"{object_name(name)} created{' (server dry run)' if dry_run else ''}")
    if waits and not dry_run:
        from rectrain.cli.wait import wait_for

        ctx.exit(wait_for(client, name, namespace=created.metadata.namespace, timeout=None))
