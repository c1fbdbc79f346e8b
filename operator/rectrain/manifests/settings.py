"""What an operator adds to every job that does not say it itself."""

from importlib.metadata import version
from typing import Annotated

from pydantic import Field

from rectrain.api.base import ApiModel
from rectrain.api.rules import without_credentials

DEFAULT_WORKER_IMAGE = f"rectrain-worker:{version('rectrain')}"
"""Image of workers where neither the job nor the operator names one."""


class Settings(ApiModel):
    """Defaults of an operator for its jobs."""

    RULES = (without_credentials("mlflowTrackingUri", "jobs name a Secret by tracking.mlflow.credentialsSecretRef"),)

    worker_image: Annotated[str, Field(min_length=1)] = DEFAULT_WORKER_IMAGE
    """Image of workers. A job's workers.image goes before it."""
    output_uri: Annotated[str, Field(pattern="^[a-z0-9]+://")] | None = None
    """Folder below which each job gets one of its own for its results. A job's output.uri goes before it."""
    mlflow_tracking_uri: Annotated[str, Field(min_length=1)] | None = None
    """MLflow server. A job's tracking.mlflow.trackingUri goes before it."""
