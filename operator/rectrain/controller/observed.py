"""What the controller sees of a job and of what belongs to it: small typed pictures of the API server's objects."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, NamedTuple

from rectrain.api.job import KIND, RecTrainingJob
from rectrain.api.pod_template import CONTAINER, CONVERSION_CONTAINER, REPLICA_INDEX_LABEL, REPLICA_TYPE_LABEL
from rectrain.api.status import Progress, Status
from rectrain.manifests.metadata import ATTEMPT_ANNOTATION, MANAGED_BY, MANAGED_BY_LABEL
from rectrain.manifests.pods import JOB_VOLUME

Raw = Mapping[str, Any]


class Key(NamedTuple):
    """Which job: its namespace and name."""

    namespace: str
    name: str

    def __str__(self) -> str:
        """Return ``namespace/name``."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Job:
    """A RecTrainingJob as it was read.

    Attributes:
        key: Namespace and name.
        uid: Identity.
        generation: Generation of the spec.
        queue: Kueue queue that the job names, or None.
        deleting: Whether it is being deleted.
        status: What was last written of its state.
        definition: The job, for deciding and building; None where it is not valid.
        problem: What is not valid; empty where nothing is.
    """

    key: Key
    uid: str
    generation: int
    queue: str | None
    deleting: bool
    status: Status
    definition: RecTrainingJob | None
    problem: str = ""


class Phase(StrEnum):
    """How far a PyTorchJob or a conversion is."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"

    @property
    def is_final(self) -> bool:
        """Whether it has ended."""
        return self in (Phase.SUCCEEDED, Phase.FAILED)


@dataclass(frozen=True, slots=True)
class Child:
    """A PyTorchJob.

    Attributes:
        uid: Identity.
        owner_uid: Identity of what controls it, or None.
        owner: Kind and name of that, as Kind/name; empty where there is none.
        attempt: Number of the attempt that it is.
        suspended: Whether its pods are held back.
        deleting: Whether it is being deleted.
        phase: How far it is.
        message: What its last condition says.
    """

    uid: str
    owner_uid: str | None
    attempt: int
    suspended: bool
    deleting: bool
    phase: Phase
    owner: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Termination:
    """How the worker's container ended.

    Attributes:
        exit_code: Its exit code.
        reason: Reason that the kubelet gives, such as OOMKilled.
        message: Content of its termination log.
        finished_at: When, or None where the kubelet does not say.
    """

    exit_code: int
    reason: str = ""
    message: str = ""
    finished_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod of workers or of a conversion, the last that was seen of it.

    Attributes:
        name: Name.
        uid: Identity.
        owner_uid: Identity of the PyTorchJob that controls it, or None.
        is_master: Whether rank 0 runs in it.
        phase: Pending, Running, Succeeded, Failed or Unknown.
        since: When the kubelet took it up; before that, when it was created.
        ip: Its address, or an empty text.
        reason: Reason of its phase, such as Evicted.
        message: The same for people.
        unschedulable: What the scheduler says where it finds no node; empty otherwise.
        waiting_reason: Why a container waits to start, such as ImagePullBackOff; empty otherwise.
        waiting_message: The same for people.
        disruption: Reason of the DisruptionTarget condition, such as PreemptionByScheduler; empty otherwise.
        unreachable: Whether it ran, and its node has stopped answering since.
        termination: How the worker's container ended, or None.
        gone: Whether it was deleted since.
    """

    name: str
    uid: str
    owner_uid: str | None
    is_master: bool
    phase: str
    since: datetime
    ip: str = ""
    reason: str = ""
    message: str = ""
    unschedulable: str = ""
    waiting_reason: str = ""
    waiting_message: str = ""
    disruption: str = ""
    unreachable: bool = False
    termination: Termination | None = None
    gone: bool = False

    @property
    def is_running(self) -> bool:
        """Whether its worker runs, as far as is known."""
        return self.phase == "Running" and self.termination is None and not self.gone

    @property
    def is_prepared(self) -> bool:
        """Whether its node prepares it, as far as is known: its volumes are mounted, its image is pulled."""
        return self.phase == "Pending" and not (self.gone or self.unschedulable or self.waiting_reason)


