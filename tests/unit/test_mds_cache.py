import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from streaming import MDSWriter

from rectrain.api.errors import UserError
from rectrain_jobs.data.mds import MDSDataset
from rectrain_jobs.data.mds.cache import ShardCache
from rectrain_jobs.storage import LocalStore

ROWS = 100


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "mds"
    with MDSWriter(out=str(path), columns={"id": "int"}, size_limit=400, compression="gz", hashes=["sha1"]) as writer:
        for number in range(ROWS):
            writer.write({"id": number})
    return path


def cached(directory: Path) -> list[str]:
    return sorted(file.name for file in directory.rglob("*.mds"))


def usage(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file() and file.name != "owner")


def fill_with(content: bytes):
    def fill(folder: Path) -> Path:
        (folder / "raw").write_bytes(content)
        return folder / "raw"

    return fill


def test_the_cache_stays_below_its_limit_and_drops_what_was_used_longest_ago(source, tmp_path):
    probe = MDSDataset(str(source), cache_dir=tmp_path / "probe")
    largest, firsts = probe.index.largest_footprint, probe.index.shard_ends - probe.index.samples_per_shard
    directory = tmp_path / "cache"
    mds = MDSDataset(str(source), cache_dir=directory, cache_limit=3 * largest)
    kept = 3 * largest // probe.index.shards[0].raw.bytes - 1
    for number in (0, 1, 2, 0, 3, 0, 4, 0):
        assert mds.gather(firsts[[number]])["id"].tolist() == [firsts[number]]
        assert usage(directory) <= 3 * largest
    assert "shard.00000.mds" in cached(directory) and "shard.00004.mds" in cached(directory)
    assert "shard.00001.mds" not in cached(directory)
    everything = np.random.default_rng(0).permutation(ROWS)
    for _ in range(3):
        assert mds.gather(everything)["id"].tolist() == everything.tolist()
        assert usage(directory) <= 3 * largest and len(cached(directory)) >= kept - 1


def test_the_folder_is_the_one_that_the_environment_names_and_made_when_it_is_needed(source, tmp_path, monkeypatch):
    monkeypatch.setenv("RECTRAIN_CACHE", str(tmp_path / "cache"))
    mds = MDSDataset(str(source))
    assert not (tmp_path / "cache").exists()
    mds.gather(np.arange(ROWS))
    assert "shard.00000.mds" in cached(tmp_path / "cache")


def test_a_limit_below_the_largest_shard_is_refused(source, tmp_path):
    largest = MDSDataset(str(source), cache_dir=tmp_path).index.largest_footprint
    with pytest.raises(UserError, match=f"size limit of {largest - 1} bytes is below the {largest} bytes"):
        MDSDataset(str(source), cache_dir=tmp_path, cache_limit=largest - 1)
    mds = MDSDataset(str(source), cache_dir=tmp_path, cache_limit=largest)
    assert mds.gather(np.arange(ROWS))["id"].tolist() == list(range(ROWS))


def test_a_second_dataset_uses_what_the_first_brought_in(source, tmp_path, monkeypatch):
    MDSDataset(str(source), cache_dir=tmp_path).gather(np.arange(ROWS))
    monkeypatch.setattr(LocalStore, "local_path", lambda self, key: None)  # so that it would have to download
    monkeypatch.setattr(LocalStore, "download", lambda self, key, path: pytest.fail(f"downloads {key}"))
    assert MDSDataset(str(source), cache_dir=tmp_path).gather(np.arange(ROWS))["id"].tolist() == list(range(ROWS))


def test_a_dataset_written_anew_with_the_same_index_is_not_mixed_up_with_the_old(tmp_path):
    for value in (1, 2):
        with MDSWriter(out=str(tmp_path / "mds"), columns={"x": "int"}, compression="gz", exist_ok=True) as writer:
            writer.write({"x": value})
        mds = MDSDataset(str(tmp_path / "mds"), cache_dir=tmp_path / "cache")
        assert mds.gather(np.array([0]))["x"].tolist() == [value]


def test_nothing_but_cached_shards_is_ever_removed(source, tmp_path):
    (tmp_path / "precious.mds").write_bytes(bytes(100_000))
    limit = MDSDataset(str(source), cache_dir=tmp_path).index.largest_footprint
    MDSDataset(str(source), cache_dir=tmp_path, cache_limit=limit).gather(np.arange(ROWS))
    assert (tmp_path / "precious.mds").stat().st_size == 100_000
    before = {file.name: file.read_bytes() for file in source.iterdir()}
    MDSDataset(str(source), cache_dir=source, cache_limit=limit).gather(np.arange(ROWS))
    assert {file.name: file.read_bytes() for file in source.iterdir() if file.is_file()} == before


def test_a_file_in_use_is_not_evicted_and_room_is_waited_for(tmp_path):
    cache = ShardCache(tmp_path, limit=10, largest=10)
    held = cache.acquire("a", 10, fill_with(b"a" * 10))
    leases = []
    waiting = threading.Thread(target=lambda: leases.append(cache.acquire("b", 10, fill_with(b"b" * 10))))
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive() and held.path.exists() and held.path.read_bytes() == b"a" * 10
    held.release()
    waiting.join(30)
    assert leases[0].path.read_bytes() == b"b" * 10 and not held.path.exists()
    assert held.evicted and not held.renew()


