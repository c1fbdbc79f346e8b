"""Features of raw data that nobody has declared, for formats whose schema is implied."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rectrain.api.data import SourceFormat
from rectrain.api.errors import UserError
from rectrain.api.features import Encoding, Feature, FeatureKind, Label, Side, Task, Transform
from rectrain_jobs.data.formats import Definition, RawBatch, open_reader
from rectrain_jobs.data.formats.criteo import NUM_CATEGORICAL, NUM_DENSE
from rectrain_jobs.data.formats.lines import token_lines
from rectrain_jobs.data.formats.synthetic import DEFAULT_CARDINALITIES
from rectrain_jobs.pipeline.values import shown

HISTORY_LENGTH = 50
HASH_ROWS = 1 << 18
LABEL = Label(name="label", task=Task.BINARY)
_LARGEST = 2**40


def infer_definition(definition: Definition) -> Definition:
    """Return a definition with the features and the label that its format implies.

    Interactions, Sequences and ComiRec have a user and an item, the latter two also `history`, the last 50 items;
    LibSVM has fields `field_0` and so on that share the table `ids`. Their cardinalities are the largest id plus one,
    found by reading the whole input. Criteo has `dense_0` to `dense_12` (Log) and `cat_0` to `cat_25`, hashed into
    262,144 rows each. Synthetic has what Criteo has, as small ids.

    Raises:
        UserError: The format implies no schema, or ids are not integers from 0.
    """
    match definition.source.format:
        case SourceFormat.INTERACTIONS:
            return _with_cardinalities(_users_and_items(definition))
        case SourceFormat.SEQUENCES | SourceFormat.COMIREC:
            return _with_cardinalities(_with_history(_users_and_items(definition)))
        case SourceFormat.LIBSVM:
            return _with_cardinalities(_fields(definition))
        case SourceFormat.CRITEO:
            hashed = {"encoding": Encoding.HASHING, "cardinality": HASH_ROWS}
            return _clicks(definition, Transform.LOG, [hashed] * NUM_CATEGORICAL)
        case SourceFormat.SYNTHETIC:
            return _clicks(definition, None, [{"cardinality": cardinality} for cardinality in DEFAULT_CARDINALITIES])
        case SourceFormat.TRIPLES | SourceFormat.PARQUET:
            raise UserError(
                f"{definition.source.format} implies no features: give --job, or --feature and --label for each column"
            )


def _users_and_items(definition: Definition) -> Definition:
    ids = ((definition.user_id, Side.USER), (definition.item_id, Side.ITEM))
    return replace(definition, features=[_id_feature(name, side=side) for name, side in ids])


def _with_history(definition: Definition) -> Definition:
    history = Feature(
        name="history", kind=FeatureKind.SEQUENCE, side=Side.USER, of=definition.item_id, max_length=HISTORY_LENGTH
    )
    return replace(definition, features=[*definition.features, history])


def _fields(definition: Definition) -> Definition:
    file = definition.train_files()[0]
    for lines in token_lines(file):
        fields = int(lines.offsets[1]) - 1
        return replace(
            definition,
            features=[_id_feature(f"field_{number}", table="ids") for number in range(fields)],
            labels=[LABEL],
        )
    raise UserError(f"{file.uri}: has no rows")


def _clicks(definition: Definition, transform: Transform | None, categorical: list[dict[str, Any]]) -> Definition:
    dense = [
        Feature(name=f"dense_{number}", kind=FeatureKind.DENSE, transform=transform) for number in range(NUM_DENSE)
    ]
    ids = [
        Feature(name=f"cat_{number}", kind=FeatureKind.CATEGORICAL, **settings)
        for number, settings in enumerate(categorical)
    ]
    return replace(definition, features=[*dense, *ids], labels=[LABEL])


def _id_feature(name: str, **settings: Any) -> Feature:
    return Feature(name=name, kind=FeatureKind.CATEGORICAL, cardinality=_LARGEST, **settings)


def _with_cardinalities(definition: Definition) -> Definition:
    """Read everything and set each feature's cardinality to the largest id of its table plus one."""
    reader = open_reader(definition)
    table_of = {f.name: f.of or f.table or f.name for f in definition.features}
    largest: dict[str, int] = {}
    for batches in (reader.train(), reader.validation()):
        _note_largest(batches, table_of, largest)
    if not largest:
        raise UserError(f"{definition.source.uri}: has no rows")
    return replace(
        definition,
        features=[
            f if f.of else f.model_copy(update={"cardinality": largest[table_of[f.name]] + 1})
            for f in definition.features
        ],
    )


def _note_largest(batches: Iterable[RawBatch], table_of: dict[str, str], largest: dict[str, int]) -> None:
    for batch in batches:
        for name, table in table_of.items():
            column: Any = batch.columns[name]
            rows = None
            if pa.types.is_large_list(column.type):
                rows, column = pc.list_parent_indices(column), column.flatten()
            if not len(column):
                continue
            if not pa.types.is_integer(column.type):
                is_id = np.asarray(pc.match_substring_regex(column, r"^[0-9]{1,12}$").fill_null(False))
                _refuse(batch, name, column, rows, is_id)
            ids = np.asarray(column)
            is_id = (ids >= 0) & (ids < _LARGEST)
            if not is_id.all():
                _refuse(batch, name, column, rows, is_id)
            largest[table] = max(largest.get(table, 0), int(ids.max()))


def _refuse(batch: RawBatch, name: str, column: Any, rows: Any, is_id: npt.NDArray[np.bool_]) -> None:
    first = int(np.argmin(is_id))
    row = first if rows is None else rows[first].as_py()
    raise UserError(
        f"{batch.where(row)}: {name}: value {shown(column[first].as_py())} is not an id from 0 to {_LARGEST - 1}; give "
        f"--feature {name}:Categorical:encoding=Vocabulary:cardinality=N, or --job"
    )
