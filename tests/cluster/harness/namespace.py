"""A corner of the machine for one cluster: its own processes, mounts and network, which end together."""

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .processes import DIES_WITH_PARENT

CLONE_NEWNET = 0x40000000
INIT = Path(__file__).with_name("init.py")
LIBC = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """Process, mount and network namespaces that end with this process, even when it is killed.

    Nothing inside can send a packet out of the machine: there is no interface but its own.
    """

    def __init__(self) -> None:
        unshare = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        command = [*DIES_WITH_PARENT, *unshare, sys.executable, "-I", str(INIT)]
        self._unshare = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        assert self._unshare.stdout
        if self._unshare.stdout.readline() != "ready\n":
            raise RuntimeError(f"no namespaces of its own for the cluster: unshare ended with {self._unshare.wait()}")
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children").read_text()
        self.pid = int(children)

    @property
    def prefix(self) -> list[str]:
        """The words before a command that make it run inside."""
        return ["nsenter", "--target", str(self.pid), "--net", "--mount", "--pid", "--"]

    def run(self, *command: str | Path) -> str:
        """Run a command inside and return what it prints.

        Raises:
            RuntimeError: It failed; with its words.
        """
        done = subprocess.run([*self.prefix, *map(str, command)], capture_output=True, text=True, timeout=300)
        if done.returncode:
            raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr or done.stdout}")
        return done.stdout

    def write(self, path: str, text: str) -> None:
        """Write a file as it is seen inside, such as one of /proc/sys/net."""
        subprocess.run([*self.prefix, "tee", path], input=text, text=True, stdout=subprocess.DEVNULL, check=True)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Have this thread, and the threads and processes that it starts, in the network inside."""
        outside = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        inside = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            set_network(inside)
            yield
        finally:
            set_network(outside)
            os.close(outside)
            os.close(inside)

    def close(self) -> None:
        """End every process inside at once; their mounts and interfaces go with them."""
        self._unshare.kill()
        self._unshare.wait()


def set_network(descriptor: int) -> None:
    if LIBC.setns(descriptor, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
