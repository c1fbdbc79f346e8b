"""The trainer: from a job to a trained, evaluated and published model. Read `Trainer.train` from top to bottom."""

import contextlib
import math
import signal
import time
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, fields
from typing import Any

import torch
import torch.distributed as dist
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from rectrain.api.job import RecTrainingJob
from rectrain.api.metric_names import parse_metric
from rectrain.api.training import Precision, Training
from rectrain_jobs.data.batch import Batch
from rectrain_jobs.data.mds import Position
from rectrain_jobs.models.registry import TrainingTask, build_model
from rectrain_jobs.resolution import storage_options
from rectrain_jobs.storage import open_store
from rectrain_jobs.tracking import Point, PointLog
from rectrain_jobs.training.checkpoint import Checkpointer, restore_rng, rng_tensors
from rectrain_jobs.training.data import TrainingBatch, TrainingData
from rectrain_jobs.training.distributed import AnyRank, Ranks
from rectrain_jobs.training.identity import state_identity_of
from rectrain_jobs.training.optimizers import ModelOptimizer, fuse_embedding_optimizer
from rectrain_jobs.training.output import CHECKPOINTS, RunOutput
from rectrain_jobs.training.plan import make_plan, sharders, topology_of
from rectrain_jobs.training.progress import ProgressDisplay, Snapshot, Throughput
from rectrain_jobs.training.validation import Validation

_NO_STEP = torch.iinfo(torch.int64).max


class DivergedError(Exception):
    """The loss is not finite."""


class StopRequestedError(Exception):
    """SIGTERM came; the step was finished and a checkpoint saved."""


@dataclass
class Progress:
    """What a restart continues with, besides tensors.

    Attributes:
        step: Steps done.
        position: Where the next batch is read.
        best: Best goodness of the watched metric so far.
        goodness: Its goodness at this step, if it was evaluated here.
        evaluations_since_best: Evaluations since the best one.
        metrics: The last evaluation, by name.
        extra_steps: Steps done more than the data read so far makes on this number of ranks; a run that began on
            another number has some.
        stopped_early: Whether the watched metric has stopped getting better.
    """

    step: int = 0
    position: Position = field(default_factory=Position)
    best: float = -math.inf
    goodness: float | None = None
    evaluations_since_best: int = 0
    metrics: dict[str, float] | None = None
    extra_steps: int = 0
    stopped_early: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return this for a checkpoint's marker."""
        return vars(self) | {"position": self.position.state_dict()}

    @classmethod
    def from_json(cls, marker: dict[str, Any]) -> "Progress":
        """Read this from a checkpoint's marker."""
        known = {f.name: marker[f.name] for f in fields(cls)}
        return cls(**known | {"position": Position.from_state_dict(marker["position"])})


class LossMonitor:
    """Sums losses and looks for one that is not finite, without waiting for the device at every step.

    Args:
        device: Where the losses are.
    """

    def __init__(self, device: torch.device) -> None:
        """Begin with nothing."""
        self._device = device
        self._bad_step = torch.full((), _NO_STEP, dtype=torch.int64, device=device)
        self.restart()

    def restart(self, total: float = 0.0, steps: float = 0.0) -> None:
        """Begin a new sum.

        Args:
            total: What it begins with.
            steps: Steps that this is the sum of.
        """
        self._total = torch.full((), total, dtype=torch.float64, device=self._device)
        self.steps = steps

    def add(self, step: int, loss: torch.Tensor) -> None:
        """Add the loss of a step."""
        self._total += loss
        self._bad_step = torch.where(loss.isfinite(), self._bad_step, self._bad_step.clamp_max(step))
        self.steps += 1

    def total(self) -> float:
        """Return the sum."""
        return float(self._total)

    def first_bad_step(self) -> int | None:
        """Return the first step whose loss was not finite."""
        step = int(self._bad_step)
        return None if step == _NO_STEP else step


