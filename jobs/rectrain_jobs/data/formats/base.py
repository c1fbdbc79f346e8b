"""What raw formats have in common: what is asked of them, the batches they give, and how rows are held out."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rectrain.api.data import DataSource
from rectrain.api.errors import UserError
from rectrain.api.features import Encoding, Feature, FeatureKind, Label, Task
from rectrain.api.job import RecTrainingJobSpec
from rectrain.api.tables import encoding_of
from rectrain_jobs.data.source import SourceFile, find_files
from rectrain_jobs.pipeline.values import ValueRefusedError, integers_of_text
from rectrain_jobs.storage import Storage

BATCH_ROWS = 1 << 16
"""Rows that are handled together, about."""


@dataclass(frozen=True)
class Definition:
    """What a dataset is to hold, and the raw input that it is made from.

    Attributes:
        source: The raw input.
        features: The features, each a column.
        labels: The labels, each a column.
        user_id: Name of the feature that identifies the user, for formats that know users.
        item_id: Name of the feature that identifies the item, for formats that know items.
        hold_out: Whether validation rows are wanted.
        storage: How S3 is reached.
    """

    source: DataSource
    features: Sequence[Feature]
    labels: Sequence[Label]
    user_id: str = "user_id"
    item_id: str = "item_id"
    hold_out: bool = True
    storage: Storage = field(default_factory=Storage)

    @classmethod
    def of_job(cls, spec: RecTrainingJobSpec) -> "Definition":
        """Return what a job, whose relative paths have been resolved, asks for."""
        if spec.data.source is None:
            raise UserError("spec.data.source: is required: the raw data to convert")
        storage = Storage(endpoint_url=spec.data.storage.endpoint_url, region=spec.data.storage.region)
        return cls(
            source=spec.data.source,
            features=spec.features,
            labels=spec.labels,
            user_id=spec.model.user_id,
            item_id=spec.model.item_id,
            hold_out=spec.data.validation is not None,
            storage=storage,
        )

    def train_files(self) -> list[SourceFile]:
        """Find the raw training files."""
        return self._files(self.source.uri)

    def validation_files(self) -> list[SourceFile]:
        """Find the raw validation files; none where the training input is split."""
        return self._files(self.source.validation_uri)

    def _files(self, uri: str | None) -> list[SourceFile]:
        return find_files(uri, self.storage) if uri is not None else []


@dataclass(frozen=True)
class RawBatch:
    """Rows of raw values.

    Attributes:
        columns: Arrow arrays by feature or label name.
        file: The file that they are from.
        numbers: int64 `[rows]`: line of each row in the file, or with `unit` "row" its number, both from 1.
        unit: "line" or "row".
    """

    columns: Mapping[str, "pa.Array[Any]"]
    file: str
    numbers: npt.NDArray[np.int64]
    unit: str = "line"

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return len(self.numbers)

    def where(self, row: int) -> str:
        """Return the place of a row, for messages."""
        number = self.numbers[row] if row < len(self.numbers) else "?"
        return f"{self.file}:{number}" if self.unit == "line" else f"{self.file}: row {number}"

    @contextmanager
    def locating(self) -> Iterator[None]:
        """Add file and line to errors about a row of this batch."""
        try:
            yield
        except ValueRefusedError as error:
            raise UserError(f"{self.where(error.row or 0)}: {error.column}: {error.problem}") from None

    def select(self, mask: npt.NDArray[np.bool_]) -> "RawBatch":
        """Return the rows for which the mask is true."""
        if mask.all():
            return self
        arrow_mask: Any = pa.array(mask)
        columns: dict[str, pa.Array[Any]] = {name: column.filter(arrow_mask) for name, column in self.columns.items()}
        return RawBatch(columns, self.file, self.numbers[mask], self.unit)


class Reader(ABC):
    """Reads one raw format; made for one definition, whose features and labels it can give."""

    def __init__(self, definition: Definition) -> None:
        """Check that the format can give what the definition asks for.

        Raises:
            UserError: It cannot.
        """
        self.definition = definition

    @abstractmethod
    def train(self) -> Iterator[RawBatch]:
        """Give the training rows in source order; may be called again."""

    @abstractmethod
    def validation(self) -> Iterator[RawBatch]:
        """Give the validation rows in source order; none where there is nothing to hold out."""

    def metadata(self) -> dict[str, Any]:
        """Return what is known about the rows beyond themselves, once they have been read."""
        return {}


class RowReader(Reader):
    """Reads a format whose rows stand alone, so that any of them can be held out."""

    @abstractmethod
    def rows(self, file: SourceFile) -> Iterator[RawBatch]:
        """Give all rows of a file in order."""

    def train(self) -> Iterator[RawBatch]:
        """Give the rows of the training input that are not held out."""
        yield from self._split(self.definition.train_files(), held_out=False)

    def validation(self) -> Iterator[RawBatch]:
        """Give the rows of the validation input, or those of the training input that are held out."""
        files = self.definition.validation_files()
        if files:
            for file in files:
                yield from self.rows(file)
        elif self.definition.source.validation_fraction is not None:
            yield from self._split(self.definition.train_files(), held_out=True)

    def _split(self, files: Sequence[SourceFile], held_out: bool) -> Iterator[RawBatch]:
        fraction = self.definition.source.validation_fraction
        position = 0
        for file in files:
            for batch in self.rows(file):
                if fraction is None:
                    yield batch
                else:
                    mask = is_held_out(np.arange(position, position + batch.num_rows), fraction)
                    yield batch.select(mask if held_out else ~mask)
                position += batch.num_rows


class Pairs(NamedTuple):
    """Some interactions of a file, in its order.

    Attributes:
        file: The file.
        users: Arrow strings `[interactions]`.
        items: Arrow strings or integers `[interactions]`.
        numbers: int64 `[interactions]`: line numbers.
        times: float64 `[interactions]`, or None where the order in the file is all that is known.
    """

    file: str
    users: Any
    items: Any
    numbers: npt.NDArray[np.int64]
    times: npt.NDArray[np.float64] | None = None


def check_columns(file: SourceFile, columns: Mapping[str, str], names: Sequence[str]) -> None:
    """Check that a file has each column that is wanted, and has it once.

    Args:
        file: The file.
        columns: The column of the file for each name that is wanted.
        names: Names of the file's columns.

    Raises:
        UserError: A column is not there, or there twice.
    """
    for wanted, column in columns.items():
        count = names.count(column)
        if count == 0:
            raise UserError(f"{file.uri}: {wanted}: there is no column {column!r}; it has {', '.join(names)}")
        if count > 1:
            raise UserError(f"{file.uri}: {wanted}: there are {count} columns {column!r}; give one another name")


def is_held_out(positions: npt.NDArray[np.int64], fraction: float) -> npt.NDArray[np.bool_]:
    """Tell which rows are held out for validation, by a hash of their position in the source.

    Args:
        positions: int64 `[rows]`, from 0 over all files.
        fraction: Share that is held out.

    Returns:
        bool `[rows]`; a row's answer depends on its position and the fraction alone.
    """
    return splitmix64(positions.astype(np.uint64)) < np.uint64(fraction * 2**64)


def splitmix64(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return a hash of each value: the finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def id_array(tokens: Any, feature: Feature) -> "pa.Array[Any]":
    """Return texts as the integers they are, when the feature takes integers as they are; else the texts."""
    is_text = pa.types.is_string(tokens.type) or pa.types.is_large_string(tokens.type)
    if is_text and encoding_of(feature) is Encoding.IDENTITY:
        return integers_of_text(tokens) or tokens
    return tokens  # type: ignore[no-any-return]


class InteractionColumns:
    """The columns of formats that know users, items and a user's other items, checked against a definition.

    Attributes:
        user: The user feature, or None when it is not declared.
        item: The item feature.
        histories: Names of the sequences of items.
        history_length: The longest of them; 0 without any.
    """

    def __init__(self, definition: Definition) -> None:
        """Check that every feature is a user, an item or a history, and every label binary.

        Raises:
            UserError: One is not.
        """
        self.definition = definition
        by_name = {feature.name: feature for feature in definition.features}
        self.user = by_name.get(definition.user_id)
        item = by_name.get(definition.item_id)
        known = f"{definition.source.format} gives {definition.user_id}, {definition.item_id} and Sequences of them"
        if item is None:
            raise UserError(f"features: {definition.item_id} is required: {known}")
        self.item = item
        self.histories = []
        self.history_length = 0
        for feature in definition.features:
            if feature.kind is FeatureKind.SEQUENCE and feature.of == definition.item_id:
                self.histories.append(feature.name)
                self.history_length = max(self.history_length, feature.max_length or 0)
            elif feature.name not in (definition.user_id, definition.item_id):
                raise UserError(f"features[{feature.name}]: is not in the data: {known} (of: {definition.item_id})")
        for label in definition.labels:
            if label.task is not Task.BINARY:
                raise UserError(
                    f"labels[{label.name}].task: must be Binary for {definition.source.format}, where every row is a 1"
                )

    def batch(self, pairs: Pairs, history: Any = None) -> RawBatch:
        """Return a batch of interactions: users, items, 1 for every label, and the histories."""
        columns: dict[str, Any] = {self.item.name: id_array(pairs.items, self.item)}
        if self.user is not None:
            columns[self.user.name] = id_array(pairs.users, self.user)
        ones = np.ones(len(pairs.numbers), np.float32)
        columns.update({label.name: pa.array(ones) for label in self.definition.labels})
        columns.update(dict.fromkeys(self.histories, history))
        return RawBatch(columns, pairs.file, pairs.numbers)
