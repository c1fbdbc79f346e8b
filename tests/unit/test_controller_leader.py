"""The Lease: one holder at a time, by each process's own clock."""

import asyncio
import copy
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from rectrain.controller import leader
from rectrain.controller.app import _unless_stopped
from rectrain.controller.errors import ApiError, ConflictError, NotFoundError
from rectrain.controller.kinds import Kind
from rectrain.controller.leader import LEASE_SECONDS, RENEW_SECONDS, Leadership
from rectrain.controller.observed import Key, Raw

KEY = Key("system", "rectrain-controller")


class Clock:
    """Time that passes when somebody waits."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


class Leases:
    """An API server with a Lease, each of whose calls takes a while."""

    def __init__(self, clock: Clock, *, call_seconds: float = 0.0, fails: Callable[[], bool] = lambda: False) -> None:
        self.lease: dict[str, Any] | None = None
        self._clock, self._seconds, self._fails = clock, call_seconds, fails

    async def get(self, kind: Kind, key: Key) -> Raw:
        if self._fails():
            raise ApiError("the server fails")
        if self.lease is None:
            raise NotFoundError(str(key))
        return copy.deepcopy(self.lease)

    async def create(self, kind: Kind, body: dict[str, Any]) -> Raw:
        return await self._write(body, 1)

    async def replace(self, kind: Kind, key: Key, body: dict[str, Any]) -> Raw:
        assert self.lease is not None
        if body["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
            raise ConflictError(str(key))
        return await self._write(body, int(body["metadata"]["resourceVersion"]) + 1)

    async def _write(self, body: dict[str, Any], version: int) -> Raw:
        self.lease = copy.deepcopy(body)
        self.lease["metadata"]["resourceVersion"] = str(version)
        self._clock.now += self._seconds
        return copy.deepcopy(self.lease)


def run(clock: Clock, monkeypatch: pytest.MonkeyPatch, program: Awaitable[Any]) -> Any:
    monkeypatch.setattr(leader.asyncio, "sleep", clock.sleep)

    async def main() -> Any:
        return await program

    return asyncio.run(main())


def test_a_holder_gives_up_before_another_may_begin_however_long_its_first_call_took(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    failing = False
    api = Leases(clock, call_seconds=7.0, fails=lambda: failing)
    holder = Leadership(api, KEY, "one", clock)  # type: ignore[arg-type]
    run(clock, monkeypatch, holder.acquire())
    failing = True
    run(clock, monkeypatch, holder.hold())
    assert clock.now <= RENEW_SECONDS + leader.RETRY_SECONDS
    assert clock.now < LEASE_SECONDS, "another saw the Lease at 0 s, and may take it now"


def test_a_holder_that_renews_holds_on_until_another_has_the_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    api = Leases(clock)
    holder = Leadership(api, KEY, "one", clock)  # type: ignore[arg-type]
    run(clock, monkeypatch, holder.acquire())

    async def slept(seconds: float) -> None:
        clock.now += seconds
        if clock.now > 60:
            assert api.lease is not None
            api.lease["spec"]["holderIdentity"] = "two"

    clock.sleep = slept  # type: ignore[method-assign]
    run(clock, monkeypatch, holder.hold())
    assert 60 < clock.now < 60 + 2 * leader.RETRY_SECONDS


def test_an_election_that_breaks_is_not_taken_for_won() -> None:
    async def breaks() -> None:
        raise RuntimeError("no way to the cluster")

    async def main() -> bool:
        return await _unless_stopped(asyncio.Event(), breaks())

    with pytest.raises(RuntimeError, match="no way to the cluster"):
        asyncio.run(main())
