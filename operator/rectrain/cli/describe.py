"""`rectrain describe`: everything about one job, for people."""

from collections.abc import Callable, Iterator
from typing import Any

import click

from rectrain.api.job import RecTrainingJob
from rectrain.api.status import State
from rectrain.cli.cluster import JOB_NAME, NONE, age, aligned, client_of, cluster_options
from rectrain.cli.errors import print_error
from rectrain.cli.wait import results_of, summary_of

Raw = dict[str, Any]


@click.command(epilog="\b\nExample:\n  rectrain describe amazon-cds")
@click.argument("name", type=JOB_NAME)
@cluster_options
def describe(name: str, namespace: str | None, context: str | None, kubeconfig: str | None) -> None:
    """Show a job's state, conditions, progress, results, workers and events."""
    client = client_of(namespace, context, kubeconfig)
    job = client.get(name)
    for line in description(job, _if_permitted(client.pods, name), _if_permitted(client.events, name)):
        click.echo(line)


def _if_permitted(listed: Callable[[str], list[Raw]], name: str) -> list[Raw]:
    """Return what belongs to a job; nothing, and say so, to a user who may see the job alone."""
    from rectrain.sdk import NotPermittedError

    try:
        return listed(name)
    except NotPermittedError as error:
        print_error(str(error))
        return []


def description(job: RecTrainingJob, pods: list[Raw], events: list[Raw]) -> Iterator[str]:
    """Yield the lines about a job.

    Args:
        job: The job.
        pods: Its worker pods, as the API server has them.
        events: What the controller told, oldest first.
    """
    from rectrain.sdk.logs import replica_of

    spec, status = job.spec, job.status
    created = (job.metadata.model_extra or {}).get("creationTimestamp")
    yield f"Name:       {job.metadata.name}"
    yield f"Namespace:  {job.metadata.namespace}"
    yield f"Age:        {age(created) if created else NONE}"
    yield f"Model:      {spec.model.type}"
    yield f"Workers:    {spec.workers.replicas} x {spec.workers.processes_per_replica}"
    yield f"State:      {summary_of(job)}"
    if status is not None and status.conditions:
        yield ""
        yield "Conditions:"
        rows = [["TYPE", "STATUS", "REASON", "AGE", "MESSAGE"]]
        rows += [[c.type, c.status, c.reason, age(c.last_transition_time), c.message] for c in status.conditions]
        yield from _indented(aligned(rows))
    if job.state is State.SUCCEEDED:
        yield ""
        yield "Results:"
        yield from _indented("\n".join(results_of(job)))
    yield ""
    yield "Pods:"
    rows = [["WORKER", "POD", "PHASE", "NODE", "AGE"]]
    for pod in pods:
        metadata, node = pod["metadata"], (pod.get("spec") or {}).get("nodeName") or NONE
        phase = (pod.get("status") or {}).get("phase") or NONE
        rows.append([replica_of(pod), metadata["name"], phase, node, age(metadata["creationTimestamp"])])
    yield from _indented(aligned(rows) if pods else NONE)
    yield ""
    yield "Events:"
    rows = [["AGE", "TYPE", "REASON", "MESSAGE"]]
    for event in events:
        time = event.get("eventTime") or event.get("lastTimestamp")
        text = " ".join(str(event.get("message") or "").split())
        rows.append([age(time) if time else NONE, str(event.get("type")), str(event.get("reason")), text])
    yield from _indented(aligned(rows) if events else NONE)


def _indented(text: str) -> Iterator[str]:
    for line in text.splitlines():
        yield f"  {line}"
