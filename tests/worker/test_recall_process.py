"""The recall service as a process: answers while bundle and index are replaced, and ends as it should."""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
from bundles import HISTORY, ITEM_ID, ITEMS, MIND, USER_ID, make_bundle

from rectrain_jobs.retrieval.faiss_store import FaissStore
from rectrain_jobs.retrieval.publishing import publish
from rectrain_jobs.serving.encoder import EncodedUser
from rectrain_jobs.serving.recall_model import RecallModel
from rectrain_jobs.storage import open_store

SWAPS, CLIENTS = 4, 3
HISTORIES = [[3], [9, 4, 17], [1, 2, 3, 4, 5, 6]]


@contextmanager
def running(*arguments, **environment):
    """Run `rectrain serve recall` on a free port; yields port and process."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-c", "from rectrain.cli.main import main; main()", "serve", "recall"]
    process = subprocess.Popen(
        [*command, "--port", str(port), *map(str, arguments)],
        env=os.environ | environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield port, process
    finally:
        process.kill()
        process.communicate()


def call(connection, method, path, body=None):
    headers = {"Content-Type": "application/json"} if body is not None else {}
    connection.request(method, path, json.dumps(body) if body is not None else None, headers)
    answer = connection.getresponse()
    return answer.status, answer.read()


def wait_until(condition, process, timeout=90):
    deadline = time.monotonic() + timeout
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)


def is_served(port, model_version=None):
    try:
        status, body = call(http.client.HTTPConnection("127.0.0.1", port, timeout=5), "GET", "/readyz")
    except OSError:
        return False
    return status == 200 and model_version in (None, json.loads(body)["model_version"])


def expected_of(model):
    """By history the items that a model gives."""
    vectors = model.encoder.users([EncodedUser({"history": history[-5:]}) for history in HISTORIES])
    scores = (vectors @ model.encoder.items(np.arange(ITEMS)).T).max(axis=1)
    return np.argsort(-scores, axis=1)[:, :10].tolist()


def test_no_request_fails_or_mixes_models_while_they_are_replaced(tmp_path):
    bundles = []
    for seed in range(2):
        make_bundle(tmp_path / str(seed), MIND, [USER_ID, ITEM_ID, HISTORY], seed=seed)
        bundles.append(RecallModel(open_store(str(tmp_path / str(seed)))))
    wanted = {model.version: expected_of(model) for model in bundles}
    assert len(wanted) == 2 and wanted[bundles[0].version] != wanted[bundles[1].version]
    served, store = tmp_path / "served", FaissStore(open_store(str(tmp_path / "index")))
    shutil.copytree(tmp_path / "0", served)
    publish(store, bundles[0].items(), keep=2)
    answers, failures, stop = [], [], threading.Event()

    def ask(port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        while not stop.is_set():
            try:
                status, body = call(connection, "POST", "/rec/recall", {"top_k": 10, "hist_item": HISTORIES})
            except (OSError, http.client.HTTPException) as error:
                failures.append(repr(error))
                return
            answer = json.loads(body)
            right = status == 200 and wanted.get(answer["model_version"]) == answer["items"]
            if right and answer["index_version"].endswith(f"_{answer['model_version']}"):
                answers.append(answer["model_version"])
            else:
                failures.append(answer)

    with running("--bundle", served, "--index", tmp_path / "index", "--follow-seconds", "0.05") as (port, process):
        wait_until(lambda: is_served(port), process)
        clients = [threading.Thread(target=ask, args=(port,)) for _ in range(CLIENTS)]
        for client in clients:
            client.start()
        for swap in range(1, SWAPS + 1):
            model, before = bundles[swap % 2], len(answers)
            shutil.copytree(tmp_path / str(swap % 2), served, dirs_exist_ok=True)
            publish(store, model.items(), keep=2)
            wait_until(lambda version=model.version: is_served(port, version), process)
            wait_until(lambda before=before: len(answers) > before + 20 or failures, process)
        stop.set()
        for client in clients:
            client.join(timeout=60)
    assert not failures, failures[:3]
    assert len(answers) > 20 * SWAPS and set(answers) == set(wanted)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle")
    make_bundle(folder, MIND, [USER_ID, ITEM_ID, HISTORY])
    return folder


def test_a_process_needs_no_torch_and_ends_by_itself(bundle, tmp_path):
    blocker = tmp_path / "torch.py"
    blocker.write_text("raise ImportError('torch is not to be imported')")
    with running("--bundle", bundle, PYTHONPATH=str(tmp_path), TMPDIR=str(tmp_path)) as (port, process):
        wait_until(lambda: is_served(port), process)
        assert list(tmp_path.glob("rectrain-recall-*"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) in (0, -signal.SIGTERM)
        assert not list(tmp_path.glob("rectrain-recall-*"))
        assert process.stderr.read() == ""


def test_what_has_come_is_answered_before_a_process_ends(bundle):
    body = json.dumps({"top_k": 3, "hist_item": [[3]]}).encode()
    head = "POST /rec/recall HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    with running("--bundle", bundle) as (port, process):
        wait_until(lambda: is_served(port), process)
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            connection.sendall(head.encode() + body[:9])
            assert is_served(port), "by now it has read what came before"
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: not is_served(port), process)
            connection.sendall(body[9:])
            answer = connection.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 200") and b'"sources":["model"]' in answer
        assert process.wait(timeout=60) in (0, -signal.SIGTERM)


def test_tokens_come_from_the_environment_and_are_said_nowhere(bundle):
    secret, admin = "s" * 20, "r" * 20
    tokens = {"RECTRAIN_RECALL_TOKEN": secret, "RECTRAIN_RECALL_ADMIN_TOKEN": admin}
    with running("--bundle", bundle, **tokens) as (port, process):
        wait_until(lambda: is_served(port), process)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        assert call(connection, "POST", "/rec/count")[0] == 401
        connection.request("POST", "/rec/count", headers={"Authorization": f"Bearer {secret}"})
        assert connection.getresponse().read() == b'{"count":40}'
        process.terminate()
        said = process.communicate(timeout=60)[1]
        assert secret not in said and admin not in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bundle", "nowhere"], "nowhere: is no model bundle: it has no bundle.json"),
        (["--token-file", "nowhere"], "--token-file: nowhere cannot be read"),
        (["--index", "x.db", "--token-file", __file__], "--token-file: must be 16 printable ASCII characters or more"),
        (["--max-top-k", "0"], "Invalid value for '--max-top-k'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(arguments, message, bundle):
    with running("--bundle", bundle, *arguments) as (_, process):
        said = process.communicate(timeout=60)[1]
        assert process.returncode == 2 and message in said and "Traceback" not in said
