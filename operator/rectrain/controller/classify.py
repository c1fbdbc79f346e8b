"""Why an attempt failed, and whether another one is worth it: from what is left of its pods."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from rectrain.controller.observed import Child, Pod, Termination

# Exit codes of a worker, as rectrain_jobs.training.exit_codes defines them; a test compares the two.
USER_ERROR = 2
DIVERGED = 4
STOPPED = 143

_MAX_MESSAGE = 1000
_SIGNALS = 128


class Retry(StrEnum):
    """What follows from a failure."""

    NEVER = "Never"
    """The job fails: another attempt would end the same way."""
    COUNTED = "Counted"
    """Another attempt, while maxRestarts allows."""
    FREE = "Free"
    """Another attempt, which is not counted: the cluster took the place away, not the job's fault."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt failed.

    Attributes:
        reason: One CamelCase word.
        message: The reason for people, with the pod's name and what the worker said last.
        retry: What follows.
    """

    reason: str
    message: str
    retry: Retry


def classify(child: Child, pods: Sequence[Pod]) -> Failure:
    """Return why an attempt failed.

    One worker's failure takes the others with it: they lose their peers and end with exit codes of their own. So the
    pods are searched for what can only be a cause, and only then for which of them ended first.

    Args:
        child: The PyTorchJob that failed.
        pods: Its pods, those that were deleted since included.
    """
    cause = cause_in(pods)
    if cause is not None:
        return cause
    for pod in pods:
        if pod.phase == "Failed":
            reason = pod.reason or "PodFailed"
            return Failure(reason, _about(pod, pod.message or "failed"), Retry.COUNTED)
    return Failure("WorkerFailed", child.message or "the workers failed, and their pods are gone", Retry.COUNTED)


def cause_in(pods: Sequence[Pod]) -> Failure | None:
    """Return the cause of a failure that pods of workers or of a conversion show; None where they show none."""
    return next((failure for find in _CAUSES if (failure := find(pods)) is not None), None)


def _user_error(pods: Sequence[Pod]) -> Failure | None:
    reasons = {USER_ERROR: "UserError", DIVERGED: "Diverged"}
    for pod, ended in _ended(pods, lambda t: t.exit_code in reasons):
        return Failure(reasons[ended.exit_code], _about(pod, _said(ended)), Retry.NEVER)
    return None


# Reasons of a pod's phase that come from the node or the scheduler. Evicted is not among them: the kubelet evicts pods
# for what they use themselves, and would again.
_NODE_REASONS = {
    "NodeLost",
    "NodeShutdown",
    "Shutdown",
    "Terminated",
    "Preempting",
    "NodeAffinity",
    "TopologyAffinityError",
    "UnexpectedAdmissionError",
}
_NODE_IS_FULL = "OutOf"
"""Beginning of the reasons of a kubelet that has less left than the scheduler believed: OutOfcpu, OutOfpods, ..."""


def _disruption(pods: Sequence[Pod]) -> Failure | None:
    for pod in pods:
        if pod.reason == "Evicted":
            return Failure("Evicted", _about(pod, pod.message or "evicted by the kubelet"), Retry.COUNTED)
        if pod.disruption:
            return Failure(pod.disruption, _about(pod, pod.message or "taken off its node"), Retry.FREE)
        if pod.unreachable:
            return Failure("NodeLost", _about(pod, "its node does not answer"), Retry.FREE)
        if pod.reason in _NODE_REASONS or pod.reason.startswith(_NODE_IS_FULL):
            return Failure(pod.reason, _about(pod, pod.message or "lost with its node"), Retry.FREE)
    return None


def _out_of_memory(pods: Sequence[Pod]) -> Failure | None:
    for pod, ended in _ended(pods, lambda t: t.reason == "OOMKilled"):
        advice = "needed more memory than its limit, workers.resources.limits.memory"
        return Failure("OOMKilled", _about(pod, _said(ended, advice)), Retry.COUNTED)
    return None


def _first_exit(pods: Sequence[Pod]) -> Failure | None:
    for pod, ended in _ended(pods, lambda t: t.exit_code != 0):
        if ended.exit_code == STOPPED:
            return Failure("Stopped", _about(pod, _said(ended, "was stopped and saved a checkpoint")), Retry.FREE)
        return Failure("WorkerFailed", _about(pod, _said(ended)), Retry.COUNTED)
    return None


_CAUSES = (_user_error, _disruption, _out_of_memory, _first_exit)
"""What is looked for: what can only be a cause before what may be a consequence."""


def _ended(pods: Sequence[Pod], wanted: Callable[[Termination], bool]) -> list[tuple[Pod, Termination]]:
    """Return the pods whose worker ended in a certain way, the first to end first."""
    found = [(pod, pod.termination) for pod in pods if pod.termination is not None and wanted(pod.termination)]
    return sorted(found, key=lambda item: item[1].finished_at or datetime.max.replace(tzinfo=UTC))


def _said(ended: Termination, advice: str = "") -> str:
    code = ended.exit_code
    how = f"killed by signal {code - _SIGNALS}" if code > _SIGNALS and code != STOPPED else f"exit code {code}"
    last = _tail(ended.message)
    return ": ".join(part for part in (advice, how if not advice else "", last) if part)


def _tail(message: str) -> str:
    """Return the end of a message, where a traceback has its error, in one line."""
    text = " ".join(message.split())
    return text if len(text) <= _MAX_MESSAGE else f"...{text[-_MAX_MESSAGE:]}"


def _about(pod: Pod, text: str) -> str:
    return f"pod {pod.name}: {text}"