def test_a_file_is_brought_in_once_for_all_who_want_it(tmp_path):
    calls = []
    entered, proceed = threading.Event(), threading.Event()

    def fill(folder: Path) -> Path:
        calls.append(folder)
        entered.set()
        assert proceed.wait(30)
        return fill_with(b"content")(folder)

    caches = [ShardCache(tmp_path, None, 0) for _ in range(6)]
    leases = []
    threads = [
        threading.Thread(target=lambda cache=cache: leases.append(cache.acquire("x", 7, fill))) for cache in caches
    ]
    for thread in threads:
        thread.start()
    assert entered.wait(30)
    proceed.set()
    for thread in threads:
        thread.join(30)
    assert len(calls) == 1 and [lease.path.read_bytes() for lease in leases] == [b"content"] * 6


def test_what_fails_to_come_in_leaves_nothing_and_can_be_tried_again(tmp_path):
    cache = ShardCache(tmp_path, 100, 10)

    def fail(folder: Path) -> Path:
        (folder / "half").write_bytes(b"half")
        raise UserError("refused")

    with pytest.raises(UserError, match="refused"):
        cache.acquire("key/x", 10, fail)
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == [".lock"]
    assert cache.acquire("key/x", 10, fill_with(b"x")).path.read_bytes() == b"x"


def test_a_full_disk_is_named_and_leaves_nothing(source, tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(UserError, match=f"{tmp_path}/mds-shards/.*: no space left on the disk"):
            MDSDataset(str(source), cache_dir=tmp_path).gather(np.array([0]))
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == [".lock"]
    assert MDSDataset(str(source), cache_dir=tmp_path).gather(np.array([0]))["id"].tolist() == [0]


def test_a_shard_that_the_system_lets_be_written_only_in_part_leaves_nothing(source, tmp_path):
    code = f"""
import resource, signal, sys
from pathlib import Path
import numpy as np
from rectrain.api.errors import UserError
from rectrain_jobs.data.mds import MDSDataset
mds = MDSDataset({str(source)!r}, cache_dir=Path({str(tmp_path)!r}))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    mds.gather(np.array([0]))
except UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"{tmp_path}/mds-shards/" in done.stdout and "File too large" in done.stdout
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == [".lock"]
    assert MDSDataset(str(source), cache_dir=tmp_path).gather(np.array([0]))["id"].tolist() == [0]


def _read_randomly(source, directory, limit, seed, failures):
    try:
        mds = MDSDataset(str(source), cache_dir=directory, cache_limit=limit)
        random = np.random.default_rng(seed)
        for _ in range(40):
            ids = random.integers(0, ROWS, 20)
            assert mds.gather(ids)["id"].tolist() == ids.tolist()
    except BaseException as error:
        failures.put(repr(error))
        raise


@pytest.mark.parametrize("shards", [1, 3])
def test_processes_share_a_cache_that_holds_fewer_shards_than_they_read(source, tmp_path, shards):
    limit = shards * MDSDataset(str(source), cache_dir=tmp_path).index.largest_footprint
    context = multiprocessing.get_context("fork")
    failures = context.SimpleQueue()
    processes = [
        context.Process(target=_read_randomly, args=(source, tmp_path, limit, seed, failures)) for seed in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert failures.empty(), failures.get()
    assert [process.exitcode for process in processes] == [0] * 4
    assert usage(tmp_path) <= limit


@pytest.mark.parametrize("where", ["downloading", "before publishing"])
def test_a_process_killed_while_bringing_in_a_shard_leaves_a_usable_cache(source, tmp_path, where):
    limit = MDSDataset(str(source), cache_dir=tmp_path).index.largest_footprint

    def die_while_bringing_in():
        def die(*arguments):
            os.kill(os.getpid(), signal.SIGKILL)

        if where == "downloading":
            LocalStore.local_path = lambda self, key: None
            LocalStore.download = lambda self, key, path: (path.write_bytes(b"half"), die())
        else:
            Path.replace = die
        MDSDataset(str(source), cache_dir=tmp_path, cache_limit=limit).gather(np.array([0]))

    process = multiprocessing.get_context("fork").Process(target=die_while_bringing_in)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert len(list(tmp_path.rglob("*.partial"))) == 1 and cached(tmp_path) == []

    other = MDSDataset(str(source), cache_dir=tmp_path, cache_limit=limit)
    assert other.gather(np.array([ROWS - 1]))["id"].tolist() == [ROWS - 1]  # its room is taken back
    assert other.gather(np.array([0]))["id"].tolist() == [0]
    assert list(tmp_path.rglob("*.partial")) == []


def test_a_forked_child_reads_beside_its_parent(source, tmp_path):
    limit = 2 * MDSDataset(str(source), cache_dir=tmp_path).index.largest_footprint
    mds = MDSDataset(str(source), cache_dir=tmp_path, cache_limit=limit)
    mds.gather(np.array([0, ROWS - 1]))
    child = os.fork()
    if child == 0:
        os._exit(0 if mds.gather(np.arange(ROWS))["id"].tolist() == list(range(ROWS)) else 1)
    assert mds.gather(np.arange(ROWS))["id"].tolist() == list(range(ROWS))
    assert os.waitpid(child, 0)[1] == 0
