import multiprocessing
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from streaming import MDSWriter

from rectrain.api.errors import UserError
from rectrain_jobs.data.mds import MDSDataset, Position, World
from rectrain_jobs.storage import S3Store, Storage, open_store

ROWS = 2000


@pytest.fixture(params=[None, "zstd"], ids=["raw", "zstd"])
def remote(bucket, tmp_path, request):
    """A dataset in the bucket: its URI and how to reach it."""
    local = tmp_path / "source"
    columns = {"id": "int", "x": "ndarray:float32:4"}
    with MDSWriter(
        out=str(local), columns=columns, size_limit=8192, compression=request.param, hashes=["sha1"]
    ) as writer:
        for number in range(ROWS):
            writer.write({"id": number, "x": np.full(4, number, np.float32)})
    storage = Storage(endpoint_url=bucket.endpoint_url)
    store = open_store(f"{bucket.uri}/data/train", storage)
    for file in local.iterdir():
        store.upload(file, file.name)
    return store.uri, storage


def test_epochs_are_read_from_s3_through_a_bounded_cache(remote, tmp_path):
    uri, storage = remote
    largest = MDSDataset(uri, storage, tmp_path / "cache").index.largest_footprint
    seen = []
    for rank in range(2):
        mds = MDSDataset(uri, storage, tmp_path / "cache", cache_limit=4 * largest)
        for batch in mds.training_epoch(Position(), batch_size=64, world=World(1, 2, rank)):
            ids = batch.sample_ids[: batch.num_valid]
            assert batch.columns["id"][: batch.num_valid].tolist() == ids.tolist()
            np.testing.assert_array_equal(batch.columns["x"][: batch.num_valid, 3], ids.astype(np.float32))
            seen += ids.tolist()
        held = sum(file.stat().st_size for file in (tmp_path / "cache").rglob("*.mds"))
        assert 0 < held <= 4 * largest
    assert sorted(seen) == list(range(ROWS))


def test_each_shard_is_downloaded_once_if_the_cache_holds_them_all(remote, tmp_path, monkeypatch):
    uri, storage = remote
    downloads = []
    download = S3Store.download
    monkeypatch.setattr(
        S3Store, "download", lambda self, key, path: (downloads.append(key), download(self, key, path))[1]
    )
    for _ in range(2):
        mds = MDSDataset(uri, storage, tmp_path / "cache")
        for epoch in range(2):
            assert sum(batch.num_valid for batch in mds.training_epoch(Position(epoch), batch_size=100)) == ROWS
    assert len(mds.index.shards) > 3
    assert sorted(downloads) == sorted((shard.zip or shard.raw).basename for shard in mds.index.shards)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-10], r"has \d+ bytes, the index says \d+"),
        (lambda data: data[:-10] + bytes(10), "corrupt: its sha1 is"),
        (None, "no such object"),
    ],
    ids=["truncated", "altered", "missing"],
)
def test_a_damaged_remote_shard_is_named_and_not_cached(remote, tmp_path, damage, message):
    uri, storage = remote
    mds, store = MDSDataset(uri, storage, tmp_path / "cache"), open_store(uri, storage)
    shard = mds.index.shards[0]
    key = (shard.zip or shard.raw).basename
    store.write_bytes(key, damage(store.read_bytes(key))) if damage else store.delete([key])
    with pytest.raises(UserError, match=message) as caught:
        list(mds.evaluation_pass(batch_size=16))
    assert f"{uri}/{key}" in str(caught.value) and "\n" not in str(caught.value)
    left = {file.name for file in (tmp_path / "cache").rglob("*") if file.is_file()}
    assert left <= {".lock", *(shard.raw.basename for shard in mds.index.shards[1:])}


def test_a_process_killed_in_mid_download_leaves_a_usable_cache(remote, tmp_path):
    uri, storage = remote

    def die_in_mid_download():
        download = S3Store.download

        def half(self, key, path):
            download(self, key, path)
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

        S3Store.download = half
        MDSDataset(uri, storage, tmp_path / "cache").gather(np.array([0]))

    process = multiprocessing.get_context("fork").Process(target=die_in_mid_download)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert MDSDataset(uri, storage, tmp_path / "cache").gather(np.arange(50))["id"].tolist() == list(range(50))
    assert list((tmp_path / "cache").rglob("*.partial")) == []


def test_a_full_disk_under_the_cache_is_named(remote, tmp_path):
    uri, storage = remote
    code = f"""
import resource, signal
from pathlib import Path
import numpy as np
from rectrain.api.errors import UserError
from rectrain_jobs.data.mds import MDSDataset
from rectrain_jobs.storage import Storage
mds = MDSDataset({uri!r}, Storage({storage.endpoint_url!r}), Path({str(tmp_path / "cache")!r}))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    mds.gather(np.array([0]))
except UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"{tmp_path}/cache/mds-shards/" in done.stdout and "File too large" in done.stdout
    assert [file.name for file in (tmp_path / "cache").rglob("*") if file.is_file()] == [".lock"]


def test_what_cannot_be_reached_is_named(bucket, tmp_path):
    with pytest.raises(UserError, match=f"{bucket.uri}/nowhere/index.json: not found"):
        MDSDataset(f"{bucket.uri}/nowhere", Storage(endpoint_url=bucket.endpoint_url), tmp_path)
    with pytest.raises(UserError, match=r"cannot reach http://127\.0\.0\.1:9"):
        MDSDataset(f"{bucket.uri}/x", Storage(endpoint_url="http://127.0.0.1:9"), tmp_path)
