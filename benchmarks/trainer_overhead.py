"""Compare the trainer, data reading included, with a bare torchrec loop over batches in memory, in one run.

Run `python benchmarks/trainer_overhead.py`; `--json` prints one JSON object on the last line, whose `ratio` is the
trainer's examples a second over the bare loop's. Both train the same model, built by the same code with the same plan
and optimizers, on 2 gloo processes of this machine, in turns; the figures are medians over the turns. The trainer reads
shuffled shards, checks every row and does all that is due between two steps but checkpoints and evaluations, which the
bare loop has not got. The data are synthetic clicks for a DLRM, or made-up interactions for a two-tower model.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder

from rectrain.api import RecTrainingJob
from rectrain_jobs.data.batch import Batch
from rectrain_jobs.data.convert import ensure_converted
from rectrain_jobs.data.mds import Position
from rectrain_jobs.models.registry import TrainingTask, build_model
from rectrain_jobs.resolution import storage_options
from rectrain_jobs.tracking import PointLog
from rectrain_jobs.training.distributed import Ranks, join_ranks
from rectrain_jobs.training.optimizers import ModelOptimizer, fuse_embedding_optimizer
from rectrain_jobs.training.output import RunOutput
from rectrain_jobs.training.plan import make_plan, topology_of
from rectrain_jobs.training.progress import ProgressDisplay
from rectrain_jobs.training.trainer import Trainer

WORLD_SIZE = 2
_NEVER = 1 << 30


def main() -> None:
    """Make the data and start the ranks, or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=("dlrm", "two-tower"), default="dlrm", help="what is trained (default dlrm)")
    parser.add_argument("--steps", type=int, default=60, help="steps in a turn (default 60)")
    parser.add_argument("--batch-size", type=int, default=1024, help="rows in a step on each rank (default 1024)")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each (default 5)")
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.folder is not None:
        return run_rank(arguments)
    with tempfile.TemporaryDirectory(prefix="rectrain-benchmark-") as folder:
        rows = arguments.steps * arguments.batch_size * WORLD_SIZE
        ensure_converted(job_of(arguments.model, Path(folder), rows, arguments.batch_size).spec)
        torchrun = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--local-addr=127.0.0.1",
            f"--nproc-per-node={WORLD_SIZE}",
        ]
        threads = max(1, (os.cpu_count() or 1) // WORLD_SIZE)
        environment = {"OMP_NUM_THREADS": str(threads), "GLOO_SOCKET_IFNAME": "lo", **os.environ}
        command = [*torchrun, __file__, *sys.argv[1:], "--folder", folder]
        sys.exit(subprocess.run(command, env=environment).returncode)


def job_of(model: str, folder: Path, rows: int, batch_size: int) -> RecTrainingJob:
    """Return a job on data in `folder`; the raw input of the two-tower model is written there."""
    data: dict[str, Any] = {"train": {"uri": str(folder / "train")}, "validation": {"uri": str(folder / "validation")}}
    spec: dict[str, Any]
    if model == "dlrm":
        cardinalities = [10_000, 1_000, 100, 10] * 7
        spec = {
            "model": {"type": "DLRM", "dlrm": {}},
            "features": [
                *({"name": f"dense_{i}", "kind": "Dense"} for i in range(13)),
                *({"name": f"cat_{i}", "kind": "Categorical", "cardinality": cardinalities[i]} for i in range(26)),
            ],
            "labels": [{"name": "label", "task": "Binary"}],
        }
        data["source"] = {"format": "Synthetic", "rows": rows}
    else:
        users = 20_000
        raw = folder / "interactions.txt"
        if not raw.exists():
            generator = torch.Generator().manual_seed(0)
            items = torch.randint(20_000, (users, -(-rows // users)), generator=generator).tolist()
            raw.write_text("".join(f"{user} {' '.join(map(str, some))}\n" for user, some in enumerate(items)))
            (folder / "validation.txt").write_text("0 1\n")
        spec = {
            "model": {"type": "TwoTower", "twoTower": {"hiddenDims": []}},
            "features": [
                {"name": "user_id", "kind": "Categorical", "side": "User", "cardinality": users},
                {"name": "item_id", "kind": "Categorical", "side": "Item", "cardinality": 20_000},
            ],
        }
        data["source"] = {"format": "Interactions", "uri": str(raw), "validationUri": str(folder / "validation.txt")}
    spec["training"] = {"batchSize": batch_size, "epochs": _NEVER, "checkpoint": {"everySteps": _NEVER}}
    return RecTrainingJob.model_validate({"metadata": {"name": f"overhead-{model}"}, "spec": spec | {"data": data}})


def run_rank(arguments: argparse.Namespace) -> None:
    """Train in turns with both; rank 0 prints the figures."""
    ranks = join_ranks()
    folder = Path(arguments.folder)
    rows = arguments.steps * arguments.batch_size * WORLD_SIZE
    job = job_of(arguments.model, folder, rows, arguments.batch_size)
    output = RunOutput(str(folder / "output"), storage_options(job))
    points, display = PointLog(folder / f"points-{ranks.rank}.jsonl"), ProgressDisplay(ranks.is_first, lambda _: None)
    trainer = Trainer(job, ranks, output, points, display)
    bare = BareLoop(job, ranks, trainer)
    seconds: dict[str, list[float]] = {"trainer": [], "bare": []}
    for _ in range(1 + arguments.repeats):
        for name, epoch in (("bare", bare.epoch), ("trainer", lambda: train_epoch(trainer))):
            ranks.barrier()
            begin = time.perf_counter()
            epoch()
            ranks.barrier()
            seconds[name].append(time.perf_counter() - begin)
    rates = {
        name: trainer.steps_in_epoch
        * arguments.batch_size
        * WORLD_SIZE
        / statistics.median(some[1:])  # the first warms up
        for name, some in seconds.items()
    }
    ratio = rates["trainer"] / rates["bare"]
    if ranks.is_first:
        print(
            f"{arguments.model}: trainer {rates['trainer']:,.0f} examples/s, bare torchrec loop {rates['bare']:,.0f} "
            f"examples/s, ratio {ratio:.3f} ({trainer.steps_in_epoch} steps of {WORLD_SIZE} x {arguments.batch_size} "
            f"rows, median of {arguments.repeats})"
        )
        if arguments.json:
            machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "torch": torch.__version__}
            settings = {"model": arguments.model, "steps": trainer.steps_in_epoch, "batch_size": arguments.batch_size}
            figures = {"trainer_examples_per_second": rates["trainer"], "bare_examples_per_second": rates["bare"]}
            print(json.dumps({"ratio": ratio, **figures, "seconds": seconds, **settings, "machine": machine}))
    dist.destroy_process_group()


def train_epoch(trainer: Trainer) -> None:
    """Train an epoch as `Trainer.train` does."""
    for batch in trainer.steps():
        trainer.after_step(batch)


class BareLoop:
    """The least that trains the job's model with torchrec: forward, backward, optimizer step, batch by batch.

    Args:
        job: The job.
        ranks: The process group.
        trainer: Gives the batches of its first epoch and the item counts.
    """

    def __init__(self, job: RecTrainingJob, ranks: Ranks, trainer: Trainer) -> None:
        """Build the model as the trainer does."""
        spec = job.spec
        self._batches: Sequence[Batch] = [batch.batch for batch in trainer.data.epoch(Position(), 0)]
        task = TrainingTask(spec, build_model(spec, ranks.device, embedding_device=torch.device("meta")))
        fuse_embedding_optimizer(task.model.embeddings.parameters(), spec.training.optimizers.embedding, ranks.device)
        plan, _ = make_plan(task, spec, topology_of(ranks, spec), dist.group.WORLD)
        if spec.model.is_retrieval:
            task.set_item_counts(trainer.data.item_counts())
        sharders = [EmbeddingBagCollectionSharder()]
        self._model = DistributedModelParallel(task, device=ranks.device, plan=plan, sharders=sharders)
        # The rates are constant, so torchrec's own optimizers are stepped as they are.
        self._optimizer = ModelOptimizer(self._model, spec.training.optimizers, trainer.total_steps).combined

    def epoch(self) -> None:
        """Train an epoch."""
        for batch in self._batches:
            self._optimizer.zero_grad()
            loss, _ = self._model(batch)
            loss.backward()
            self._optimizer.step()


if __name__ == "__main__":
    main()
