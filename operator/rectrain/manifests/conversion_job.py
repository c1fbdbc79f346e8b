"""The batch/v1 Job that converts a job's raw data to shards before it trains."""

from typing import Any

from rectrain.api.job import RecTrainingJob
from rectrain.api.pod_template import CONVERSION_CONTAINER
from rectrain.manifests.metadata import object_metadata, queue_labels, short_digest
from rectrain.manifests.pods import JOB_PATH, pod_template
from rectrain.manifests.reachability import check_reachable
from rectrain.manifests.settings import Settings

_USER_ERROR_EXIT_CODE = 2
_ORDINARY_RESOURCES = ("cpu", "memory", "ephemeral-storage")


def conversion_name(job: RecTrainingJob) -> str:
    """Return the name of a job's conversion Job: the same for all jobs whose shards go to the same place."""
    return f"rectrain-data-{short_digest(job.spec.data.train.uri)}"


def conversion_job(job: RecTrainingJob, settings: Settings) -> dict[str, Any]:
    """Return the Job that makes a job's shards from its data.source.

    Its name comes from where the shards go, so that several jobs with the same data find one conversion. It looks at
    what is there first, and does nothing when that is as the job wants it; what it makes is published whole or not at
    all.

    Raises:
        InvalidJobError: The job's files cannot be reached from pods.
    """
    check_reachable(job, settings)
    metadata = object_metadata(job, conversion_name(job), "data")
    queue = queue_labels(job)
    metadata["labels"] |= queue
    container: dict[str, Any] = {
        "name": CONVERSION_CONTAINER,
        "command": ["rectrain"],
        "args": ["data", "convert", f"--job={JOB_PATH}", "--if-needed"],
    }
    if resources := _without_devices(job):
        container["resources"] = resources
    spec: dict[str, Any] = {
        "backoffLimit": 3,
        # Wrong data stay wrong; a pod that was moved away has not failed.
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {
                        "containerName": CONVERSION_CONTAINER,
                        "operator": "In",
                        "values": [_USER_ERROR_EXIT_CODE],
                    },
                },
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            ]
        },
        "template": pod_template(job, settings, component="data", container=container, pod={}),
    }
    if queue:
        spec["suspend"] = True
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}


def _without_devices(job: RecTrainingJob) -> dict[str, Any]:
    """Return a worker's resources without GPUs and the like, which a conversion has no use for."""
    asked = job.spec.workers.resources
    resources = {
        kind: {name: amount for name, amount in amounts.items() if name in _ORDINARY_RESOURCES}
        for kind, amounts in (asked.model_dump(exclude_none=True) if asked is not None else {}).items()
    }
    return {kind: amounts for kind, amounts in resources.items() if amounts}
