"""The launcher in a pod ends as its ranks end, so that a pod's exit code says what happened to the job."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rectrain_jobs.training import exit_codes

COMMAND = [sys.executable, "-m", "rectrain_jobs.training.torchrun", "--nproc-per-node=2", "--shutdown-timeout=60"]

FAILING = """
import os, signal, sys, time
if os.environ["RANK"] == "1":
    {end}
time.sleep(600)
"""

SAVING = """
import os, signal, sys, time
def save(*_):
    open(sys.argv[1] + os.environ["RANK"], "w").close()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
open(sys.argv[1] + "ready" + os.environ["RANK"], "w").close()
time.sleep(600)
"""


def script(folder: Path, text: str) -> Path:
    file = folder / "rank.py"
    file.write_text(text)
    return file


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (f"os._exit({exit_codes.USER_ERROR})", exit_codes.USER_ERROR),
        ("os.kill(os.getpid(), signal.SIGKILL)", 128 + signal.SIGKILL),
    ],
)
def test_ends_as_the_rank_that_failed(tmp_path: Path, end: str, code: int) -> None:
    done = subprocess.run([*COMMAND, script(tmp_path, FAILING.format(end=end))], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert "error: rank 1 ended with exit code" in done.stderr
    assert "Traceback" not in done.stderr


def test_succeeds_with_its_ranks(tmp_path: Path) -> None:
    assert subprocess.run([*COMMAND, script(tmp_path, "")]).returncode == exit_codes.SUCCEEDED


def test_passes_on_sigterm_and_waits_for_the_ranks_to_save(tmp_path: Path) -> None:
    prefix = f"{tmp_path}/"
    launcher = subprocess.Popen([*COMMAND, script(tmp_path, SAVING), prefix])
    try:
        while not all((tmp_path / f"ready{rank}").exists() for rank in range(2)):
            assert launcher.poll() is None
            time.sleep(0.05)
        launcher.send_signal(signal.SIGTERM)
        assert launcher.wait(timeout=120) == exit_codes.STOPPED
    finally:
        launcher.kill()
        launcher.wait()
    assert all((tmp_path / str(rank)).exists() for rank in range(2))


FIRST = """
import os, sys, time
from rectrain_jobs.training.first_process import end_as_child

def work():
    {work}

sys.exit(end_as_child(work, first=True))
"""
DEAF = "print('ready', flush=True); time.sleep(600)"


@pytest.mark.parametrize(
    ("work", "stop", "code"),
    [("return 2", False, 2), ("os.kill(os.getpid(), 9)", False, 137), (DEAF, True, 128 + signal.SIGTERM)],
    ids=["its code", "its signal", "stopped at work that handles no signal"],
)
def test_the_first_process_of_a_container_ends_as_its_child(tmp_path: Path, work: str, stop: bool, code: int) -> None:
    file = script(tmp_path, FIRST.format(work=work))
    first = subprocess.Popen([sys.executable, file], stdout=subprocess.PIPE, text=True)
    try:
        if stop:
            assert first.stdout and first.stdout.readline() == "ready\n"
            first.send_signal(signal.SIGTERM)
        assert first.wait(timeout=60) == code
    finally:
        first.kill()
        first.wait()


JOINING = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
open(f"{os.environ['RANK']} of {os.environ['WORLD_SIZE']}", "w").close()
if os.environ["WORLD_SIZE"] == "1":
    time.sleep(600)
"""


def test_a_pod_that_comes_later_is_taken_in(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    file = script(tmp_path, JOINING)
    # What the training operator gives to the pods of an elastic job.
    shared = {"PET_RDZV_BACKEND": "c10d", "PET_RDZV_ENDPOINT": f"localhost:{port}", "PET_NNODES": "1:2"}
    shared |= {"PET_NPROC_PER_NODE": "1", "PET_RDZV_CONF": "last_call_timeout=1"}

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "rectrain_jobs.training.torchrun", "--shutdown-timeout=60", str(file)]
        return subprocess.Popen(command, env={**os.environ, **shared}, cwd=tmp_path)

    pods = [start()]
    try:
        while not (tmp_path / "0 of 1").exists():
            assert pods[0].poll() is None
            time.sleep(0.05)
        pods.append(start())
        assert [pod.wait(timeout=300) for pod in pods] == [0, 0]
    finally:
        for pod in pods:
            pod.kill()
            pod.wait()
    assert (tmp_path / "0 of 2").exists() and (tmp_path / "1 of 2").exists()


def test_pods_of_a_pytorchjob_form_one_group(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    file = script(tmp_path, 'import os\nopen(os.environ["RANK"], "w").write(os.environ["WORLD_SIZE"])')
    # What the training operator gives to the pods of a master and a worker with two processes each.
    shared = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": "4", "PYTHONUNBUFFERED": "1"}
    shared |= {"PET_MASTER_ADDR": "localhost", "PET_MASTER_PORT": port, "PET_NPROC_PER_NODE": "2", "PET_NNODES": "2"}
    pods = [
        subprocess.Popen(
            [sys.executable, "-m", "rectrain_jobs.training.torchrun", "--shutdown-timeout=60", file],
            env={**os.environ, **shared, "RANK": node, "PET_NODE_RANK": node},
            cwd=tmp_path,
        )
        for node in ("0", "1")
    ]
    try:
        assert [pod.wait(timeout=300) for pod in pods] == [0, 0]
    finally:
        for pod in pods:
            pod.kill()
            pod.wait()
    assert {rank: (tmp_path / rank).read_text() for rank in "0123"} == dict.fromkeys("0123", "4")
