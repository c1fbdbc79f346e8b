"""Evaluation of a sharded model on the validation data, all ranks together."""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from rectrain.api.errors import UserError
from rectrain.api.features import Side
from rectrain.api.job import RecTrainingJob
from rectrain.api.metric_names import MetricName, parse_metric
from rectrain_jobs.data.batch import Batch, BatchBuilder
from rectrain_jobs.data.mds import MDSDataset, World
from rectrain_jobs.evaluation.items import ItemCorpus, ItemLists
from rectrain_jobs.evaluation.pointwise import PointwiseMetrics
from rectrain_jobs.evaluation.ranking import Searcher, UserChunk, rank_all_items
from rectrain_jobs.models.ranking import RankingModel
from rectrain_jobs.models.registry import Model, RetrievalModel
from rectrain_jobs.training.data import SCAN_ROWS, Columns, RowChecker, item_columns, open_dataset
from rectrain_jobs.training.distributed import Ranks


class Validation:
    """The metrics of a job on its validation data.

    Args:
        job: The job, with absolute URIs; it has validation data.
        ranks: The process group.
    """

    def __init__(self, job: RecTrainingJob, ranks: Ranks) -> None:
        """Open the data and group it by user where metrics rank items."""
        metrics = [parse_metric(name) for name in job.spec.metrics]
        pointwise = [m for m in metrics if m.definition.family == "pointwise"]
        ranking = [m for m in metrics if m.definition.family == "ranking"]
        self._pointwise = _PointwiseValidation(job, ranks, pointwise) if pointwise else None
        self._ranking = _RankingValidation(job, ranks, ranking) if ranking else None

    @torch.no_grad()
    def evaluate(self, model: Model, searcher: Searcher | None = None) -> dict[str, float]:
        """Return the metrics by name, the same on every rank; all ranks call it.

        Args:
            model: The bare model inside of DistributedModelParallel.
            searcher: What finds items for ranking metrics. Default: exact search of all.

        Raises:
            UserError: The validation data has no users or rows to evaluate, or the model has diverged.
        """
        was_training = model.training
        model.eval()
        values: dict[str, float] = {}
        try:
            if self._pointwise is not None:
                values |= self._pointwise.evaluate(model)
            if self._ranking is not None:
                assert not isinstance(model, RankingModel), (
                    "a rule of the job lets only retrieval models have ranking metrics"
                )
                values |= self._ranking.evaluate(model, searcher)
        finally:
            model.train(was_training)
        return values


class _PointwiseValidation:
    """Metrics of predictions against labels; each row counts once, on one rank."""

    def __init__(self, job: RecTrainingJob, ranks: Ranks, metrics: list[MetricName]) -> None:
        self._spec = job.spec
        self._ranks = ranks
        self._metrics = metrics
        self._builder = BatchBuilder(job.spec)
        self._dataset = _open_validation(job, self._builder.columns)
        self._checker = RowChecker(job.spec, self._dataset)

    def evaluate(self, model: Model) -> dict[str, float]:
        group, device = self._ranks.control, self._ranks.device
        accumulators: dict[str, PointwiseMetrics] = {}
        for label in self._spec.labels:
            wanted = [m for m in self._metrics if str(label.task) in m.definition.tasks]
            if wanted:
                accumulators[label.name] = PointwiseMetrics(
                    label.name, label.task.value, wanted, device="cpu", classes=label.num_classes or 1
                )
        size = self._spec.evaluation.batch_size or self._spec.training.batch_size
        world = World(self._ranks.num_nodes, self._ranks.local_world_size, self._ranks.rank)
        for rows in self._dataset.evaluation_pass(batch_size=size, world=world, columns=self._builder.columns):
            self._checker.check(rows.columns, rows.sample_ids)
            batch = self._builder.build(rows.columns, rows.mask).to(device)
            predictions = model.predict(batch)
            for name, accumulator in accumulators.items():
                accumulator.update(predictions[name].cpu(), batch.labels[name].cpu(), batch.valid.cpu())
        by_label = {name: accumulator.compute(group).values for name, accumulator in accumulators.items()}
        values: dict[str, float] = {}
        for metric in map(str, self._metrics):
            of_labels = {name: found[metric] for name, found in by_label.items() if metric in found}
            values[metric] = float(np.mean(list(of_labels.values())))
            if len(self._spec.labels) > 1:
                values |= {f"{name}/{metric}": value for name, value in of_labels.items()}
        return values


