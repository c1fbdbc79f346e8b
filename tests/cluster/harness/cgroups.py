"""The control groups that a cluster's pods leave behind when they are killed with their namespaces."""

import time
from contextlib import suppress
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


def remove(name: str) -> None:
    """Remove the empty groups of a cluster from every hierarchy, deepest first."""
    for top in [ROOT / name, *ROOT.glob(f"*/{name}")]:
        for group in sorted([top, *(path for path in top.rglob("*") if path.is_dir())], reverse=True):
            remove_one(group)


def remove_one(group: Path) -> None:
    # The kernel lets go of a killed process a moment after its parent has heard of it.
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        with suppress(FileNotFoundError):
            try:
                group.rmdir()
            except OSError:
                time.sleep(0.05)
                continue
        return
