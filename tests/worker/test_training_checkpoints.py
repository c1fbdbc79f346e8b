"""Checkpoints by themselves: which are kept, which exist, and what is not loaded."""

import json
import os
import pickle

import pytest
import torch
import torch.distributed as dist
from launch import run_on_ranks

from rectrain.api import UserError
from rectrain_jobs.storage import Storage, open_store
from rectrain_jobs.training import checkpoint_files
from rectrain_jobs.training.checkpoint import Checkpointer
from rectrain_jobs.training.checkpoint_files import StoreFileSystem, StoreReader
from rectrain_jobs.training.distributed import Ranks

JOB = {"model": {"type": "DLRM"}}


def checkpointer(folder, identity=JOB, data="rows", **settings):
    rank, world_size = dist.get_rank(), dist.get_world_size()
    ranks = Ranks(rank, world_size, rank, world_size, torch.device("cpu"), dist.group.WORLD)
    return Checkpointer(open_store(folder, Storage()), ranks, identity=identity, data_digest=data, **settings)


def save_some(folder, keep, keep_best, goodness):
    saver = checkpointer(folder, keep=keep, keep_best=keep_best)
    for step, value in enumerate(goodness, start=1):
        saver.save(step, {"x": torch.full((3,), float(step))}, {"goodness": value})
    return saver.latest().step


def load_latest(folder):
    loader = checkpointer(folder, keep=1, keep_best=False)
    found, tensors = loader.latest(), {"x": torch.zeros(3)}
    try:
        loader.load(found, tensors)
    except UserError as error:
        return [found.step, str(error)]
    return [found.step, tensors["x"]]


@pytest.mark.parametrize(
    ("keep", "keep_best", "goodness", "kept"),
    [
        (2, False, [0.9, 0.1, 0.2, 0.3], [3, 4]),
        (2, True, [0.1, 0.9, 0.2, 0.3, 0.1], [2, 4, 5]),
        (1, True, [None, None, None], [3]),
        (1, True, [0.5, 0.5, 0.1], [2, 3]),
    ],
)
def test_the_newest_and_the_best_are_kept(tmp_path, keep, keep_best, goodness, kept):
    assert run_on_ranks(save_some, 2, str(tmp_path), keep, keep_best, goodness) == [len(goodness)] * 2
    assert sorted(folder.name for folder in tmp_path.iterdir()) == [f"step-{step:010d}" for step in kept]


def test_a_checkpoint_without_marker_is_passed_over_and_removed_by_the_next(tmp_path):
    run_on_ranks(save_some, 2, str(tmp_path), 9, False, [None, None])
    (tmp_path / "step-0000000002/complete.json").unlink()
    for step, value in run_on_ranks(load_latest, 2, str(tmp_path)):
        assert step == 1 and value.tolist() == [1.0, 1.0, 1.0]
    run_on_ranks(save_some, 2, str(tmp_path), 9, False, [None] * 3)
    assert (tmp_path / "step-0000000002/complete.json").exists()
    cut_off = tmp_path / "step-0000000000"
    cut_off.mkdir()
    (cut_off / "__0_0.distcp").write_text("part")
    run_on_ranks(save_some, 1, str(tmp_path), 9, False, [None] * 2)
    assert not cut_off.exists()


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda target: pickle.dumps(Malicious(target)), "it names posix.mkdir, which no metadata does"),
        (lambda target: pickle.dumps({"a": 1}), "is no checkpoint metadata but a dict"),
        (lambda target: b"\x80\x04", "is no checkpoint metadata"),
        (lambda target: _bytes_entry(), "it names torch.distributed.checkpoint.metadata.BytesStorageMetadata"),
    ],
    ids=["foreign class", "no metadata", "cut off", "entry that torch would unpickle"],
)
def test_metadata_that_would_run_code_is_refused(tmp_path, content, message):
    target = tmp_path / "made"
    (tmp_path / "step-1").mkdir()
    (tmp_path / "step-1/.metadata").write_bytes(content(target))
    with pytest.raises(UserError, match=message):
        StoreReader(open_store(str(tmp_path), Storage()), "step-1").read_metadata()
    assert not target.exists()


def _bytes_entry():
    from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata

    return pickle.dumps(Metadata(state_dict_metadata={"x": BytesStorageMetadata()}))


def test_a_checkpoint_of_another_job_or_other_data_is_refused(tmp_path):
    run_on_ranks(save_some, 1, str(tmp_path), 1, False, [None])

    def latest_of(identity, data="rows"):
        return run_on_ranks(latest_step, 1, str(tmp_path), identity, data)

    assert latest_of(JOB) == [1]
    (error,) = latest_of(JOB, "other rows")
    assert error.endswith(
        "is of other training data: those that the job names have changed since; --restart trains anew on them"
    )
    (error,) = latest_of({"model": {"type": "DCNv2"}})
    assert 'step-0000000001: is of another job: spec.model.type was "DLRM", and is "DCNv2"' in error
    assert "training.checkpoint.uri" in error


def latest_step(folder, identity, data):
    try:
        return checkpointer(folder, identity, data, keep=1, keep_best=False).latest().step
    except UserError as error:
        return str(error)


def test_a_damaged_checkpoint_is_named_on_every_rank(tmp_path):
    run_on_ranks(save_some, 2, str(tmp_path), 1, False, [None])
    for part in (tmp_path / "step-0000000001").glob("*.distcp"):
        part.write_bytes(part.read_bytes()[:20])
    for _, error in run_on_ranks(load_latest, 2, str(tmp_path)):
        assert error.startswith(
            f"{tmp_path}/step-0000000001: cannot be read; remove it to continue from the one before"
        )
        assert "\n" not in error


def test_a_full_disk_is_named(monkeypatch):
    """Of a write that was done in part alone, torch says only that it is not where it should be in the file."""
    files = StoreFileSystem(open_store("/", Storage()))
    full = pytest.raises(UserError, match=r"^/dev/full: no space left on the disk")
    with full, files.create_stream("dev/full", "wb") as stream:
        torch.save({"x": torch.zeros(1 << 20)}, stream)
    monkeypatch.setattr(checkpoint_files, "_ALMOST_NOTHING", 1 << 62)
    full = pytest.raises(UserError, match=r"^/dev/null: no space left on the disk")
    with full, files.create_stream("dev/null", "wb"):
        raise RuntimeError("unexpected pos 704 vs 598")


def test_a_damaged_marker_is_named(tmp_path):
    from rectrain_jobs.training.checkpoint_listing import list_checkpoints

    (tmp_path / "step-0000000001").mkdir()
    marker = tmp_path / "step-0000000001/complete.json"
    for content, message in (
        ("{", "is no checkpoint marker"),
        ('{"formatVersion": 7, "step": 1}', "has format version 7"),
    ):
        marker.write_text(content)
        with pytest.raises(UserError, match=message):
            list_checkpoints(open_store(str(tmp_path), Storage()))
    marker.write_text(json.dumps({"formatVersion": 1, "step": 1}))
    assert [c.step for c in list_checkpoints(open_store(str(tmp_path), Storage()))] == [1]
