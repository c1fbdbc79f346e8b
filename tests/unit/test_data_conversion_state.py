"""Raw data is converted when that is needed and not otherwise; a conversion that was killed harms nothing."""

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rectrain.api import parse_job
from rectrain.api.errors import UserError
from rectrain.api.job import RecTrainingJobSpec
from rectrain_jobs.data.convert import ensure_converted, needs_conversion
from rectrain_jobs.data.mds import MDSDataset

JOB = """
apiVersion: rectrain.io/v1alpha1
kind: RecTrainingJob
metadata: {{name: job}}
spec:
  model: {{type: TwoTower, twoTower: {{embeddingDim: 8, hiddenDims: []}}}}
  features:
    - {{name: user_id, kind: Categorical, side: User, cardinality: {users}}}
    - {{name: item_id, kind: Categorical, side: Item, cardinality: 100}}
  data:
    source: {{format: Interactions, uri: {folder}/train.txt, validationUri: {folder}/test.txt}}
    train: {{uri: {folder}/shards/train}}
    validation: {{uri: {folder}/shards/validation}}
  training: {{batchSize: 2, maxSteps: 1}}
"""


class Said:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.rows: dict[str, int] = {}

    def say(self, text: str) -> None:
        self.lines.append(text)

    def advance(self, stage: str, rows: int) -> None:
        self.rows[stage] = self.rows.get(stage, 0) + rows


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "train.txt").write_text("0 1 2\n1 3\n")
    (tmp_path / "test.txt").write_text("0 9\n")
    return tmp_path


def spec_of(folder: Path, users: int = 10) -> RecTrainingJobSpec:
    return parse_job(JOB.format(folder=folder, users=users), source="job.yaml").spec


def rows_in(folder: Path) -> dict[str, int]:
    return {split: MDSDataset(str(folder / "shards" / split)).num_samples for split in ("train", "validation")}


def test_missing_shards_are_made_once(folder):
    said = Said()
    conversion = ensure_converted(spec_of(folder), said)
    assert said.lines == [f"Converting the raw data: there are no train shards at {folder}/shards/train."]
    assert said.rows == rows_in(folder) == {"train": 3, "validation": 1}
    assert {split: record.rows for split, record in conversion.records.items()} == said.rows
    again = Said()
    assert needs_conversion(spec_of(folder)) is None
    assert ensure_converted(spec_of(folder), again) is None
    assert (again.lines, again.rows) == ([], {})


def _touch(folder):
    os.utime(folder / "train.txt", (1, 1))


def _move(folder):
    (folder / "train.txt").rename(folder / "moved.txt")
    (folder / "train.txt").symlink_to(folder / "moved.txt")


@pytest.mark.parametrize("change", [_touch, _move])
def test_the_same_content_is_not_converted_again(folder, change):
    ensure_converted(spec_of(folder))
    change(folder)
    assert needs_conversion(spec_of(folder)) is None


@pytest.mark.parametrize(
    ("change", "users", "reason", "rows"),
    [
        (lambda f: (f / "train.txt").write_text("0 1 2\n1 3 4\n"), 10, "raw data differs from that of the shards", 4),
        (lambda f: (f / "test.txt").write_text("0 8\n"), 10, "raw data differs from that of the shards", 3),
        (lambda f: None, 11, "features or labels differ from those of the shards", 3),
        (lambda f: (f / "shards/validation/index.json").unlink(), 10, "", 3),
        (lambda f: (f / "shards/train/index.json").write_text("{}"), 10, "half-written: dataset.json is not about", 3),
    ],
)
def test_what_changed_is_converted_again(folder, change, users, reason, rows):
    ensure_converted(spec_of(folder))
    change(folder)
    spec = spec_of(folder, users)
    if not reason:
        # Not whole, and nothing tells that a conversion was cut off: it is not for a run to remove.
        with pytest.raises(UserError, match=r"is half-written: it holds 1 shards but no index\.json"):
            ensure_converted(spec)
        return
    said = Said()
    assert ensure_converted(spec, said) is not None
    assert len(said.lines) == 1 and reason in said.lines[0]
    assert rows_in(folder) == {"train": rows, "validation": 1}
    assert needs_conversion(spec) is None
    assert len(list((folder / "shards/train").glob("*.mds"))) == 1


