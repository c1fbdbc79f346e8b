"""The controller as a process: what it says to what it cannot start with."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Path:
    """A file that names a cluster which is not asked."""
    file = tmp_path / "config"
    document = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:9"}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
    }
    file.write_text(yaml.safe_dump(document))
    return file


@pytest.fixture
def taken() -> Iterator[str]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def said(kubeconfig: Path, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "rectrain.controller", *options],
        env={**os.environ, "KUBECONFIG": str(kubeconfig)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_an_address_that_is_taken(kubeconfig: Path, taken: str) -> None:
    wanted = f"--listen must be an address of this machine that is free: {taken}"
    assert wanted in said(kubeconfig, "--listen", taken)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--listen=8080", "--listen must be HOST:PORT"),
        ("--output-uri=runs", "--output-uri: "),
        ("--mlflow-tracking-uri=http://me:secret@mlflow", "--mlflow-tracking-uri: must hold no user or password"),
    ],
)
def test_an_option_that_is_none(kubeconfig: Path, option: str, message: str) -> None:
    assert message in said(kubeconfig, option)


def test_a_kubeconfig_that_is_none(tmp_path: Path) -> None:
    file = tmp_path / "config"
    file.write_text("hello")
    assert "no cluster is configured: kubeconfig: " in said(file)
