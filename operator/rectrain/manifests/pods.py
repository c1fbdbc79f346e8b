"""The pods of a job: without privileges, with job file, scratch space and credentials, and the user's template."""

from collections.abc import Mapping, Sequence
from typing import Any

from rectrain.api.data import SecretRef
from rectrain.api.job import RecTrainingJob
from rectrain.api.pod_template import CONTAINER, JOB_FOLDER, VOLUME_PREFIX, list_key
from rectrain.manifests.config_map import JOB_FILE, config_map_name
from rectrain.manifests.metadata import labels_of
from rectrain.manifests.settings import Settings

JOB_PATH = f"{JOB_FOLDER}/{JOB_FILE}"
"""Where a pod has the job file."""

JOB_VOLUME = f"{VOLUME_PREFIX}job"
"""Volume with the ConfigMap that holds the job file."""

TERMINATION_LOG = "/dev/termination-log"
"""Where a container leaves the reason of its end for Kubernetes."""

_USER = 1000


def pod_template(
    job: RecTrainingJob,
    settings: Settings,
    *,
    component: str,
    container: Mapping[str, Any],
    volumes: Sequence[Mapping[str, Any]] = (),
    pod: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the PodTemplateSpec of one container that works on a job.

    Args:
        job: The job.
        settings: The operator's defaults.
        component: What the pod is for, in its labels.
        container: The container: its name, command, and what it has besides every container's.
        volumes: Volumes besides every pod's.
        pod: Fields of the pod's spec besides every pod's.
    """
    base = {
        "metadata": {"labels": labels_of(job, component)},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            # At the level of the pod, so that containers which others add run without privileges too.
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": _USER,
                "runAsGroup": _USER,
                "fsGroup": _USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [_merged({"name": container["name"], **_every_container(job, settings)}, container)],
            "volumes": [
                {"name": JOB_VOLUME, "configMap": {"name": config_map_name(job, settings)}},
                {"name": f"{VOLUME_PREFIX}tmp", "emptyDir": {}},
            ],
        },
    }
    merged = _merged(base, {"spec": {**pod, "volumes": list(volumes)}})
    return _merged(merged, _users_template(job, container["name"]))


def _every_container(job: RecTrainingJob, settings: Settings) -> dict[str, Any]:
    return {
        "image": job.spec.workers.image or settings.worker_image,
        "workingDir": "/tmp",
        "env": [*_own_env(), *_credentials(job)],
        "volumeMounts": [
            {"name": JOB_VOLUME, "mountPath": JOB_FOLDER, "readOnly": True},
            {"name": f"{VOLUME_PREFIX}tmp", "mountPath": "/tmp"},
        ],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePath": TERMINATION_LOG,
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }


def _own_env() -> list[dict[str, Any]]:
    # The user's number has no entry in an image's list of users, so what asks for a home or a name finds them here.
    return [{"name": "HOME", "value": "/tmp"}, {"name": "USER", "value": "rectrain"}]


def _credentials(job: RecTrainingJob) -> list[dict[str, Any]]:
    storage, mlflow = job.spec.data.storage, job.spec.tracking.mlflow
    env = []
    if storage.credentials_secret_ref is not None:
        env += _from_secret(storage.credentials_secret_ref, "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        env += _from_secret(storage.credentials_secret_ref, "AWS_SESSION_TOKEN", optional=True)
    if mlflow.credentials_secret_ref is not None:
        names = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
        env += _from_secret(mlflow.credentials_secret_ref, *names, optional=True)
    return env


def _from_secret(secret: SecretRef, *keys: str, optional: bool = False) -> list[dict[str, Any]]:
    more = {"optional": True} if optional else {}
    return [{"name": key, "valueFrom": {"secretKeyRef": {"name": secret.name, "key": key, **more}}} for key in keys]


def _users_template(job: RecTrainingJob, container: str) -> dict[str, Any]:
    """Return the user's template with its worker container renamed to the container of this pod."""
    template = job.spec.workers.template or {}
    spec = template.get("spec") or {}
    containers = [{**c, "name": container} if c["name"] == CONTAINER else c for c in spec.get("containers") or []]
    return {**template, "spec": {**spec, "containers": containers}}


def _merged(base: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `patch` laid over it: mappings field by field, lists as below, else the patch's value.

    Null in a patch is as good as nothing: what every pod has cannot be taken away.
    """
    merged = dict(base)
    for field, value in patch.items():
        there = base.get(field)
        if isinstance(there, Mapping) and isinstance(value, Mapping):
            merged[field] = _merged(there, value)
        elif isinstance(there, list) and isinstance(value, list):
            merged[field] = _merged_list(field, there, value)
        elif value is not None:
            merged[field] = value
    return merged


def _merged_list(field: str, base: list[Any], patch: list[Any]) -> list[Any]:
    """Return both lists' elements; of two with the same key the patch's, or a container that has been merged."""
    key = list_key(field)
    if key is None:
        return [*base, *patch]
    known = {element[key]: element for element in base}
    for element in patch:
        there = known.get(element[key], {})
        known[element[key]] = _merged(there, element) if field == "containers" else element
    return list(known.values())
