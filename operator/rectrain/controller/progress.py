"""Progress of running jobs, as rank 0 tells it over HTTP."""

import asyncio
import logging
from collections.abc import Iterator
from typing import Annotated

import aiohttp
from pydantic import AfterValidator, TypeAdapter, ValidationError

from rectrain.api.pod_template import PROGRESS_PORT
from rectrain.api.status import Progress
from rectrain.controller.metrics import PROGRESS_READS
from rectrain.controller.observed import Key, Phase, Pod
from rectrain.controller.queue import WorkQueue
from rectrain.controller.store import Store

_LOG = logging.getLogger(__name__)
_CONCURRENCY = 16
_TIMEOUT = aiohttp.ClientTimeout(total=3)
_MAX_BYTES = 64 * 1024
_INT64 = range(-(2**63), 2**63)


def _storable(progress: Progress) -> Progress:
    """Refuse what the API server would refuse, and with it the whole status, to the end of the job."""
    large = [name for name, value in progress if isinstance(value, int) and value not in _INT64]
    if large:
        raise ValueError(f"{', '.join(large)}: beyond 64 bits")
    if progress.last_update_time.tzinfo is None:
        raise ValueError("last_update_time: has no zone")
    return progress


_TOLD = TypeAdapter[Progress](Annotated[Progress, AfterValidator(_storable)])
"""Progress as a worker may tell it."""


class ProgressReader:
    """Asks the first rank of every running job now and then.

    Attributes:
        latest: What was read last, by the uid of the PyTorchJob.

    Args:
        store: Says which jobs run, and where.
        queue: Gets the jobs that have moved on.
        interval: Seconds between two readings of a job.
        port: Port of rank 0's server.
    """

    def __init__(self, store: Store, queue: WorkQueue[Key], interval: float, port: int = PROGRESS_PORT) -> None:
        """Begin with nothing read."""
        self.latest: dict[str, Progress] = {}
        self._store = store
        self._queue = queue
        self._interval = interval
        self._port = port

    async def run(self) -> None:
        """Read until cancelled."""
        connector = aiohttp.TCPConnector(limit=_CONCURRENCY)
        # Workers run their users' images: nothing that they send is unpacked or kept.
        async with aiohttp.ClientSession(
            connector=connector, timeout=_TIMEOUT, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()
        ) as session:
            while True:
                await self.read_all(session)
                await asyncio.sleep(self._interval)

    async def read_all(self, session: aiohttp.ClientSession) -> None:
        """Read the progress of every running job once, a few at a time."""
        targets = list(self._targets())
        running = {uid for _, uid, _ in targets}
        for uid in self.latest.keys() - running:
            del self.latest[uid]
        places = asyncio.Semaphore(_CONCURRENCY)

        async def read(key: Key, uid: str, pod: Pod) -> None:
            async with places:
                progress = await self._read(session, key, pod)
            if progress is not None and progress != self.latest.get(uid):
                self.latest[uid] = progress
                self._queue.add(key)

        await asyncio.gather(*(read(*target) for target in targets))

    def _targets(self) -> Iterator[tuple[Key, str, Pod]]:
        for key in self._store.job_keys():
            child = self._store.child(key)
            if child is None or child.phase is not Phase.RUNNING:
                continue
            for pod in self._store.pods(key):
                if pod.is_master and pod.owner_uid == child.uid and pod.phase == "Running" and pod.ip and not pod.gone:
                    yield key, child.uid, pod

    async def _read(self, session: aiohttp.ClientSession, key: Key, pod: Pod) -> Progress | None:
        host = f"[{pod.ip}]" if ":" in pod.ip else pod.ip
        result, progress = "ok", None
        try:
            async with session.get(f"http://{host}:{self._port}/progress", allow_redirects=False) as response:
                body = await _read_all(response.content)
            if response.status == 200:
                progress = _TOLD.validate_json(body)
            else:  # the worker has begun, and not yet trained
                result = "not_ready"
        except ValidationError as error:
            result = "malformed"
            _LOG.warning("%s: progress is malformed: %d fields", pod.name, error.error_count(), extra={"job": str(key)})
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            result = "unreachable"
            _LOG.debug("%s: progress: %s", pod.name, error, extra={"job": str(key)})
        PROGRESS_READS.labels(result=result).inc()
        return progress


async def _read_all(content: aiohttp.StreamReader) -> bytes:
    """Return all that comes, or the beginning of what is too much to be progress."""
    body = b""
    while len(body) < _MAX_BYTES and (piece := await content.read(_MAX_BYTES)):
        body += piece
    return body
