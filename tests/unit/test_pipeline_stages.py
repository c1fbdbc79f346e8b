"""A stage gives a value the same alone, in a batch and in a data frame, before it was saved and after it is loaded."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas
import polars
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rectrain.api import UserError
from rectrain.api.features import Feature
from rectrain_jobs.features import FeatureSet
from rectrain_jobs.pipeline import (
    Bucketizer,
    ColumnTransformer,
    Cross,
    DictionaryVectorizer,
    FeatureTransformer,
    Hashing,
    Identity,
    Log,
    MinMaxScaler,
    OneHot,
    Sequence,
    SparseVector,
    StandardScaler,
    State,
    StringIndexer,
    Unscaled,
    ValueRefusedError,
    VectorBatch,
    load_stage,
    register,
    save_stage,
)
from rectrain_jobs.pipeline import stage as stages
from rectrain_jobs.pipeline.frames import column_names

TEXTS = st.none() | st.sampled_from(["", "a", "b", "0", "ü", "1:a"])
IDS = st.none() | st.integers(0, 12)
NUMBERS = st.none() | st.integers(-(2**20), 2**20).map(lambda eighths: eighths / 8)
SCHEMA = pa.schema(
    {"city": pa.string(), "user": pa.int64(), "age": pa.float64(), "price": pa.float64(), "seen": pa.list_(pa.int64())}
)
ROWS = st.lists(
    st.fixed_dictionaries(
        {"city": TEXTS, "user": IDS, "age": NUMBERS, "price": NUMBERS, "seen": st.none() | st.lists(IDS, max_size=5)}
    ),
    max_size=12,
)


@register("test.doubled")
class Doubled(ColumnTransformer):
    """What a user writes: a function of one value, no twin for batches."""

    dtype = np.dtype(np.float64)

    def __init__(self, name: str, times: float = 2.0) -> None:
        self.name, self.times = name, times

    def transform_func(self, value: Any) -> Any:
        return np.float64(0.0 if value is None else self.times * value)

    def to_json(self) -> dict[str, Any]:
        return {}

    def state(self) -> State:
        return State({"name": self.name, "times": self.times})


@register("test.initial")
class Initial(FeatureTransformer[Mapping[str, Any], str]):
    """One of whole rows, to text."""

    output, output_type = "initial", pa.string()

    def transform_func(self, value: Mapping[str, Any]) -> str:
        return (value["city"] or "?")[0]


STAGES = {
    "identity": lambda: Identity("user", 10),
    "hashing": lambda: Hashing("city", 7),
    "indexer": lambda: StringIndexer("city", 3, min_count=2),
    "unscaled": lambda: Unscaled("age", fill_missing=-1.0),
    "log": lambda: Log("age"),
    "standard": lambda: StandardScaler("age", fill_missing=3.0),
    "min-max": lambda: MinMaxScaler("price"),
    "bucketizer": lambda: Bucketizer("price", buckets=4),
    "boundaries": lambda: Bucketizer("price", boundaries=[-1.0, 0.0, 7.5]),
    "sequence": lambda: Sequence("seen", Identity("seen", 10), 3, "Left"),
    "cross": lambda: Cross(["city", "user"], 50),
    "one-hot": lambda: OneHot(StringIndexer("city", 3)),
    "one-hot of a cross": lambda: OneHot(Cross(["city", "user"], 50)),
    "multi-hot": lambda: OneHot(Sequence("seen", Hashing("seen", 4), 4)),
    "of a user": lambda: Doubled("age", 3.0),
    "vectorizer": lambda: DictionaryVectorizer(
        [
            OneHot(Sequence("seen", StringIndexer("seen", 4), 4)),
            StandardScaler("age"),
            Doubled("price"),
            OneHot(Cross(["city", "user"], 50)),
            OneHot(Identity("user", 10)),
        ]
    ),
    "features of a job": lambda: FeatureSet(
        [
            Feature.model_validate(definition)
            for definition in (
                {"name": "city", "kind": "Categorical", "cardinality": 4, "encoding": "Vocabulary"},
                {"name": "user", "kind": "Categorical", "cardinality": 10, "unknown": "OutOfVocabulary"},
                {"name": "seen", "kind": "Sequence", "of": "user", "maxLength": 3},
                {"name": "age", "kind": "Dense", "transform": "Standard"},
                {"name": "price", "kind": "Dense", "transform": "Bucket", "numBuckets": 4},
            )
        ]
    ),
}


def record_batch(rows: list[dict[str, Any]]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(rows, SCHEMA)


def plain(value: Any) -> Any:
    """Return what a stage made as comparable Python values with their types."""
    if isinstance(value, SparseVector):
        return (list(value.indices), list(value.values), value.width)
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    return (value.dtype.str, value.tobytes()) if isinstance(value, np.ndarray | np.generic) else value


def rows_of(transformed: Any) -> list[Any]:
    """Return what a stage made of a batch, row by row."""
    if isinstance(transformed, dict):
        return [dict(zip(transformed, row, strict=True)) for row in zip(*transformed.values(), strict=True)]
    return list(transformed)


@pytest.mark.parametrize("name", STAGES)
@settings(max_examples=12, deadline=None)
@given(training=ROWS, rows=ROWS)
def test_a_row_alone_is_the_row_in_a_batch_before_and_after_saving(name, training, rows, tmp_path_factory):
    stage = STAGES[name]().fit([record_batch(training)])
    batch = record_batch(rows)
    whole = [plain(row) for row in rows_of(stage.transform_batch(stage.read(batch)))]
    assert whole == [plain(stage.transform_one(stage.value_of(row))) for row in rows]
    folder = tmp_path_factory.mktemp("stage")
    save_stage(stage, folder)
    loaded = load_stage(folder)
    assert type(loaded) is type(stage)
    assert [plain(row) for row in rows_of(loaded.transform_batch(loaded.read(batch)))] == whole
    assert [plain(loaded.transform_one(loaded.value_of(row))) for row in rows] == whole


FRAME_ROWS = [
    {"city": "a", "user": 0, "age": 3.0, "price": 0.0, "seen": [1, 0, None, 1]},
    {"city": None, "user": 99, "age": None, "price": -2.5, "seen": []},
    {"city": "unseen", "user": None, "age": 30.0, "price": None, "seen": None},
]
TABLE = pa.Table.from_pylist(FRAME_ROWS, SCHEMA)
FRAMES = {
    "arrow": TABLE,
    "chunked": pa.concat_tables([TABLE[:1], TABLE[1:]]),
    "batch": pa.RecordBatch.from_pylist(FRAME_ROWS, SCHEMA),
    "pandas": TABLE.to_pandas().set_index(pandas.Index([7, 5, 5])),
    "polars": polars.from_arrow(TABLE),
}


def column(frame: Any, name: str) -> list[Any]:
    values = frame[name].to_pylist() if isinstance(frame, pa.Table | pa.RecordBatch) else frame[name].to_list()
    return [value.tolist() if hasattr(value, "tolist") else value for value in values]


@pytest.mark.parametrize("kind", FRAMES)
@pytest.mark.parametrize("name", ["indexer", "standard", "sequence", "cross", "of a user"])
def test_a_data_frame_gets_the_column_that_the_stage_declares(kind, name):
    frame = FRAMES[kind]
    stage = STAGES[name]().fit(frame)
    transformed = stage.transform(frame)
    assert type(transformed) is type(frame)
    names = [*SCHEMA.names, stage.output]
    assert column_names(transformed) == names
    expected = [stage.transform_one(stage.value_of(row)) for row in FRAME_ROWS]
    assert column(transformed, stage.output) == [value.tolist() for value in expected]
    if kind == "pandas":
        assert transformed.index.tolist() == [7, 5, 5] and stage.output not in frame.columns


@pytest.mark.parametrize("kind", FRAMES)
def test_a_data_frame_gets_vectors_and_texts(kind):
    vectorizer = STAGES["vectorizer"]().fit(FRAMES[kind])
    vectors = column(vectorizer.transform(FRAMES[kind]), "features")
    expected = [vectorizer.transform_one(row) for row in FRAME_ROWS]
    assert [(list(v["indices"]), list(v["values"])) for v in vectors] == [(v.indices, v.values) for v in expected]
    assert column(Initial().transform(FRAMES[kind]), "initial") == ["a", "?", "u"]


def test_an_empty_data_frame_gets_an_empty_column():
    table = FRAMES["arrow"].slice(0, 0)
    assert STAGES["vectorizer"]().transform(table).column("features").to_pylist() == []


@pytest.mark.parametrize(
    ("frame", "problem"),
    [
        (
            FRAMES["arrow"].drop_columns("age"),
            "column age: there is no such column; the data has city",
        ),
        (FRAMES["pandas"].drop(columns="age"), "column age: there is no such column"),
        (FRAMES["polars"].drop("age"), "column age: there is no such column"),
        (FRAMES["polars"].lazy(), "LazyFrame is no data frame"),
        ([1, 2], "builtins.list is no data frame"),
        (pandas.concat([FRAMES["pandas"]] * 2, axis=1), "column age: is there more than once"),
        (FRAMES["arrow"].append_column("age", pa.array([1, 2, 3])), "column age: is there more than once"),
        (FRAMES["arrow"].append_column("age_log", pa.array([1, 2, 3])), "column age_log: is in the data frame already"),
    ],
)
def test_a_frame_that_does_not_fit_is_refused(frame, problem):
    with pytest.raises(UserError, match=problem):
        Log("age").transform(frame)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: StringIndexer("city", 0), "city: cardinality is 0; must be an integer from 1"),
        (lambda: Hashing("city", 2.5), r"city: cardinality is 2\.5; must be"),
        (lambda: Sequence("seen", Hashing("seen", 5), max_length=-1), "seen: max_length is -1; must be"),
        (lambda: Bucketizer("price", buckets=0), "price: buckets is 0; must be"),
        (
            lambda: Bucketizer("price", boundaries=[3, 1]),
            r"price: boundaries are \[3, 1\]; must be finite numbers that",
        ),
    ],
)
def test_settings_that_make_no_stage_are_refused(make, problem):
    with pytest.raises(UserError, match=problem):
        make()


def test_a_refused_value_of_a_frame_is_named_with_its_row():
    with pytest.raises(ValueRefusedError, match="user: value 99 is not an id from 0 to 9") as caught:
        Identity("user", 10, "Refuse").transform(FRAMES["arrow"])
    assert caught.value.row == 1


def test_a_second_fit_forgets_the_first():
    stage = DictionaryVectorizer([StandardScaler("age"), MinMaxScaler("price"), OneHot(StringIndexer("city", 2))])
    stage.fit([record_batch([{"city": "x", "age": 1e6, "price": 1e6}])])
    once = stage.fit(FRAMES["arrow"]).transform_one(FRAME_ROWS[0])
    fresh = DictionaryVectorizer([StandardScaler("age"), MinMaxScaler("price"), OneHot(StringIndexer("city", 2))])
    assert once == fresh.fit(FRAMES["arrow"]).transform_one(FRAME_ROWS[0])


def test_a_cross_keeps_apart_what_concatenation_would_mix():
    cross = Cross(["a", "b"], 2**40)
    rows = [{"a": "x", "b": "yz"}, {"a": "xy", "b": "z"}, {"a": "1:x", "b": ""}, {"a": "x", "b": None}, {}]
    assert len({cross.row_of(row) for row in rows[:2]}) == 2
    assert [cross.row_of(row) for row in rows[2:]] == [cross.missing_row] * 3
    assert cross.row_of({"a": 1, "b": 2.0}) == cross.row_of({"a": "1", "b": "2"})


def test_vectors_as_matrix():
    vectors = [SparseVector([3, 0], [2.0, 1.0], 4), SparseVector([], [], 4)]
    assert VectorBatch.of(vectors).dense().tolist() == [[1, 0, 0, 2], [0, 0, 0, 0]]
    batches = [VectorBatch.of(vectors), VectorBatch.of(vectors[:1])]
    assert list(VectorBatch.concatenated(batches)) == [*vectors, vectors[0]]


# What is saved.


def change(folder, edit):
    document = json.loads((folder / "pipeline.json").read_text())
    edit(document)
    (folder / "pipeline.json").write_text(json.dumps(document))


def other_arrays(folder):
    (folder / "arrays.safetensors").write_bytes(b"other")


DAMAGES = {
    "no manifest": (lambda f: (f / "pipeline.json").unlink(), r"pipeline\.json: no such file"),
    "no JSON": (lambda f: (f / "pipeline.json").write_text("{"), r"pipeline\.json: is no pipeline of rectrain"),
    "nested without end": (lambda f: (f / "pipeline.json").write_text("[" * 10**5), "is no pipeline of rectrain"),
    "no stage": (lambda f: (f / "pipeline.json").write_text("{}"), r"pipeline\.json: is no pipeline of rectrain"),
    "newer": (lambda f: change(f, lambda d: d.update(formatVersion=9)), "has format version 9; this rectrain reads 1"),
    "newer stage": (
        lambda f: change(f, lambda d: d["stage"].update(version=2)),
        r"stage 'one_hot' has version 2, the installed one reads up to 1; it was saved with rectrain==0\.1\.0",
    ),
    "unknown": (
        lambda f: change(f, lambda d: d["stage"]["stages"]["ids"].update(name="acme.geo", package={"acme-geo": "1.2"})),
        r"stage 'acme\.geo' is not known here; it was saved with acme-geo==1\.2: install it",
    ),
    "unknown, of no package": (
        lambda f: change(f, lambda d: d["stage"].update(name="acme.geo", package={})),
        "stage 'acme.geo' is not known here; import the module that registers it",
    ),
    "a class by its path": (lambda f: change(f, lambda d: d["stage"].update(name="os:system")), "is not known here"),
    "other settings": (lambda f: change(f, lambda d: d["stage"]["stages"]["ids"]["config"].clear()), "is no pipeline"),
    "changed arrays": (other_arrays, r"arrays\.safetensors: is damaged: its SHA-256 is"),
    "no table": (lambda f: (f / "tables/stage.ids.vocabulary.parquet").unlink(), r"vocabulary\.parquet: no such file"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_named_in_one_line(damage, tmp_path):
    save_stage(OneHot(StringIndexer("city", 3)).fit(FRAMES["arrow"]), tmp_path)
    spoil, problem = DAMAGES[damage]
    spoil(tmp_path)
    with pytest.raises(UserError, match=problem) as caught:
        load_stage(tmp_path)
    assert "\n" not in str(caught.value)


def test_every_stage_of_ours_is_found_without_being_imported():
    for name, kind in list(stages._registered.items()):
        if kind.__module__.startswith("rectrain_jobs."):
            found = [point.load() for point in stages.entry_points(group=stages.ENTRY_POINTS, name=name)]
            assert found == [kind], name


def test_a_class_without_a_name_cannot_be_saved_and_a_name_is_for_one_class(tmp_path):
    class Unnamed(Doubled):
        pass

    with pytest.raises(UserError, match=r"class .*Unnamed is not registered; decorate it with @register"):
        save_stage(Unnamed("age"), tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"stage 'test.doubled' is .*Doubled; choose another name"):
        register("test.doubled")(Unnamed)
