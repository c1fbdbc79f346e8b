"""The controller as a process: elected, watching, working, and ended without leaving a pass half done."""

import asyncio
import contextlib
import logging
import signal
import socket
import time
import uuid
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rectrain.controller.connection import connected
from rectrain.controller.errors import ApiError, ConflictError
from rectrain.controller.kube import ApiServer
from rectrain.controller.leader import Leadership
from rectrain.controller.metrics import RECONCILE_SECONDS, RECONCILES, REGISTRY, JobsCollector
from rectrain.controller.observed import Key
from rectrain.controller.progress import ProgressReader
from rectrain.controller.queue import Item, WorkQueue
from rectrain.controller.reconcile import Reconciler
from rectrain.controller.rights import missing_rights
from rectrain.controller.server import serve
from rectrain.controller.store import Store
from rectrain.controller.watch import kopf_settings, watch
from rectrain.manifests import Settings

_LOG = logging.getLogger(__name__)
_LEASE_NAME = "rectrain-controller"
_SHUTDOWN_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Options:
    """How the controller is run.

    Attributes:
        namespaces: Namespaces to watch; all where there is none.
        leader_election: Whether to act only while holding the Lease.
        lease_namespace: Namespace of the Lease.
        workers: Number of jobs that are passed over at once.
        host: Address of the HTTP server.
        port: Port of the HTTP server.
        progress_seconds: Time between two readings of a running job's progress.
        settings: The operator's defaults for its jobs.
    """

    namespaces: Sequence[str]
    leader_election: bool
    lease_namespace: str
    workers: int
    host: str
    port: int
    progress_seconds: float
    settings: Settings


async def run(options: Options) -> int:
    """Run until SIGTERM or SIGINT, or until the Lease is lost.

    Returns:
        Exit code: 0 after a signal, 1 where the Lease was lost, or a right to watch is missing.

    Raises:
        NoClusterError: No cluster is configured: neither a service account nor a kubeconfig.
    """
    stop = _stop_event()
    store, queue = Store(), WorkQueue[Key]()
    way = connected(kopf_settings(namespaced=bool(options.namespaces)))
    async with way as connection, _http_server(options, store, queue):
        api = ApiServer(connection)
        if missing := await missing_rights(api, options.namespaces):
            for line in missing:
                _LOG.error("%s", line)
            return 1
        identity = f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}"
        leadership = Leadership(api, Key(options.lease_namespace, _LEASE_NAME), identity)
        if options.leader_election and not await _unless_stopped(stop, leadership.acquire()):
            return 0
        code = await _lead(options, api, store, queue, leadership, identity, stop)
        if options.leader_election:
            await leadership.release()
        return code


async def _lead(
    options: Options,
    api: ApiServer,
    store: Store,
    queue: WorkQueue[Key],
    leadership: Leadership,
    identity: str,
    stop: asyncio.Event,
) -> int:
    progress = ProgressReader(store, queue, options.progress_seconds)
    reconciler = Reconciler(api, store, options.settings, progress.latest, instance=identity)
    # Begun before kopf, which at its end cancels every task that is younger than itself.
    workers = [asyncio.create_task(_work(reconciler, queue)) for _ in range(options.workers)]
    others = [asyncio.create_task(progress.run()), asyncio.create_task(stop.wait())]
    lease = asyncio.create_task(leadership.hold()) if options.leader_election else None
    watches = asyncio.create_task(watch(store, queue, options.namespaces, identity))
    essential = [*workers, *others, watches, *([lease] if lease is not None else [])]
    try:
        done, _ = await asyncio.wait(essential, return_when=asyncio.FIRST_COMPLETED)
        lost = lease is not None and lease in done
        if not lost:
            queue.stop()
            await asyncio.wait(workers, timeout=_SHUTDOWN_SECONDS)
        for task in done:
            task.result()  # a defect is not passed over
        return 1 if lost else 0
    finally:
        for task in essential:
            task.cancel()
        await asyncio.wait(essential, timeout=_SHUTDOWN_SECONDS)


async def _work(reconciler: Reconciler, queue: WorkQueue[Key]) -> None:
    """Pass over one job after the other, until the queue is stopped."""
    while (item := await queue.get()) is not None:
        try:
            await _pass(reconciler, queue, item)
        finally:
            queue.done(item.key)


async def _pass(reconciler: Reconciler, queue: WorkQueue[Key], item: Item[Key]) -> None:
    key, started = item.key, time.monotonic()
    try:
        requeue_at = await reconciler.reconcile(key, read=item.is_due)
    except ConflictError as error:
        result = "conflict"  # what was believed is out of date; the next pass reads
        _LOG.debug("%s", error, extra={"job": str(key)})
        queue.retry(key)
    except ApiError as error:
        result = "error"
        _LOG.warning("again in %.2f s: %s", queue.retry(key), error, extra={"job": str(key)})
    except Exception:
        result = "defect"
        _LOG.exception("again in %.2f s", queue.retry(key), extra={"job": str(key)})
    else:
        result = "requeue" if requeue_at is not None else "ok"
        queue.forget_failures(key)
        if requeue_at is not None:
            queue.add_after(key, max((requeue_at - datetime.now(UTC)).total_seconds(), 0))
    RECONCILES.labels(result=result).inc()
    RECONCILE_SECONDS.observe(time.monotonic() - started)


def _stop_event() -> asyncio.Event:
    """Return what SIGTERM and SIGINT set. Once kopf runs, it takes the signals, and ends."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


async def _unless_stopped(stop: asyncio.Event, waited_for: Coroutine[Any, Any, None]) -> bool:
    """Wait; return False where the process is told to end before."""
    waiting, stopping = asyncio.create_task(waited_for), asyncio.create_task(stop.wait())
    await asyncio.wait([waiting, stopping], return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if stop.is_set():
        waiting.cancel()
        return False
    waiting.result()  # what went wrong with it is not taken for its end
    return True


@contextlib.asynccontextmanager
async def _http_server(options: Options, store: Store, queue: WorkQueue[Key]) -> AsyncIterator[None]:
    figures = JobsCollector(store.raw_statuses, queue.__len__, store.lag)
    REGISTRY.register(figures)
    runner = await serve(options.host, options.port, REGISTRY, store.lag)
    try:
        yield
    finally:
        await runner.cleanup()
        REGISTRY.unregister(figures)
