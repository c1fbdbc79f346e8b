"""Tracking, publishing, workers and run policy: what a job has besides its model and data."""

from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from rectrain.api.base import ApiModel, Count, Name, Problem
from rectrain.api.data import SecretRef


class MLflow(ApiModel):
    """Where parameters, metrics and models are recorded."""

    enabled: bool = True
    """Whether the run is recorded."""
    tracking_uri: str | None = None
    """MLflow server or store. Default: $MLFLOW_TRACKING_URI, or a sqlite file beside the run's output."""
    experiment: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """Experiment of the run. Default: the job's name."""
    registered_model: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """Register the trained model under this name."""
    alias: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$", max_length=255)] | None = None
    """Alias that is moved to the new version of the registered model."""
    system_metrics: bool = False
    """Also record CPU, memory, disk and GPU use."""
    credentials_secret_ref: SecretRef | None = None
    """On Kubernetes: the Secret with MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or
    MLFLOW_TRACKING_TOKEN."""


class Tracking(ApiModel):
    """Experiment tracking."""

    mlflow: MLflow = MLflow()
    """MLflow."""


class IndexType(StrEnum):
    """Vector stores."""

    FAISS = "Faiss"
    MILVUS = "Milvus"


class Index(ApiModel):
    """The vector index of the items."""

    type: IndexType
    """Faiss (a folder beside the bundle) or Milvus (a server)."""
    uri: str
    """Address of the server, or folder of the index."""
    collection: Name | None = None
    """Milvus: name that searches use. Default: the job's name with underscores."""
    keep: Count = 3
    """Versions of the index that are kept to go back to, the served one among them."""


class Publish(ApiModel):
    """What is done with the trained model."""

    index: Index | None = None
    """Publish the item vectors to a vector index."""


class Elastic(ApiModel):
    """Range of the number of workers."""

    min_replicas: Count
    """Smallest number of workers that training goes on with."""
    max_replicas: Count
    """Largest number of workers."""

    def rules(self) -> Iterator[Problem]:
        """Yield a range that is empty."""
        if self.min_replicas > self.max_replicas:
            yield Problem(("minReplicas",), self.min_replicas, f"must be at most maxReplicas, {self.max_replicas}")


def _check_amount(value: Any) -> Any:
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise ValueError("must be text such as 500m or 16Gi, or a whole number")
    return value


class Workers(ApiModel):
    """Where the job runs: pods on Kubernetes, processes on one machine."""

    replicas: Count = 1
    """Number of pods. `rectrain run` starts one process for each process of each."""
    processes_per_replica: Count = 1
    """Processes in a pod: one for each GPU."""
    image: str | None = None
    """Worker image. Default: the operator's."""
    resources: dict[str, dict[str, Annotated[str | int, BeforeValidator(_check_amount)]]] | None = None
    """Requests and limits of a worker, as in a container."""
    elastic: Elastic | None = None
    """Let the number of workers change while the job runs."""
    template: dict[str, Any] | None = None
    """A PodTemplateSpec that is merged into the pods, by name."""

    def rules(self) -> Iterator[Problem]:
        """Yield a number of replicas outside the elastic range."""
        if self.elastic and not self.elastic.min_replicas <= self.replicas <= self.elastic.max_replicas:
            yield Problem(("replicas",), self.replicas, "must be between elastic.minReplicas and elastic.maxReplicas")

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.replicas * self.processes_per_replica


class CleanPodPolicy(StrEnum):
    """Which pods are removed when a job has ended."""

    NONE = "None"
    RUNNING = "Running"
    ALL = "All"


class RunPolicy(ApiModel):
    """How the job is run on Kubernetes."""

    suspend: bool = False
    """Stop the pods; the job continues from its checkpoint when this is false again."""
    active_deadline_seconds: Count | None = None
    """The job fails when it has run for longer."""
    ttl_seconds_after_finished: Annotated[int, Field(ge=0)] | None = None
    """The job is deleted so long after it ended."""
    max_restarts: Annotated[int, Field(ge=0)] = 3
    """Restarts of all workers after failures before the job fails."""
    clean_pod_policy: CleanPodPolicy = CleanPodPolicy.RUNNING
    """Which pods are removed when the job has ended."""
