"""One pass over a job: look, decide, act, write, tell."""

import contextlib
import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from rectrain.api.errors import UserError
from rectrain.api.job import KIND
from rectrain.api.pod_template import CHILD_NAME_LABEL, CONVERSION_NAME_LABEL
from rectrain.api.status import Progress, state_of
from rectrain.controller.conditions import ConditionType, is_true
from rectrain.controller.decide import decide
from rectrain.controller.decision import (
    Action,
    CreateChild,
    CreateConfigMap,
    CreateConversion,
    Decision,
    DeleteChild,
    DeleteConversion,
    DeleteJob,
    Event,
    JoinConversion,
)
from rectrain.controller.errors import (
    AlreadyExistsError,
    ApiError,
    ConflictError,
    KindMissingError,
    NotFoundError,
    RefusedError,
)
from rectrain.controller.jobs import JobReader, known_status, merge_patch, written_status
from rectrain.controller.kinds import Kind
from rectrain.controller.kube import STRATEGIC_PATCH, Kube
from rectrain.controller.metrics import ACTIONS
from rectrain.controller.observed import (
    Child,
    Conversion,
    Job,
    Key,
    Observed,
    Phase,
    Pod,
    Raw,
    Refusal,
    awaits_pods,
    pod_of,
)
from rectrain.controller.pending import refused_pods
from rectrain.controller.store import Store
from rectrain.manifests import Settings, config_map, config_map_name, conversion_job, conversion_name, pytorch_job

_LOG = logging.getLogger(__name__)
_COMPONENT = "rectrain-controller"
_MAX_NOTE = 1024
"""Bytes of an event's note that the API server takes."""


