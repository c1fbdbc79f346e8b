"""What features learn does not depend on how the data was cut, and survives being saved."""

import json
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rectrain.api.errors import UserError
from rectrain.api.features import Feature, Label
from rectrain_jobs.features import FeatureSet, LabelEncoder, ValueRefusedError, fit

FEATURES = [
    Feature.model_validate(definition)
    for definition in (
        {"name": "user", "kind": "Categorical", "cardinality": 4, "encoding": "Vocabulary", "minCount": 2},
        {"name": "item", "kind": "Categorical", "cardinality": 50, "encoding": "Vocabulary", "table": "goods"},
        {"name": "last", "kind": "Categorical", "cardinality": 50, "encoding": "Vocabulary", "table": "goods"},
        {"name": "history", "kind": "Sequence", "of": "item", "maxLength": 3, "padding": "Left"},
        {"name": "tags", "kind": "Sequence", "encoding": "Vocabulary", "cardinality": 9, "maxLength": 2},
        {"name": "city", "kind": "Categorical", "cardinality": 100, "encoding": "Hashing"},
        {"name": "age", "kind": "Dense", "transform": "Standard"},
        {"name": "price", "kind": "Dense", "transform": "Bucket", "numBuckets": 4},
        {"name": "stock", "kind": "Dense", "transform": "Log", "fillMissing": 1.0},
    )
]
IDS = st.none() | st.integers(0, 6)
# Rounded: of values that differ by next to nothing the deviation is so small that others over it fit no 32-bit float.
NUMBERS = st.none() | st.floats(-100, 100).map(lambda number: round(number, 3))
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "user": IDS,
            "item": st.sampled_from([None, "", "a", "b", "c", "0", "ü"]),
            "last": st.sampled_from([None, "a", "z"]),
            "history": st.none() | st.lists(st.sampled_from(["a", "q", None]), max_size=5),
            "tags": st.none() | st.lists(IDS, max_size=4),
            "city": IDS,
            "age": NUMBERS,
            "price": NUMBERS,
            "stock": NUMBERS,
        }
    ),
    min_size=1,
    max_size=30,
)
SCHEMA = pa.schema(
    {
        "user": pa.int64(),
        "item": pa.string(),
        "last": pa.string(),
        "history": pa.list_(pa.string()),
        "tags": pa.list_(pa.int64()),
        "city": pa.int64(),
        "age": pa.float64(),
        "price": pa.float64(),
        "stock": pa.float64(),
    }
)