def test_shards_that_no_conversion_made_are_not_replaced(folder):
    ensure_converted(spec_of(folder))
    (folder / "shards/train/dataset.json").unlink()
    with pytest.raises(UserError, match=r"holds shards that were not converted from data\.source"):
        ensure_converted(spec_of(folder))


@pytest.mark.parametrize("content", ["{", "[]", '{"version": 1}'])
def test_a_damaged_record_is_named(folder, content):
    ensure_converted(spec_of(folder))
    (folder / "shards/train/dataset.json").write_text(content)
    with pytest.raises(UserError, match=r"dataset.json: is not a dataset record of rectrain"):
        needs_conversion(spec_of(folder))


def test_a_source_that_is_gone_is_named(folder):
    ensure_converted(spec_of(folder))
    (folder / "train.txt").unlink()
    with pytest.raises(UserError, match=r"train.txt: there is no such file"):
        needs_conversion(spec_of(folder))


class Held(Said):
    """Holds a conversion in its first batch of rows until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.is_at_work, self.may_go_on = threading.Event(), threading.Event()

    def advance(self, stage: str, rows: int) -> None:
        super().advance(stage, rows)
        self.is_at_work.set()
        assert self.may_go_on.wait(60)


class Waits(Said):
    """Lets another conversion go on once it is said that it is waited for."""

    def __init__(self, held: Held) -> None:
        super().__init__()
        self.held = held

    def say(self, text: str) -> None:
        super().say(text)
        self.held.may_go_on.set()


def test_of_two_conversions_at_once_the_second_waits_and_finds_the_work_done(folder):
    held = Held()
    waits = Waits(held)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(ensure_converted, spec_of(folder), held)
        assert held.is_at_work.wait(60)
        second = pool.submit(ensure_converted, spec_of(folder), waits)
        assert first.result() is not None and second.result() is None
    assert waits.lines == [f"Waiting for another conversion to {folder}/shards/train to end."]
    assert rows_in(folder) == {"train": 3, "validation": 1}


KILLED = """
import os, signal, sys
from rectrain.api import parse_job
from rectrain_jobs.data.convert import ensure_converted
from rectrain_jobs.storage import LocalStore

place = sys.argv[2].split("/")
write = LocalStore.write_bytes

def write_bytes(self, key, data):
    write(self, key, data)
    if self.root.name == place[0] and key.endswith(place[1]):
        os.kill(os.getpid(), signal.SIGKILL)

LocalStore.write_bytes = write_bytes
ensure_converted(parse_job(open(sys.argv[1]).read(), source="job.yaml").spec)
"""


def kill_after_writing(folder: Path, place: str) -> None:
    job = folder / "job.yaml"
    job.write_text(JOB.format(folder=folder, users=10))
    ended = subprocess.run([sys.executable, "-c", KILLED, str(job), place], capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    (folder / "shards/train/.tmp-killed").write_bytes(b"what a writer leaves that is killed within a file")


@pytest.mark.parametrize("place", ["train/.mds", "train/features.json"])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_killed_conversion_harms_nothing(folder, place, is_first):
    if not is_first:
        ensure_converted(spec_of(folder))
        (folder / "train.txt").write_text("0 1 2\n1 3 4 5\n")
    kill_after_writing(folder, place)
    if is_first:
        assert not (folder / "shards/train/index.json").exists()
        with pytest.raises(UserError):
            MDSDataset(str(folder / "shards/train"))
    else:
        assert rows_in(folder) == {"train": 3, "validation": 1}
    assert needs_conversion(spec_of(folder)) is not None
    assert ensure_converted(spec_of(folder)) is not None
    assert rows_in(folder) == {"train": 3 if is_first else 5, "validation": 1}
    assert needs_conversion(spec_of(folder)) is None
    assert sorted(path.suffix for path in (folder / "shards/train").iterdir()) == [".json"] * 3 + [".mds"]
