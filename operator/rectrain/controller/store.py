"""What watches and calls have told of objects, so that a pass needs no reading; and what watches still owe."""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from rectrain.api.job import KIND
from rectrain.api.pod_template import CHILD_NAME_LABEL
from rectrain.controller.kinds import Kind
from rectrain.controller.observed import (
    Child,
    Conversion,
    Key,
    Pod,
    Raw,
    child_of,
    conversion_of,
    is_managed,
    pod_of,
)


def _without_managed_fields(raw: Raw) -> Raw:
    metadata = {name: value for name, value in raw["metadata"].items() if name != "managedFields"}
    return {**raw, "metadata": metadata}


_VALUES: dict[Kind, Callable[[Raw], Any]] = {
    Kind.JOB: _without_managed_fields,
    Kind.CHILD: child_of,
    Kind.POD: pod_of,
    Kind.CONVERSION: conversion_of,
}
WATCHED = tuple(_VALUES)
"""The kinds that are watched, and kept."""
_MAX_GRAVES = 10_000


@dataclass(frozen=True, slots=True)
class _Entry:
    """An object as it was last told of."""

    version: int
    value: Any


class _Owed(NamedTuple):
    version: int
    since: float


class Store:
    """Objects as they were last told of, by an event or by the answer to a call, whichever is newer.

    A watch can freeze or lose an event, so each thing known from a call that its watch has not told of yet is noted:
    `lag` is how long the oldest of them has been owed.

    Resource versions are compared as numbers, which they are in every API server on etcd.

    Args:
        clock: Monotonic time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin empty."""
        self._clock = clock
        self._entries: dict[Kind, dict[Key, _Entry]] = {kind: {} for kind in WATCHED}
        self._pods: dict[Key, set[Key]] = {}
        self._job_of_pod: dict[Key, Key] = {}
        self._graves: OrderedDict[tuple[Kind, Key], int] = OrderedDict()
        self._owed: dict[tuple[Kind, Key], _Owed] = {}

    def take_event(self, kind: Kind, raw: Raw, *, deleted: bool = False) -> set[Key]:
        """Take in what a watch tells of an object, and return the jobs to which that is news."""
        key, version = key_of(raw), _version(raw)
        owed = self._owed.get((kind, key))
        if owed is not None and (deleted or version >= owed.version):
            del self._owed[kind, key]
        before = self._entries[kind].get(key)
        # Also of what is deleted: of an object's events that wait, kopf tells the last alone, and a pod that ended may
        # have been removed at once.
        self._put(kind, key, version, raw)
        if deleted:
            self._remove(kind, key, version)
        after = self._entries[kind].get(key)
        if before is not None and after is not None and before.value == after.value:
            return set()
        return _jobs_of(kind, key, raw)

    def take_answer(self, kind: Kind, raw: Raw) -> None:
        """Take in an object from the answer to a call, and expect its watch to tell of it."""
        key, version = key_of(raw), _version(raw)
        if self._graves.get((kind, key)) == version:
            # It is there: its watch said that it had gone because it lost the label by which it is watched.
            del self._graves[kind, key]
        if self._put(kind, key, version, raw) and _is_watched(kind, raw):
            owed = self._owed.get((kind, key))
            self._owed[kind, key] = _Owed(version, owed.since if owed is not None else self._clock())

    def known(self, kind: Kind, key: Key) -> int | None:
        """Return the version of an object that is known, or None: what a call that finds nothing will have refuted."""
        entry = self._entries[kind].get(key)
        return None if entry is None else entry.version

    def take_absence(self, kind: Kind, key: Key, known: int | None) -> None:
        """Take in that a call found no object of that name.

        Args:
            kind: Its kind.
            key: Its name.
            known: What `known` returned before the call: an event that came in the meantime knows better.
        """
        if known is not None and self.known(kind, key) == known:
            self._remove(kind, key, known)
            self._owed.pop((kind, key), None)

    def known_pods(self, job: Key) -> dict[Key, int | None]:
        """Return the versions of a job's pods that are known: what a list without them will have refuted."""
        return {key: self.known(Kind.POD, key) for key in self._pods.get(job, ())}

    def take_pods(self, raws: Iterable[Raw], known: dict[Key, int | None]) -> None:
        """Take in a list of all the pods that bear a job's name.

        Args:
            raws: The pods.
            known: What `known_pods` returned before the call.
        """
        found = set()
        for raw in raws:
            found.add(key_of(raw))
            self.take_answer(Kind.POD, raw)
        for key in known.keys() - found:
            self.take_absence(Kind.POD, key, known[key])

    def raw_job(self, key: Key) -> Raw | None:
        """Return a job as the API server has it, only to be read; None where there is none."""
        entry = self._entries[Kind.JOB].get(key)
        return None if entry is None else entry.value

    def job_keys(self) -> list[Key]:
        """Return the keys of all jobs."""
        return list(self._entries[Kind.JOB])

    def raw_statuses(self) -> Iterator[Raw]:
        """Yield the status of every job as the API server has it; only to be read."""
        for entry in self._entries[Kind.JOB].values():
            yield entry.value.get("status") or {}

    def child(self, key: Key) -> Child | None:
        """Return the PyTorchJob of a job's name, or None."""
        entry = self._entries[Kind.CHILD].get(key)
        return None if entry is None else entry.value

    def conversion(self, key: Key) -> Conversion | None:
        """Return a conversion by its own namespace and name, or None."""
        entry = self._entries[Kind.CONVERSION].get(key)
        return None if entry is None else entry.value

    def pods(self, job: Key) -> tuple[Pod, ...]:
        """Return the pods that bear a job's name; those that are gone for as long as their PyTorchJob is there."""
        return tuple(self._entries[Kind.POD][key].value for key in sorted(self._pods.get(job, ())))

    def lag(self) -> float:
        """Return for how many seconds a watch has owed what is known from a call; 0 where none does."""
        now = self._clock()
        return max((now - owed.since for owed in self._owed.values()), default=0.0)

    def _put(self, kind: Kind, key: Key, version: int, raw: Raw) -> bool:
        """Keep an object if it is newer than what is known; return whether it is."""
        before = self._entries[kind].get(key)
        known = before.version if before is not None else self._graves.get((kind, key), -1)
        if version <= known:
            return False
        self._entries[kind][key] = _Entry(version, _VALUES[kind](raw))
        for job in _jobs_of(kind, key, raw) if kind is Kind.POD else ():
            self._pods.setdefault(job, set()).add(key)
            self._job_of_pod[key] = job
        return True

    def _remove(self, kind: Kind, key: Key, version: int) -> None:
        self._graves[kind, key] = version
        self._graves.move_to_end((kind, key))
        if len(self._graves) > _MAX_GRAVES:
            self._graves.popitem(last=False)
        entry = self._entries[kind].get(key)
        if entry is None:
            return
        if kind is not Kind.POD:
            del self._entries[kind][key]
            if kind is Kind.CHILD:
                self._forget_gone_pods(key)
        elif self.child(self._job_of_pod[key]) is not None:  # how it ended may matter when its attempt is over
            self._entries[kind][key] = _Entry(version, replace(entry.value, gone=True))
        else:
            self._forget_pod(key)

    def _forget_gone_pods(self, job: Key) -> None:
        for key in list(self._pods.get(job, ())):
            if self._entries[Kind.POD][key].value.gone:
                self._forget_pod(key)

    def _forget_pod(self, key: Key) -> None:
        job = self._job_of_pod.pop(key)
        del self._entries[Kind.POD][key]
        self._pods[job].discard(key)
        if not self._pods[job]:
            del self._pods[job]


def key_of(raw: Raw) -> Key:
    """Return an object's namespace and name."""
    return Key(raw["metadata"]["namespace"], raw["metadata"]["name"])


def _jobs_of(kind: Kind, key: Key, raw: Raw) -> set[Key]:
    """Return the keys of the jobs that an object concerns: a PyTorchJob bears the name of its job."""
    metadata = raw["metadata"]
    if kind is Kind.POD:
        name = (metadata.get("labels") or {}).get(CHILD_NAME_LABEL)
        return {Key(key.namespace, name)} if name else set()
    if kind is Kind.CONVERSION:
        owners = metadata.get("ownerReferences") or []
        return {Key(key.namespace, owner["name"]) for owner in owners if owner.get("kind") == KIND}
    return {key}


def _is_watched(kind: Kind, raw: Raw) -> bool:
    """Return whether the watch of a kind will tell of an object: others' Jobs of a conversion's name it does not."""
    return kind is not Kind.CONVERSION or is_managed(raw["metadata"])


def _version(raw: Raw) -> int:
    return int(raw["metadata"]["resourceVersion"])
