"""An API server in memory for the controller's tests, with the controllers that a cluster has besides ours.

It keeps resource versions, refuses stale writes, deletes in the foreground and collects what has lost its owners; it
tells of every change, and may fail any call before or after the call has had its effect.
"""

import copy
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from datetime import datetime
from enum import Enum
from typing import Any

from rectrain.api.pod_template import CHILD_NAME_LABEL
from rectrain.controller.errors import (
    AlreadyExistsError,
    ApiError,
    ConflictError,
    KindMissingError,
    NotFoundError,
    RefusedError,
)
from rectrain.controller.kinds import Kind
from rectrain.controller.kube import MERGE_PATCH
from rectrain.controller.observed import Key, Raw, is_managed
from rectrain.controller.store import WATCHED, key_of

_FOREGROUND = "foregroundDeletion"


class Fault(Enum):
    """What goes wrong with a call."""

    ERROR = "the server fails and does nothing"
    CONFLICT = "the server says that the object has changed"
    TIMEOUT = "the call has its effect, but its answer is lost"
    REFUSED = "a quota or a webhook does not allow it"
    INVALID = "the object that is created is not valid, and never will be"


class MemoryApi:
    """The objects of a cluster, and the calls of a controller on them.

    Attributes:
        objects: Every object by its kind and key.
        writes: The controller's calls that changed something, or tried to.
        faults: What goes wrong with the next calls, one after the other; None where nothing does.
        missing: Kinds that are not installed.
        on_write: Called with the state of an object before and after a controller's write.
    """

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self.objects: dict[tuple[Kind, Key], dict[str, Any]] = {}
        self.writes: list[tuple[str, Kind, Key]] = []
        self.faults: deque[Fault | None] = deque()
        self.missing: set[Kind] = set()
        self.on_write: list[Callable[[Kind, Raw | None, Raw | None], None]] = []
        self._clock = clock
        self._numbers = itertools.count(1)
        self._watchers: list[dict[Kind, deque[tuple[str, Raw]]]] = []

    # What a controller calls

    async def get(self, kind: Kind, key: Key) -> Raw:
        self._fail_before(kind)
        found = self._found(kind, key)
        return copy.deepcopy(found)

    async def list_pods(self, key: Key, label: str) -> list[Raw]:
        self._fail_before(Kind.POD)
        return [copy.deepcopy(raw) for raw in self.pods(key, label)]

    async def list_warnings(self, namespace: str, uid: str) -> list[Raw]:
        self._fail_before(Kind.EVENT)
        return []

    async def create(self, kind: Kind, body: Raw) -> Raw:
        after = self._fail_before(kind)
        if after is Fault.INVALID:
            raise RefusedError("Required value", permanent=True)
        key = key_of(body)
        self.writes.append(("create", kind, key))
        if (kind, key) in self.objects:
            raise AlreadyExistsError(f"{kind} {key}")
        created = self.put(kind, copy.deepcopy(dict(body)))
        self._tell_written(kind, None, created)
        self._fail_after(after)
        return copy.deepcopy(created)

    async def patch(
        self, kind: Kind, key: Key, body: Raw, *, content_type: str = MERGE_PATCH, subresource: str = ""
    ) -> Raw:
        after = self._fail_before(kind)
        self.writes.append(("patch", kind, key))
        found = self._found(kind, key)
        metadata = body["metadata"]
        if metadata.get("uid", found["metadata"]["uid"]) != found["metadata"]["uid"]:
            raise ConflictError(f"{kind} {key}: another uid")
        if (
            metadata.get("resourceVersion", found["metadata"]["resourceVersion"])
            != found["metadata"]["resourceVersion"]
        ):
            raise ConflictError(f"{kind} {key}: has changed")
        changed = copy.deepcopy(found)
        if subresource == "status":
            changed["status"] = _merged(changed.get("status") or {}, body["status"])
        else:  # the only other patches of the controller are those that add an owner
            owners = changed["metadata"].setdefault("ownerReferences", [])
            owners += [o for o in metadata["ownerReferences"] if o["uid"] not in {x["uid"] for x in owners}]
        self._tell_written(kind, found, changed)
        changed = self.put(kind, changed)
        self._fail_after(after)
        return copy.deepcopy(changed)

    async def delete(self, kind: Kind, key: Key, *, uid: str, foreground: bool) -> Raw | None:
        after = self._fail_before(kind)
        self.writes.append(("delete", kind, key))
        found = self._found(kind, key)
        if found["metadata"]["uid"] != uid:
            raise ConflictError(f"{kind} {key}: another uid")
        self._tell_written(kind, found, None)
        self.remove(kind, key, foreground=foreground)
        self._fail_after(after)
        return copy.deepcopy(self.objects.get((kind, key)))

    # What others do

    def put(self, kind: Kind, raw: dict[str, Any]) -> dict[str, Any]:
        """Create or change an object as anybody, and tell of it."""
        key = key_of(raw)
        metadata = raw["metadata"]
        before = self.objects.get((kind, key))
        is_new = before is None
        if is_new:
            metadata["uid"] = f"uid-{next(self._numbers)}"
            metadata["creationTimestamp"] = self.time()
        metadata["resourceVersion"] = str(next(self._numbers))
        self.objects[kind, key] = raw
        if kind is Kind.CONVERSION and not is_managed(metadata):  # watched by the label: without it, it is gone
            if before is not None and is_managed(before["metadata"]):
                self._tell(kind, "DELETED", raw)
        else:
            self._tell(kind, "ADDED" if is_new else "MODIFIED", raw)
        return raw

    def time(self) -> str:
        """Return the time as the cluster has it."""
        return self._clock().strftime("%Y-%m-%dT%H:%M:%SZ")

    def change(self, kind: Kind, key: Key, **fields: Any) -> None:
        """Set top-level fields of an object as anybody."""
        raw = copy.deepcopy(self.objects[kind, key])
        self.put(kind, {**raw, **fields})

    def remove(self, kind: Kind, key: Key, *, foreground: bool) -> None:
        """Delete an object as anybody."""
        raw = copy.deepcopy(self.objects[kind, key])
        metadata = raw["metadata"]
        metadata.setdefault("deletionTimestamp", self.time())
        if foreground and any(self._dependents(metadata["uid"])):
            metadata["finalizers"] = sorted({*metadata.get("finalizers", []), _FOREGROUND})
            self.put(kind, raw)
        elif not metadata.get("finalizers") or not foreground:
            metadata["resourceVersion"] = str(next(self._numbers))
            del self.objects[kind, key]
            if kind is not Kind.CONVERSION or is_managed(metadata):
                self._tell(kind, "DELETED", raw)

    def collect_garbage(self) -> None:
        """Remove dependents of what is being deleted in the foreground, then it, and what has lost all owners."""
        for (kind, key), raw in list(self.objects.items()):
            if _FOREGROUND in raw["metadata"].get("finalizers", []) and (kind, key) in self.objects:
                for kind_of_dependent, key_of_dependent in list(self._dependents(raw["metadata"]["uid"])):
                    self._lose_owner(kind_of_dependent, key_of_dependent, raw["metadata"]["uid"])
                self.remove(kind, key, foreground=False)
        uids = {raw["metadata"]["uid"] for raw in self.objects.values()} | {"foreign-owner"}
        for (kind, key), raw in list(self.objects.items()):
            owners = raw["metadata"].get("ownerReferences") or []
            if owners and not any(owner["uid"] in uids for owner in owners) and (kind, key) in self.objects:
                self.remove(kind, key, foreground=False)

    def _lose_owner(self, kind: Kind, key: Key, uid: str) -> None:
        """Take an owner that is being deleted from an object, and the object with it unless it has another."""
        raw = copy.deepcopy(self.objects[kind, key])
        going = {
            owner["metadata"]["uid"]
            for owner in self.objects.values()
            if _FOREGROUND in owner["metadata"].get("finalizers", [])
        }
        there = {owner["metadata"]["uid"] for owner in self.objects.values()} - going
        if any(owner["uid"] in there for owner in raw["metadata"]["ownerReferences"]):
            owners = [owner for owner in raw["metadata"]["ownerReferences"] if owner["uid"] != uid]
            self.put(kind, {**raw, "metadata": {**raw["metadata"], "ownerReferences": owners}})
        else:
            self.remove(kind, key, foreground=False)

    def pods(self, job: Key, label: str = CHILD_NAME_LABEL) -> list[dict[str, Any]]:
        """Return the pods that bear a job's name."""
        return [
            raw
            for (kind, key), raw in self.objects.items()
            if kind is Kind.POD and key.namespace == job.namespace and raw["metadata"]["labels"].get(label) == job.name
        ]

    def watch(self) -> dict[Kind, deque[tuple[str, Raw]]]:
        """Return queues that will hold every event from now on, after those of a list."""
        queues: dict[Kind, deque[tuple[str, Raw]]] = {kind: deque() for kind in WATCHED}
        for (kind, _), raw in self.objects.items():
            if kind in queues and (kind is not Kind.CONVERSION or is_managed(raw["metadata"])):
                queues[kind].append(("ADDED", copy.deepcopy(raw)))
        self._watchers.append(queues)
        return queues

    def unwatch(self, queues: dict[Kind, deque[tuple[str, Raw]]]) -> None:
        """End a watch."""
        self._watchers = [watcher for watcher in self._watchers if watcher is not queues]

    def _tell(self, kind: Kind, type_: str, raw: Raw) -> None:
        for watcher in self._watchers:
            if kind in watcher:
                watcher[kind].append((type_, copy.deepcopy(raw)))

    def _tell_written(self, kind: Kind, before: Raw | None, after: Raw | None) -> None:
        for check in self.on_write:
            check(kind, before, after)

    def _found(self, kind: Kind, key: Key) -> dict[str, Any]:
        if (kind, key) not in self.objects:
            raise NotFoundError(f"{kind} {key}")
        return self.objects[kind, key]

    def _dependents(self, uid: str) -> Iterator[tuple[Kind, Key]]:
        for (kind, key), raw in self.objects.items():
            if any(owner["uid"] == uid for owner in raw["metadata"].get("ownerReferences") or []):
                yield kind, key

    def _fail_before(self, kind: Kind) -> Fault | None:
        if kind in self.missing:
            raise KindMissingError(f"{kind} is not installed")
        fault = self.faults.popleft() if self.faults else None
        match fault:
            case Fault.ERROR:
                raise ApiError("the server fails")
            case Fault.CONFLICT:
                raise ConflictError("the object has changed")
            case Fault.REFUSED:
                raise RefusedError("exceeded quota", permanent=False)
        return fault

    def _fail_after(self, fault: Fault | None) -> None:
        if fault is Fault.TIMEOUT:
            raise ApiError("timed out")


