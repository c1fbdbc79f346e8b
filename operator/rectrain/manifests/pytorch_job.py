"""The PyTorchJob that trains a job: one pod for each replica, in which torchrun starts the ranks."""

from typing import Any

from rectrain.api.job import RecTrainingJob
from rectrain.api.operations import CleanPodPolicy
from rectrain.api.pod_template import (
    CACHE_FOLDER,
    CONTAINER,
    PROGRESS_PORT,
    PROGRESS_PORT_NAME,
    RENDEZVOUS_PORT,
    RENDEZVOUS_PORT_NAME,
    VOLUME_PREFIX,
)
from rectrain.api.quantities import parse_bytes
from rectrain.api.workers import Placement, PlacementStrategy
from rectrain.manifests.metadata import ATTEMPT_ANNOTATION, JOB_LABEL, object_metadata, queue_labels
from rectrain.manifests.pods import JOB_PATH, TERMINATION_LOG, pod_template
from rectrain.manifests.reachability import check_reachable
from rectrain.manifests.settings import Settings

GRACE_SECONDS = 300
"""Time that a pod has from SIGTERM to its end: for the step that is under way, and a checkpoint."""

_LAUNCHER_SECONDS = 30
"""Part of that time which torchrun keeps for itself after the ranks."""


def pytorch_job(job: RecTrainingJob, settings: Settings, attempt: int, suspended: bool) -> dict[str, Any]:
    """Return the PyTorchJob of a job.

    Its pods are never restarted one by one: ranks that lost one of theirs cannot go on, so the controller replaces the
    whole PyTorchJob, and the ranks continue from the newest checkpoint. Neither does it have a deadline or a time to
    live, which are the controller's.

    Args:
        job: The job.
        settings: The operator's defaults.
        attempt: How many times the job was started before.
        suspended: Create no pods yet. A job that names a Kueue queue is always created so; Kueue lets it start.

    Raises:
        InvalidJobError: The job's files cannot be reached from pods.
    """
    check_reachable(job, settings)
    workers, queue = job.spec.workers, queue_labels(job)
    metadata = object_metadata(job, job.metadata.name, "worker")
    metadata["labels"] |= queue
    metadata["annotations"] = {ATTEMPT_ANNOTATION: str(attempt)}
    template = _worker_template(job, settings, attempt)
    spec: dict[str, Any] = {
        "runPolicy": {
            "cleanPodPolicy": str(_clean_pod_policy(job)),
            "suspend": suspended or bool(queue),
        },
        "nprocPerNode": str(workers.processes_per_replica),
    }
    if workers.elastic is not None:
        spec["elasticPolicy"] = {
            "minReplicas": workers.elastic.min_replicas,
            "maxReplicas": workers.elastic.max_replicas,
            "rdzvBackend": "c10d",
        }
        spec["pytorchReplicaSpecs"] = {"Worker": _replicas(workers.replicas, template)}
    else:
        spec["pytorchReplicaSpecs"] = {"Master": _replicas(1, template)}
        if workers.replicas > 1:
            spec["pytorchReplicaSpecs"]["Worker"] = _replicas(workers.replicas - 1, template)
    return {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "metadata": metadata, "spec": spec}


def _clean_pod_policy(job: RecTrainingJob) -> CleanPodPolicy:
    """Return what the training operator may remove: never the pods that have ended, for they say how.

    All of them are removed by the controller, once the job's status has what they say.
    """
    policy = job.spec.run_policy.clean_pod_policy
    return CleanPodPolicy.RUNNING if policy is CleanPodPolicy.ALL else policy


def _replicas(count: int, template: dict[str, Any]) -> dict[str, Any]:
    return {"replicas": count, "restartPolicy": "Never", "template": template}


def _worker_template(job: RecTrainingJob, settings: Settings, attempt: int) -> dict[str, Any]:
    spec = (job.spec.workers.template or {}).get("spec") or {}
    grace = spec.get("terminationGracePeriodSeconds")
    grace = GRACE_SECONDS if grace is None else grace
    cache = job.spec.data.cache
    container: dict[str, Any] = {
        "name": CONTAINER,
        "command": ["python", "-m", "rectrain_jobs.training.torchrun"],
        # torchrun kills ranks that have not ended 30 s after SIGTERM unless it is told to wait longer.
        "args": [
            f"--shutdown-timeout={max(grace - _LAUNCHER_SECONDS, grace // 2)}",
            "--module",
            "rectrain_jobs.training",
            f"--job={JOB_PATH}",
        ],
        "env": [
            {"name": "RECTRAIN_ATTEMPT", "value": str(attempt)},
            {"name": "RECTRAIN_PROGRESS_PORT", "value": str(PROGRESS_PORT)},
            {"name": "RECTRAIN_TERMINATION_LOG", "value": TERMINATION_LOG},
        ],
        "ports": [
            {"name": RENDEZVOUS_PORT_NAME, "containerPort": RENDEZVOUS_PORT},
            {"name": PROGRESS_PORT_NAME, "containerPort": PROGRESS_PORT},
        ],
        "volumeMounts": [{"name": f"{VOLUME_PREFIX}shm", "mountPath": "/dev/shm"}],
    }
    # In memory, and so within the container's memory limit: ranks of one pod exchange tensors through it.
    volumes: list[dict[str, Any]] = [{"name": f"{VOLUME_PREFIX}shm", "emptyDir": {"medium": "Memory"}}]
    if cache.directory is None:
        container["env"].append({"name": "RECTRAIN_CACHE", "value": CACHE_FOLDER})
        container["volumeMounts"].append({"name": f"{VOLUME_PREFIX}cache", "mountPath": CACHE_FOLDER})
        volumes.append({"name": f"{VOLUME_PREFIX}cache", "emptyDir": {"sizeLimit": _volume_size(cache.size_limit)}})
    if job.spec.workers.resources is not None:
        container["resources"] = job.spec.workers.resources.model_dump(exclude_none=True)
    pod = {"terminationGracePeriodSeconds": grace, **_placement(job)}
    template = pod_template(job, settings, component="worker", container=container, volumes=volumes, pod=pod)
    template["metadata"]["annotations"] = {
        **template["metadata"].get("annotations", {}),
        ATTEMPT_ANNOTATION: str(attempt),
    }
    return template


def _volume_size(cache_limit: str) -> str:
    # The kubelet evicts a pod whose volume is above its limit, so there is room for what the cache does not count.
    return f"{-(-parse_bytes(cache_limit) * 11 // 10 // 2**20)}Mi"


def _placement(job: RecTrainingJob) -> dict[str, Any]:
    placement = job.spec.workers.placement
    if placement is None:
        return {}
    selector = {"matchLabels": {JOB_LABEL: job.metadata.name}}
    if placement.strategy is PlacementStrategy.SPREAD:
        return {"topologySpreadConstraints": [_spread(placement, selector)]}
    term = {"topologyKey": placement.topology_key, "labelSelector": selector}
    preferred = [{"weight": 100, "podAffinityTerm": term}]
    return {"affinity": {"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}}


def _spread(placement: Placement, selector: dict[str, Any]) -> dict[str, Any]:
    return {
        "maxSkew": 1,
        "topologyKey": placement.topology_key,
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": selector,
    }
