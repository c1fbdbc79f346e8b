"""Progress is asked of workers, which run their users' images: whatever they answer, the controller goes on."""

import asyncio
import gzip
import json
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from controller_objects import KEY, T0, document
from prometheus_client import CollectorRegistry

from rectrain.controller.kinds import Kind
from rectrain.controller.metrics import PROGRESS_READS
from rectrain.controller.observed import Key
from rectrain.controller.progress import ProgressReader
from rectrain.controller.queue import WorkQueue
from rectrain.controller.server import MAX_WATCH_LAG, serve
from rectrain.controller.store import Store

PROGRESS = {"step": 3, "totalSteps": 9, "epoch": 0, "examplesPerSecond": 5.0, "lastUpdateTime": T0.isoformat()}
JOBS = 40


def store_with(jobs: int, *, phase: str = "Running") -> Store:
    """Return a store that has heard of jobs whose workers run on this machine."""
    store = Store()
    for number in range(jobs):
        name, uid = f"job-{number}", f"child-{number}"
        metadata = {"namespace": KEY.namespace, "name": name, "resourceVersion": str(number + 1)}
        store.take_event(Kind.JOB, {**document(), "metadata": {**metadata, "uid": f"uid-{number}"}})
        status = {"conditions": [{"type": phase, "status": "True"}]}
        store.take_event(Kind.CHILD, {"metadata": {**metadata, "uid": uid}, "spec": {}, "status": status})
        labels = {"training.kubeflow.org/job-name": name, "training.kubeflow.org/replica-type": "master"}
        owner = {"kind": "PyTorchJob", "name": name, "uid": uid, "controller": True}
        pod = {**metadata, "name": f"{name}-master-0", "uid": "p", "labels": labels, "ownerReferences": [owner]}
        store.take_event(Kind.POD, {"metadata": pod, "status": {"phase": "Running", "podIP": "127.0.0.1"}})
    return store


async def read(answer: Any, store: Store) -> tuple[ProgressReader, WorkQueue[Key]]:
    """Read the progress of all jobs once, from a worker that answers so."""
    app = web.Application()
    app.add_routes([web.get("/progress", answer)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    queue = WorkQueue[Key]()
    reader = ProgressReader(store, queue, 15.0, port)
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        await reader.read_all(session)
    await runner.cleanup()
    return reader, queue


def counted(result: str) -> float:
    return PROGRESS_READS.labels(result=result)._value.get()


def test_progress_of_every_running_job_is_read_and_its_job_looked_at() -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.json_response(PROGRESS)

    reader, queue = asyncio.run(read(answer, store_with(JOBS)))
    assert len(reader.latest) == JOBS and len(queue) == JOBS
    assert {progress.step for progress in reader.latest.values()} == {3}


def test_the_largest_counts_that_the_api_server_stores_are_taken() -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.json_response({**PROGRESS, "step": -(2**63), "totalSteps": 2**63 - 1})

    reader, _ = asyncio.run(read(answer, store_with(1)))
    assert [(p.step, p.total_steps) for p in reader.latest.values()] == [(-(2**63), 2**63 - 1)]


def test_an_answer_may_come_in_pieces() -> None:
    text = json.dumps(PROGRESS).encode()

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for piece in (text[:10], text[10:]):
            await response.write(piece)
            await asyncio.sleep(0.05)
        return response

    reader, _ = asyncio.run(read(answer, store_with(1)))
    assert len(reader.latest) == 1


def test_few_are_asked_at_once() -> None:
    busy, most = 0, 0

    async def answer(_: web.Request) -> web.Response:
        nonlocal busy, most
        busy += 1
        most = max(most, busy)
        await asyncio.sleep(0.01)
        busy -= 1
        return web.json_response(PROGRESS)

    asyncio.run(read(answer, store_with(JOBS)))
    assert 1 < most <= 16


def test_workers_that_do_not_run_are_not_asked() -> None:
    async def answer(_: web.Request) -> web.Response:
        raise AssertionError("asked")

    reader, _ = asyncio.run(read(answer, store_with(2, phase="Succeeded")))
    assert reader.latest == {}


BOMB = gzip.compress(json.dumps(PROGRESS).encode() + b" " * 50_000_000)
ANSWERS: dict[str, tuple[dict[str, Any], str]] = {
    "it has not begun": ({"status": 503}, "not_ready"),
    "no JSON": ({"text": "hello"}, "malformed"),
    "another form": ({"text": '{"step": "many"}'}, "malformed"),
    "no number": ({"text": json.dumps({**PROGRESS, "loss": float("nan")})}, "malformed"),
    "a count beyond 64 bits": ({"text": json.dumps({**PROGRESS, "totalSteps": 2**63})}, "malformed"),
    "a time beyond 64 bits": (
        {"text": json.dumps({**PROGRESS, "estimatedRemainingSeconds": -(2**63) - 1})},
        "malformed",
    ),
    "a time without a zone": ({"text": json.dumps({**PROGRESS, "lastUpdateTime": "2026-03-01T12:00:00"})}, "malformed"),
    "no end": ({"text": " " * 10_000_000}, "malformed"),
    "a packed text": ({"body": BOMB, "headers": {"Content-Encoding": "gzip"}}, "malformed"),
    "another place": ({"status": 302, "headers": {"Location": "http://127.0.0.1:1/"}}, "not_ready"),
}


@pytest.mark.parametrize(("response", "result"), ANSWERS.values(), ids=ANSWERS)
def test_what_is_no_progress_is_counted_and_left(response: dict[str, Any], result: str) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(**response)

    before = counted(result)
    reader, queue = asyncio.run(read(answer, store_with(1)))
    assert (reader.latest, len(queue), counted(result) - before) == ({}, 0, 1)


def test_a_worker_that_ends_the_connection_is_counted() -> None:
    async def answer(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    before = counted("unreachable")
    asyncio.run(read(answer, store_with(1)))
    assert counted("unreachable") - before == 1


@pytest.mark.parametrize(("lag", "status"), [(0.0, 200), (MAX_WATCH_LAG, 200), (MAX_WATCH_LAG + 1, 503)])
def test_a_watch_that_stalls_is_no_health(lag: float, status: int) -> None:
    async def main() -> int:
        runner = await serve("127.0.0.1", 0, CollectorRegistry(), lambda: lag)
        port = runner.addresses[0][1]
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/healthz") as answer:
            found = answer.status
        await runner.cleanup()
        return found

    assert asyncio.run(main()) == status
