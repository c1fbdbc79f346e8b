import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import boto3
import pytest

from rectrain_jobs.storage import ObjectNotFoundError, Storage, StorageError, open_store


@pytest.fixture
def store(bucket):
    return open_store(f"{bucket.uri}/some/prefix", Storage(endpoint_url=bucket.endpoint_url))


@pytest.mark.parametrize("size", [0, 10, 20 << 20], ids=["empty", "small", "multipart"])
def test_what_is_written_is_read(store, tmp_path, size):
    data = os.urandom(size)
    store.write_bytes("a/b.bin", data)
    assert store.read_bytes("a/b.bin") == data
    store.download("a/b.bin", tmp_path / "deep" / "down.bin")
    assert (tmp_path / "deep" / "down.bin").read_bytes() == data
    store.upload(tmp_path / "deep" / "down.bin", "a/c.bin")
    assert store.stat("a/c.bin").size == size
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["down.bin"]


def test_keys_are_relative_to_the_prefix_and_folders_do_not_run_into_each_other(store, bucket):
    for key in ("run/1/x", "run/10/x", "run/1/y", "top"):
        store.write_bytes(key, b"12")
    assert [(info.key, info.size) for info in store.list()] == [
        ("run/1/x", 2),
        ("run/1/y", 2),
        ("run/10/x", 2),
        ("top", 2),
    ]
    assert [info.key for info in store.list("run/1")] == ["run/1/x", "run/1/y"]
    store.delete_prefix("run/1")
    store.delete(["top", "never-there"])
    assert [info.key for info in store.list()] == ["run/10/x"]
    whole = open_store(bucket.uri, Storage(endpoint_url=bucket.endpoint_url))
    assert [info.key for info in whole.list("some")] == ["some/prefix/run/10/x"]
    assert whole.list("elsewhere") == []


def test_listing_and_deleting_go_past_one_page(store):
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: store.write_bytes(f"many/{number:04}", b""), range(1005)))
    assert len(store.list("many")) == 1005
    store.delete_prefix("many")
    assert store.list() == []


def test_missing_objects_are_told_from_everything_else(store, tmp_path):
    assert not store.exists("nothing")
    for operation in (store.read_bytes, store.stat, lambda key: store.download(key, tmp_path / "x")):
        with pytest.raises(ObjectNotFoundError, match="some/prefix/nothing: no such object"):
            operation("nothing")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_bucket_is_named(bucket):
    store = open_store("s3://no-such-bucket/x", Storage(endpoint_url=bucket.endpoint_url))
    for operation in (
        store.list,
        lambda: store.read_bytes("k"),
        lambda: store.exists("k"),
        lambda: store.write_bytes("k", b""),
    ):
        with pytest.raises(StorageError, match="bucket 'no-such-bucket' does not exist") as caught:
            operation()
        assert not isinstance(caught.value, ObjectNotFoundError)
        assert "\n" not in str(caught.value)


def test_missing_credentials_are_named(store, monkeypatch, tmp_path):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StorageError, match="no S3 credentials found; set AWS_ACCESS_KEY_ID"):
        store.read_bytes("x")


@pytest.mark.parametrize("variable", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials_are_named_but_not_shown(store, monkeypatch, variable):
    monkeypatch.setenv(variable, "wrong-but-secret")
    with pytest.raises(StorageError, match="does not accept the S3 credentials") as caught:
        store.read_bytes("x")
    assert "wrong-but-secret" not in str(caught.value)


def test_a_refusal_by_policy_is_named(store, bucket, monkeypatch):
    credentials = boto3.client("sts", endpoint_url=bucket.endpoint_url, region_name="us-east-1").assume_role(
        RoleArn="arn:x:ignored:by:minio:",
        RoleSessionName="test",
        Policy='{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["s3:ListBucket"],"Resource":["*"]}]}',
    )["Credentials"]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", credentials["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", credentials["SecretAccessKey"])
    monkeypatch.setenv("AWS_SESSION_TOKEN", credentials["SessionToken"])
    with pytest.raises(StorageError, match="access denied"):
        store.write_bytes("x", b"")


@pytest.mark.parametrize("answers", [False, True], ids=["refused", "silent"])
def test_an_unreachable_endpoint_fails_in_seconds(bucket, answers):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if answers:  # a full backlog: further connections get no answer, as with a firewall in the way
            listener.listen(0)
            fillers = [socket.socket() for _ in range(4)]
            for filler in fillers:
                filler.setblocking(False)
                filler.connect_ex(listener.getsockname())
        endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
        begin = time.monotonic()
        with pytest.raises(StorageError, match=f"cannot reach {endpoint}") as caught:
            open_store(bucket.uri, Storage(endpoint_url=endpoint)).list()
        assert time.monotonic() - begin < 15
        assert "\n" not in str(caught.value)


def test_a_malformed_endpoint_is_named(bucket):
    with pytest.raises(StorageError, match="minio:9000"):
        open_store(bucket.uri, Storage(endpoint_url="minio:9000")).list()


def test_a_store_serves_threads_and_a_forked_child(store, tmp_path):
    contents = {f"{number}": os.urandom(1000) for number in range(20)}
    with ThreadPoolExecutor(5) as threads:
        list(threads.map(lambda item: store.write_bytes(*item), contents.items()))
        list(threads.map(lambda key: store.download(key, tmp_path / key), contents))
    assert {key: (tmp_path / key).read_bytes() for key in contents} == contents
    child = os.fork()
    if child == 0:
        os._exit(0 if store.read_bytes("3") == contents["3"] else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert store.read_bytes("4") == contents["4"]


def test_a_store_that_answered_before_is_given_time_to_come_back(bucket):
    """The endpoint is a relay that dies after the first answer and returns a few seconds later on the same port."""
    relay = _Relay(bucket.endpoint_url)
    store = open_store(bucket.uri, Storage(endpoint_url=relay.endpoint_url))
    store.write_bytes("x", b"1")
    relay.stop()
    restart = threading.Timer(6, relay.start)
    restart.start()
    try:
        assert store.read_bytes("x") == b"1"
    finally:
        restart.join()
        relay.stop()


class _Relay:
    def __init__(self, target: str) -> None:
        host, port = target.removeprefix("http://").split(":")
        self._target = (host, int(port))
        self._port = 0
        self._sockets: list[socket.socket] = []
        self.start()

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        listener = socket.create_server(("127.0.0.1", self._port))
        self._port = listener.getsockname()[1]
        self._sockets.append(listener)
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def stop(self) -> None:
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self._sockets.clear()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            far = socket.create_connection(self._target)
            self._sockets += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