def record_batch(rows: list[dict]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(rows, SCHEMA)


def vocabulary(values: list, **options) -> dict[str, int]:
    """Learn one column and return the learnt values and how often each was seen, in the order of their rows."""
    feature = Feature.model_validate({"name": "x", "kind": "Categorical", "encoding": "Vocabulary", **options})
    learnt = fit([feature], [{"x": pa.array(values)}]).vocabularies["x"]
    return dict(zip(learnt.values, learnt.counts, strict=True))


def assert_same(left: dict, right: dict) -> None:
    assert list(left) == list(right)
    for name in left:
        assert left[name].dtype == right[name].dtype
        np.testing.assert_array_equal(left[name], right[name])


@settings(max_examples=40, deadline=None)
@given(rows=ROWS, cuts=st.lists(st.integers(0, 30), max_size=4))
def test_fit_on_batches_is_fit_on_the_whole(rows, cuts):
    bounds = sorted({0, len(rows), *(cut for cut in cuts if cut < len(rows))})
    batches = [record_batch(rows[low:high]) for low, high in pairwise(bounds)]
    whole, parts = fit(FEATURES, [record_batch(rows)]), fit(FEATURES, batches)
    for table, learnt in whole.vocabularies.items():
        assert (learnt.values, learnt.counts) == (parts.vocabularies[table].values, parts.vocabularies[table].counts)
    assert whole.transformers["price"].to_json() == parts.transformers["price"].to_json()
    mean, deviation = (whole.transformers["age"].to_json()[key] for key in ("mean", "deviation"))
    assert parts.transformers["age"].to_json() == pytest.approx({"mean": mean, "deviation": deviation}, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(rows=ROWS, others=ROWS)
def test_saved_features_transform_as_before(tmp_path_factory, rows, others):
    folder = tmp_path_factory.mktemp("features")
    fitted = fit(FEATURES, [record_batch(rows)])
    fitted.save(folder)
    loaded = FeatureSet.load(folder)
    assert loaded.features == fitted.features
    batch = record_batch(others)
    assert_same(fitted.transform_batch(batch), loaded.transform_batch(batch))
    for row, values in enumerate(others):
        single = loaded.transform_one(values)
        assert_same(single, {name: column[row] for name, column in fitted.transform_batch(batch).items()})


def test_statistics_are_numpys():
    values = np.random.default_rng(0).normal(1e6, 3, 10_000)
    batches = [{"x": pa.array(part)} for part in np.array_split(values, 7)]
    standard = Feature.model_validate({"name": "x", "kind": "Dense", "transform": "Standard"})
    learnt = fit([standard], batches).transformers["x"].to_json()
    assert learnt == pytest.approx({"mean": values.mean(), "deviation": values.std()}, rel=1e-12)
    bucket = Feature.model_validate({"name": "x", "kind": "Dense", "transform": "Bucket", "numBuckets": 8})
    boundaries = fit([bucket], batches).transformers["x"].to_json()["boundaries"]
    np.testing.assert_array_equal(boundaries, np.quantile(values, np.arange(1, 8) / 8))


def test_quantiles_of_more_data_than_the_sample_are_near():
    values = np.random.default_rng(1).random(400_000)
    bucket = Feature.model_validate({"name": "x", "kind": "Dense", "transform": "Bucket", "numBuckets": 4})
    boundaries = fit([bucket], [{"x": pa.array(part)} for part in np.array_split(values, 5)]).transformers["x"]
    np.testing.assert_allclose(boundaries.boundaries, [0.25, 0.5, 0.75], atol=0.01)


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        # Of equally frequent ones the smaller first: numbers by value, texts by code point, whatever came first.
        ([10, 9, 0, 10, 9, 0], {"cardinality": 9}, {"0": 2, "9": 2, "10": 2}),
        (["10", "9", "0"], {"cardinality": 9}, {"0": 1, "9": 1, "10": 1}),
        (["10", "9", "x"], {"cardinality": 9}, {"10": 1, "9": 1, "x": 1}),
        (["b", "ä", "a", "b"], {"cardinality": 9}, {"b": 2, "a": 1, "ä": 1}),
        (["b", "a", "c"], {"cardinality": 2}, {"a": 1, "b": 1}),
        (["b", "a", "b", "c", "c", "b"], {"cardinality": 9, "minCount": 2}, {"b": 3, "c": 2}),
        (["b", "a", "b", "c", "c", "b"], {"cardinality": 1, "minCount": 2}, {"b": 3}),
        (["a"], {"cardinality": 9, "minCount": 2}, {}),
        ([None, "", "a", None], {"cardinality": 9}, {"a": 1}),
        ([1.0, 1.5, float("nan")], {"cardinality": 9}, {"1": 1, "1.5": 1}),
    ],
)
def test_vocabulary_order(values, options, expected):
    for order in (values, values[::-1]):
        learnt = vocabulary(order, **options)
        assert list(learnt.items()) == list(expected.items())


def test_features_of_one_table_share_a_vocabulary(tmp_path):
    rows = [{"item": "a", "last": "z"}, {"item": "b", "last": "z"}]
    features = [feature for feature in FEATURES if feature.name in ("item", "last")]
    fitted = fit(features, [record_batch(rows).select(["item", "last"])])
    assert [fitted.transform_one(row) for row in rows] == [{"item": 1, "last": 0}, {"item": 2, "last": 0}]
    fitted.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["features.json", "vocabulary.item.parquet"]
    assert pq.read_table(tmp_path / "vocabulary.item.parquet").to_pylist() == [
        {"value": "z", "count": 2},
        {"value": "a", "count": 1},
        {"value": "b", "count": 1},
    ]


def test_unseen_and_missing_have_rows_of_their_own():
    fitted = fit(FEATURES, [record_batch([{"user": 0, "item": "a"}, {"user": 0, "item": "a"}])])
    assert fitted.transform_one({"user": 0, "item": "a"})["user"] == 0
    unseen, missing = fitted.transform_one({"user": 99, "item": "new"}), fitted.transform_one({})
    assert (unseen["user"], missing["user"]) == (4, 5)
    assert (unseen["item"], missing["item"]) == (50, 51)
    assert fitted.transform_one({"history": ["a", "new", None]})["history"].tolist() == [0, 50, 51]
    assert missing["history"].tolist() == [-1, -1, -1]


def test_an_unseen_value_is_refused_where_that_is_asked():
    feature = Feature.model_validate(
        {"name": "x", "kind": "Categorical", "encoding": "Vocabulary", "cardinality": 9, "unknown": "Refuse"}
    )
    fitted = fit([feature], [{"x": pa.array(["a"])}])
    with pytest.raises(ValueRefusedError, match=r"^x: value 'b' is not in the vocabulary of 1 values"):
        fitted.transform_batch({"x": pa.array(["a", "b"])})


