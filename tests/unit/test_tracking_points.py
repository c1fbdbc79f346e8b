from pathlib import Path

import pytest

from rectrain.api import UserError
from rectrain_jobs.tracking import Point, PointLog


@pytest.fixture
def log(tmp_path):
    log = PointLog(tmp_path / "points.jsonl")
    for step in (1, 2, 3):
        log.append(point(step))
    return log


def point(step: int) -> Point:
    return Point(step, 0, 10.5 + step, {"loss": 1 / step, "recall@20": 0.25})


def test_points_are_read_as_they_were_written(log):
    assert log.read() == [point(1), point(2), point(3)]


def test_a_full_disk_is_named():
    with pytest.raises(UserError, match=r"^/dev/full: no space left on the disk"):
        PointLog(Path("/dev/full")).append(point(1))


def test_no_file_is_no_points(tmp_path):
    log = PointLog(tmp_path / "points.jsonl")
    log.truncate_after(5)
    assert log.read() == [] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("step", "kept"), [(0, []), (2, [1, 2]), (3, [1, 2, 3]), (9, [1, 2, 3])])
def test_later_points_are_removed(log, tmp_path, step, kept):
    log.truncate_after(step)
    assert [p.step for p in log.read()] == kept
    assert not list(tmp_path.glob("*.partial"))
    log.append(point(step + 1))
    assert [p.step for p in log.read()] == [*kept, step + 1]


def test_values_that_are_no_numbers_are_kept(tmp_path):
    log = PointLog(tmp_path / "points.jsonl")
    log.append(Point(1, 0, 1.0, {"a": float("nan"), "b": float("inf")}))
    values = log.read()[0].values
    assert str(values["a"]) == "nan" and values["b"] == float("inf")


@pytest.mark.parametrize("kept", [0, 1, 10, -1])
def test_cut_off_last_line_is_passed_over_and_not_written_upon(log, tmp_path, kept):
    path = tmp_path / "points.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]) + lines[-1][:kept].rstrip("\n"))
    read = [p.step for p in log.read()]
    assert read == ([1, 2, 3] if kept == -1 else [1, 2])
    log.append(point(4))
    assert [p.step for p in PointLog(path).read()] == [*read, 4]


@pytest.mark.parametrize("line", [b"3", b'"a"', b"[]", b"{}", b"\xff\xfe", b"\0\0\0\0"])
def test_lines_that_are_no_points_are_passed_over(log, tmp_path, line):
    path = tmp_path / "points.jsonl"
    path.write_bytes(line + b"\n" + path.read_bytes())
    assert [p.step for p in log.read()] == [1, 2, 3]
