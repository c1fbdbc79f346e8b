"""What the trainer reads: checked batches of shards, item counts, negatives."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from rectrain.api.errors import UserError
from rectrain.api.features import Encoding, Feature, FeatureKind, Side
from rectrain.api.job import RecTrainingJob, RecTrainingJobSpec
from rectrain.api.models import MIND, TwoTower
from rectrain.api.tables import (
    EXTRA_ROWS,
    categorical_of,
    embedded_features,
    embedding_tables,
    encoding_of,
    item_table,
    table_of,
)
from rectrain_jobs.data.batch import Batch, BatchBuilder
from rectrain_jobs.data.mds import BatchReader, ColumnBatch, MDSDataset, Order, Position, World
from rectrain_jobs.data.schema import schema_problems
from rectrain_jobs.features import LabelEncoder
from rectrain_jobs.models.log_uniform import LogUniformSampler
from rectrain_jobs.resolution import cache_limit_bytes, storage_options
from rectrain_jobs.training.distributed import Ranks

Columns = dict[str, npt.NDArray[Any]]

SCAN_ROWS = 1 << 16
"""Rows read at once when a whole dataset is gone through."""


def open_dataset(job: RecTrainingJob, uri: str, columns: Sequence[str]) -> MDSDataset:
    """Open a dataset of the job and check that it has the columns that are read, of the types that they should have.

    Raises:
        UserError: It cannot be read, is empty, or lacks a column.
    """
    directory = job.spec.data.cache.directory
    dataset = MDSDataset(
        uri,
        storage_options(job),
        cache_dir=Path(directory) if directory is not None else None,
        cache_limit=cache_limit_bytes(job),
    )
    for column in columns:
        if column not in dataset.columns:
            raise UserError(
                f"{uri}: has no column {column!r}, which the job names; its columns are {', '.join(dataset.columns)}"
            )
    for problem in schema_problems(dataset, job.spec.features, job.spec.labels, columns):
        raise UserError(f"{uri}: {problem}")
    return dataset


class RowChecker:
    """Checks every batch before it reaches a kernel, which would not: ids in range, numbers finite, labels allowed.

    Args:
        spec: The job.
        dataset: What the rows are from, for messages.
    """

    def __init__(self, spec: RecTrainingJobSpec, dataset: MDSDataset) -> None:
        """Look up the number of rows of each feature's table."""
        rows = {table.name: table.num_embeddings for table in embedding_tables(spec)}
        self._dataset = dataset
        self._ids = [(f, rows[table_of(spec, f)]) for f in embedded_features(spec)]
        self._dense = [f.name for f in spec.features if f.kind is FeatureKind.DENSE]
        self._labels = [LabelEncoder(label) for label in spec.labels]

    def check(self, columns: Columns, sample_ids: npt.NDArray[np.int64]) -> None:
        """Check the columns of a batch that are features or labels.

        Raises:
            UserError: A value is wrong; the message names feature, value, row and what would be right.
        """
        for feature, num_rows in self._ids:
            column = columns.get(feature.name)
            if column is None or column.size == 0:
                continue
            lowest = -1 if feature.kind is FeatureKind.SEQUENCE else 0
            if column.min() < lowest or column.max() >= num_rows:
                self._refuse_id(feature, column, sample_ids, lowest, num_rows)
        for name in self._dense:
            column = columns.get(name)
            if column is not None:
                self._refuse_number(name, column, np.isfinite(column), "a finite number", sample_ids)
        for label in self._labels:
            column = columns.get(label.name)
            if column is not None:
                self._refuse_number(label.name, column, label.allows(column), label.expected, sample_ids)

    def _refuse_number(
        self, name: str, column: npt.NDArray[Any], right: Any, expected: str, sample_ids: npt.NDArray[np.int64]
    ) -> None:
        if right.all():
            return
        row = np.flatnonzero(~right.reshape(len(column), -1).all(axis=1))[0]
        raise UserError(f"{self._dataset.uri}: row {sample_ids[row]}: {name} is {column[row]}; must be {expected}")

    def _refuse_id(
        self,
        feature: Feature,
        column: npt.NDArray[Any],
        sample_ids: npt.NDArray[np.int64],
        lowest: int,
        num_rows: int,
    ) -> None:
        bad = (column < lowest) | (column >= num_rows)
        row = int(np.flatnonzero(bad.reshape(len(column), -1).any(axis=1))[0])
        value = column[bad][0]
        raise UserError(
            f"{self._dataset.uri}: row {sample_ids[row]}: feature {feature.name} has id {value}; must be 0 to "
            f"{num_rows - 3} (cardinality {num_rows - 2}), {num_rows - 2} for out-of-vocabulary or {num_rows - 1} for "
            "missing"
        )