class TrainingOperator:
    """What Kubeflow's training operator, the kubelet and the Job controller do to the objects of a job.

    Args:
        api: Where they are.
        workers: Pods of a PyTorchJob.
    """

    def __init__(self, api: MemoryApi, workers: int = 2) -> None:
        self._api = api
        self._workers = workers

    def sync(self, key: Key) -> None:
        """Bring the pods of a PyTorchJob about, or remove them."""
        child = self._api.objects.get((Kind.CHILD, key))
        if child is None or "deletionTimestamp" in child["metadata"] or self.has_ended(key):
            return
        own = [p for p in self._api.pods(key) if p["metadata"]["ownerReferences"][0]["uid"] == child["metadata"]["uid"]]
        if child["spec"]["runPolicy"]["suspend"]:
            for pod in own:
                self._api.remove(Kind.POD, key_of(pod), foreground=False)
            return
        for index in range(self._workers):
            role = ("master", 0) if index == 0 else ("worker", index - 1)
            name = f"{key.name}-{role[0]}-{role[1]}"
            if (Kind.POD, Key(key.namespace, name)) not in self._api.objects:
                self._api.put(Kind.POD, _pod(key, name, role, child))
        pods = self._api.pods(key)
        if len(pods) == self._workers and all(p["status"]["phase"] == "Running" for p in pods):
            self._set(key, "Running")

    def start(self, key: Key) -> None:
        """Have the kubelet start the pods of a PyTorchJob, if what they mount is there."""
        child = self._api.objects.get((Kind.CHILD, key))
        if child is None or not all(Key(key.namespace, name) in self._config_maps() for name in mounted_by(child)):
            return
        for pod in self._api.pods(key):
            if pod["status"]["phase"] == "Pending" and "deletionTimestamp" not in pod["metadata"]:
                status = {"phase": "Running", "podIP": "10.0.0.1", "startTime": self._api.time()}
                self._api.change(Kind.POD, key_of(pod), status=status)
        self.sync(key)

    def end(self, key: Key, exit_code: int, message: str = "", *, alone: bool = False) -> None:
        """Have the workers of a running PyTorchJob end, the master with this exit code; or the master alone."""
        child = self._api.objects.get((Kind.CHILD, key))
        if child is None or self.has_ended(key):
            return
        for pod in self._api.pods(key):
            if pod["status"]["phase"] == "Running" and ("master" in pod["metadata"]["name"] or not alone):
                code = exit_code if "master" in pod["metadata"]["name"] else (1 if exit_code else 0)
                self._api.change(Kind.POD, key_of(pod), status=_ended(code, message, self._api.time()))
        self._set(key, "Failed" if exit_code else "Succeeded")

    def has_ended(self, key: Key) -> bool:
        """Return whether a PyTorchJob has succeeded or failed."""
        conditions = self._api.objects[Kind.CHILD, key].get("status", {}).get("conditions", [])
        return any(c["type"] in ("Succeeded", "Failed") for c in conditions)

    def convert(self, key: Key, type_: str) -> None:
        """Have a conversion end: Complete or Failed."""
        conditions = [{"type": type_, "status": "True", "message": f"it is {type_}"}]
        self._api.change(Kind.CONVERSION, key, status={"conditions": conditions})

    def _config_maps(self) -> set[Key]:
        return {key for kind, key in self._api.objects if kind is Kind.CONFIG_MAP}

    def _set(self, key: Key, type_: str) -> None:
        if (Kind.CHILD, key) in self._api.objects and not self.has_ended(key):
            conditions = [{"type": "Created", "status": "True"}, {"type": type_, "status": "True"}]
            if self._api.objects[Kind.CHILD, key].get("status", {}).get("conditions") != conditions:
                self._api.change(Kind.CHILD, key, status={"conditions": conditions})


