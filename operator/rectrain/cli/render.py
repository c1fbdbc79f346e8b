"""`rectrain render`: the Kubernetes objects of a job, as the operator would create them."""

import click

from rectrain.api.yaml_text import dump_yaml
from rectrain.cli.job_files import JOB_FILE, check_for_pods, read_job
from rectrain.manifests import Settings, config_map, conversion_job, pytorch_job

_EPILOG = """\b
Examples:
  rectrain render job.yaml
  rectrain render job.yaml -n team-a --image registry.example/worker:1.2 | kubectl apply -f -
  rectrain render job.yaml --set output.uri=s3://bucket/runs/one --set workers.replicas=4
"""


@click.command(epilog=_EPILOG)
@click.argument("job_file", metavar="JOB", type=JOB_FILE)
@click.option("--set", "overrides", metavar="PATH=VALUE", multiple=True, help="Override a field of the job.")
@click.option("-n", "--namespace", help="Namespace of the objects. Default: the job's, or that of kubectl.")
@click.option("--image", help="Worker image, instead of the job's workers.image.")
def render(job_file: str, overrides: tuple[str, ...], namespace: str | None, image: str | None) -> None:
    """Print the Kubernetes objects of a job, as the operator would create them. JOB is a file, or - for standard input.

    A stream of YAML: the ConfigMap that holds the job, the Job that converts its data when it has data.source, and the
    PyTorchJob. The cluster needs no rectrain operator for them, only the Kubeflow training operator; but nothing
    restarts the workers, and the PyTorchJob does not wait for the conversion. With the operator, apply the job itself.
    """
    more = (("metadata.namespace", namespace), ("workers.image", image))
    job = read_job(job_file, [*overrides, *(f"{path}={_quoted(value)}" for path, value in more if value is not None)])
    settings = Settings()
    check_for_pods(job, job_file, settings)
    objects = [config_map(job, settings)]
    if job.spec.data.source is not None:
        objects.append(conversion_job(job, settings))
    suspended = job.spec.run_policy.suspend
    objects.append(pytorch_job(job, settings, attempt=0, suspended=suspended))
    click.echo("---\n".join(dump_yaml(document) for document in objects), nl=False)


def _quoted(text: str) -> str:
    """Return YAML that stands for a text, whatever it looks like."""
    return "'" + text.replace("'", "''") + "'"
