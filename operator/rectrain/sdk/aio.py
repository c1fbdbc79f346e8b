"""AsyncClient: Client for asyncio. Calls run in threads, so that there is one implementation."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TypeVar

from rectrain.api.job import RecTrainingJob
from rectrain.api.status import Progress
from rectrain.sdk.client import Client

_T = TypeVar("_T")


class AsyncClient:
    """The RecTrainingJobs of a cluster, for asyncio. Methods, arguments and errors are those of `Client`.

    Args:
        namespace: Where jobs are, unless a call names another. Default: the context's.
        context: Context of the kubeconfig. Default: its current one.
        kubeconfig: File. Default: $KUBECONFIG or ~/.kube/config.
    """

    def __init__(
        self, namespace: str | None = None, *, context: str | None = None, kubeconfig: str | None = None
    ) -> None:
        """Read the kubeconfig; nothing is called yet."""
        self.client = Client(namespace, context=context, kubeconfig=kubeconfig)

    async def submit(
        self, job: RecTrainingJob, *, namespace: str | None = None, dry_run: bool = False
    ) -> RecTrainingJob:
        """Create a job and return it as the API server has it."""
        return await asyncio.to_thread(self.client.submit, job, namespace=namespace, dry_run=dry_run)

    async def get(self, name: str, *, namespace: str | None = None) -> RecTrainingJob:
        """Return a job."""
        return await asyncio.to_thread(self.client.get, name, namespace=namespace)

    async def list(
        self, *, namespace: str | None = None, all_namespaces: bool = False, selector: str = ""
    ) -> "list[RecTrainingJob]":
        """Return the jobs of a namespace, or of all of them."""
        return await asyncio.to_thread(
            self.client.list, namespace=namespace, all_namespaces=all_namespaces, selector=selector
        )

    async def wait(
        self,
        name: str,
        *,
        namespace: str | None = None,
        timeout: float | None = None,
        on_progress: Callable[[RecTrainingJob], None] | None = None,
    ) -> RecTrainingJob:
        """Wait until a job has succeeded, and return it; `on_progress` is called in the event loop's thread."""
        loop = asyncio.get_running_loop()
        tell = None if on_progress is None else lambda job: _call_soon(loop, on_progress, job)
        return await asyncio.to_thread(self.client.wait, name, namespace=namespace, timeout=timeout, on_progress=tell)

    async def watch(
        self, name: str, *, namespace: str | None = None, timeout: float | None = None
    ) -> AsyncIterator[RecTrainingJob]:
        """Yield a job as it is, and again whenever it changes."""
        async for job in _iterate(self.client.watch(name, namespace=namespace, timeout=timeout)):
            yield job

    async def progress(self, name: str, *, namespace: str | None = None) -> Progress | None:
        """Return how far a job is."""
        return await asyncio.to_thread(self.client.progress, name, namespace=namespace)

    async def logs(
        self,
        name: str,
        *,
        replica: str | None = None,
        follow: bool = False,
        tail: int | None = None,
        namespace: str | None = None,
    ) -> AsyncIterator[str]:
        """Yield the lines of a worker's log."""
        lines = self.client.logs(name, replica=replica, follow=follow, tail=tail, namespace=namespace)
        async for line in _iterate(lines):
            yield line

    async def suspend(self, name: str, *, namespace: str | None = None) -> RecTrainingJob:
        """Stop a job's workers; they save a checkpoint, from which `resume` continues."""
        return await asyncio.to_thread(self.client.suspend, name, namespace=namespace)

    async def resume(self, name: str, *, namespace: str | None = None) -> RecTrainingJob:
        """Let a suspended job continue from its checkpoint."""
        return await asyncio.to_thread(self.client.resume, name, namespace=namespace)

    async def delete(self, name: str, *, namespace: str | None = None) -> None:
        """Delete a job and all that it created; checkpoints, models and shards stay."""
        await asyncio.to_thread(self.client.delete, name, namespace=namespace)

    async def close(self) -> None:
        """Close the connections."""
        await asyncio.to_thread(self.client.close)


def _call_soon(
    loop: asyncio.AbstractEventLoop, function: Callable[[RecTrainingJob], None], job: RecTrainingJob
) -> None:
    loop.call_soon_threadsafe(function, job)


async def _iterate(items: Iterator[_T]) -> AsyncIterator[_T]:
    """Yield what an iterator gives, waiting for each in a thread."""
    end = object()
    while (item := await asyncio.to_thread(next, items, end)) is not end:
        yield item  # type: ignore[misc]
