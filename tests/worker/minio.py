"""A MinIO server for the tests that need object storage: built from source once, started on loopback once a session."""

import os
import secrets
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gotools
import pytest
from harness.processes import DIES_WITH_PARENT

START_SECONDS = 60


@dataclass(frozen=True)
class MinIO:
    endpoint_url: str
    access_key: str
    secret_key: str


@dataclass(frozen=True)
class Bucket:
    name: str
    endpoint_url: str

    @property
    def uri(self) -> str:
        return f"s3://{self.name}"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def start(folder: Path) -> tuple[subprocess.Popen[bytes], MinIO]:
    server = MinIO(f"http://127.0.0.1:{free_port()}", secrets.token_hex(10), secrets.token_hex(20))
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "MINIO_ROOT_USER": server.access_key,
        "MINIO_ROOT_PASSWORD": server.secret_key,
        "MINIO_BROWSER": "off",
        "MINIO_UPDATE": "off",
    }
    log = (folder / "minio.log").open("wb")
    process = subprocess.Popen(
        [
            *DIES_WITH_PARENT,
            gotools.build("minio")["minio"],
            "server",
            folder / "data",
            "--address",
            server.endpoint_url.removeprefix("http://"),
        ],
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{server.endpoint_url}/minio/health/ready", timeout=2):
                return process, server
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.05)
    process.kill()
    process.wait()
    raise RuntimeError(f"MinIO did not become ready: {(folder / 'minio.log').read_text()}")


@pytest.fixture(scope="session")
def minio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MinIO]:
    """A server with throwaway credentials."""
    process, server = start(tmp_path_factory.mktemp("minio"))
    yield server
    process.terminate()
    process.wait(timeout=30)


@pytest.fixture
def bucket(minio: MinIO, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """A fresh bucket, and the credentials for it in the environment."""
    import boto3

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", minio.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", minio.secret_key)
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    name = f"test-{secrets.token_hex(6)}"
    boto3.session.Session().client("s3", endpoint_url=minio.endpoint_url).create_bucket(Bucket=name)
    return Bucket(name, minio.endpoint_url)
