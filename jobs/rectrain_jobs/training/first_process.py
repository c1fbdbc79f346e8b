"""The first process of a container, which the kernel treats unlike others: no signal ends it that it does not handle.

So a launcher that is the first process could not be stopped while it imports, or waits for its peers inside a library:
SIGTERM would be lost, and the pod be killed only at the end of its grace period. As a child of the first process it is
stopped like any other program.
"""

import contextlib
import os
import signal
from collections.abc import Callable

from rectrain_jobs.training.exit_codes import ENDED_BY_SIGNAL

_FIRST = 1
_PASSED_ON = (signal.SIGTERM, signal.SIGINT)


def end_as_child(work: Callable[[], int], *, first: bool | None = None) -> int:
    """Do some work and return its exit code; in the first process of a container, in a child of it.

    Signals are passed on, and processes that lost their parent are buried. What takes long to import, or starts
    threads, has to be imported by the work.

    Args:
        work: What to do; returns an exit code.
        first: Whether this is the first process. Default: found out.
    """
    if not (os.getpid() == _FIRST if first is None else first):
        return work()
    signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)  # none is lost between here and the handlers
    child = os.fork()
    if not child:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
        return work()

    def pass_on(number: int, _: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    for number in _PASSED_ON:
        signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
    while True:
        ended, status = os.wait()
        if ended == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else ENDED_BY_SIGNAL - code
