"""The queue of jobs: each once, each with one worker, some later."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from rectrain.controller.queue import Item, WorkQueue

Program = Callable[[WorkQueue[str]], Awaitable[object]]


def run(program: Program) -> object:
    async def main() -> object:
        return await asyncio.wait_for(program(WorkQueue()), 20)

    return asyncio.run(main())


async def take(queue: WorkQueue[str]) -> Item[str]:
    item = await queue.get()
    assert item is not None
    return item


def test_a_key_that_is_added_twice_comes_once() -> None:
    async def program(queue: WorkQueue[str]) -> None:
        for key in ("a", "b", "a"):
            queue.add(key)
        assert len(queue) == 2
        assert [(await take(queue)).key for _ in range(2)] == ["a", "b"]
        assert len(queue) == 0

    run(program)


def test_a_key_that_is_added_while_a_worker_has_it_comes_again_when_it_is_given_back() -> None:
    async def program(queue: WorkQueue[str]) -> None:
        queue.add("a")
        await take(queue)
        queue.add("a")
        assert len(queue) == 0, "two workers would have one job"
        queue.done("a")
        assert (await take(queue)).key == "a"
        queue.done("a")
        assert len(queue) == 0

    run(program)


def test_of_several_times_the_earliest_counts() -> None:
    async def program(queue: WorkQueue[str]) -> None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        queue.add_after("a", 3600)
        queue.add_after("a", 0.05)
        queue.add_after("a", 7200)
        assert await take(queue) == ("a", True)
        assert loop.time() - begun < 10
        queue.done("a")
        assert len(queue) == 0

    run(program)


def test_what_time_brings_up_is_told_from_what_an_event_does() -> None:
    async def program(queue: WorkQueue[str]) -> None:
        queue.add("event")
        queue.add_after("time", 0.0)
        queue.add("both")
        queue.add_after("both", 0.0)
        assert {await take(queue) for _ in range(3)} == {("event", False), ("time", True), ("both", True)}

    run(program)


@pytest.mark.parametrize(("failures", "seconds"), [(0, 0.05), (1, 0.1), (4, 0.8), (20, 60.0), (2000, 60.0)])
def test_pauses_double_with_each_error_in_a_row_up_to_a_minute(failures: int, seconds: float) -> None:
    async def program(queue: WorkQueue[str]) -> None:
        for _ in range(failures):
            queue.retry("a")
        assert queue.retry("a") == pytest.approx(seconds)
        queue.forget_failures("a")
        assert queue.retry("a") == pytest.approx(0.05)

    run(program)


def test_workers_that_wait_end_when_it_is_stopped() -> None:
    async def program(queue: WorkQueue[str]) -> list[Item[str] | None]:
        waiting = [asyncio.create_task(queue.get()) for _ in range(3)]
        await asyncio.sleep(0)
        queue.stop()
        return await asyncio.gather(*waiting)

    assert run(program) == [None, None, None]


def test_events_go_before_looks_that_are_due_and_do_not_keep_them_waiting_for_ever() -> None:
    async def program(queue: WorkQueue[str]) -> list[Item[str]]:
        now = asyncio.get_running_loop().time()
        for look in ("look 0", "look 1", "look 2"):
            queue.add_at(look, now)
        for event in range(10):
            queue.add(f"event {event}")
        taken = [await take(queue)]  # the times are noticed first, as they are in a controller that is busy
        queue.add("look 2")  # something happened to it meanwhile
        return taken + [await take(queue) for _ in range(12)]

    taken = run(program)
    assert isinstance(taken, list)
    first = [(f"event {n}", False) for n in range(8)]
    then = [("event 8", False), ("event 9", False), ("look 2", True)]
    assert taken == [*first, ("look 0", True), *then, ("look 1", True)]


def test_a_key_comes_once_for_an_event_and_a_look() -> None:
    async def program(queue: WorkQueue[str]) -> None:
        queue.add("a")
        queue.add_at("a", asyncio.get_running_loop().time())
        assert await take(queue) == ("a", True)
        assert len(queue) == 0

    run(program)
