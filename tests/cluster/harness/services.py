"""Object storage and MLflow for the cluster's jobs, on the node's address, where pods reach them."""

import secrets
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import gotools

from .node import ADDRESS, Node

READY_SECONDS = 90
STORAGE_URL = f"http://{ADDRESS}:9000"
MLFLOW_URL = f"http://{ADDRESS}:5000"


@dataclass(frozen=True)
class Storage:
    """A MinIO server with throwaway credentials."""

    access_key: str
    secret_key: str

    def client(self) -> Any:
        """Return a boto3 client."""
        return boto3.client(
            "s3",
            endpoint_url=STORAGE_URL,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
        )


def start_storage(node: Node, folder: Path) -> Storage:
    """Start MinIO beside the node; it ends with it."""
    storage = Storage(secrets.token_hex(10), secrets.token_hex(20))
    credentials = folder / "minio.env"
    credentials.write_text(f"MINIO_ROOT_USER={storage.access_key}\nMINIO_ROOT_PASSWORD={storage.secret_key}\n")
    options = ("env", f"MINIO_CONFIG_ENV_FILE={credentials}", "MINIO_BROWSER=off", "MINIO_UPDATE=off")
    server = (gotools.build("minio")["minio"], "server", folder / "minio", "--address", f"{ADDRESS}:9000")
    node.run("minio", *options, *server).wait_until(lambda: answers(f"{STORAGE_URL}/minio/health/ready"), READY_SECONDS)
    return storage


def start_mlflow(node: Node, folder: Path) -> None:
    """Start MLflow's server on a local database beside the node; it ends with it."""
    options = ("--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", folder / "artifacts")
    # Its job runners are half a dozen processes that a tracking server has no use for.
    server = (
        "env",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false",
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        ADDRESS,
        "--port",
        "5000",
        "--workers",
        "1",
    )
    node.run("mlflow", *server, *options).wait_until(lambda: answers(f"{MLFLOW_URL}/health"), READY_SECONDS)


def answers(url: str) -> bool:
    """Return whether a server says that it is well."""
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return int(response.status) == 200
    except OSError:
        return False
