"""Client: RecTrainingJobs of a cluster, as Python objects."""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

from rectrain.api.crd import PLURAL
from rectrain.api.job import GROUP, KIND, VERSION, RecTrainingJob
from rectrain.api.pod_template import CHILD_NAME_LABEL
from rectrain.api.status import Progress, State, find_condition
from rectrain.sdk.connection import connect, translated
from rectrain.sdk.errors import (
    ClusterError,
    ClusterUnreachableError,
    JobFailedError,
    JobNotFoundError,
    WaitTimeoutError,
)
from rectrain.sdk.logs import read_logs
from rectrain.sdk.stored import body_of, job_of

_WATCH_SECONDS = 60
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 5.0
_LONGEST_OUTAGE = 300.0
"""Seconds that an API server may be away, as in an upgrade, while something is waited for."""
_TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"

Raw = dict[str, Any]
"""An object as the API server has it."""
# Named here, because in the class `list` is a method.
Raws = list[Raw]
Jobs = list[RecTrainingJob]


class Client:
    """The RecTrainingJobs of a cluster. Every method may raise a ClusterError.

    The cluster is found as kubectl finds it, or inside a pod by its service account.

    Args:
        namespace: Where jobs are, unless a call names another. Default: the context's.
        context: Context of the kubeconfig. Default: its current one.
        kubeconfig: File. Default: $KUBECONFIG or ~/.kube/config.

    Raises:
        ClusterUnreachableError: There is no such file or context.

    Example:
        >>> client = Client(namespace="team-a")
        >>> client.submit(RecTrainingJob.from_yaml("job.yaml"))
        >>> job = client.wait("amazon-cds", timeout=3600, on_progress=print)
        >>> {metric.name: metric.value for metric in job.status.results.metrics}
    """

    def __init__(
        self, namespace: str | None = None, *, context: str | None = None, kubeconfig: str | None = None
    ) -> None:
        """Read the kubeconfig; nothing is called yet."""
        self.connection, default = connect(kubeconfig, context)
        self.namespace = namespace or default

    def submit(self, job: RecTrainingJob, *, namespace: str | None = None, dry_run: bool = False) -> RecTrainingJob:
        """Create a job and return it as the API server has it.

        Args:
            job: The job.
            namespace: Where; else the job's own namespace, else the client's.
            dry_run: Only ask the API server whether it would take the job.

        Raises:
            JobExistsError: There is one of that name.
            JobRefusedError: The API server found it wrong.
        """
        namespace = namespace or job.metadata.namespace or self.namespace
        body = body_of(job, namespace)
        options = {"dry_run": "All"} if dry_run else {}
        with translated(f"{namespace}/{job.metadata.name}"):
            created = self._objects().create_namespaced_custom_object(
                GROUP, VERSION, namespace, PLURAL, body, field_validation="Strict", **options
            )
        return job_of(created)

    def get(self, name: str, *, namespace: str | None = None) -> RecTrainingJob:
        """Return a job.

        Raises:
            JobNotFoundError: There is none of that name.
        """
        return job_of(self.get_raw(name, namespace=namespace))

    def get_raw(self, name: str, *, namespace: str | None = None) -> Raw:
        """Return a job as the API server has it, whatever version of rectrain wrote it.

        Raises:
            JobNotFoundError: There is none of that name.
        """
        namespace = namespace or self.namespace
        with translated(f"{namespace}/{name}"):
            found: Raw = self._objects().get_namespaced_custom_object(GROUP, VERSION, namespace, PLURAL, _named(name))
        return found

    def list(self, *, namespace: str | None = None, all_namespaces: bool = False, selector: str = "") -> Jobs:
        """Return the jobs of a namespace, or of all of them.

        Args:
            namespace: Which one. Default: the client's.
            all_namespaces: Look everywhere.
            selector: Labels, such as ``team=ads``.
        """
        found = self.list_raw(namespace=namespace, all_namespaces=all_namespaces, selector=selector)
        return [job_of(job) for job in found]

    def list_raw(self, *, namespace: str | None = None, all_namespaces: bool = False, selector: str = "") -> Raws:
        """Return jobs like `list`, as the API server has them."""
        objects = self._objects()
        with translated():
            if all_namespaces:
                answer = objects.list_cluster_custom_object(GROUP, VERSION, PLURAL, label_selector=selector)
            else:
                answer = objects.list_namespaced_custom_object(
                    GROUP, VERSION, namespace or self.namespace, PLURAL, label_selector=selector
                )
        for job in answer["items"]:  # the items of a list do not say what they are
            job |= {"apiVersion": f"{GROUP}/{VERSION}", "kind": KIND}
        items: Raws = answer["items"]
        return items

    def table(
        self,
        name: str | None = None,
        *,
        namespace: str | None = None,
        all_namespaces: bool = False,
        selector: str = "",
    ) -> Raw:
        """Return one job or many as a meta.k8s.io Table: the columns and cells that `kubectl get` shows."""
        space = "" if all_namespaces else f"/namespaces/{namespace or self.namespace}"
        path = f"/apis/{GROUP}/{VERSION}{space}/{PLURAL}" + (
            f"/{quote(_named(name), safe='')}" if name is not None else ""
        )
        with translated(f"{namespace or self.namespace}/{name}" if name is not None else None):
            answer: Raw = self.connection.call_api(
                path,
                "GET",
                query_params=[("labelSelector", selector)] if selector else [],
                header_params={"Accept": _TABLE},
                auth_settings=["BearerToken"],
                response_types_map={200: "object"},
                _return_http_data_only=True,
            )
        return answer

    def watch(
        self, name: str, *, namespace: str | None = None, timeout: float | None = None
    ) -> Iterator[RecTrainingJob]:
        """Yield a job as it is, and again whenever it changes; an API server may be away for five minutes meanwhile.

        Args:
            name: The job.
            namespace: Where. Default: the client's.
            timeout: Seconds after which the iteration ends.

        Raises:
            JobNotFoundError: There is none of that name, or it was deleted.
        """
        namespace = namespace or self.namespace
        end = math.inf if timeout is None else time.monotonic() + timeout
        pause, last = _FIRST_PAUSE, None
        while True:
            job = self.get(name, namespace=namespace) if last is None else self._get_again(name, namespace, end)
            if job != last:
                yield job
            last = job
            left = end - time.monotonic()
            if left <= 0:
                return
            try:
                for last in self._changes(job, namespace, min(left, _WATCH_SECONDS)):
                    pause = _FIRST_PAUSE
                    yield last
            except JobNotFoundError:
                raise
            except ClusterError:  # too old a version, a connection that broke: look again
                time.sleep(min(pause, left))
                pause = min(_LONGEST_PAUSE, 2 * pause)

    def _get_again(self, name: str, namespace: str, end: float) -> RecTrainingJob:
        """Return a job that was there a moment ago, though the API server be away for a while."""
        end, pause = min(end, time.monotonic() + _LONGEST_OUTAGE), _FIRST_PAUSE
        while True:
            try:
                return self.get(name, namespace=namespace)
            except ClusterError as error:
                # Other types of error are answers.
                if type(error) not in (ClusterError, ClusterUnreachableError) or time.monotonic() + pause >= end:
                    raise
            time.sleep(pause)
            pause = min(_LONGEST_PAUSE, 2 * pause)

    def _changes(self, job: RecTrainingJob, namespace: str, seconds: float) -> Iterator[RecTrainingJob]:
        from kubernetes.watch import Watch

        name, known = job.metadata.name, job.metadata.model_extra or {}
        watch = Watch()
        try:
            with translated(f"{namespace}/{name}"):
                for event in watch.stream(
                    self._objects().list_namespaced_custom_object,
                    GROUP,
                    VERSION,
                    namespace,
                    PLURAL,
                    field_selector=f"metadata.name={name}",
                    resource_version=known["resourceVersion"],
                    timeout_seconds=max(1, math.ceil(seconds)),
                ):
                    found = event["object"]
                    if event["type"] == "DELETED" or found["metadata"]["uid"] != job.metadata.uid:
                        raise JobNotFoundError(f"{KIND} {namespace}/{name}: was deleted")
                    yield job_of(found)
        finally:
            watch.stop()

    def wait(
        self,
        name: str,
        *,
        namespace: str | None = None,
        timeout: float | None = None,
        on_progress: Callable[[RecTrainingJob], None] | None = None,
    ) -> RecTrainingJob:
        """Wait until a job has succeeded, and return it.

        Args:
            name: The job.
            namespace: Where. Default: the client's.
            timeout: Seconds to wait at most.
            on_progress: Called with the job as it is, and whenever it has changed.

        Raises:
            JobFailedError: It failed, with the reason.
            JobNotFoundError: There is none of that name, or it was deleted.
            WaitTimeoutError: The time is over.
        """
        for job in self.watch(name, namespace=namespace, timeout=timeout):
            if on_progress is not None:
                on_progress(job)
            if job.state is State.SUCCEEDED:
                return job
            if job.state is State.FAILED:
                cause = find_condition(job.status.conditions, State.FAILED) if job.status is not None else None
                assert cause is not None
                raise JobFailedError(f"{KIND} {name} failed: {cause.reason}: {cause.message}", cause.reason)
        raise WaitTimeoutError(f"{KIND} {name}: has not ended within {timeout or 0:g} seconds")

    def progress(self, name: str, *, namespace: str | None = None) -> Progress | None:
        """Return how far a job is; None before its workers have told."""
        job = self.get(name, namespace=namespace)
        return job.status.progress if job.status is not None else None

    def pods(self, name: str, *, namespace: str | None = None) -> Raws:
        """Return the worker pods of a job, by name."""
        from kubernetes.client import CoreV1Api

        with translated():
            found = CoreV1Api(self.connection).list_namespaced_pod(
                namespace or self.namespace, label_selector=f"{CHILD_NAME_LABEL}={name}"
            )
        pods = [self.connection.sanitize_for_serialization(pod) for pod in found.items]
        return sorted(pods, key=lambda pod: str(pod["metadata"]["name"]))

    def events(self, name: str, *, namespace: str | None = None) -> Raws:
        """Return what the controller told of a job, oldest first."""
        from kubernetes.client import CoreV1Api

        with translated():
            found = CoreV1Api(self.connection).list_namespaced_event(
                namespace or self.namespace,
                field_selector=f"involvedObject.kind={KIND},involvedObject.name={name}",
            )
        events = [self.connection.sanitize_for_serialization(event) for event in found.items]
        return sorted(events, key=lambda event: str(event.get("eventTime") or event.get("lastTimestamp") or ""))

    def logs(
        self,
        name: str,
        *,
        replica: str | None = None,
        follow: bool = False,
        tail: int | None = None,
        namespace: str | None = None,
    ) -> Iterator[str]:
        """Yield the lines of a worker's log.

        Args:
            name: The job.
            replica: A worker, such as master-0 or worker-1. Default: the first, whose rank 0 says most.
            follow: Go on with new lines until the job has ended, through restarts.
            tail: Begin with so many of the last lines. Default: all.
            namespace: Where. Default: the client's.

        Raises:
            JobNotFoundError: There is no such job.
            ClusterError: There is no such worker, or it has no log yet.
        """
        return read_logs(self, name, namespace or self.namespace, replica=replica, follow=follow, tail=tail)

    def suspend(self, name: str, *, namespace: str | None = None) -> RecTrainingJob:
        """Stop a job's workers; they save a checkpoint, from which `resume` continues."""
        return self._set_suspend(name, True, namespace)

    def resume(self, name: str, *, namespace: str | None = None) -> RecTrainingJob:
        """Let a suspended job continue from its checkpoint."""
        return self._set_suspend(name, False, namespace)

    def delete(self, name: str, *, namespace: str | None = None) -> None:
        """Delete a job and all that it created; checkpoints, models and shards stay.

        Raises:
            JobNotFoundError: There is none of that name.
        """
        namespace = namespace or self.namespace
        with translated(f"{namespace}/{name}"):
            self._objects().delete_namespaced_custom_object(
                GROUP, VERSION, namespace, PLURAL, _named(name), propagation_policy="Background"
            )

    def close(self) -> None:
        """Close the connections."""
        self.connection.close()

    def _objects(self) -> Any:
        from kubernetes.client import CustomObjectsApi

        return CustomObjectsApi(self.connection)

    def _set_suspend(self, name: str, value: bool, namespace: str | None) -> RecTrainingJob:
        namespace = namespace or self.namespace
        with translated(f"{namespace}/{name}"):
            changed = self._objects().patch_namespaced_custom_object(
                GROUP,
                VERSION,
                namespace,
                PLURAL,
                _named(name),
                {"spec": {"runPolicy": {"suspend": value}}},
                _content_type="application/merge-patch+json",
            )
        return job_of(changed)


def _named(name: str) -> str:
    """Return a name; an empty one would ask for all jobs.

    Raises:
        ClusterError: It is empty.
    """
    if not name:
        raise ClusterError(f"{KIND}: must have a name, and got an empty text")
    return name
