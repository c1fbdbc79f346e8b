"""Leader election by a coordination.k8s.io Lease: of several controllers, one acts.

The protocol is client-go's leaderelection. As there, only the own clock is believed, and never one machine's compared
with another's: a Lease is over when it has not been seen to change for its duration.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from rectrain.controller.errors import AlreadyExistsError, ApiError, ConflictError, NotFoundError
from rectrain.controller.kinds import Kind
from rectrain.controller.kube import ApiServer
from rectrain.controller.metrics import LEADER
from rectrain.controller.observed import Key, Raw

_LOG = logging.getLogger(__name__)

LEASE_SECONDS = 12
"""For how long a Lease that is not renewed is believed in."""
RENEW_SECONDS = 8.0
"""For how long the holder tries to renew before it gives up: shorter, so that it stops before another begins."""
RETRY_SECONDS = 2.0
"""Time between two attempts."""


class Leadership:
    """This process's part in the election.

    Args:
        api: The API server.
        key: Namespace and name of the Lease.
        identity: Name of this process, unlike any other's.
        clock: Monotonic time in seconds.
    """

    def __init__(self, api: ApiServer, key: Key, identity: str, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin without the Lease."""
        self._api = api
        self._key = key
        self._identity = identity
        self._clock = clock
        self._lease: Raw | None = None
        self._seen: tuple[Any, float] = (None, clock())
        self._renewed = clock()

    async def acquire(self) -> None:
        """Wait until the Lease is won."""
        _LOG.info("waiting for lease %s as %s", self._key, self._identity)
        while not await self._attempt():
            await asyncio.sleep(RETRY_SECONDS)
        LEADER.set(1)
        _LOG.info("won lease %s as %s", self._key, self._identity)

    async def hold(self) -> None:
        """Renew the Lease; return when it is lost."""
        while (left := self._renewed + RENEW_SECONDS - self._clock()) > 0:
            try:
                async with asyncio.timeout(left):
                    await asyncio.sleep(RETRY_SECONDS)
                    if not await self._attempt() and self._holder() not in (None, "", self._identity):
                        break
            except TimeoutError:
                break
        LEADER.set(0)
        _LOG.error("lost lease %s to %s", self._key, self._holder() or "nobody yet")

    async def release(self) -> None:
        """Give the Lease up, so that another need not wait for its end."""
        LEADER.set(0)
        if self._lease is None or self._holder() != self._identity:
            return
        try:
            await self._write({"holderIdentity": "", "leaseDurationSeconds": 1})
            _LOG.info("released lease %s", self._key)
        except ApiError as error:
            _LOG.warning("lease %s is not released: %s", self._key, error)

    async def _attempt(self) -> bool:
        """Take or renew the Lease, and note from when on others may believe that it is ours: before the call."""
        begun = self._clock()
        is_ours = await self._try()
        if is_ours:
            self._renewed = begun
        return is_ours

    async def _try(self) -> bool:
        """Take or renew the Lease; return whether it is ours."""
        try:
            await self._look()
            if not self._may_take():
                return False
            mine = self._holder() == self._identity
            spec = {
                "holderIdentity": self._identity,
                "leaseDurationSeconds": LEASE_SECONDS,
                "renewTime": _now(),
                "acquireTime": self._spec().get("acquireTime") if mine else _now(),
                "leaseTransitions": (self._spec().get("leaseTransitions") or 0) + (not mine),
            }
            await self._write(spec)
        except (ConflictError, AlreadyExistsError):
            return False  # another was quicker
        except ApiError as error:
            _LOG.warning("lease %s: %s", self._key, error)
            return False
        return True

    async def _look(self) -> None:
        try:
            self._lease = await self._api.get(Kind.LEASE, self._key)
        except NotFoundError:
            self._lease = None
        if self._seen[0] != self._spec():
            self._seen = (self._spec(), self._clock())

    def _may_take(self) -> bool:
        if self._holder() in (None, "", self._identity):
            return True
        return self._clock() - self._seen[1] >= (self._spec().get("leaseDurationSeconds") or LEASE_SECONDS)

    async def _write(self, spec: dict[str, Any]) -> None:
        metadata = {"namespace": self._key.namespace, "name": self._key.name}
        body = {"apiVersion": Kind.LEASE.api_version, "kind": "Lease", "metadata": metadata, "spec": spec}
        if self._lease is None:
            self._lease = await self._api.create(Kind.LEASE, body)
        else:
            body["metadata"] = {**metadata, "resourceVersion": self._lease["metadata"]["resourceVersion"]}
            self._lease = await self._api.replace(Kind.LEASE, self._key, body)
        self._seen = (self._spec(), self._clock())

    def _spec(self) -> Raw:
        return {} if self._lease is None else self._lease.get("spec") or {}

    def _holder(self) -> str | None:
        return self._spec().get("holderIdentity")


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