@dataclass(frozen=True)
class TrainingBatch:
    """A batch on its way to the model.

    Attributes:
        batch: The rows.
        sample_ids: int64 [rows] numbers of the rows in the dataset; -1 is padding.
        after: Where a run that stops after this batch continues.
    """

    batch: Batch
    sample_ids: npt.NDArray[np.int64]
    after: Position


class TrainingData:
    """The training rows of one rank, in the order of StreamingDataset.

    Args:
        job: The job, with absolute URIs.
        ranks: The process group.
    """

    def __init__(self, job: RecTrainingJob, ranks: Ranks) -> None:
        """Open the dataset."""
        spec = job.spec
        self._ranks = ranks
        self._spec = spec
        self._builder = BatchBuilder(spec)
        self.dataset = open_dataset(job, spec.data.train.uri, self._builder.columns)
        self._checker = RowChecker(spec, self.dataset)
        shuffle = spec.data.shuffle
        self._order = Order(
            shuffle=shuffle.enabled,
            algorithm=shuffle.algorithm.value,
            seed=shuffle.seed,
            block_size=shuffle.block_size,
        )
        self._world = World(ranks.num_nodes, ranks.local_world_size, ranks.rank)
        self._negatives = self._negative_items()

    def batches_in_epoch(self) -> int:
        """Return the number of batches of a whole epoch, the same on every rank and in every epoch."""
        rows_of_rank = -(-self.dataset.num_samples // self._world.num_ranks)
        return -(-rows_of_rank // self._spec.training.batch_size)

    @property
    def num_negative_items(self) -> int | None:
        """Number of items that negatives are drawn from; None without them."""
        return None if self._negatives is None else self._negatives.num_items

    def batches_done(self, position: Position) -> int:
        """Return the number of batches of its epoch that a position is after, on this number of ranks."""
        if position.sample_in_epoch == 0:
            return 0
        return self.batches_in_epoch() - len(self._reader(position))

    def epoch(self, position: Position, first_step: int) -> Generator[TrainingBatch, None, None]:
        """Read an epoch, or the rest of one; as many batches on every rank.

        Args:
            position: Where to begin.
            first_step: Number of the first batch's step, which decides its negatives.

        Raises:
            UserError: A shard is damaged or cannot be fetched, or a value is out of range.
        """
        reader = self._reader(position)
        last = len(reader) - 1
        for number, rows in enumerate(reader):
            after = rows.position.next_epoch() if number == last else rows.position
            yield TrainingBatch(self._build(rows, first_step + number), rows.sample_ids, after)

    def item_counts(self) -> torch.Tensor:
        """Return how often each item is in the training data, int64 [rows of the item table]. All ranks call it."""
        item = self._spec.feature(self._spec.model.item_id)
        rows = item_table(self._spec).num_embeddings
        counts = np.zeros(rows, np.int64)
        for batch in self.dataset.evaluation_pass(batch_size=SCAN_ROWS, world=self._world, columns=[item.name]):
            self._checker.check(batch.columns, batch.sample_ids)
            counts += np.bincount(batch.columns[item.name][batch.mask], minlength=rows)
        total = torch.from_numpy(counts)
        dist.all_reduce(total, group=self._ranks.control)
        return total

    def _negative_items(self) -> "UniformNegatives | PopularNegatives | None":
        section = self._spec.model.section
        if isinstance(section, MIND):
            counts = self.item_counts().numpy()
            sampler = LogUniformSampler(counts, len(counts) - EXTRA_ROWS, section.negatives.count)
            return PopularNegatives(sampler, self._spec.model.item_id, self._spec.training.seed)
        if isinstance(section, TwoTower) and section.negatives.uniform:
            items = item_columns(self._spec, [self.dataset])
            return UniformNegatives(items, section.negatives.uniform, self._spec.training.seed)
        return None

    def _reader(self, position: Position) -> BatchReader:
        return self.dataset.training_epoch(
            position,
            batch_size=self._spec.training.batch_size,
            world=self._world,
            order=self._order,
            columns=self._builder.columns,
        )

    def _build(self, rows: ColumnBatch, step: int) -> Batch:
        self._checker.check(rows.columns, rows.sample_ids)
        negatives = None if self._negatives is None else self._negatives.draw(step, self._ranks.rank)
        batch = self._builder.build(rows.columns, rows.mask, negatives)
        # The pipeline copies a batch to the GPU while it computes on another, if it can.
        return batch.pin_memory() if self._ranks.device.type == "cuda" else batch


class UniformNegatives:
    """Items drawn uniformly, the same for a step and rank whenever it is run.

    Args:
        items: Item-side columns of every item.
        count: Items drawn for a step on each rank.
        seed: Seed of the draws.
    """

    def __init__(self, items: Columns, count: int, seed: int) -> None:
        """Hold the items."""
        self._items = items
        self._count = count
        self._seed = seed
        self.num_items = len(next(iter(items.values())))

    def draw(self, step: int, rank: int) -> Columns:
        """Return item-side columns of the items of a step."""
        rng = np.random.default_rng((self._seed, step, rank))
        chosen = rng.integers(self.num_items, size=self._count)
        return {name: column[chosen] for name, column in self._items.items()}


class PopularNegatives:
    """Items drawn by popularity, the same for a step and rank whenever it is run.

    Args:
        sampler: Draws them.
        item_id: Name of the item feature.
        seed: Seed of the draws.
    """

    def __init__(self, sampler: LogUniformSampler, item_id: str, seed: int) -> None:
        """Hold the sampler."""
        self._sampler = sampler
        self._item_id = item_id
        self._seed = seed
        self.num_items = sampler.num_items

    def draw(self, step: int, rank: int) -> Columns:
        """Return the ids of the items of a step."""
        return {self._item_id: self._sampler.draw(np.random.default_rng((self._seed, step, rank)))}


def item_columns(spec: RecTrainingJobSpec, datasets: Sequence[MDSDataset]) -> Columns:
    """Return the item-side columns of the corpus, one row for each item, by rising id.

    Where the id is all that is known of an item, and ids are taken as they are, the corpus is every id of the
    cardinality. Otherwise it is the items of the data, each with the features of its last row: a vocabulary may be
    smaller than its cardinality, and what nothing stands for is no item.

    Args:
        spec: The job.
        datasets: Where items are looked for; a later dataset's rows come after.
    """
    item_id = spec.model.item_id
    cardinality = categorical_of(spec, spec.feature(item_id)).cardinality
    assert cardinality is not None, "Feature.rules() asks for it"
    names = [f.name for f in spec.features if f.side is Side.ITEM]
    if names == [item_id] and encoding_of(categorical_of(spec, spec.feature(item_id))) is Encoding.IDENTITY:
        return {item_id: np.arange(cardinality, dtype=np.int64)}
    known = np.zeros(cardinality, bool)
    found: Columns = {}
    for dataset in datasets:
        checker = RowChecker(spec, dataset)
        for batch in dataset.evaluation_pass(batch_size=SCAN_ROWS, columns=names):
            checker.check(batch.columns, batch.sample_ids)
            ids = batch.columns[item_id]
            inside = batch.mask & (ids < cardinality)
            ids = ids[inside]
            known[ids] = True
            for name in names:
                values = batch.columns[name][inside]
                if name not in found:
                    found[name] = np.zeros((cardinality, *values.shape[1:]), values.dtype)
                found[name][ids] = values
    return {name: values[known] for name, values in found.items()}
