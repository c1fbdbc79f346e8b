"""The control groups that a cluster's containers leave behind when they are killed with their namespaces."""

import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
PARENT = "k8s.io"  # where containerd puts those of Kubernetes
SECONDS = 5


def remove(containers: Iterable[str]) -> None:
    """Remove the groups of containers, by their ids, from every hierarchy; and their parent when it has no other."""
    parents = [parent for parent in [ROOT / PARENT, *ROOT.glob(f"*/{PARENT}")] if parent.exists()]
    for container in containers:
        for parent in parents:
            remove_tree(parent / container)
    for parent in parents:
        with suppress(OSError):  # another cluster's groups are in it
            parent.rmdir()


def remove_tree(top: Path) -> None:
    for group in sorted([top, *(path for path in top.rglob("*") if path.is_dir())], reverse=True):
        # The kernel lets go of a killed process a moment after its parent has heard of it.
        deadline = time.monotonic() + SECONDS
        while group.exists() and time.monotonic() < deadline:
            with suppress(OSError):
                group.rmdir()
                break
            time.sleep(0.05)
