"""Jobs that train in a second, and their ranks as processes of which each can be ended at a step."""

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import launch
import numpy as np
import pytest
import yaml

# Importing the trainer takes longer than training does here, so the processes are forked from one that has done it.
_processes = launch._processes
_processes.set_forkserver_preload(["rectrain_jobs.training.run", "rectrain_jobs.models.registry"])

ROWS, USERS, ITEMS = 203, 50, 40
"""203 rows divide neither over two ranks nor into batches of 16: 7 steps an epoch on two ranks, 13 on one."""


def rows_of(rows: int = ROWS, seed: int = 0) -> dict[str, np.ndarray]:
    """Columns of users who like certain items, and say so in the label."""
    rng = np.random.default_rng(seed)
    users = rng.integers(0, USERS, rows)
    items = (users * 7 + rng.integers(0, 4, rows)) % ITEMS
    return {
        "user_id": users,
        "item_id": items,
        "history": np.where(rng.random((rows, 4)) < 0.3, -1, (items[:, None] + np.arange(4)) % ITEMS),
        "price": (items / ITEMS).astype(np.float32),
        "age": rng.standard_normal(rows).astype(np.float32),
        "city": users % 5,
        "label": ((items % 2 == 0) ^ (rng.random(rows) < 0.1)).astype(np.float32),
    }


def write_shards(folder: Path, columns: Mapping[str, np.ndarray]) -> Path:
    """Write columns as shards of about fifty rows."""
    from streaming import MDSWriter  # imports much, which the ranks have no need of

    encodings = {
        name: "ndarray:int64:4" if values.ndim == 2 else {"i": "int64", "f": "float32"}[values.dtype.kind]
        for name, values in columns.items()
    }
    with MDSWriter(out=str(folder), columns=encodings, hashes=["sha1"], size_limit=4096) as out:
        for row in range(len(columns["user_id"])):
            out.write({name: values[row] for name, values in columns.items()})
    return folder


def dlrm_job(folder: Path, **spec: Any) -> Path:
    """Write a DLRM job with its data to a folder, which has none yet, or another job over the data that it has."""
    features = [
        {"name": "user_id", "kind": "Categorical", "cardinality": USERS},
        {"name": "item_id", "kind": "Categorical", "cardinality": ITEMS},
        {"name": "price", "kind": "Dense"},
        {"name": "age", "kind": "Dense"},
    ]
    model = {"type": "DLRM", "dlrm": {"embeddingDim": 8, "denseDims": [8], "overDims": [16]}}
    return _write_job(folder, model, features, [{"name": "label", "task": "Binary"}], ["auc", "log_loss"], spec)


def two_tower_job(folder: Path, **spec: Any) -> Path:
    """Likewise a TwoTower job that draws what it can: dropout, negatives, order."""
    features = [
        {"name": "user_id", "kind": "Categorical", "side": "User", "cardinality": USERS},
        {"name": "history", "kind": "Sequence", "side": "User", "of": "item_id", "maxLength": 4},
        {"name": "item_id", "kind": "Categorical", "side": "Item", "cardinality": ITEMS},
        {"name": "price", "kind": "Dense", "side": "Item"},
    ]
    section = {"embeddingDim": 8, "hiddenDims": [16, 8], "embeddingDropout": 0.1, "negatives": {"uniform": 5}}
    return _write_job(folder, {"type": "TwoTower", "twoTower": section}, features, [], ["recall@5", "ndcg@5"], spec)


def mind_job(folder: Path, **spec: Any) -> Path:
    """Likewise a MIND job with a profile and no embedding of the user; it publishes its items to an index."""
    features = [
        {"name": "user_id", "kind": "Categorical", "side": "None", "cardinality": USERS},
        {"name": "history", "kind": "Sequence", "side": "User", "of": "item_id", "maxLength": 4},
        {"name": "item_id", "kind": "Categorical", "side": "Item", "cardinality": ITEMS},
        {"name": "age", "kind": "Dense", "side": "User"},
        {"name": "city", "kind": "Categorical", "side": "User", "cardinality": 5},
    ]
    section = {"embeddingDim": 8, "interests": 3, "embeddingDropout": 0.1, "negatives": {"count": 10}}
    spec = {"publish": {"index": {"type": "Faiss", "uri": "index"}}} | spec
    return _write_job(folder, {"type": "MIND", "mind": section}, features, [], ["recall@5", "ndcg@5"], spec)


