import errno
import os
import subprocess
import sys
import threading

import pytest

from rectrain.api.errors import UserError
from rectrain_jobs.storage import LocalStore, ObjectNotFoundError, S3Store, StorageError, open_store


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/a/b/", "s3://bucket/a/b"),
        ("file:///data/set%201", "/data/set 1"),
        ("file://localhost/data", "/data"),
        ("/data/", "/data"),
        ("~/data", os.path.expanduser("~/data")),
        ("relative", os.path.abspath("relative")),
    ],
)
def test_uris_are_understood(uri, expected):
    store = open_store(uri)
    assert isinstance(store, S3Store if uri.startswith("s3") else LocalStore)
    assert store.uri == expected
    assert store.uri_of("k/x") == f"{expected}/k/x"


@pytest.mark.parametrize(
    "uri",
    [
        "gs://bucket/x",
        "s3:///x",
        "file://data/x",
        "https://host/x",
        "",
        "s3://[x",
        "a\0b",
        "file:///a%00b",
        "~nobody-of-that-name/x",
    ],
)
def test_other_uris_are_refused_in_one_line(uri):
    with pytest.raises(UserError, match="storage URI") as caught:
        open_store(uri)
    assert "\n" not in str(caught.value)


def test_naming_a_bucket_imports_no_boto3():
    code = "import sys, rectrain_jobs.storage as storage; storage.open_store('s3://b/p'); print('boto3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_objects_of_a_directory(tmp_path):
    store = open_store(str(tmp_path / "store"))
    assert store.list() == []
    store.write_bytes("run/1/x", b"abc")
    store.write_bytes("run/1/x", b"replaced")
    store.write_bytes("run/10/x", b"")
    assert store.read_bytes("run/1/x") == b"replaced"
    assert [(info.key, info.size) for info in store.list()] == [("run/1/x", 8), ("run/10/x", 0)]
    assert [info.key for info in store.list("run/1")] == ["run/1/x"]
    assert store.exists("run/1/x") and not store.exists("run/1") and not store.exists("nothing")
    assert store.stat("run/1/x").size == 8
    assert store.local_path("run/1/x") == tmp_path / "store" / "run" / "1" / "x"

    store.download("run/1/x", tmp_path / "deep" / "down")
    assert (tmp_path / "deep" / "down").read_bytes() == b"replaced"
    store.upload(tmp_path / "deep" / "down", "up")
    store.delete(["run/10/x", "never-there"])
    store.delete_prefix("run/1")
    store.delete_prefix("never-there")
    assert [info.key for info in store.list()] == ["up"]


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../outside", "a/../../outside"])
def test_keys_cannot_leave_the_store(tmp_path, key):
    store = open_store(str(tmp_path / "store"))
    for operation in (store.read_bytes, lambda key: store.write_bytes(key, b""), lambda key: store.delete([key])):
        with pytest.raises(StorageError, match="object key"):
            operation(key)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_object_is_named(tmp_path):
    store = open_store(str(tmp_path))
    for operation in (store.read_bytes, store.stat, lambda key: store.download(key, tmp_path / "to")):
        with pytest.raises(ObjectNotFoundError, match=f"{tmp_path}/gone: no such file"):
            operation("gone")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "no space left on the disk"),
        (errno.EACCES, "permission denied"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_a_failed_write_leaves_the_old_object_and_nothing_else(tmp_path, monkeypatch, number, message):
    store = open_store(str(tmp_path))
    store.write_bytes("x", b"old")

    def fail(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match=f"{tmp_path}/x: {message}"):
        store.write_bytes("x", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert store.read_bytes("x") == b"old"


def test_what_a_killed_writer_left_is_no_object(tmp_path):
    code = (
        "import os, signal, sys; from rectrain_jobs.storage.local import publish; from pathlib import Path\n"
        "die = lambda: os.kill(os.getpid(), signal.SIGKILL)\n"
        "publish(Path(sys.argv[1]), lambda out: (out.write(b'half'), out.flush(), die()))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "x")]).returncode == -9
    assert len(list(tmp_path.iterdir())) == 1
    store = open_store(str(tmp_path))
    assert store.list() == [] and not store.exists("x")


def test_readers_beside_a_writer_see_whole_objects_only(tmp_path):
    store = open_store(str(tmp_path))
    versions = [bytes([number]) * 100_000 for number in range(20)]
    store.write_bytes("x", versions[0])
    writer = threading.Thread(target=lambda: [store.write_bytes("x", version) for version in versions])
    writer.start()
    while writer.is_alive():
        assert store.read_bytes("x") in versions
    writer.join()
    assert store.read_bytes("x") == versions[-1]


def test_the_holder_of_a_directory_finds_nothing_half_written_and_leaves_no_empty_folder(tmp_path):
    store = LocalStore(tmp_path / "a/b")
    with store.exclusive(pytest.fail):
        assert (tmp_path / "a/b").is_dir()
    assert list(tmp_path.iterdir()) == []
    for name in ("x", ".tmp-1", "inner/.tmp-2", "other/.tmp-3"):
        store.write_bytes(name, b"")
    with store.exclusive(pytest.fail, below=["inner", "absent"]):
        left = {path.relative_to(store.root).as_posix() for path in store.root.rglob("*") if path.is_file()}
        assert left == {"x", "other/.tmp-3"}  # others may be writing there
    assert store.exists("x")


HOLDER = """
import sys
from rectrain_jobs.storage import open_store

with open_store(sys.argv[1]).exclusive(lambda: None):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_directory_is_held_by_one_process_and_let_go_when_it_is_killed(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    taken = []
    with LocalStore(tmp_path).exclusive(lambda: (taken.append(True), holder.kill())):
        assert taken == [True]
    holder.communicate()
