"""Why worker pods do not run, from what the scheduler and the kubelet say of them."""

from collections.abc import Iterable, Sequence

from rectrain.controller.observed import Pod, Raw

IMAGE_REASONS = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName"})
"""Reasons of a container that waits for its image."""
_MAX_MESSAGE = 1000


_NOT_CREATED = "FailedCreate"
"""Beginning of the reasons by which the training operator tells of pods and services that it could not create."""


def refused_pods(warnings: Iterable[Raw]) -> str:
    """Return why pods of a PyTorchJob could not be created, from the events about it; empty where none says so."""
    found = [event for event in warnings if str(event.get("reason") or "").startswith(_NOT_CREATED)]
    return str(max(found, key=_last_told).get("note") or "") if found else ""


def _last_told(event: Raw) -> str:
    series = event.get("series") or {}
    times = (series.get("lastObservedTime"), event.get("deprecatedLastTimestamp"), event.get("eventTime"))
    return max(str(time or "") for time in times)


def pending_reason(pods: Sequence[Pod]) -> tuple[str, str] | None:
    """Return why pods do not run: a CamelCase word and a message that counts them; None where nothing is the matter.

    A container that cannot start says more than a pod without a node, for it will not get better by waiting.
    """
    pods = [p for p in pods if not p.gone and p.phase == "Pending"]
    stuck = [(p.waiting_reason, p.waiting_message or p.waiting_reason, p.name) for p in pods if p.waiting_reason]
    if not stuck:
        stuck = [("Unschedulable", p.unschedulable, p.name) for p in pods if p.unschedulable]
    if not stuck:
        return None
    reason, message, name = min(stuck, key=lambda item: (item[0], item[2]))
    if reason == "ErrImagePull":  # it and ImagePullBackOff take turns; one word for both keeps the status quiet
        reason = "ImagePullBackOff"
    count = f"{len(stuck)} pods, one of them {name}" if len(stuck) > 1 else f"pod {name}"
    return reason, f"{count}: {message[:_MAX_MESSAGE]}"