def _write_job(
    folder: Path,
    model: dict[str, Any],
    features: list[dict[str, Any]],
    labels: list[dict[str, Any]],
    metrics: list[str],
    changes: dict[str, Any],
) -> Path:
    for split, rows, seed in (("train", ROWS, 0), ("validation", 61, 1)):
        if not (folder / split).exists():
            write_shards(folder / split, rows_of(rows, seed))
    spec = {
        "model": model,
        "features": features,
        "labels": labels,
        "data": {"train": {"uri": "train"}, "validation": {"uri": "validation"}},
        "training": {"batchSize": 16, "epochs": 2, "seed": 3, "logEverySteps": 1},
        "evaluation": {"metrics": metrics},
        "tracking": {"mlflow": {"enabled": False}},
        "workers": {"replicas": 2},
    }
    job = {"apiVersion": "rectrain.io/v1alpha1", "kind": "RecTrainingJob", "metadata": {"name": "tiny"}}
    for section, values in changes.items():
        spec[section] = spec.get(section, {}) | values if isinstance(values, dict) else values
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(job | {"spec": spec}))
    return file


@dataclass(frozen=True)
class Ended:
    """How a run ended.

    Attributes:
        codes: Exit code of each rank, negative for a signal.
        reasons: What each rank left as its reason.
        printed: What each rank printed.
    """

    codes: list[int]
    reasons: list[str]
    printed: list[str]

    @property
    def code(self) -> int:
        assert len(set(self.codes)) == 1, self
        return self.codes[0]


def train(
    job_file: Path,
    output: Path | str,
    *,
    ranks: int = 2,
    overrides: Sequence[str] = (),
    signal_at: tuple[int, int, int] | None = None,
    watch: Callable[..., None] | None = None,
    timeout: float = 240,
) -> Ended:
    """Run the worker's entry point on so many ranks until all have ended.

    Args:
        job_file: The job.
        output: Folder of the results.
        ranks: Number of processes.
        overrides: As of `--set`.
        signal_at: Step, signal, and the rank that sends it to itself when that step is done; rank -1 means each.
        watch: Function at the top level of a module, called in each process before the run, to look into it.
        timeout: Seconds until all are killed.

    Returns:
        How the ranks ended.
    """
    folder = Path(f"{output if '://' not in str(output) else job_file.parent / 'remote'}.ranks")
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    environment |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    arguments = (str(job_file), str(output), tuple(overrides), signal_at, watch)
    processes = [
        _processes.Process(target=_rank, args=(str(folder), rank, environment, *arguments)) for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    running = {process.sentinel: process for process in processes}
    deadline = time.monotonic() + timeout
    try:
        while running:
            ended = wait(list(running), timeout=max(0.0, deadline - time.monotonic()))
            assert ended, f"still running after {timeout} s:\n" + "\n".join(_texts(folder, "output", ranks))
            for sentinel in ended:
                running.pop(sentinel).join()
            if any(process.exitcode for process in processes):  # as the launcher does, the rest is ended soon
                deadline = min(deadline, time.monotonic() + 20)
                if running and not wait(list(running), timeout=20):
                    break
    finally:
        for process in processes:
            process.kill()
            process.join()
    return Ended(
        [process.exitcode or 0 for process in processes],
        _texts(folder, "reason", ranks),
        _texts(folder, "output", ranks),
    )


def succeed(job_file: Path, output: Path | str, **options: Any) -> Ended:
    """Run a job that has to end well."""
    ended = train(job_file, output, **options)
    assert set(ended.codes) == {0}, ended
    return ended


def _texts(folder: Path, kind: str, ranks: int) -> list[str]:
    files = [folder / f"{kind}-{rank}" for rank in range(ranks)]
    return [file.read_text() if file.exists() else "" for file in files]


def _rank(
    folder: str,
    rank: int,
    environment: dict[str, str],
    job_file: str,
    output: str,
    overrides: tuple[str, ...],
    signal_at: tuple[int, int, int] | None,
    watch: Callable[..., None] | None,
) -> None:
    printed = os.open(f"{folder}/output-{rank}", os.O_WRONLY | os.O_CREAT)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank), COLUMNS="200")
    os.environ["RECTRAIN_TERMINATION_LOG"] = f"{folder}/reason-{rank}"

    import torch

    from rectrain_jobs.training import __main__ as entry
    from rectrain_jobs.training.trainer import Trainer

    torch.set_num_threads(1)
    if watch is not None:
        watch()
    if signal_at is not None and signal_at[2] in (rank, -1):
        after_step = Trainer.after_step

        def signalled(self: Trainer, batch: Any) -> None:
            if self.progress.step + 1 == signal_at[0]:
                os.kill(os.getpid(), signal_at[1])
            after_step(self, batch)

        Trainer.after_step = signalled  # type: ignore[method-assign]
    code = entry._run(job_file, output, overrides)
    sys.stdout.flush()
    sys.exit(code)


