"""Tracking, publishing and run policy: what a job has besides its model, data and workers."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from rectrain.api.base import ApiModel, Count, Name, Uri
from rectrain.api.data import SecretRef
from rectrain.api.rules import without_credentials


class MLflow(ApiModel):
    """Where parameters, metrics and models are recorded."""

    RULES = (without_credentials("trackingUri", "name a Secret by credentialsSecretRef"),)

    enabled: bool = True
    """Whether the run is recorded."""
    tracking_uri: Uri | None = None
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


class Output(ApiModel):
    """Where a run's results go."""

    uri: Uri | None = None
    """Folder of the run's state and results: checkpoints (without training.checkpoint.uri), metrics, plan and model
    bundle. A run with the same folder continues from what is there. Default: `rectrain run` has runs/<name>-<digest>;
    on Kubernetes a folder of this job below the operator's output folder."""


class IndexType(StrEnum):
    """Vector stores."""

    FAISS = "Faiss"
    MILVUS = "Milvus"


class Index(ApiModel):
    """The vector index of the items."""

    RULES = (without_credentials("uri", "they come from the environment variable MILVUS_TOKEN"),)

    type: IndexType
    """Faiss (a folder beside the bundle) or Milvus (a server)."""
    uri: Uri
    """Address of the server, or folder of the index."""
    collection: Name | None = None
    """Milvus: name that searches use. Default: the job's name with underscores."""
    keep: Count = 3
    """Versions of the index that are kept to go back to, the served one among them."""


class Publish(ApiModel):
    """What is done with the trained model."""

    index: Index | None = None
    """Publish the item vectors to a vector index."""


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
    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    """The job is deleted so long after it ended."""
    max_restarts: Annotated[int, Field(ge=0, le=2**31 - 1)] = 3
    """Restarts of all workers after failures before the job fails."""
    clean_pod_policy: CleanPodPolicy = CleanPodPolicy.RUNNING
    """Which pods are removed when the job has ended. `All` removes the PyTorchJob with them."""
