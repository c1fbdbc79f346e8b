"""Conversion of raw data to shards: fit the features, transform, write, publish at the end."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from rectrain.api.data import SourceFormat
from rectrain.api.errors import UserError
from rectrain.api.features import Label, Task
from rectrain.api.job import RecTrainingJobSpec
from rectrain_jobs.data.formats import Definition, RawBatch, open_reader
from rectrain_jobs.data.mds.index import INDEX_NAME
from rectrain_jobs.data.record import (
    RECORD_FILE,
    DatasetRecord,
    Input,
    describe_inputs,
    features_digest,
    rectrain_version,
    source_digest,
    source_settings,
)
from rectrain_jobs.data.source import is_read_as_input
from rectrain_jobs.data.target import MARKER_FILE, Target
from rectrain_jobs.data.writer import SHARD_BYTES, ShardWriter, index_digest
from rectrain_jobs.features import FeatureSet, LabelEncoder
from rectrain_jobs.features.feature_set import FEATURES_FILE, vocabulary_file
from rectrain_jobs.storage import ObjectStore, open_store


class Progress(Protocol):
    """Hears how a conversion goes."""

    def say(self, text: str) -> None:
        """Take a line about what is done next."""

    def advance(self, stage: str, rows: int) -> None:
        """Take the number of rows that a stage has done since the last call."""


class Quiet:
    """Hears, and says nothing."""

    def say(self, text: str) -> None:
        """Say nothing."""

    def advance(self, stage: str, rows: int) -> None:
        """Say nothing."""


@dataclass(frozen=True)
class Conversion:
    """What a conversion made: the fitted features, and the record of each dataset by split."""

    features: FeatureSet
    records: dict[str, DatasetRecord]


def gives_validation(definition: Definition) -> bool:
    """Tell whether a source has validation rows."""
    source = definition.source
    return (
        source.validation_uri is not None
        or source.validation_fraction is not None
        or source.format in (SourceFormat.SEQUENCES, SourceFormat.SYNTHETIC)
    )


def convert(
    definition: Definition,
    train_uri: str,
    validation_uri: str | None = None,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Conversion:
    """Convert raw data to MDS shards with features.json and dataset.json beside them.

    The rows are in source order. Vocabularies and statistics are learnt from the training rows alone, in a pass before
    the one that writes. Nothing is a dataset before every split is written: index.json is written last, and what was
    there before stays until then. Of several processes that convert to one local folder, one is at work at a time.

    Args:
        definition: What to convert to what.
        train_uri: Where the training shards go.
        validation_uri: Where the validation shards go; None when the source has no validation rows.
        overwrite: Replace what is there.
        progress: Hears how it goes.
        shard_bytes: The largest shard.

    Raises:
        UserError: The raw data has a wrong value (it names file, line, feature and value), the target is not empty,
            the disk is full, or a store refuses. Nothing is published.
    """
    progress = progress or Quiet()
    uris = {"train": train_uri} | ({"validation": validation_uri} if validation_uri is not None else {})
    stores = {split: open_store(uri, definition.storage) for split, uri in uris.items()}
    with _alone_in(stores, progress):
        return _convert(definition, stores, overwrite, progress, shard_bytes)


def _convert(
    definition: Definition, stores: Mapping[str, ObjectStore], overwrite: bool, progress: Progress, shard_bytes: int
) -> Conversion:
    """Convert to stores that are held, as `convert`."""
    if len({store.uri for store in stores.values()}) < len(stores):
        where = stores["train"].uri
        raise UserError(f"{where}: is the place of training and of validation shards; they need two")
    for store in stores.values():
        for uri in filter(None, (definition.source.uri, definition.source.validation_uri)):
            if is_read_as_input(store, uri):
                raise UserError(
                    f"{store.uri}: is in the raw data {uri}, and would be read as such; choose another place"
                )
    reader = open_reader(definition)
    encoders = [LabelEncoder(label) for label in definition.labels]
    inputs = _inputs(definition)
    targets = {split: Target.look(store) for split, store in stores.items()}
    if not overwrite:
        for target in targets.values():
            target.refuse_to_replace()

    features = FeatureSet(definition.features)
    if features.needs_fit:
        progress.say(f"Learning {', '.join(features.fitted_names)} from the training rows, then reading them again.")
        for batch in reader.train():
            with batch.locating():
                features.partial_fit(batch.columns)
            progress.advance("fit", batch.num_rows)
        features.finish_fit()

    columns = {name: (made.dtype, made.shape) for name, made in features.transformers.items()}
    columns |= {encoder.name: (encoder.dtype, encoder.shape) for encoder in encoders}
    files = [vocabulary_file(vocabulary.name) for vocabulary in features.vocabularies.values()]
    files += [FEATURES_FILE, RECORD_FILE, INDEX_NAME]
    with _cleaned_up(targets.values()) as writers:
        datasets: dict[str, tuple[bytes, LabelStatistics]] = {}
        for split, target in targets.items():
            target.mark(rectrain_version())
            writers[split] = writer = ShardWriter(target.store, columns, shard_bytes)
            statistics = LabelStatistics(definition.labels)
            batches = reader.train() if split == "train" else reader.validation()
            for values in _transformed(batches, features, encoders):
                writer.write(values)
                statistics.add(values)
                progress.advance(split, len(next(iter(values.values()))))
            if writer.rows == 0:
                raise UserError(f"{_source_name(definition, split)}: gives no {split} rows")
            datasets[split] = (writer.finish(), statistics)
        records = {
            split: DatasetRecord(
                split=split,
                rows=writers[split].rows,
                source=source_settings(definition),
                inputs=inputs,
                source_digest=source_digest(definition, inputs),
                features_digest=features_digest(definition),
                labels=statistics.summary(),
                metadata=reader.metadata(),
                index_digest=index_digest(index),
            )
            for split, (index, statistics) in datasets.items()
        }
        with _undone_on_failure(targets.values(), files):
            # Validation first: whoever sees the training shards finds the others too.
            for split in reversed(targets):
                features.save(stores[split])
                records[split].save(stores[split])
                stores[split].write_bytes(INDEX_NAME, datasets[split][0])
    for split, target in targets.items():
        target.remove_old({*writers[split].keys, *files})
    return Conversion(features, records)


def needs_conversion(spec: RecTrainingJobSpec) -> str | None:
    """Tell why a job's shards have to be made, again or at all.

    Args:
        spec: The job, with its relative paths resolved.

    Returns:
        The reason, or None when they are as the job wants them, or are not made from a source.

    Raises:
        UserError: There are shards that no conversion made, or the raw data is not there.
    """
    if spec.data.source is None:
        return None
    definition = Definition.of_job(spec)
    for split, store in _stores(spec, definition).items():
        target = Target.look(store)
        if not target.is_complete:
            if target.is_cut_off:
                return f"{store.uri} is half-written: a conversion was cut off"
            target.refuse_to_replace()
            return f"there are no {split} shards at {store.uri}"
        record = DatasetRecord.load(store)
        if record is None:
            raise UserError(
                f"{store.uri}: holds shards that were not converted from data.source: there is no {RECORD_FILE} beside "
                "them; leave out data.source to use them, or choose another place"
            )
        if record.index_digest != index_digest(store.read_bytes(INDEX_NAME)):
            return f"{store.uri} is half-written: {RECORD_FILE} is not about the {INDEX_NAME} beside it"
        if record.features_digest != features_digest(definition):
            return f"the features or labels differ from those of the shards at {store.uri}"
        if record.source_digest != source_digest(definition, _inputs(definition, record.inputs)):
            return f"the raw data differs from that of the shards at {store.uri}"
    return None


def ensure_converted(spec: RecTrainingJobSpec, progress: Progress | None = None) -> Conversion | None:
    """Convert a job's raw data if its shards are missing or no longer what the job wants, and say why.

    Args:
        spec: The job, with its relative paths resolved.
        progress: Hears how it goes.

    Returns:
        What was made, or None when nothing had to be.

    Raises:
        UserError: As `needs_conversion` and `convert`.
    """
    if needs_conversion(spec) is None:
        return None
    progress = progress or Quiet()
    definition = Definition.of_job(spec)
    stores = _stores(spec, definition)
    with _alone_in(stores, progress):
        reason = needs_conversion(spec)  # again: another process may just have done it
        if reason is None:
            return None
        progress.say(f"Converting the raw data: {reason}.")
        return _convert(definition, stores, overwrite=True, progress=progress, shard_bytes=SHARD_BYTES)


class LabelStatistics:
    """Sums over the labels of a dataset."""

    def __init__(self, labels: Iterable[Label]) -> None:
        """Begin with no rows."""
        self._labels = list(labels)
        self._sums: dict[str, Any] = {label.name: 0 for label in self._labels}
        self._rows = 0

    def add(self, columns: dict[str, npt.NDArray[Any]]) -> None:
        """Add a batch of encoded labels."""
        for label in self._labels:
            values = columns[label.name]
            if label.task is Task.MULTI_CLASS:
                self._sums[label.name] = self._sums[label.name] + np.bincount(values, minlength=label.num_classes or 0)
            else:
                self._sums[label.name] = self._sums[label.name] + values.sum(axis=0, dtype=np.float64)
        self._rows += len(next(iter(columns.values())))

    def summary(self) -> dict[str, Any]:
        """Return by label the mean, for MultiLabel that of each class, for MultiClass the share of each class."""
        return {
            label.name: {
                "task": str(label.task),
                "shares" if label.num_classes else "mean": (self._sums[label.name] / self._rows).tolist(),
            }
            for label in self._labels
        }


@contextmanager
def _alone_in(stores: Mapping[str, ObjectStore], progress: Progress) -> Iterator[None]:
    """Hold the folders of the shards; where another conversion is at work there, wait for its end and say so."""
    by_uri = {store.uri: store for store in stores.values()}
    with ExitStack() as held:
        for uri in sorted(by_uri):  # in one order, so that no two wait for each other
            held.enter_context(
                by_uri[uri].exclusive(partial(progress.say, f"Waiting for another conversion to {uri} to end."))
            )
        yield


def _stores(spec: RecTrainingJobSpec, definition: Definition) -> dict[str, ObjectStore]:
    uris = {"train": spec.data.train.uri}
    if spec.data.validation is not None and gives_validation(definition):
        uris["validation"] = spec.data.validation.uri
    return {split: open_store(uri, definition.storage) for split, uri in uris.items()}


def _inputs(definition: Definition, known: Iterable[Input] = ()) -> list[Input]:
    return describe_inputs([*definition.train_files(), *definition.validation_files()], list(known))


def _source_name(definition: Definition, split: str) -> str:
    source = definition.source
    uri = source.validation_uri if split == "validation" else source.uri
    return uri or source.uri or str(source.format)


def _transformed(
    batches: Iterable[RawBatch], features: FeatureSet, encoders: list[LabelEncoder]
) -> Iterator[dict[str, npt.NDArray[Any]]]:
    for batch in batches:
        if batch.num_rows:
            with batch.locating():
                values = features.transform_batch(batch.columns)
                values.update({encoder.name: encoder.encode(batch.columns[encoder.name]) for encoder in encoders})
            yield values


@contextmanager
def _cleaned_up(targets: Iterable[Target]) -> Iterator[dict[str, ShardWriter]]:
    """Remove what was written when anything goes wrong, and the mark of the conversion."""
    writers: dict[str, ShardWriter] = {}
    try:
        yield writers
    except BaseException:
        # What went wrong is to be told, not that a store which failed is no better at removing.
        with suppress(UserError):
            for writer in writers.values():
                writer.discard()
            for target in targets:
                if not target.is_cut_off:
                    target.store.delete([MARKER_FILE])
        raise


@contextmanager
def _undone_on_failure(targets: Iterable[Target], files: Sequence[str]) -> Iterator[None]:
    """Put files back to what they were, or remove them where there were none, when publishing goes wrong.

    Args:
        targets: The folders.
        files: Names of the files that are published in each, the one that makes it a dataset last.
    """
    before = [(target.store, name, target.content(name)) for target in targets for name in reversed(files)]
    try:
        yield
    except BaseException:
        for store, name, content in before:
            with suppress(UserError):
                if content is None:
                    store.delete([name])
                else:
                    store.write_bytes(name, content)
        raise