KILL_ALL_AT_10 = (10, int(signal.SIGKILL), -1)


_ended: dict[str, tuple[Path, Path, Ended]] = {}


def ended_run(factory: pytest.TempPathFactory, make: Callable[..., Path]) -> tuple[Path, Path, Ended]:
    """Return the job file, output and end of a run of a whole job, made once for all tests; they leave it as it is."""
    if make.__name__ not in _ended:
        job = make(factory.mktemp("job"), **STANDARD)
        output = factory.mktemp("ended") / "out"
        _ended[make.__name__] = (job, output, succeed(job, output, watch=look_on))
    return _ended[make.__name__]


STANDARD = {
    "training": {"epochs": 2, "checkpoint": {"everySteps": 4, "keep": 2}},
    "evaluation": {"everySteps": 5},
}
"""Of the jobs that `ended_run` runs: 14 steps, evaluations after 5, 10 and 14, checkpoints after 4, 8, 12 and 14."""


def be_alone_in_a_pod() -> None:
    """Be the only rank of a pod, for `train`."""
    os.environ.update(LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")


SMALL_FILE_BYTES = 300


def write_small_files() -> None:
    """Write so few weights to a file of the bundle, for `train`."""
    from rectrain_jobs.bundle import writing

    writing.FILE_BYTES = SMALL_FILE_BYTES


def look_on() -> None:
    """Print the rows of every batch, and save what the trained model says of some rows beside the output."""
    import torch

    from rectrain_jobs.training.trainer import Trainer

    after_step, train_all = Trainer.after_step, Trainer.train

    def printing(self: Trainer, batch: Any) -> None:
        print("BATCH", json.dumps([self.progress.position.epoch, batch.sample_ids.tolist()]), flush=True)
        after_step(self, batch)

    def predicting(self: Trainer) -> dict[str, float]:
        metrics = train_all(self)
        model = self.model.module.model
        self.pipeline.detach()
        torch.save(predictions_of(model, self.job.spec), self.output.local.parent / f"predictions-{self.ranks.rank}.pt")
        return metrics

    Trainer.after_step, Trainer.train = printing, predicting  # type: ignore[method-assign]


def batches_of(printed: str) -> list[tuple[int, list[int]]]:
    """Return epoch and rows of the batches that a rank printed under `look_on`."""
    lines = [line for line in printed.splitlines() if line.startswith("BATCH ")]
    return [tuple(json.loads(line.removeprefix("BATCH "))) for line in lines]


def predictions_of(model: Any, spec: Any) -> dict[str, Any]:
    """Return what a model says of some rows, by name."""
    import torch

    from rectrain_jobs.data.batch import BatchBuilder

    batch = BatchBuilder(spec).build(rows_of(24, seed=9), np.ones(24, bool))
    was_training = model.training
    model.eval()
    with torch.no_grad():
        if spec.model.is_retrieval:
            found = {"users": model.user_vectors(batch), "items": model.item_vectors(batch)}
        else:
            found = model.predict(batch)
    model.train(was_training)
    return {name: values.clone() for name, values in found.items()}


def points_of(output: Path, name: str = "loss") -> dict[int, float]:
    """Return by step the points of a run that have a value of that name."""
    points = [json.loads(line) for line in (output / "points.jsonl").read_text().splitlines()]
    found = {point["step"]: point[name] for point in points if name in point}
    assert len(found) == sum(name in point for point in points), "a step has two points"
    return found


def weights_of(output: Path) -> dict[str, Any]:
    """Return the parameters in a run's bundle, assembled here, by name."""
    import safetensors.torch
    import torch

    bundle = output / "bundle"
    tensors = {}
    for name, parameter in json.loads((bundle / "weights.json").read_text())["parameters"].items():
        tensors[name] = torch.full(parameter["shape"], torch.nan)
        for part in parameter["parts"]:
            block = tuple(slice(o, o + n) for o, n in zip(part["offsets"], part["sizes"], strict=True))
            tensors[name][block] = safetensors.torch.load_file(bundle / part["file"])[part["tensor"]]
    return tensors
