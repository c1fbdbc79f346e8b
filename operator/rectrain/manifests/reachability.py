"""Whether a job's files can be reached from pods, which share nothing with the machine that the file was written on."""

from collections.abc import Iterator

from rectrain.api.job import RecTrainingJob
from rectrain.api.loading import InvalidJobError
from rectrain.api.pod_template import CONTAINER
from rectrain.api.rules import Problem
from rectrain.manifests.config_map import output_uri
from rectrain.manifests.settings import Settings


def unreachable_files(job: RecTrainingJob, settings: Settings) -> list[Problem]:
    """Return the URIs of a job that mean nothing in a pod, and a missing place for its results.

    A path is reachable when a volume of workers.template is mounted at it or above it.
    """
    mounted = _mount_paths(job)
    problems = [
        Problem(path, uri, "must be s3://... or a path below a volume that workers.template mounts: pods read it")
        for path, uri in _uris(job)
        if not uri.startswith("s3://") and not any(_is_below(uri.removeprefix("file://"), mount) for mount in mounted)
    ]
    if output_uri(job, settings) is None:
        message = "is required on Kubernetes: s3://... for checkpoints, metrics and the model bundle"
        problems.append(Problem(("spec", "output", "uri"), None, message))
    return problems


def check_reachable(job: RecTrainingJob, settings: Settings) -> None:
    """Refuse a job whose files cannot be reached from pods.

    Raises:
        InvalidJobError: A URI means nothing in a pod, or there is no place for the results.
    """
    if problems := unreachable_files(job, settings):
        raise InvalidJobError(job.metadata.name, problems)


def _uris(job: RecTrainingJob) -> Iterator[tuple[tuple[str, ...], str]]:
    data, index = job.spec.data, job.spec.publish.index
    found = {
        ("data", "source", "uri"): data.source.uri if data.source else None,
        ("data", "source", "validationUri"): data.source.validation_uri if data.source else None,
        ("data", "train", "uri"): data.train.uri,
        ("data", "validation", "uri"): data.validation.uri if data.validation else None,
        ("training", "checkpoint", "uri"): job.spec.training.checkpoint.uri,
        ("output", "uri"): job.spec.output.uri,
        ("publish", "index", "uri"): index.uri if index is not None and "://" not in index.uri else None,
    }
    yield from ((("spec", *path), uri) for path, uri in found.items() if uri is not None)


def _mount_paths(job: RecTrainingJob) -> list[str]:
    spec = (job.spec.workers.template or {}).get("spec") or {}
    containers = [c for c in spec.get("containers") or [] if c["name"] == CONTAINER]
    return [mount["mountPath"] for c in containers for mount in c.get("volumeMounts") or []]


def _is_below(path: str, mount: str) -> bool:
    return path.startswith("/") and f"{path}/".startswith(f"{mount.rstrip('/')}/")
