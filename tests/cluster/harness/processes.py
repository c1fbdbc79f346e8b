"""Programs that run beside a test and end with it: also when the test run is killed."""

import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

STOP_SECONDS = 40
# The kernel kills a program behind this when the thread that started it is gone, however that went.
DIES_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL")


@dataclass
class Service:
    """A program under a name: `start` and `stop` may take turns, its output is added to one log.

    `prefix` are the words that make a command run elsewhere and wait for it; the program ends with them.
    """

    name: str
    command: Sequence[str | Path]
    log: Path
    prefix: Sequence[str] = ()
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def start(self) -> None:
        command = [*DIES_WITH_PARENT, *map(str, self.command)]
        if self.prefix:
            command = [*DIES_WITH_PARENT, *self.prefix, *command]
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)

    def stop(self) -> None:
        """End the program, politely first; no harm when it has not been started or has ended."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End the program at once, as a crash of the machine would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def wait_until(self, ready: Callable[[], bool], seconds: float) -> None:
        """Wait until `ready` says so.

        Raises:
            RuntimeError: The program ended, or was not ready in `seconds`; with the end of its log.
        """
        assert self.process is not None
        deadline = time.monotonic() + seconds
        while not ready():
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.name} ended with {self.process.returncode}: {self.tail()}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} was not ready in {seconds:.0f} s: {self.tail()}")
            time.sleep(0.05)

    def tail(self, lines: int = 20) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
