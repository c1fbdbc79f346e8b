"""Watches: kopf lists and watches, what it tells goes into the store, and the jobs that it concerns into the queue.

Nothing else of kopf is used: no finalizers, no annotations, no peering, no handlers with a state of their own.
"""

from collections.abc import Sequence
from typing import Any

import kopf

from rectrain.api.pod_template import CHILD_NAME_LABEL
from rectrain.controller.connection import login
from rectrain.controller.kinds import Kind
from rectrain.controller.metrics import WATCH_EVENTS
from rectrain.controller.observed import Key
from rectrain.controller.queue import WorkQueue
from rectrain.controller.store import WATCHED, Store
from rectrain.manifests.metadata import MANAGED_BY, MANAGED_BY_LABEL

_CONVERSION_LABELS = f"{MANAGED_BY_LABEL}={MANAGED_BY}"
"""Which batch/v1 Jobs are watched: those that a controller made."""
_CHUNK = 500
_CONNECT_SECONDS, _REQUEST_SECONDS = 10.0, 60.0


def registry(store: Store, queue: WorkQueue[Key]) -> kopf.OperatorRegistry:
    """Return kopf's handlers: one for each kind that is watched."""
    handlers = kopf.OperatorRegistry()

    @kopf.on.login(registry=handlers)
    def on_login(settings: kopf.OperatorSettings, **_: Any) -> kopf.ConnectionInfo:
        return login(settings)

    for kind in WATCHED:
        _handle(kind, handlers, store, queue)
    return handlers


def _handle(kind: Kind, handlers: kopf.OperatorRegistry, store: Store, queue: WorkQueue[Key]) -> None:
    events = WATCH_EVENTS.labels(kind=kind.plural)

    @kopf.on.event(*_resource(kind), registry=handlers, id=f"on-{kind.plural}")
    async def on_event(event: kopf.RawEvent, **_: Any) -> None:
        events.inc()
        for key in store.take_event(kind, event["object"], deleted=event["type"] == "DELETED"):
            queue.add(key)


def kopf_settings(*, namespaced: bool) -> kopf.OperatorSettings:
    """Return how kopf watches.

    Args:
        namespaced: Whether only some namespaces are: then CRDs that are installed later go unnoticed, for watching CRDs
            takes rights on the whole cluster.
    """
    wanted = kopf.OperatorSettings()
    wanted.posting.enabled = False
    wanted.scanning.disabled = namespaced
    wanted.watching.chunk_size = _CHUNK
    wanted.networking.connect_timeout = _CONNECT_SECONDS
    wanted.networking.request_timeout = _REQUEST_SECONDS
    wanted.persistence.diffbase_storage = _NoDifferences()
    # Filtered by the API server: of a cluster's pods and Jobs, only those of ours come here.
    wanted.watching.label_selectors[_resource(Kind.POD)] = CHILD_NAME_LABEL
    wanted.watching.label_selectors[_resource(Kind.CONVERSION)] = _CONVERSION_LABELS
    return wanted


class _NoDifferences(kopf.DiffBaseStorage):
    """Keeps kopf from copying each object that it tells of, for handlers of changes, of which there are none here.

    That is a quarter of the controller's work when many jobs come at once.
    """

    def build(self, **_: Any) -> kopf.BodyEssence:
        """Take nothing of an object for what a change would be told by."""
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> None:
        """Know nothing of an object as it was."""

    def store(self, **_: Any) -> None:
        """Keep nothing in the object."""


async def watch(store: Store, queue: WorkQueue[Key], namespaces: Sequence[str], identity: str) -> None:
    """Watch until the process is told to end by a signal, which kopf takes.

    Args:
        store: Where what is told goes.
        queue: Where the jobs go that it concerns.
        namespaces: The namespaces to watch; all where there is none.
        identity: Name of this process. kopf would ask for the user's, and in a container a user has only a number.
    """
    await kopf.operator(
        identity=identity,  # type: ignore[arg-type]  # its own kind of text, which it does not export
        registry=registry(store, queue),
        settings=kopf_settings(namespaced=bool(namespaces)),
        standalone=True,
        clusterwide=not namespaces,
        namespaces=list(namespaces),
    )


def _resource(kind: Kind) -> tuple[str, str, str]:
    group, _, version = kind.api_version.rpartition("/")
    return group, version, kind.plural