class _RankingValidation:
    """Metrics of the whole corpus ranked for each user; each user counts once, on one rank."""

    def __init__(self, job: RecTrainingJob, ranks: Ranks, metrics: list[MetricName]) -> None:
        spec = job.spec
        self._ranks = ranks
        self._metrics = metrics
        self._batch_size = spec.evaluation.batch_size or spec.training.batch_size
        self._item_id = spec.model.item_id
        self._user_builder = BatchBuilder(spec, sides=[Side.USER])
        self._item_builder = BatchBuilder(spec, sides=[Side.ITEM])
        user_id = spec.model.user_id
        train_columns = [user_id, *self._item_builder.columns]
        train = open_dataset(job, spec.data.train.uri, train_columns)
        self._dataset = _open_validation(job, [user_id, *self._user_builder.columns, *self._item_builder.columns])
        self._checker = RowChecker(spec, self._dataset)
        label = spec.labels[0].name if spec.labels else None
        users, items, rows = _own_pairs(self._dataset, self._checker, user_id, self._item_id, label, ranks)
        self.users, first = np.unique(users, return_index=True)
        if not ranks.any(len(self.users) > 0):
            raise UserError(f"{self._dataset.uri}: has no users to evaluate on")
        self._query_rows = rows[first]
        self._relevant = _lists_of(self.users, users, items)
        self._seen: ItemLists | None = None
        if spec.evaluation.mask_train_items:
            checker = RowChecker(spec, train)
            train_users, train_items, _ = _own_pairs(train, checker, user_id, self._item_id, label, ranks)
            kept = np.isin(train_users, self.users)
            self._seen = _lists_of(self.users, train_users[kept], train_items[kept])
        self._items = item_columns(spec, [train, self._dataset])

    def evaluate(self, model: RetrievalModel, searcher: Searcher | None) -> dict[str, float]:
        corpus = self._corpus(model)
        return rank_all_items(self._chunks(model), corpus, self._metrics, searcher).values

    def _corpus(self, model: RetrievalModel) -> ItemCorpus:
        """Compute the vectors of this rank's share of the items."""
        ids = self._items[self._item_id]
        share = -(-len(ids) // self._ranks.world_size)
        begin, end = min(len(ids), share * self._ranks.rank), min(len(ids), share * (self._ranks.rank + 1))
        parts = []
        for first in range(begin, begin + share, self._batch_size):  # as many calls on every rank
            part = slice(first, min(first + self._batch_size, end))
            columns = {name: column[part] for name, column in self._items.items()}
            parts.append(self._vectors(model.item_vectors, self._item_builder, columns))
        vectors = torch.cat(parts)
        return ItemCorpus.sharded(vectors, torch.from_numpy(ids[begin:end]).to(vectors.device))

    def _chunks(self, model: RetrievalModel) -> Iterator[UserChunk]:
        most = torch.tensor([len(self.users)])
        dist.all_reduce(most, dist.ReduceOp.MAX, group=self._ranks.control)
        for first in range(0, int(most), self._batch_size):
            begin = min(first, len(self.users))
            end = min(first + self._batch_size, len(self.users))
            rows = self._query_rows[begin:end]
            columns = self._dataset.gather(rows, self._user_builder.columns)
            self._checker.check(columns, rows)
            yield UserChunk(
                self._vectors(model.user_vectors, self._user_builder, columns),
                self._relevant.slice(begin, end),
                None if self._seen is None else self._seen.slice(begin, end),
            )

    def _vectors(
        self, encode: Callable[[Batch], torch.Tensor], builder: BatchBuilder, columns: Columns
    ) -> torch.Tensor:
        """Encode some rows, filled up to a whole batch: the sharded tables are asked by all ranks together."""
        rows = len(next(iter(columns.values())))
        padded = {
            name: np.concatenate([values, np.zeros((self._batch_size - rows, *values.shape[1:]), values.dtype)])
            for name, values in columns.items()
        }
        valid = np.arange(self._batch_size) < rows
        return encode(builder.build(padded, valid).to(self._ranks.device))[:rows].float()


def _open_validation(job: RecTrainingJob, columns: list[str]) -> MDSDataset:
    assert job.spec.data.validation is not None, "a rule of the job asks for it"
    return open_dataset(job, job.spec.data.validation.uri, columns)


def _own_pairs(
    dataset: MDSDataset, checker: RowChecker, user_id: str, item_id: str, label: str | None, ranks: Ranks
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return user, item and row of the positive rows of this rank's users, which are those of its remainder."""
    users, items, rows = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    columns = [user_id, item_id] + ([label] if label is not None else [])
    for batch in dataset.evaluation_pass(batch_size=SCAN_ROWS, columns=columns):
        checker.check(batch.columns, batch.sample_ids)
        own = batch.mask & (batch.columns[user_id] % ranks.world_size == ranks.rank)
        if label is not None:
            own &= batch.columns[label] > 0.5
        users.append(batch.columns[user_id][own].astype(np.int64))
        items.append(batch.columns[item_id][own].astype(np.int64))
        rows.append(batch.sample_ids[own])
    return np.concatenate(users), np.concatenate(items), np.concatenate(rows)


def _lists_of(users: npt.NDArray[np.int64], of_users: npt.NDArray[np.int64], items: npt.NDArray[np.int64]) -> ItemLists:
    """Group items by user; every user of `of_users` is among `users`, which rise."""
    order = np.argsort(of_users, kind="stable")
    offsets = np.searchsorted(of_users[order], users)
    return ItemLists(np.append(offsets, len(items)).astype(np.int64), items[order])
