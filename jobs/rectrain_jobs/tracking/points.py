"""Points of a run, kept in a file: what is written is there after a crash, and a resumed run does not repeat it."""

import json
import os
import threading
from dataclasses import dataclass
from pathlib import Path

from rectrain_jobs.storage.local import local_errors


@dataclass(frozen=True)
class Point:
    """Some numbers at a step.

    Attributes:
        step: Steps done.
        epoch: Epoch, from 0.
        time: Seconds since 1970.
        values: By name, such as loss or recall@20.
    """

    step: int
    epoch: int
    time: float
    values: dict[str, float]


class PointLog:
    """An append-only file of points, one JSON object a line. Safe to read from another thread.

    Args:
        path: The file; made when the first point is added.
    """

    def __init__(self, path: Path) -> None:
        """Hold the path."""
        self._path = path
        self._lock = threading.Lock()

    def append(self, point: Point) -> None:
        """Add a point.

        Raises:
            UserError: The file cannot be written, for instance because the disk is full.
        """
        line = json.dumps({"step": point.step, "epoch": point.epoch, "time": point.time, **point.values})
        with self._lock, local_errors(self._path), self._path.open("a+b") as stream:
            if stream.tell() > 0:
                stream.seek(-1, os.SEEK_END)
                if stream.read(1) != b"\n":  # a crash cut off the last line; this one must not become part of it
                    stream.write(b"\n")
            stream.write(line.encode() + b"\n")

    def read(self) -> list[Point]:
        """Return all points; lines that are none, as a last one that was cut off, are passed over."""
        with self._lock:
            if not self._path.exists():
                return []
            lines = self._path.read_bytes().splitlines()
        points = []
        for line in lines:
            try:
                content = json.loads(line)
                step, epoch, time = content.pop("step"), content.pop("epoch"), content.pop("time")
            except (ValueError, TypeError, AttributeError, KeyError):
                continue
            points.append(Point(step, epoch, time, content))
        return points

    def truncate_after(self, step: int) -> None:
        """Remove the points of later steps: a run that continues from a checkpoint makes them again."""
        kept = [p for p in self.read() if p.step <= step]
        partial = self._path.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        rewritten = PointLog(partial)
        for point in kept:
            rewritten.append(point)
        with self._lock:
            if partial.exists():
                partial.replace(self._path)
            else:
                self._path.unlink(missing_ok=True)
