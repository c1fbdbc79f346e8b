"""Waiting for a condition, never for a time."""

import time
from collections.abc import Callable


def wait_until(what: str, condition: Callable[[], bool], seconds: float, *, every: float = 0.1) -> None:
    """Ask `condition` every so many seconds until it says yes.

    Raises:
        TimeoutError: It did not in `seconds`; `what` says what was waited for.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:.0f} s in vain for {what}")
        time.sleep(every)
