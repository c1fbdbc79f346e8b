"""The log of a job's worker, followed from pod to pod when the workers are restarted."""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rectrain.api.job import KIND
from rectrain.api.pod_template import CONTAINER, REPLICA_INDEX_LABEL, REPLICA_TYPE_LABEL
from rectrain.sdk.connection import translated
from rectrain.sdk.errors import ClusterError, ObjectNotFoundError

if TYPE_CHECKING:
    from rectrain.sdk.client import Client

_PAUSE = 1.0


def read_logs(
    client: "Client", name: str, namespace: str, *, replica: str | None, follow: bool, tail: int | None
) -> Iterator[str]:
    """Yield the lines of a worker's log; see Client.logs."""
    read: set[str] = set()
    while True:
        ended = client.get(name, namespace=namespace).state.is_final
        pods = [pod for pod in client.pods(name, namespace=namespace) if _has_started(pod)]
        pod = choose_pod(pods, replica)
        if pod is not None and pod["metadata"]["uid"] not in read:
            try:
                yield from _lines(client, pod, follow=follow, tail=tail)
            except ObjectNotFoundError:  # it is the pod that is not there any more; the next attempt has another
                if not follow:
                    raise ClusterError(f"pod {pod['metadata']['name']}: was removed just now") from None
            read.add(pod["metadata"]["uid"])
            tail = None  # later pods are new from their first line
        elif pod is None and not read and (ended or not follow):
            raise ClusterError(_no_log(name, replica, pods, ended=ended))
        if ended or not follow:
            return
        time.sleep(_PAUSE)


def choose_pod(pods: list[dict[str, Any]], replica: str | None) -> dict[str, Any] | None:
    """Return the pod of a replica such as worker-1; by default the one with rank 0: the master, else worker 0."""
    named = {replica_of(pod): pod for pod in pods}
    if replica is not None:
        return named.get(replica)
    return named.get("master-0") or named.get("worker-0")


def replica_of(pod: dict[str, Any]) -> str:
    """Return a pod's place in its job, such as worker-1."""
    labels = pod["metadata"].get("labels") or {}
    return f"{labels.get(REPLICA_TYPE_LABEL)}-{labels.get(REPLICA_INDEX_LABEL)}"


def _has_started(pod: dict[str, Any]) -> bool:
    statuses = (pod.get("status") or {}).get("containerStatuses") or []
    states = [status.get("state") or {} for status in statuses if status.get("name") == CONTAINER]
    return any("running" in state or "terminated" in state for state in states)


def _lines(client: "Client", pod: dict[str, Any], *, follow: bool, tail: int | None) -> Iterator[str]:
    from kubernetes.client import CoreV1Api

    options: dict[str, Any] = {} if tail is None else {"tail_lines": tail}
    with translated():
        response = CoreV1Api(client.connection).read_namespaced_pod_log(
            pod["metadata"]["name"],
            pod["metadata"]["namespace"],
            container=CONTAINER,
            follow=follow,
            _preload_content=False,
            **options,
        )
        try:
            rest = b""
            for chunk in response.stream():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    yield line.decode(errors="replace")
            if rest:
                yield rest.decode(errors="replace")
        finally:
            response.release_conn()


def _no_log(name: str, replica: str | None, pods: list[dict[str, Any]], *, ended: bool) -> str:
    if pods:
        return f"{KIND} {name}: has no worker {replica}; there are {', '.join(map(replica_of, pods))}"
    why = "its pods are gone: runPolicy.cleanPodPolicy None keeps them" if ended else "no worker has started yet"
    return f"{KIND} {name}: {why}"