@dataclass(frozen=True, slots=True)
class Conversion:
    """The batch/v1 Job that makes the shards, which several RecTrainingJobs may wait for.

    Attributes:
        name: Name, the same for all that want the same shards.
        uid: Identity.
        owner_uids: Identities of the RecTrainingJobs that asked for it.
        is_managed: Whether it bears the label of what a controller of ours made; it is watched by that label.
        config_map: Name of the ConfigMap that its pods read the job from: the one of the first job that asked for it.
        deleting: Whether it is being deleted.
        phase: How far it is.
        message: Why it failed.
        suspended: Whether its pod is held back.
        pod_waits: Whether it has a pod, and none that runs.
    """

    name: str
    uid: str
    owner_uids: frozenset[str]
    deleting: bool
    phase: Phase
    is_managed: bool = True
    config_map: str = ""
    message: str = ""
    suspended: bool = False
    pod_waits: bool = False


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why the API server did not do what was decided.

    Attributes:
        reason: One CamelCase word, for a condition.
        message: What it said.
        permanent: Whether asking again would give the same answer.
    """

    reason: str
    message: str
    permanent: bool = False


@dataclass(frozen=True, slots=True)
class Observed:
    """What there is of a job besides itself.

    Attributes:
        child: The PyTorchJob of the job's name, whoever owns it.
        pods: Worker pods that bear the job's name, those of earlier attempts included.
        pods_refused: Why the training operator cannot create some of them, as it says in events; empty where it does
            not say so, None where it was not asked.
        conversion: The job's data conversion.
        conversion_pods: Its pods, where none of them runs or it has failed.
        config_map_missing: Whether pods are prepared and the ConfigMap that they mount is not there.
        progress: What rank 0 said last of this attempt.
        refusal: The answer to what was decided a moment ago, if it was no.
    """

    child: Child | None = None
    pods: tuple[Pod, ...] = ()
    pods_refused: str | None = None
    conversion: Conversion | None = None
    conversion_pods: tuple[Pod, ...] = ()
    config_map_missing: bool = False
    progress: Progress | None = None
    refusal: Refusal | None = None


def names_of(pods: Iterable[Pod]) -> str:
    """Return the names of pods for a message: of the first three, where there are more."""
    names = sorted(pod.name for pod in pods)
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")


def misses_pods(job: Job, pods: Sequence[Pod]) -> bool:
    """Return whether there are fewer pods than the job wants."""
    return job.definition is not None and sum(not p.gone for p in pods) < job.definition.spec.workers.replicas


def awaits_pods(job: Job, child: Child, pods: Sequence[Pod]) -> bool:
    """Return whether pods are missing of a PyTorchJob that was let run."""
    return not child.suspended and child.phase is Phase.PENDING and misses_pods(job, pods)


def child_of(raw: Raw) -> Child:
    """Return the picture of a PyTorchJob object."""
    metadata = raw["metadata"]
    owner = _controller(metadata)
    phase, message = Phase.PENDING, ""
    for condition in raw.get("status", {}).get("conditions") or []:
        if condition.get("status") == "True":
            # A later condition says more; but Failed is never taken back, and Succeeded comes last.
            named = {"Running": Phase.RUNNING, "Succeeded": Phase.SUCCEEDED, "Failed": Phase.FAILED}
            found = named.get(condition.get("type", ""), Phase.PENDING)
            if not phase.is_final:
                phase, message = found, condition.get("message") or ""
    return Child(
        uid=metadata["uid"],
        owner_uid=owner.get("uid"),
        attempt=_number((metadata.get("annotations") or {}).get(ATTEMPT_ANNOTATION)),
        suspended=bool(raw.get("spec", {}).get("runPolicy", {}).get("suspend")),
        deleting="deletionTimestamp" in metadata,
        phase=phase,
        owner=f"{owner.get('kind')}/{owner.get('name')}" if owner else "",
        message=message,
    )


def pod_of(raw: Raw) -> Pod:
    """Return the picture of a pod's object."""
    metadata, status = raw["metadata"], raw.get("status") or {}
    labels = metadata.get("labels") or {}
    # Without a master, as in elastic jobs, the first worker is the one to ask.
    first = (labels.get(REPLICA_TYPE_LABEL, ""), labels.get(REPLICA_INDEX_LABEL, ""))
    waiting = _waiting(status)
    return Pod(
        name=metadata["name"],
        uid=metadata["uid"],
        owner_uid=_controller(metadata).get("uid"),
        is_master=first[0] == "master" or first == ("worker", "0"),
        phase=status.get("phase") or "Pending",
        since=_time(status.get("startTime") or metadata.get("creationTimestamp")) or datetime.fromtimestamp(0, UTC),
        ip=status.get("podIP") or "",
        reason=status.get("reason") or "",
        message=status.get("message") or "",
        unschedulable=_unschedulable(status),
        waiting_reason=waiting.get("reason") or "",
        waiting_message=waiting.get("message") or "",
        disruption=_disruption(status),
        unreachable=_unreachable(status),
        termination=_termination(status),
    )