def test_a_selection_shares_what_was_learnt():
    fitted = fit(FEATURES, [record_batch([{"user": 3, "age": 1.0}, {"user": 3, "age": 3.0}])])
    part = fitted.select(["age", "user"])
    assert part.transform_one({"user": 3, "age": 2.0}) == {"user": 0, "age": 0.0}


def test_a_feature_without_column_is_named():
    with pytest.raises(UserError, match=r"^feature last: there is no such column; the data has item$"):
        FeatureSet([f for f in FEATURES if f.name in ("item", "last")]).transform_batch({"item": pa.array(["a"])})


def _version(folder):
    document = json.loads((folder / "features.json").read_text())
    (folder / "features.json").write_text(json.dumps({**document, "version": 99}))


def _other_vocabulary(folder):
    file = folder / "vocabulary.item.parquet"
    pq.write_table(pa.table({"value": ["other"], "count": [1]}), file)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda folder: (folder / "features.json").write_text("{"), "features.json: is not a feature file of rectrain"),
        (
            lambda folder: (folder / "features.json").write_text("[]"),
            "features.json: is not a feature file of rectrain",
        ),
        (
            lambda folder: (folder / "features.json").write_text('{"version": 1}'),
            "features.json: is not a feature file",
        ),
        (lambda folder: (folder / "features.json").unlink(), "features.json: no such file"),
        (_version, "features.json: version 99 is not known"),
        (_other_vocabulary, "vocabulary.item.parquet: does not belong to"),
        (lambda folder: (folder / "vocabulary.item.parquet").unlink(), "vocabulary.item.parquet: no such file"),
    ],
)
def test_damaged_files_are_named(tmp_path, damage, problem):
    fit(FEATURES, [record_batch([{"user": 1}])]).save(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError) as caught:
        FeatureSet.load(tmp_path)
    assert problem in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("label", "values", "expected"),
    [
        ({"task": "Binary"}, [0, 1, True, 1.0], [0, 1, 1, 1]),
        ({"task": "Binary"}, ["0", "1"], [0, 1]),
        ({"task": "Regression"}, [0.5, -3], [0.5, -3]),
        ({"task": "MultiClass", "numClasses": 3}, [0, 2], [0, 2]),
        ({"task": "MultiLabel", "numClasses": 2}, [[0, 1], [1, 1]], [[0, 1], [1, 1]]),
    ],
)
def test_labels(label, values, expected):
    encoder = LabelEncoder(Label.model_validate({"name": "y", **label}))
    encoded = encoder.encode(pa.array([float(v) if isinstance(v, bool | int) else v for v in values]))
    assert encoded.dtype == encoder.dtype and encoded.shape == (len(values), *encoder.shape)
    assert encoded.tolist() == expected


@pytest.mark.parametrize(
    ("label", "values", "problem"),
    [
        ({"task": "Binary"}, [0.0, 2.0], "value 2.0 is not 0 or 1 (task Binary)"),
        ({"task": "Binary"}, [0.0, None], "y: "),
        ({"task": "Binary"}, ["0", "yes"], "value 'yes' is not 0 or 1 (task Binary)"),
        ({"task": "Regression"}, [0.0, float("inf")], "value inf is not a finite number"),
        ({"task": "Regression"}, [0.0, 1e300], "is not a finite number that fits 32 bits (task Regression)"),
        ({"task": "MultiClass", "numClasses": 3}, [0, 3], "value 3 is not a class from 0 to 2 (task MultiClass)"),
        ({"task": "MultiClass", "numClasses": 3}, [0, -1], "value -1 is not a class from 0 to 2"),
        ({"task": "MultiClass", "numClasses": 3}, [0, 1.5], "value 1.5 is not a class from 0 to 2"),
        ({"task": "MultiLabel", "numClasses": 2}, [[0, 1], [1]], "has 1 values; it must be a list of 2 zeros and ones"),
        ({"task": "MultiLabel", "numClasses": 2}, [[0, 1], [1, 2]], "holds 2; it must be a list of 2"),
        ({"task": "MultiLabel", "numClasses": 2}, [[0, 1], None], "has 0 values"),
        ({"task": "MultiLabel", "numClasses": 2}, [[0, 1], [1, None]], "holds None"),
        ({"task": "MultiLabel", "numClasses": 2}, [[0.0, 1.0], [1.0, float("nan")]], "a list of 2 zeros and ones"),
    ],
)
def test_a_label_outside_its_task_is_refused(label, values, problem):
    with pytest.raises(ValueRefusedError) as caught:
        LabelEncoder(Label.model_validate({"name": "y", **label})).encode(pa.array(values))
    assert problem in str(caught.value)
    assert caught.value.row == 1