class Trainer:
    """Trains a job's model. All ranks make one and call `train`.

    Args:
        job: The job, with absolute URIs.
        ranks: The process group.
        output: Where results go.
        points: Where rank 0 writes losses and metrics.
        display: What rank 0 shows.
    """

    def __init__(
        self, job: RecTrainingJob, ranks: Ranks, output: RunOutput, points: PointLog, display: ProgressDisplay
    ) -> None:
        """Build everything from the spec; nothing is trained yet.

        Raises:
            UserError: The data cannot be read, or the tables do not fit.
        """
        spec = job.spec
        self.job, self.ranks, self.output, self.points, self.display = job, ranks, output, points, display
        self.training = spec.training

        torch.manual_seed(spec.training.seed + ranks.rank)
        self.data = TrainingData(job, ranks)
        self.validation = Validation(job, ranks) if spec.data.validation is not None and spec.metrics else None
        self.watched = (
            spec.training.early_stopping.metric if spec.training.early_stopping else next(iter(spec.metrics), "")
        )
        self.steps_in_epoch = self.data.batches_in_epoch()
        self.total_steps = total_steps(spec.training, self.steps_in_epoch)

        task = TrainingTask(spec, build_model(spec, ranks.device, embedding_device=torch.device("meta")))
        fuse_embedding_optimizer(task.model.embeddings.parameters(), spec.training.optimizers.embedding, ranks.device)
        plan, self.plan = make_plan(task, spec, topology_of(ranks, spec), dist.group.WORLD)
        self.item_counts = self.data.item_counts() if spec.model.is_retrieval else None
        if self.item_counts is not None:
            task.set_item_counts(self.item_counts, self.data.num_negative_items)
        self.model = DistributedModelParallel(task, device=ranks.device, plan=plan, sharders=sharders())
        self.optimizer = ModelOptimizer(self.model, spec.training.optimizers, self.total_steps)
        self.pipeline = TrainPipelineSparseDist(
            self.model,
            self.optimizer,
            ranks.device,
            execute_all_batches=True,
            custom_model_fwd=self.loss_of,
        )
        checkpoint = spec.training.checkpoint
        self.checkpointer = Checkpointer(
            open_store(checkpoint.uri or f"{output.uri}/{CHECKPOINTS}", storage_options(job)),
            ranks,
            identity=state_identity_of(job),
            data_digest=self.data.dataset.index.content_digest,
            keep=checkpoint.keep,
            keep_best=checkpoint.keep_best,
        )
        self.progress = Progress()
        self.model_step = 0  # the step whose weights the model has when training has ended
        self.throughput = Throughput(spec.training.batch_size * ranks.world_size)
        self.losses = LossMonitor(ranks.device)
        self.last_loss: float | None = None
        # Ranks that agree on something disturb each other, and looking at the loss makes the CPU wait for a GPU.
        self.check_every = 5 if ranks.device.type == "cpu" else 20
        self.checking: AnyRank | None = None
        self.recent: deque[tuple[int, TrainingBatch]] = deque(maxlen=2 * self.check_every)
        self.stop_requested = False

    def train(self) -> dict[str, float]:
        """Train to the end and return the final metrics, the same on every rank.

        Raises:
            DivergedError: The loss is not finite.
            StopRequestedError: SIGTERM came; a checkpoint is saved.
            UserError: The data is damaged or out of range.
        """
        if self.ranks.is_first:
            self.output.write_plan(self.plan.to_json())
        self.display.say(self.plan.to_table())
        self.restore()
        self.display.start(self.snapshot())
        with self.listening_for_sigterm():
            while not self.is_done():
                for batch in self.steps():
                    self.after_step(batch)
                    if self.is_done():
                        break
        self.display.update(self.snapshot(), now=True)
        self.model_step = self.progress.step
        if self.progress.stopped_early:
            self.display.say(f"stopped early: {self.watched} did not get better")
        if self.training.early_stopping is not None and self.training.checkpoint.keep_best:
            self.take_best()
        return self.progress.metrics or {}

    def is_done(self) -> bool:
        """Return whether no further step is to be taken."""
        return self.progress.step >= self.total_steps or self.progress.stopped_early

    def loss_of(self, batch: Batch | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the model on a batch for the pipeline, which passes on the second of what this returns."""
        loss, _ = self.model(batch)
        return loss, loss.detach()

    def steps(self) -> Iterator[TrainingBatch]:
        """Take the steps of the current epoch, or the rest of it; yields each batch once its step is done.

        torchrec's pipeline reads ahead, so batches wait in a queue until their step is done.
        """
        ahead: deque[TrainingBatch] = deque()

        def read() -> Generator[Batch, None, None]:
            with contextlib.closing(self.data.epoch(self.progress.position, self.progress.step)) as reader:
                for batch in reader:
                    ahead.append(batch)
                    yield batch.batch

        self.model.train()
        with contextlib.closing(read()) as batches:
            while True:
                self.optimizer.begin_step(self.progress.step)
                try:
                    with self.autocast():
                        loss = self.pipeline.progress(batches)
                except StopIteration:
                    return
                self.losses.add(self.progress.step + 1, loss)
                yield ahead.popleft()

    def after_step(self, batch: TrainingBatch) -> None:
        """Do what is due between two steps: check, report, evaluate, save.

        Raises:
            DivergedError: The loss of a step was not finite.
            StopRequestedError: SIGTERM came; a checkpoint is saved.
        """
        progress = self.progress
        progress.step += 1
        progress.position = batch.after
        progress.goodness = None  # it is of one step, whether or not that has a checkpoint
        self.throughput.step()
        self.recent.append((progress.step, batch))
        epoch_ended = batch.after.sample_in_epoch == 0
        last = progress.step >= self.total_steps
        evaluates = last or self.evaluation_is_due(epoch_ended)
        saves = last or self.checkpoint_is_due(epoch_ended)
        is_due = evaluates or saves
        stops = (is_due or progress.step % self.check_every == 0) and self.check(at_once=is_due)
        if last or progress.step % self.training.log_every_steps == 0:
            self.log_point()
        self.display.update(self.snapshot())
        if evaluates:
            saves |= self.evaluate() and self.training.checkpoint.keep_best
        if saves or stops or progress.stopped_early:
            self.save()
        if stops and not self.is_done():
            raise StopRequestedError(
                f"stopped by SIGTERM after step {progress.step} of {self.total_steps}; the checkpoint is saved, "
                "a restart continues from it"
            )

    def check(self, at_once: bool) -> bool:
        """Return whether any rank was asked to stop, the same on every rank.

        Ranks do not wait for each other here, which would cost a twentieth of a short step: they agree while further
        steps are taken, and act on it at the next check.

        Args:
            at_once: Wait nevertheless, before something is done that must not follow a bad step.

        Raises:
            DivergedError: The loss of a step was not finite on some rank; with the step and the rows of the batch.
        """
        bad_step = self.losses.first_bad_step()
        wanted = bad_step is not None or self.stop_requested
        agreed = self.checking is not None and self.checking.result()
        self.checking = None if agreed or at_once else self.ranks.begin_any(wanted)
        if not agreed and not (at_once and self.ranks.any(wanted)):
            return False
        where = ""
        if bad_step is not None:
            batch = next(b for step, b in self.recent if step == bad_step)
            rows = batch.sample_ids[batch.sample_ids >= 0]
            where = (
                f"step {bad_step} of {self.total_steps}, rank {self.ranks.rank}: rows {rows[:4].tolist()}... of "
                f"{self.data.dataset.uri}"
            )
        reports: list[Any] = [None] * self.ranks.world_size
        dist.all_gather_object(reports, where, group=self.ranks.control)
        if any(reports):
            raise DivergedError(
                f"the loss is not finite at {'; '.join(filter(None, reports))}; lower the learning rates, or clip "
                "gradients: training.optimizers.embedding.clipValue and training.optimizers.dense.clipNorm"
            )
        return True

    def log_point(self) -> None:
        """Write a point: the mean loss of all ranks since the last one."""
        total = torch.tensor([self.losses.total(), self.losses.steps], dtype=torch.float64)
        dist.all_reduce(total, group=self.ranks.control)
        self.losses.restart()
        self.last_loss = float(total[0] / total[1].clamp_min(1))
        self.write_point({"loss": self.last_loss, "examples_per_second": self.throughput.rate})

    def evaluation_is_due(self, epoch_ended: bool) -> bool:
        """Return whether the job asks for an evaluation after this step."""
        asked = self.job.spec.evaluation
        if asked.every_steps is not None and self.progress.step % asked.every_steps == 0:
            return True
        every_epochs = asked.every_epochs
        if every_epochs is None and asked.every_steps is None and self.training.early_stopping is not None:
            every_epochs = 1
        return epoch_ended and every_epochs is not None and self.progress.position.epoch % every_epochs == 0

    def evaluate(self) -> bool:
        """Evaluate, and return whether the watched metric is the best so far."""
        if self.validation is None:
            return False
        self.display.say(f"evaluating after step {self.progress.step}")
        self.pipeline.detach()  # the pipeline has taken over the model's forward
        self.progress.metrics = self.validation.evaluate(self.model.module.model)
        # It would take it up again by itself, but send out the ids of the batch that it has read ahead a second time,
        # and unpooled lookups then miss how many each rank has sent.
        self.pipeline.attach(sparse_dist=False)
        self.throughput.restart()
        self.write_point(self.progress.metrics)
        goodness = parse_metric(self.watched).goodness(self.progress.metrics[self.watched])
        self.progress.goodness = goodness
        stopping = self.training.early_stopping
        if goodness > self.progress.best + (stopping.min_delta if stopping is not None else 0.0):
            self.progress.best, self.progress.evaluations_since_best = goodness, 0
        else:
            self.progress.evaluations_since_best += 1
        self.progress.stopped_early = stopping is not None and self.progress.evaluations_since_best >= stopping.patience
        return self.progress.evaluations_since_best == 0

    def checkpoint_is_due(self, epoch_ended: bool) -> bool:
        """Return whether the job asks for a checkpoint after this step."""
        every_steps = self.training.checkpoint.every_steps
        return epoch_ended if every_steps is None else self.progress.step % every_steps == 0

    def save(self) -> None:
        """Save a checkpoint; all ranks call it."""
        total = torch.tensor([self.losses.total(), self.losses.steps], dtype=torch.float64)
        dist.all_reduce(total, group=self.ranks.control)
        marker = self.progress.to_json() | {"lossSum": float(total[0]), "lossSteps": float(total[1])}
        marker["plan"] = self.plan.to_json()
        self.checkpointer.save(self.progress.step, self.state(), marker)
        self.throughput.restart()

    def restore(self) -> None:
        """Continue from the newest checkpoint, if there is one."""
        saved = self.checkpointer.latest()
        if saved is None:
            if self.ranks.is_first:
                self.points.truncate_after(0)
            return
        self.optimizer.create_state()
        same_ranks = saved.marker["worldSize"] == self.ranks.world_size
        state = self.state() if same_ranks else {k: v for k, v in self.state().items() if k != "rng"}
        self.checkpointer.load(saved, state)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_tensors(state["optimizer"], saved.step)
        if same_ranks:
            restore_rng(state["rng"], self.ranks)
        self.progress = Progress.from_json(saved.marker)
        if not same_ranks:  # an epoch has another number of steps
            done = self.progress.position.epoch * self.steps_in_epoch + self.data.batches_done(self.progress.position)
            self.progress.extra_steps = saved.step - done
        self.total_steps = total_steps(self.training, self.steps_in_epoch, self.progress.extra_steps)
        self.optimizer.total_steps = self.total_steps
        if self.ranks.is_first:  # the sum is of all ranks, so one has it
            self.losses.restart(saved.marker["lossSum"], saved.marker["lossSteps"])
            self.points.truncate_after(saved.step)
        self.display.say(f"continuing from the checkpoint of step {saved.step} of {self.total_steps}")

    def take_best(self) -> None:
        """Give the model the weights of the best evaluation, and take its metrics for the final ones."""
        best = self.checkpointer.best()
        if best is None or best.step == self.progress.step:
            return
        state = {"model": self.model.state_dict()}
        self.checkpointer.load(best, state)
        self.model.load_state_dict(state["model"])
        self.model_step, self.progress.metrics = best.step, best.marker["metrics"]
        self.display.say(f"the model is that of step {best.step}, where {self.watched} was best")

    def state(self) -> dict[str, Any]:
        """Return everything of a checkpoint that is a tensor."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_tensors(),
            "rng": rng_tensors(self.ranks),
        }

    def model_state(self) -> dict[str, Any]:
        """Return the bare model's parameters by name, sharded ones as they are."""
        prefix = "model."
        return {k.removeprefix(prefix): v for k, v in self.model.state_dict().items() if k.startswith(prefix)}

    def write_point(self, values: dict[str, float]) -> None:
        """Write a point, on rank 0."""
        if self.ranks.is_first:
            self.points.append(Point(self.progress.step, self.progress.position.epoch, time.time(), values))

    def snapshot(self) -> Snapshot:
        """Return where training is."""
        return Snapshot(
            step=self.progress.step,
            total_steps=self.total_steps,
            epoch=self.progress.position.epoch,
            epochs=-(-(self.total_steps - self.progress.extra_steps) // self.steps_in_epoch),
            loss=self.last_loss,
            examples_per_second=self.throughput.rate,
            rows_per_step=self.training.batch_size * self.ranks.world_size,
        )

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the arithmetic of the forward pass: bfloat16 on CUDA unless the job says otherwise."""
        precision, device = self.training.precision, self.ranks.device.type
        if precision is Precision.FLOAT32 or (precision is Precision.AUTO and device != "cuda"):
            return contextlib.nullcontext()
        return torch.autocast(device, dtype=torch.bfloat16)

    @contextlib.contextmanager
    def listening_for_sigterm(self) -> Iterator[None]:
        """Note a SIGTERM instead of dying of it; `check` acts on it between two steps."""

        def note(*_: Any) -> None:
            self.stop_requested = True

        before = signal.signal(signal.SIGTERM, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)


def total_steps(training: Training, steps_in_epoch: int, extra_steps: int = 0) -> int:
    """Return the number of steps of a training.

    Args:
        training: The job's length: epochs, maxSteps, both or none (one epoch).
        steps_in_epoch: Batches of an epoch.
        extra_steps: As in Progress.
    """
    epochs = training.epochs if training.epochs is not None else (1 if training.max_steps is None else None)
    limits = [epochs * steps_in_epoch + extra_steps if epochs is not None else None, training.max_steps]
    return min(limit for limit in limits if limit is not None)
