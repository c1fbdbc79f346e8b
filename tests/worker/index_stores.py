"""Both kinds of item index in a folder, and publishing that is killed at a step."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import launch
import numpy as np

# Forked from a process that has imported what publishing needs.
_processes = launch._processes
_processes.set_forkserver_preload(["rectrain_jobs.retrieval.faiss_store", "rectrain_jobs.retrieval.milvus_store"])
DIM = 8
KINDS = ["faiss", "milvus"]


@contextmanager
def open_store(kind: str, folder: Path) -> Iterator[Any]:
    """Open the index in a folder."""
    if kind == "faiss":
        from rectrain_jobs.retrieval.faiss_store import FaissStore
        from rectrain_jobs.storage import open_store as open_folder

        yield FaissStore(open_folder(str(folder / "index")))
        return
    from rectrain_jobs.retrieval.milvus_store import MilvusStore

    path = str(folder / "index.db")
    store = MilvusStore(path, "items")
    try:
        yield store
    finally:
        store.close()
        # Milvus Lite's server is a thread of this process, and locks the file as long as it runs.
        from milvus_lite.server_manager import server_manager_instance

        server_manager_instance.release_server(path)


def items_of(model: str, count: int = 60) -> Any:
    """Return items whose vectors tell the model: those of another model are others."""
    from rectrain_jobs.retrieval.publishing import Items

    rng = np.random.default_rng(sum(model.encode()))
    return Items(np.arange(count) * 3, rng.standard_normal((count, DIM)).astype(np.float32), model, "tiny")


def publish_until_killed(kind: str, folder: Path, model: str, step: int) -> bool:
    """Publish in a process that is killed before its step-th change of the store; returns whether it was."""
    process = _processes.Process(target=_publish, args=(kind, folder, model, step))
    process.start()
    process.join(timeout=120)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError("publishing hangs")
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def _publish(kind: str, folder: Path, model: str, step: int) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    from rectrain_jobs.retrieval.publishing import publish

    torch.set_num_threads(1)
    left = step

    def counted(function: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **named)

        return call

    with open_store(kind, folder) as store:
        inner, names = (store._store, _FILES) if kind == "faiss" else (store._client, _MILVUS)
        for name in names:
            setattr(inner, name, counted(getattr(inner, name)))
        publish(store, items_of(model), keep=2)


_FILES = ["write_bytes", "delete", "delete_prefix"]
_MILVUS = [
    "create_collection",
    "insert",
    "flush",
    "create_index",
    "load_collection",
    "alter_collection_properties",
    "create_alias",
    "alter_alias",
    "drop_collection",
]
