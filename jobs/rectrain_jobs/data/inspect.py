"""What is in a dataset of shards, and whether it fits a job."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rectrain.api.features import Feature, FeatureKind, Label, Task
from rectrain.api.job import RecTrainingJobSpec
from rectrain_jobs.data.mds import Column, MDSDataset
from rectrain_jobs.data.record import DatasetRecord
from rectrain_jobs.data.schema import schema_problems
from rectrain_jobs.features import FEATURES_FILE, FeatureSet
from rectrain_jobs.pipeline.sequence import PADDING
from rectrain_jobs.storage import Storage, open_store

BATCH_ROWS = 1 << 16


@dataclass
class ColumnReport:
    """What is in one column.

    Attributes:
        name: The column.
        encoding: Its MDS encoding.
        kind: What it is: a feature's kind, "Label", or "Unknown".
        values: Number of values; of a sequence its elements without padding.
        minimum: Smallest value; for ids, of known ones. None without any.
        maximum: Largest value, likewise.
        mean: Mean; None for ids.
        cardinality: Declared number of ids.
        missing: Share of values in the missing row; for a sequence, of its elements.
        out_of_vocabulary: Share of values in the out-of-vocabulary row, likewise.
        empty: Sequence: share of rows without an element.
        mean_length: Sequence: elements of a row, on average.
        shares: MultiClass, MultiLabel: share of rows of each class.
    """

    name: str
    encoding: str
    kind: str
    values: int = 0
    minimum: float | None = None
    maximum: float | None = None
    mean: float | None = None
    cardinality: int | None = None
    missing: float | None = None
    out_of_vocabulary: float | None = None
    empty: float | None = None
    mean_length: float | None = None
    shares: list[float] | None = None


@dataclass
class DatasetReport:
    """What is in a dataset.

    Attributes:
        uri: Where it lies.
        rows: Number of rows.
        shards: Number of shards.
        bytes: Size of all shards.
        smallest_shard: Bytes of the smallest one.
        largest_shard: Bytes of the largest one.
        columns: What is in the columns.
        record: Content of dataset.json, if there is one.
        problems: What does not fit the features and labels, of the job or else of features.json.
    """

    uri: str
    rows: int
    shards: int
    bytes: int
    smallest_shard: int
    largest_shard: int
    columns: list[ColumnReport]
    record: DatasetRecord | None
    problems: list[str] = field(default_factory=list)


def inspect_dataset(
    uri: str, spec: RecTrainingJobSpec | None = None, storage: Storage | None = None, cache: Path | None = None
) -> DatasetReport:
    """Read a dataset of shards and tell what is in it.

    Args:
        uri: Folder of index.json.
        spec: A job whose features and labels the shards should have; None for those of features.json, if there is one.
        storage: How S3 is reached.
        cache: Folder for copies of remote shards.

    Raises:
        UserError: There is no dataset, or it is damaged.
    """
    dataset = MDSDataset(uri, storage, cache)
    store = open_store(uri, storage)
    features: Sequence[Feature] = spec.features if spec else []
    labels: Sequence[Label] = spec.labels if spec else []
    if spec is None and store.exists(FEATURES_FILE):
        features = FeatureSet.load(store).features
    sizes = [shard.raw.bytes for shard in dataset.index.shards]
    report = DatasetReport(
        uri=store.uri,
        rows=dataset.num_samples,
        shards=len(sizes),
        bytes=sum(sizes),
        smallest_shard=min(sizes),
        largest_shard=max(sizes),
        columns=[],
        record=DatasetRecord.load(store),
    )
    report.problems += schema_problems(dataset, features, labels)
    # In the order of the definitions; what nobody declared comes last, as shards have it: by name.
    names = [feature.name for feature in features] + [label.name for label in labels]
    order = {name: place for place, name in enumerate(names)}
    columns = sorted(dataset.columns.values(), key=lambda column: order.get(column.name, len(order)))
    collectors = [_collector(column, features, labels, report.record) for column in columns]
    for first in range(0, dataset.num_samples, BATCH_ROWS):
        rows = np.arange(first, min(first + BATCH_ROWS, dataset.num_samples))
        values = dataset.gather(rows)
        for collector in collectors:
            if values[collector.report.name].dtype != object:
                collector.add(values[collector.report.name])
    for collector in collectors:
        report.columns.append(collector.finish())
        report.problems += collector.problems
    return report


def _collector(
    column: Column, features: Sequence[Feature], labels: Sequence[Label], record: DatasetRecord | None
) -> "_Collector":
    by_name = {feature.name: feature for feature in features}
    feature = by_name.get(column.name)
    if feature is not None and feature.kind is not FeatureKind.DENSE:
        owner = by_name[feature.of] if feature.of is not None else feature
        return _IdCollector(column, str(feature.kind), owner.cardinality or 0)
    tasks = {label.name: str(label.task) for label in labels}
    if record is not None:
        tasks |= {name: entry["task"] for name, entry in record.labels.items()}
    if column.name in tasks:
        return _LabelCollector(column, tasks[column.name])
    return _Collector(column, str(feature.kind) if feature is not None else "Unknown")


class _Collector:
    """Sums over the values of a column of numbers."""

    def __init__(self, column: Column, kind: str) -> None:
        self.report = ColumnReport(column.name, column.encoding, kind)
        self.problems: list[str] = []
        self._sum = 0.0
        self._not_finite = 0

    def add(self, values: npt.NDArray[Any]) -> None:
        """Add the values of some rows."""
        finite = np.isfinite(values)
        self._not_finite += int(values.size - finite.sum())
        self._sum += float(values[finite].sum(dtype=np.float64))
        self._note_range(values[finite])
        self.report.values += values.size

    def finish(self) -> ColumnReport:
        """Return what was found."""
        if self._not_finite:
            self.problems.append(f"{self.report.name}: has {self._not_finite} values that are NaN or infinite")
        if self.report.values:
            self.report.mean = self._sum / self.report.values
        return self.report

    def _note_range(self, values: npt.NDArray[Any]) -> None:
        if values.size:
            low, high = values.min().item(), values.max().item()
            self.report.minimum = low if self.report.minimum is None else min(low, self.report.minimum)
            self.report.maximum = high if self.report.maximum is None else max(high, self.report.maximum)


class _LabelCollector(_Collector):
    """Counts the labels of a column by class."""

    def __init__(self, column: Column, task: str) -> None:
        super().__init__(column, "Label")
        self._task = task
        self._counts = np.zeros(column.shape or 0)
        self._rows = 0

    def add(self, values: npt.NDArray[Any]) -> None:
        super().add(values)
        self._rows += len(values)
        if self._task == Task.MULTI_LABEL:
            self._counts += values.sum(axis=0, dtype=np.float64)
        elif self._task == Task.MULTI_CLASS and values.size and values.min() >= 0:
            counts = np.bincount(values, minlength=len(self._counts)).astype(np.float64)
            counts[: len(self._counts)] += self._counts
            self._counts = counts
        elif self._task == Task.BINARY and not np.isin(values, (0, 1)).all():
            self.problems = [f"{self.report.name}: has values other than 0 and 1"]

    def finish(self) -> ColumnReport:
        report = super().finish()
        if self._task in (Task.MULTI_LABEL, Task.MULTI_CLASS):
            report.shares = (self._counts / max(self._rows, 1)).tolist()
            report.mean = None
        return report


class _IdCollector(_Collector):
    """Counts the ids of a column against the cardinality that is declared."""

    def __init__(self, column: Column, kind: str, cardinality: int) -> None:
        super().__init__(column, kind)
        self.report.cardinality = cardinality
        self._missing = 0
        self._unknown = 0
        self._wrong = 0
        self._rows = 0
        self._empty = 0

    def add(self, values: npt.NDArray[Any]) -> None:
        cardinality = self.report.cardinality or 0
        if values.ndim == 2:
            present = values != PADDING
            self._empty += int((~present.any(axis=1)).sum())
            self._rows += len(values)
            values = values[present]
        known = (values >= 0) & (values < cardinality)
        self._unknown += int((values == cardinality).sum())
        self._missing += int((values == cardinality + 1).sum())
        self._wrong += int((~known).sum() - (values == cardinality).sum() - (values == cardinality + 1).sum())
        self._note_range(values[known])
        self.report.values += values.size

    def finish(self) -> ColumnReport:
        report = self.report
        if self._wrong:
            self.problems.append(
                f"{report.name}: has {self._wrong} values outside the table's rows (cardinality {report.cardinality})"
            )
        report.missing = self._missing / max(report.values, 1)
        report.out_of_vocabulary = self._unknown / max(report.values, 1)
        if self._rows:
            report.empty = self._empty / self._rows
            report.mean_length = report.values / self._rows
        return report
