"""Measure the recall service as a process on this machine: latency, throughput, what it adds to encode and search.

Run `python benchmarks/recall_service.py`; `--items 1000000` for a large corpus, `--milvus` for the way through Milvus
Lite beside FAISS, `--milvus http://host:19530` through a server, `--json` prints one JSON object on the last line. The
model is MIND with 4 interests of 64 dimensions over items in clusters of differing size and direction; users have
histories of one to three clusters. Measured in the same run:

- the floor: the same framework and server, with the same body, answering a constant;
- encode and search alone, in this process, without HTTP;
- the CPU time of a request's process beside its latency, which other work on the machine changes less;
- the service at one request after another, at a steady rate whatever it answers (latency counts from when a request was
  due), and saturated by 1, 4 and 16 connections;
- another model published and loaded while requests go on: how many failed, and how many were answered by one model's
  user vectors from the other's items.
"""

import argparse
import asyncio
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

DIM, INTERESTS, LENGTH, TOP_K = 64, 4, 20, 50


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=36_000, help="number of items")
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second of the steady load")
    parser.add_argument("--seconds", type=float, default=10.0, help="duration of each load")
    parser.add_argument(
        "--milvus",
        nargs="?",
        const="",
        metavar="URI",
        help="measure the way through Milvus, too: Milvus Lite or a server",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    parser.add_argument("--floor", type=int, metavar="PORT", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.floor:
        serve_floor(arguments.floor)
        return
    with tempfile.TemporaryDirectory(prefix="rectrain-bench-") as folder:
        report = measure(Path(folder), arguments)
    for name, value in report.items():
        print(f"{name:52} {value}")
    if arguments.json:
        print(json.dumps(report))


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return all figures; times are in milliseconds unless the name says otherwise."""
    report: dict[str, Any] = {
        "machine": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}",
        "load average before": load(),
        "items": arguments.items,
    }
    rng = np.random.default_rng(0)
    clusters, vectors = item_vectors(arguments.items, rng)
    write_model(folder / "bundle", vectors)
    bodies = [json.dumps({"top_k": TOP_K, "hist_item": [h]}).encode() for h in histories(clusters, 2000, rng)]
    report |= publish_items(folder)
    print(f"the index is published: {report['index']}, {report['publish, seconds']} s", flush=True)
    report |= alone(folder, bodies)
    report |= {f"floor, {name}": value for name, value in asyncio.run(floor(bodies, arguments.seconds / 2)).items()}
    report |= service(folder / "bundle", folder / "index", bodies, arguments)
    report["service adds at the median, one connection"] = round(
        report["1 connection: p50"] - report["encode and search: p50"], 2
    )
    report["service adds in CPU time"] = round(
        report["1 connection: CPU time of a request"] - report["encode and search: CPU time"], 2
    )
    report |= {f"swap: {name}": value for name, value in swap(folder, vectors, bodies).items()}
    if arguments.milvus is not None:
        kind = "Milvus server" if arguments.milvus else "Milvus Lite"
        report |= {f"{kind}: {k}": v for k, v in milvus(folder, bodies, arguments).items()}
    report["load average after"] = load()
    return report


def item_vectors(items: int, rng: np.random.Generator) -> tuple[list[Any], Any]:
    """Return the items of each cluster, and all vectors, float32 [items, DIM].

    As of learnt embeddings, a few directions hold most of the variance, and clusters differ in size.
    """
    spread = np.arange(1, DIM + 1, dtype=np.float32) ** -0.5
    number = max(20, items // 300)
    shares = rng.pareto(1.5, number) + 0.1
    cluster = rng.choice(number, items, p=shares / shares.sum())
    centres = rng.standard_normal((number, DIM), dtype=np.float32) * spread
    vectors = centres[cluster] + rng.standard_normal((items, DIM), dtype=np.float32) * spread
    order = np.argsort(cluster, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(cluster, minlength=number))[:-1])
    return [m for m in members if len(m) > LENGTH], vectors


def histories(clusters: Sequence[Any], users: int, rng: np.random.Generator) -> list[list[int]]:
    """Return histories, each of items of one to three clusters."""
    found = []
    for _ in range(users):
        liked = rng.choice(len(clusters), rng.integers(1, 4))
        length = rng.integers(5, LENGTH + 1)
        found.append([int(rng.choice(clusters[rng.choice(liked)])) for _ in range(length)])
    return found


def write_model(folder: Path, vectors: Any) -> None:
    """Write a bundle of a MIND model with these items, whose routing keeps to their space."""
    import torch
    import torch.distributed as dist

    from rectrain.api.job import RecTrainingJob
    from rectrain_jobs.bundle import write_bundle
    from rectrain_jobs.features import fit
    from rectrain_jobs.storage import open_store

    features = [
        {"name": "user_id", "kind": "Categorical", "side": "None", "cardinality": 10},
        {"name": "item_id", "kind": "Categorical", "side": "Item", "cardinality": len(vectors)},
        {"name": "history", "kind": "Sequence", "side": "User", "of": "item_id", "maxLength": LENGTH},
    ]
    model = {"type": "MIND", "mind": {"embeddingDim": DIM, "interests": INTERESTS, "similarity": "Cosine"}}
    spec = {"model": model, "features": features, "data": {"train": {"uri": "none"}}}
    job = RecTrainingJob.model_validate({"metadata": {"name": "benchmark"}, "spec": spec})
    state = {
        "embeddings.embeddings.item_id.weight": torch.from_numpy(np.vstack([vectors, np.zeros((2, DIM), np.float32)])),
        "arch.user.routing.initial_logits": torch.randn(INTERESTS, LENGTH, generator=torch.Generator().manual_seed(0)),
        "arch.user.routing.bilinear.weight": torch.eye(DIM),
    }
    counts = torch.arange(len(vectors) + 2).flip(0)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    fitted, store = fit(job.spec.features, []), open_store(str(folder))
    group = dist.group.WORLD
    write_bundle(store, job, state, fitted, metrics={}, lineage={}, item_counts=counts, group=group)
    dist.destroy_process_group()


def publish_items(folder: Path, bundle: str = "bundle") -> dict[str, Any]:
    """Publish the items of a bundle to FAISS."""
    from rectrain_jobs.retrieval.faiss_store import FaissStore
    from rectrain_jobs.retrieval.publishing import publish
    from rectrain_jobs.serving.recall_model import RecallModel
    from rectrain_jobs.storage import open_store

    items = RecallModel(open_store(str(folder / bundle))).items()
    began = time.perf_counter()
    version = publish(FaissStore(open_store(str(folder / "index"))), items, keep=1)
    settings = " ".join(f"{name}={value}" for name, value in version.parameters.items())
    return {
        "index": f"{version.algorithm} {settings}".strip(),
        "publish, seconds": round(time.perf_counter() - began, 1),
    }


def alone(folder: Path, bodies: Sequence[bytes]) -> dict[str, Any]:
    """Measure encoding and searching without a service, and what the index loses."""
    import faiss

    from rectrain_jobs.retrieval.base import Hits
    from rectrain_jobs.retrieval.faiss_store import FaissStore
    from rectrain_jobs.retrieval.merging import merge
    from rectrain_jobs.retrieval.opening import served_index
    from rectrain_jobs.serving.encoder import EncodedUser
    from rectrain_jobs.serving.recall_model import RecallModel
    from rectrain_jobs.storage import open_store

    faiss.omp_set_num_threads(1)
    model = RecallModel(open_store(str(folder / "bundle")))
    index = served_index(FaissStore(open_store(str(folder / "index"))))
    users = [EncodedUser({"history": json.loads(body)["hist_item"][0]}) for body in bodies[:500]]
    encoding, searching, vectors, cpu = [], [], [], time.process_time()
    for user in users:
        began = time.perf_counter()
        vectors.append(model.encoder.users([user])[0])
        encoded = time.perf_counter()
        index.search(vectors[-1], TOP_K)
        encoding.append(encoded - began)
        searching.append(time.perf_counter() - encoded)
    cpu = (time.process_time() - cpu) / len(users)
    queries = np.concatenate(vectors[:200])
    exact = Hits(*faiss.knn(queries, model.items().vectors, TOP_K, metric=faiss.METRIC_INNER_PRODUCT)[::-1])
    found = index.search(queries, TOP_K)
    recall = np.mean(found.scores >= exact.scores[:, -1:] - 1e-5)  # by score, as equal items may come in any order
    of_users = []
    for first in range(0, len(queries), INTERESTS):
        part = slice(first, first + INTERESTS)
        best, got = (merge(Hits(hits.ids[part], hits.scores[part]), TOP_K)[1] for hits in (exact, found))
        of_users.append(np.mean(got >= best[-1] - 1e-5))
    both = [a + b for a, b in zip(encoding, searching, strict=True)]
    return {
        "recall@50 of exact, each user": round(float(np.mean(of_users)), 4),
        "recall@50 of exact, each interest": round(float(recall), 4),
        "encode: p50": milliseconds(encoding, 50),
        "search: p50": milliseconds(searching, 50),
        "encode and search: p50": milliseconds(both, 50),
        "encode and search: p99": milliseconds(both, 99),
        "encode and search: CPU time": round(1000 * cpu, 2),
    }


def service(bundle: Path, index: Path, bodies: Sequence[bytes], arguments: argparse.Namespace) -> dict[str, Any]:
    """Start the service and measure it under load."""
    command = [sys.executable, "-c", "from rectrain.cli.main import main; main()", "serve", "recall"]
    report: dict[str, Any] = {}
    seconds, rate = arguments.seconds, arguments.rate
    for _ in range(2):  # the second start finds the files in memory
        with process([*command, "--bundle", str(bundle), "--index", str(index)]) as server:
            report["start to ready, seconds"] = server.starting
            report["start to ready, seconds of CPU time"] = round(server.cpu_seconds(), 2)
    with process([*command, "--bundle", str(bundle), "--index", str(index)]) as server:
        asyncio.run(closed(server, bodies, 1, 1.0))
        report |= asyncio.run(closed(server, bodies, 1, seconds))
        report |= asyncio.run(steady(server, bodies, rate, seconds))
        for connections in (4, 16):
            report |= asyncio.run(closed(server, bodies, connections, seconds))
    return report


def swap(folder: Path, vectors: Any, bodies: Sequence[bytes]) -> dict[str, Any]:
    """Publish another model's items and load that model while four connections send one request after another."""
    write_model(folder / "next", vectors[::-1])  # every id is another item
    command = [sys.executable, "-c", "from rectrain.cli.main import main; main()", "serve", "recall"]
    place = ["--bundle", str(folder / "bundle"), "--index", str(folder / "index")]
    with process([*command, *place]) as server:
        return asyncio.run(swapped(server, folder, bodies[:200]))


async def swapped(server: "Server", folder: Path, bodies: Sequence[bytes]) -> dict[str, Any]:
    """Return what became of the requests during a swap.

    What each model answers is known from before and from after; whatever came between has to be one of the two.
    """
    requests = [request_of("/rec/recall", body) for body in bodies]
    before = [await exchange(server, "/rec/recall", body) for body in bodies]
    latencies: list[float] = []
    failures: list[str] = []
    others: list[tuple[int, bytes]] = []
    ended = asyncio.Event()

    async def client(number: int) -> None:
        streams = await asyncio.open_connection("127.0.0.1", server.port)
        position = number * 50
        while not ended.is_set():
            position = (position + 1) % len(requests)
            began = time.perf_counter()
            try:
                answer = await ask(*streams, requests[position])
            except (OSError, RuntimeError, asyncio.IncompleteReadError) as error:
                failures.append(str(error))
                streams = await asyncio.open_connection("127.0.0.1", server.port)
                continue
            latencies.append(time.perf_counter() - began)
            if answer != before[position]:
                others.append((position, answer))
        streams[1].close()

    clients = [asyncio.create_task(client(number)) for number in range(4)]
    began = time.perf_counter()
    await asyncio.to_thread(publish_items, folder, "next")
    published = time.perf_counter()
    await exchange(server, "/rec/reload", json.dumps({"bundle": str(folder / "next")}).encode())
    loaded = time.perf_counter()
    await asyncio.sleep(2)
    ended.set()
    await asyncio.gather(*clients)
    after = [await exchange(server, "/rec/recall", body) for body in bodies]
    return {
        "publishing, seconds": round(published - began, 1),
        "loading, seconds": round(loaded - published, 2),
        "answers": len(latencies),
        "answers of the new model": len(others),
        "failed": len(failures),
        "mixed": sum(answer != after[position] for position, answer in others),
        "p50": milliseconds(latencies, 50),
        "p99": milliseconds(latencies, 99),
        "longest": milliseconds(latencies, 100),
    }


def milvus(folder: Path, bodies: Sequence[bytes], arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure the service with Milvus Lite, which it runs itself, or with a server that is there."""
    command = [sys.executable, "-c", "from rectrain.cli.main import main; main()", "serve", "recall"]
    place = ["--bundle", str(folder / "bundle"), "--index", arguments.milvus or str(folder / "milvus.db")]
    place += ["--collection", "rectrain_benchmark"]
    report: dict[str, Any] = {}
    with process([*command, *place], ready="/healthz") as server:
        began = time.perf_counter()
        asyncio.run(exchange(server, "/rec/insert_data", b""))
        report["publish, seconds"] = round(time.perf_counter() - began, 1)
        for connections in (1, 4):
            report |= asyncio.run(closed(server, bodies, connections, arguments.seconds))
        asyncio.run(exchange(server, "/rec/drop", b""))
    return report


async def floor(bodies: Sequence[bytes], seconds: float) -> dict[str, Any]:
    """Measure an application that answers a constant."""
    with process([sys.executable, __file__, "--floor", "PORT"]) as server:
        await closed(server, bodies, 1, 1.0)
        return await closed(server, bodies, 1, seconds) | await closed(server, bodies, 16, seconds)


def serve_floor(port: int) -> None:
    """Serve a constant as long as an answer."""
    from fastapi import FastAPI, Response

    from rectrain_jobs.serving.recall_api import RecallRequest
    from rectrain_jobs.serving.server import serve

    app = FastAPI()
    constant = json.dumps({"items": [list(range(TOP_K))], "scores": [[0.123456] * TOP_K]}).encode()

    @app.get("/readyz")
    async def readyz() -> Response:
        return Response(b"")

    @app.post("/rec/recall")
    async def recall(request: RecallRequest) -> Response:
        return Response(constant, media_type="application/json")

    serve(app, "127.0.0.1", port)


class Server(NamedTuple):
    """A running server.

    Attributes:
        port: Where it listens.
        pid: Its process.
        starting: Seconds from its start until it was ready.
    """

    port: int
    pid: int
    starting: float

    def cpu_seconds(self) -> float:
        """Return the CPU time that its threads have taken so far, as the scheduler counts it: not by ticks."""
        threads = Path(f"/proc/{self.pid}/task").glob("*/schedstat")
        return sum(int(file.read_text().split()[0]) for file in threads) / 1e9


@contextmanager
def process(command: Sequence[str], ready: str = "/readyz") -> Iterator["Server"]:
    """Run a server until it is ready and further."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [str(port) if part == "PORT" else part for part in command]
    if "--floor" not in command:
        command = [*command, "--port", str(port)]
    began = time.perf_counter()
    running = subprocess.Popen(command)
    try:
        while not is_ready(port, ready):
            if running.poll() is not None or time.perf_counter() - began > 120:
                raise RuntimeError(f"{' '.join(command)} is not ready")
            time.sleep(0.01)
        yield Server(port, running.pid, round(time.perf_counter() - began, 2))
    finally:
        running.kill()
        running.wait()


def is_ready(port: int, path: str) -> bool:
    """Tell whether a server answers a path with 200."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            return b" 200 " in connection.recv(64)
    except OSError:
        return False


async def exchange(server: Server, path: str, body: bytes) -> bytes:
    """Send one request on a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    answer = await ask(reader, writer, request_of(path, body))
    writer.close()
    return answer


def request_of(path: str, body: bytes) -> bytes:
    """Return the bytes of a request."""
    head = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    return "\r\n".join([*head, f"Content-Length: {len(body)}", "", ""]).encode() + body


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> bytes:
    """Send a request and return the body of its answer, which has to be 200."""
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
    body = await reader.readexactly(length)
    if b" 200 " not in head[:16]:
        raise RuntimeError(f"{head!r} {body!r}")
    return body


async def closed(server: Server, bodies: Sequence[bytes], connections: int, seconds: float) -> dict[str, Any]:
    """Let each of some connections send one request after another."""
    requests = [request_of("/rec/recall", body) for body in bodies]
    latencies: list[float] = []
    end = time.perf_counter() + seconds

    async def client(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        position = number * 97
        while (began := time.perf_counter()) < end:
            await ask(reader, writer, requests[position % len(requests)])
            latencies.append(time.perf_counter() - began)
            position += 1
        writer.close()

    began, cpu = time.perf_counter(), server.cpu_seconds()
    await asyncio.gather(*(client(number) for number in range(connections)))
    name = f"{connections} connection{'s' if connections > 1 else ''}"
    return {
        f"{name}: requests/s": round(len(latencies) / (time.perf_counter() - began)),
        f"{name}: p50": milliseconds(latencies, 50),
        f"{name}: p99": milliseconds(latencies, 99),
        f"{name}: CPU time of a request": round(1000 * (server.cpu_seconds() - cpu) / len(latencies), 2),
    }


async def steady(server: Server, bodies: Sequence[bytes], rate: float, seconds: float) -> dict[str, Any]:
    """Send requests at a rate, whatever the server answers; each takes a free connection or makes one."""
    requests = [request_of("/rec/recall", body) for body in bodies]
    free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    latencies: list[float] = []

    async def send(request: bytes, due: float) -> None:
        streams = free.pop() if free else await asyncio.open_connection("127.0.0.1", server.port)
        await ask(*streams, request)
        latencies.append(time.perf_counter() - due)
        free.append(streams)

    tasks, began = [], time.perf_counter()
    for number in range(int(rate * seconds)):
        due = began + number / rate
        # Timers of the event loop are of whole milliseconds, and round up; the rest is waited for by looking.
        await asyncio.sleep(max(0.0, due - time.perf_counter() - 0.002))
        while time.perf_counter() < due:
            await asyncio.sleep(0)
        tasks.append(asyncio.create_task(send(requests[number % len(requests)], due)))
    await asyncio.gather(*tasks)
    return {
        f"{rate:g} requests/s, steady: p50": milliseconds(latencies, 50),
        f"{rate:g} requests/s, steady: p99": milliseconds(latencies, 99),
        f"{rate:g} requests/s, steady: connections needed": len(free),
    }


def load() -> str:
    """Return the load average of 1, 5 and 15 minutes: whether something else ran beside."""
    return " ".join(f"{value:.1f}" for value in os.getloadavg())


def milliseconds(seconds: Sequence[float], percentile: int) -> float:
    """Return a percentile in milliseconds."""
    if percentile == 50:
        return round(1000 * statistics.median(seconds), 2)
    return round(1000 * float(np.percentile(seconds, percentile)), 2)


if __name__ == "__main__":
    main()