def mounted_by(child: Raw) -> set[str]:
    """Return the names of the ConfigMaps that the pods of a PyTorchJob mount."""
    replicas = child["spec"].get("pytorchReplicaSpecs", {}).values()
    volumes = [volume for each in replicas for volume in each["template"]["spec"]["volumes"]]
    return {volume["configMap"]["name"] for volume in volumes if "configMap" in volume}


def _pod(key: Key, name: str, role: tuple[str, int], child: Raw) -> dict[str, Any]:
    labels = {
        CHILD_NAME_LABEL: key.name,
        "training.kubeflow.org/replica-type": role[0],
        "training.kubeflow.org/replica-index": str(role[1]),
    }
    owner = {"kind": "PyTorchJob", "name": key.name, "uid": child["metadata"]["uid"], "controller": True}
    metadata = {"namespace": key.namespace, "name": name, "labels": labels, "ownerReferences": [owner]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "status": {"phase": "Pending"}}


def _ended(code: int, message: str, time: str) -> dict[str, Any]:
    ended = {"exitCode": code, "message": message, "finishedAt": time}
    container = {"name": "pytorch", "state": {"terminated": ended}}
    return {"phase": "Failed" if code else "Succeeded", "containerStatuses": [container]}


def _merged(before: Any, patch: Any) -> Any:
    """Return a document with a JSON merge patch applied."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(before) if isinstance(before, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = _merged(merged.get(name), value)
    return merged
