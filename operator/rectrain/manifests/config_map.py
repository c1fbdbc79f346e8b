"""The job as its workers read it: an immutable ConfigMap whose name says what is in it."""

from typing import Any

from rectrain.api.job import ObjectMeta, RecTrainingJob
from rectrain.api.loading import dump_job
from rectrain.api.operations import RunPolicy
from rectrain.manifests.metadata import object_metadata, short_digest
from rectrain.manifests.settings import Settings

JOB_FILE = "job.yaml"
"""Key of the job in the ConfigMap, and name of its file in a pod."""


def config_map(job: RecTrainingJob, settings: Settings) -> dict[str, Any]:
    """Return the ConfigMap that holds a job for its workers.

    Its name ends in a digest of the content, so what a running pod has mounted never changes below it. The content is
    the job with what the operator adds, without its run policy, which may change while it runs and is not the
    workers' concern. The uid is part of it: a job that is deleted and created again does not take over a ConfigMap that
    is about to be collected with its old owner.
    """
    text = dump_job(_as_workers_see_it(job, settings))
    metadata = object_metadata(job, config_map_name(job, settings), "worker")
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "immutable": True, "data": {JOB_FILE: text}}


def config_map_name(job: RecTrainingJob, settings: Settings) -> str:
    """Return the name of a job's ConfigMap."""
    # Of the same content as JSON, which takes a tenth of the time of YAML: every object of a job asks for the name.
    content = _as_workers_see_it(job, settings).model_dump_json(exclude_defaults=True)
    return f"{job.metadata.name}-{short_digest(content)}"


def output_uri(job: RecTrainingJob, settings: Settings) -> str | None:
    """Return the folder of a job's results, or None when neither the job nor the operator names one.

    A folder below the operator's is of this one object: a job of the same name that is created later has another.
    """
    if job.spec.output.uri is not None or settings.output_uri is None:
        return job.spec.output.uri
    name = job.metadata.name + (f"-{job.metadata.uid[:8]}" if job.metadata.uid is not None else "")
    return "/".join(part for part in (settings.output_uri.rstrip("/"), job.metadata.namespace, name) if part)


def _as_workers_see_it(job: RecTrainingJob, settings: Settings) -> RecTrainingJob:
    spec = job.spec
    mlflow = spec.tracking.mlflow
    if mlflow.tracking_uri is None:
        mlflow = mlflow.model_copy(update={"tracking_uri": settings.mlflow_tracking_uri})
    spec = spec.model_copy(
        update={
            "run_policy": RunPolicy(),
            "output": spec.output.model_copy(update={"uri": output_uri(job, settings)}),
            "tracking": spec.tracking.model_copy(update={"mlflow": mlflow}),
        }
    )
    metadata = ObjectMeta(name=job.metadata.name, namespace=job.metadata.namespace, uid=job.metadata.uid)
    return job.model_copy(update={"metadata": metadata, "spec": spec, "status": None})
