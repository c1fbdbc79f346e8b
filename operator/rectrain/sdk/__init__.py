"""The Python client: submit, watch, wait for, read and end RecTrainingJobs on a cluster."""

from rectrain.sdk.aio import AsyncClient
from rectrain.sdk.client import Client
from rectrain.sdk.errors import (
    ClusterError,
    ClusterUnreachableError,
    JobExistsError,
    JobFailedError,
    JobNotFoundError,
    JobRefusedError,
    NotInstalledError,
    NotPermittedError,
    ObjectNotFoundError,
    WaitTimeoutError,
)

__all__ = [
    "AsyncClient",
    "Client",
    "ClusterError",
    "ClusterUnreachableError",
    "JobExistsError",
    "JobFailedError",
    "JobNotFoundError",
    "JobRefusedError",
    "NotInstalledError",
    "NotPermittedError",
    "ObjectNotFoundError",
    "WaitTimeoutError",
]