class Reconciler:
    """Passes over jobs.

    Args:
        kube: The API server.
        store: What is known of objects.
        settings: The operator's defaults for its jobs.
        progress: What rank 0 of each running job said last, by the uid of its PyTorchJob.
        clock: Returns the time, with a zone.
        instance: Name of this process, for events.
    """

    def __init__(
        self,
        kube: Kube,
        store: Store,
        settings: Settings,
        progress: Mapping[str, Progress],
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        instance: str = _COMPONENT,
    ) -> None:
        """Hold them all."""
        self._kube = kube
        self._store = store
        self._settings = settings
        self._progress = progress
        self._clock = clock
        self._instance = instance
        self._jobs = JobReader()

    async def reconcile(self, key: Key, *, read: bool) -> datetime | None:
        """Do what there is to do about a job.

        Args:
            key: The job.
            read: Read it and all that belongs to it anew, instead of believing the events.

        Returns:
            When to look again though nothing happens, or None.

        Raises:
            ApiError: A call failed. What was done stays done, and the next pass goes on from it.
        """
        if read:
            await self._read(Kind.JOB, key)
        # Read once: a status is only written over the one that it was decided from.
        raw = self._store.raw_job(key)
        if raw is None:
            return None
        job = self._jobs.read(raw)
        observed = await self._observe(job, read=read)
        now = self._clock()
        decision = decide(job, observed, now)
        try:
            for action in decision.actions:
                await self._act(job, action)
        except (RefusedError, KindMissingError, UserError) as error:
            _LOG.warning("refused: %s", error, extra={"job": str(key)})
            decision = decide(job, replace(observed, refusal=refusal_of(error)), now)
        await self._write(job, raw, decision)
        for event in decision.events:
            await self._emit(job, event)
        return decision.requeue_at

    async def _observe(self, job: Job, *, read: bool) -> Observed:
        if read:
            await self._read(Kind.CHILD, job.key)
        child = self._store.child(job.key)
        # How an attempt ended is judged once, so not from what events happen to have told of its pods by now.
        if read or (child is not None and child.phase.is_final and not state_of(job.status.conditions).is_final):
            await self._read_pods(job.key)
        conversion = await self._conversion(job, read=read)
        pods = self._store.pods(job.key)
        return Observed(
            child=child,
            pods=pods,
            pods_refused=await self._pods_refused(job, child, pods) if read else None,
            conversion=conversion,
            conversion_pods=await self._conversion_pods(job, conversion),
            config_map_missing=read and await self._config_map_missing(job, child, pods),
            progress=self._progress.get(child.uid) if child is not None else None,
        )

    async def _config_map_missing(self, job: Job, child: Child | None, pods: Sequence[Pod]) -> bool:
        """Return whether pods wait for a ConfigMap that somebody has deleted; it is not watched."""
        if job.definition is None or child is None or not any(p.is_prepared and p.owner_uid == child.uid for p in pods):
            return False
        try:
            await self._kube.get(
                Kind.CONFIG_MAP, Key(job.key.namespace, config_map_name(job.definition, self._settings))
            )
        except NotFoundError:
            return True
        except RefusedError:  # the right to read it may be missing, as in roles of earlier charts; a job runs without
            return False
        return False

    async def _pods_refused(self, job: Job, child: Child | None, pods: Sequence[Pod]) -> str:
        """Return why pods are missing; events about the PyTorchJob say so, and are not watched."""
        if child is None or not awaits_pods(job, child, pods):
            return ""
        try:
            return refused_pods(await self._kube.list_warnings(job.key.namespace, child.uid))
        except RefusedError:  # the right to read events may be missing; a job runs without
            return ""

    async def _conversion(self, job: Job, *, read: bool) -> Conversion | None:
        if job.definition is None or job.definition.spec.data.source is None:
            return None
        if state_of(job.status.conditions).is_final or is_true(job.status.conditions, ConditionType.DATA_PREPARED):
            return None
        key = Key(job.key.namespace, conversion_name(job.definition))
        if read:
            await self._read(Kind.CONVERSION, key)
        return self._store.conversion(key)

    async def _conversion_pods(self, job: Job, conversion: Conversion | None) -> tuple[Pod, ...]:
        """Return the pods of a conversion that does not run or has failed: they say why. Others are of no interest."""
        if conversion is None or not (conversion.pod_waits or conversion.phase is Phase.FAILED):
            return ()
        found = await self._kube.list_pods(Key(job.key.namespace, conversion.name), CONVERSION_NAME_LABEL)
        return tuple(map(pod_of, found))

    async def _read(self, kind: Kind, key: Key) -> None:
        known = self._store.known(kind, key)
        try:
            self._store.take_answer(kind, await self._kube.get(kind, key))
        except NotFoundError:
            self._store.take_absence(kind, key, known)
        except KindMissingError:
            pass  # an API server that does not serve the kind at this moment says nothing of its objects

    async def _read_pods(self, key: Key) -> None:
        known = self._store.known_pods(key)
        self._store.take_pods(await self._kube.list_pods(key, CHILD_NAME_LABEL), known)

    async def _act(self, job: Job, action: Action) -> None:
        _LOG.info("%s", action, extra={"job": str(job.key)})
        ACTIONS.labels(action=type(action).__name__).inc()
        definition, key = job.definition, job.key
        match action:
            case CreateConfigMap():
                assert definition is not None
                with contextlib.suppress(AlreadyExistsError):  # its name says what is in it, and whose it is
                    await self._kube.create(Kind.CONFIG_MAP, config_map(definition, self._settings))
            case CreateChild(attempt, suspended):
                assert definition is not None
                await self._create(Kind.CHILD, pytorch_job(definition, self._settings, attempt, suspended))
            case CreateConversion():
                assert definition is not None
                await self._create(Kind.CONVERSION, conversion_job(definition, self._settings))
            case DeleteChild(uid):
                await self._delete(Kind.CHILD, key, uid, foreground=True)
            case DeleteConversion(name, uid):
                await self._delete(Kind.CONVERSION, Key(key.namespace, name), uid, foreground=True)
            case DeleteJob(uid):
                await self._delete(Kind.JOB, key, uid, foreground=False)
            case JoinConversion(name, uid, mounted):
                # First what its pods read: one that is tried again needs it, though the job that it is of be gone.
                with contextlib.suppress(NotFoundError):
                    if mounted:
                        await self._own(job, Kind.CONFIG_MAP, mounted)
                self._store.take_answer(Kind.CONVERSION, await self._own(job, Kind.CONVERSION, name, uid=uid))

    async def _own(self, job: Job, kind: Kind, name: str, **identity: str) -> Raw:
        """Become one more owner of an object, and return it as it is then."""
        owner = {"apiVersion": Kind.JOB.api_version, "kind": KIND, "name": job.key.name, "uid": job.uid}
        body = {"metadata": {**identity, "ownerReferences": [owner]}}
        return await self._kube.patch(kind, Key(job.key.namespace, name), body, content_type=STRATEGIC_PATCH)

    async def _create(self, kind: Kind, body: Raw) -> None:
        """Create an object; where one of its name is there already, look at it first."""
        try:
            self._store.take_answer(kind, await self._kube.create(kind, body))
        except AlreadyExistsError as error:
            await self._read(kind, Key(body["metadata"]["namespace"], body["metadata"]["name"]))
            raise ConflictError(str(error)) from None

    async def _delete(self, kind: Kind, key: Key, uid: str, *, foreground: bool) -> None:
        known = self._store.known(kind, key)
        try:
            left = await self._kube.delete(kind, key, uid=uid, foreground=foreground)
        except NotFoundError:
            left = None
        if left is None:
            self._store.take_absence(kind, key, known)
        else:
            self._store.take_answer(kind, left)

    async def _write(self, job: Job, raw: Raw, decision: Decision) -> None:
        """Write the status if it changes, and only over the one that the decision was made from."""
        if decision.status == job.status or any(isinstance(a, DeleteJob) for a in decision.actions):
            return
        patch = merge_patch(known_status(raw.get("status") or {}), written_status(decision.status))
        if not patch:
            return
        body = {"metadata": {"resourceVersion": raw["metadata"]["resourceVersion"], "uid": job.uid}, "status": patch}
        self._store.take_answer(Kind.JOB, await self._kube.patch(Kind.JOB, job.key, body, subresource="status"))

    async def _emit(self, job: Job, event: Event) -> None:
        """Tell of a transition. An event that is lost is not told again."""
        now = self._clock()
        reference = {"apiVersion": Kind.JOB.api_version, "kind": KIND, "namespace": job.key.namespace}
        body: dict[str, Any] = {
            "apiVersion": Kind.EVENT.api_version,
            "kind": "Event",
            "metadata": {"name": f"{job.key.name}.{uuid.uuid4().hex[:16]}", "namespace": job.key.namespace},
            "regarding": {**reference, "name": job.key.name, "uid": job.uid},
            "eventTime": now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "reportingController": "rectrain.io/controller",
            "reportingInstance": self._instance,
            "action": "Reconcile",
            "reason": event.reason,
            "note": event.message.encode()[:_MAX_NOTE].decode(errors="ignore"),
            "type": "Warning" if event.is_warning else "Normal",
        }
        try:
            await self._kube.create(Kind.EVENT, body)
        except ApiError as error:
            _LOG.warning("event %s is lost: %s", event.reason, error, extra={"job": str(job.key)})


def refusal_of(error: Exception) -> Refusal:
    """Return what an error means to decide()."""
    if isinstance(error, UserError):
        return Refusal("InvalidSpec", str(error), permanent=True)
    if isinstance(error, KindMissingError):
        return Refusal(
            "PyTorchJobNotInstalled",
            "the API server has no PyTorchJob (kubeflow.org/v1): install the Kubeflow training operator",
        )
    assert isinstance(error, RefusedError)
    return Refusal("InvalidPodTemplate" if error.permanent else "Refused", str(error), error.permanent)