def conversion_of(raw: Raw) -> Conversion:
    """Return the picture of a conversion's batch/v1 Job object."""
    metadata, status = raw["metadata"], raw.get("status") or {}
    phase, message = Phase.RUNNING, ""
    for condition in status.get("conditions") or []:
        if condition.get("status") == "True" and condition.get("type") in ("Complete", "Failed"):
            phase = Phase.SUCCEEDED if condition["type"] == "Complete" else Phase.FAILED
            message = condition.get("message") or ""
    return Conversion(
        name=metadata["name"],
        uid=metadata["uid"],
        owner_uids=frozenset(o["uid"] for o in metadata.get("ownerReferences") or [] if o.get("kind") == KIND),
        deleting="deletionTimestamp" in metadata,
        phase=phase,
        is_managed=is_managed(metadata),
        config_map=_job_config_map(raw),
        message=message,
        suspended=bool((raw.get("spec") or {}).get("suspend")),
        pod_waits=bool(status.get("active")) and not status.get("ready"),
    )


def is_managed(metadata: Raw) -> bool:
    """Return whether an object bears the label of what a controller of ours made."""
    return (metadata.get("labels") or {}).get(MANAGED_BY_LABEL) == MANAGED_BY


def _job_config_map(raw: Raw) -> str:
    """Return the name of the ConfigMap that a conversion's pods read the job from."""
    pod = ((raw.get("spec") or {}).get("template") or {}).get("spec") or {}
    for volume in pod.get("volumes") or []:
        if volume.get("name") == JOB_VOLUME:
            return str((volume.get("configMap") or {}).get("name") or "")
    return ""


def _controller(metadata: Raw) -> Raw:
    """Return the reference to what controls an object; an empty one where nothing does."""
    return next((owner for owner in metadata.get("ownerReferences") or [] if owner.get("controller")), {})


def _number(text: str | None) -> int:
    return int(text) if text is not None and re.fullmatch(r"[0-9]{1,9}", text) else 0


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def _condition(status: Raw, type_: str) -> Raw:
    return next((c for c in status.get("conditions") or [] if c.get("type") == type_), {})


def _unschedulable(status: Raw) -> str:
    scheduled = _condition(status, "PodScheduled")
    if scheduled.get("status") != "False":
        return ""
    return scheduled.get("message") or scheduled.get("reason") or "not scheduled"


def _disruption(status: Raw) -> str:
    target = _condition(status, "DisruptionTarget")
    return (target.get("reason") or "Disrupted") if target.get("status") == "True" else ""


def _unreachable(status: Raw) -> bool:
    """Return whether the node controller has said for the kubelet that a pod is not ready: a kubelet gives reasons."""
    ready = _condition(status, "Ready")
    return status.get("phase") == "Running" and ready.get("status") == "False" and not ready.get("reason")


def _waiting(status: Raw) -> Raw:
    """Return why a container does not start, where it says more than that it is about to."""
    for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") not in (None, "", "ContainerCreating", "PodInitializing"):
            return waiting
    return {}


def _termination(status: Raw) -> Termination | None:
    """Return how the worker or the conversion ended; where it never began, how an init container failed."""
    failed_init = None
    for container in status.get("initContainerStatuses") or []:
        ended = (container.get("state") or {}).get("terminated")
        if ended and ended.get("exitCode"):
            failed_init = ended
    for container in status.get("containerStatuses") or []:
        ended = (container.get("state") or {}).get("terminated")
        if container.get("name") in (CONTAINER, CONVERSION_CONTAINER) and ended:
            return _ended(ended)
    return _ended(failed_init) if failed_init else None


def _ended(state: Raw) -> Termination:
    return Termination(
        exit_code=int(state.get("exitCode", 0)),
        reason=state.get("reason") or "",
        message=state.get("message") or "",
        finished_at=_time(state.get("finishedAt")),
    )
