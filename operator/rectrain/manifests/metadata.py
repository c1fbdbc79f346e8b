"""Names, labels and owners of what is created for a job."""

import hashlib
from typing import Any

from rectrain.api.job import KIND, RecTrainingJob

ATTEMPT_ANNOTATION = "rectrain.io/attempt"
"""On a PyTorchJob and its pods: how many times the job was started before."""

JOB_LABEL = "rectrain.io/job"
"""On everything that belongs to a job: its name."""

MANAGED_BY_LABEL, MANAGED_BY = "app.kubernetes.io/managed-by", "rectrain"
"""On everything that a controller makes: the conversions among the Jobs of a cluster are told by it."""

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
_KUEUE_LABELS = (QUEUE_LABEL, "kueue.x-k8s.io/priority-class")


def object_metadata(job: RecTrainingJob, name: str, component: str) -> dict[str, Any]:
    """Return the metadata of an object of a job: its labels, its namespace if it is known, and its owner likewise.

    Args:
        job: The job.
        name: Name of the object.
        component: What it is for: ``worker``, ``data``, ...
    """
    metadata: dict[str, Any] = {"name": name}
    if job.metadata.namespace is not None:
        metadata["namespace"] = job.metadata.namespace
    metadata["labels"] = labels_of(job, component)
    if job.metadata.uid is not None:
        owner = {"apiVersion": job.api_version, "kind": KIND, "name": job.metadata.name, "uid": job.metadata.uid}
        metadata["ownerReferences"] = [{**owner, "controller": True, "blockOwnerDeletion": True}]
    return metadata


def labels_of(job: RecTrainingJob, component: str) -> dict[str, str]:
    """Return the labels of everything that belongs to a job."""
    return {
        "app.kubernetes.io/name": "rectrain",
        "app.kubernetes.io/instance": job.metadata.name,
        "app.kubernetes.io/component": component,
        MANAGED_BY_LABEL: MANAGED_BY,
        JOB_LABEL: job.metadata.name,
    }


def queue_labels(job: RecTrainingJob) -> dict[str, str]:
    """Return the labels by which Kueue queues a job; empty when the job names no queue."""
    if QUEUE_LABEL not in job.metadata.labels:
        return {}
    return {label: job.metadata.labels[label] for label in _KUEUE_LABELS if label in job.metadata.labels}


def short_digest(text: str) -> str:
    """Return ten hexadecimal digits that stand for a text in a name."""
    return hashlib.sha256(text.encode()).hexdigest()[:10]
