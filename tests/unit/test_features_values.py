"""A raw value becomes the same number whether it comes alone or in a batch."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rectrain.api.features import Feature
from rectrain_jobs.features import FeatureSet, ValueRefusedError, fit

SETTINGS = settings(max_examples=40, deadline=None)
INTEGERS = st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 12)
TEXTS = (
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    | INTEGERS.map(str)
    | st.sampled_from(["", "0", "-0", "007", "+5", "0x10", " 3", "-", "--5", "1.0", "9" * 40, "9" * 41, "9" * 5000])
)
NUMBERS = st.floats(allow_nan=True, allow_infinity=False) | st.integers(-3, 12).map(float)
COLUMNS = st.one_of(
    st.tuples(st.just(pa.int64()), st.lists(st.none() | INTEGERS)),
    st.tuples(st.just(pa.uint64()), st.lists(st.none() | st.integers(0, 2**64 - 1) | st.integers(0, 12))),
    st.tuples(st.just(pa.string()), st.lists(st.none() | TEXTS)),
    st.tuples(st.just(pa.large_string()), st.lists(st.none() | TEXTS)),
    st.tuples(st.just(pa.binary()), st.lists(st.none() | st.binary(max_size=4))),
    st.tuples(st.just(pa.float64()), st.lists(st.none() | NUMBERS)),
    st.tuples(st.just(pa.bool_()), st.lists(st.none() | st.booleans())),
    st.tuples(st.just(pa.null()), st.lists(st.none())),
)
ENCODINGS = {
    "identity": {"cardinality": 10, "unknown": "OutOfVocabulary"},
    "hashing": {"cardinality": 7, "encoding": "Hashing"},
    "vocabulary": {"cardinality": 5, "encoding": "Vocabulary", "min_count": 2},
    "wide": {"cardinality": 2**40, "unknown": "OutOfVocabulary"},
}
TRANSFORMS = {
    "none": {},
    "filled": {"fill_missing": -2.5},
    "log": {"transform": "Log", "fill_missing": 3.0},
    "standard": {"transform": "Standard"},
    "bucket": {"transform": "Bucket", "boundaries": [-1.0, 0.0, 2.5]},
    "quantiles": {"transform": "Bucket", "num_buckets": 4},
}


def categorical(name="x", **options) -> Feature:
    return Feature.model_validate({"name": name, "kind": "Categorical", **options})


def dense(name="x", **options) -> Feature:
    return Feature.model_validate({"name": name, "kind": "Dense", **options})


def sequence(name="x", **options) -> Feature:
    return Feature.model_validate({"name": name, "kind": "Sequence", **options})


def assert_alike(features: FeatureSet, column: pa.Array) -> None:
    """Hold a batch, the batch cut in two and each value by itself against each other."""
    (transformer,) = features.transformers.values()
    whole = features.transform_batch({"x": column})["x"]
    assert (whole.dtype, whole.shape) == (transformer.dtype, (len(column), *transformer.shape))
    for row, value in enumerate(column.to_pylist()):
        single = features.transform_one({"x": value})["x"]
        assert (single.dtype, single.shape) == (transformer.dtype, transformer.shape)
        assert single.tobytes() == whole[row].tobytes(), (value, single, whole[row])
    middle = len(column) // 2
    parts = [features.transform_batch({"x": part})["x"] for part in (column[:middle], column[middle:])]
    assert np.concatenate(parts).tobytes() == whole.tobytes()


def is_text(value: bytes) -> bool:
    return value.decode("utf-8", "replace").encode() == value


@pytest.mark.parametrize("encoding", ENCODINGS)
@SETTINGS
@given(column=COLUMNS)
def test_an_id_alone_is_the_id_in_a_batch(encoding, column):
    kind, values = column
    array = pa.array(values, kind)
    if encoding == "vocabulary" and kind == pa.binary():  # which is kept as text
        array = pa.array([value if value is None or is_text(value) else b"?" for value in values], kind)
    assert_alike(fit([categorical(**ENCODINGS[encoding])], [{"x": array}]), array)
    if values and not pa.types.is_null(kind):
        assert_alike(fit([categorical(**ENCODINGS[encoding])], [{"x": array}]), array.dictionary_encode())


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("kind", [pa.float64(), pa.float32(), pa.int64(), pa.string(), pa.bool_(), pa.null()], ids=str)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_a_number_alone_is_the_number_in_a_batch(transform, kind, data):
    values = {
        pa.float64(): st.floats(-1e30, 1e30),
        pa.float32(): st.floats(-(2.0**100), 2.0**100, width=32),
        pa.int64(): INTEGERS,
        pa.string(): st.floats(-1e30, 1e30).map(str) | INTEGERS.map(str) | st.just(""),
        pa.bool_(): st.booleans(),
        pa.null(): st.none(),
    }[kind]
    array = pa.array(data.draw(st.lists(st.none() | values, min_size=1)), kind)
    try:
        features = fit([dense(**TRANSFORMS[transform])], [{"x": array}])
        features.transform_batch({"x": array})
    except ValueRefusedError as error:
        # Numbers so far apart that a 32-bit float cannot hold how far: refused alone as well.
        with pytest.raises(ValueRefusedError):
            features.transform_one({"x": array[error.row].as_py()})
        return
    assert_alike(features, array)


@pytest.mark.parametrize("padding", ["Left", "Right"])
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("list_type", [pa.list_, pa.large_list, lambda kind: pa.list_(kind, 2)])
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_a_list_alone_is_the_list_in_a_batch(padding, encoding, list_type, data):
    kind, elements = data.draw(
        st.sampled_from([(pa.int64(), INTEGERS), (pa.string(), TEXTS), (pa.float64(), NUMBERS), (pa.null(), st.none())])
    )
    size = {"min_size": 2, "max_size": 2} if list_type(kind).id == pa.list_(kind, 2).id else {"max_size": 5}
    lists = data.draw(st.lists(st.none() | st.lists(st.none() | elements, **size), max_size=6))
    array = pa.array(lists, list_type(kind))
    options = {**ENCODINGS[encoding], "max_length": 3, "padding": padding}
    assert_alike(fit([sequence(**options)], [{"x": array}]), array)


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        ([0, 9, 10, -1, None], ENCODINGS["identity"], [0, 9, 10, 10, 11]),
        (["0", "007", "10", "x", "", None], ENCODINGS["identity"], [0, 7, 10, 10, 11, 11]),
        ([0.0, -0.0, 3.0, 3.5, float("nan")], ENCODINGS["identity"], [0, 0, 3, 10, 11]),
        ([True, False, None], ENCODINGS["identity"], [1, 0, 11]),
        # 0 twice and 7 three times are learnt; 1, seen once, is below minCount.
        ([7, 0, 7, 1, 0, 7, None], ENCODINGS["vocabulary"], [0, 1, 0, 5, 1, 0, 6]),
        ([None, None], ENCODINGS["vocabulary"], [6, 6]),
        ([None, ""], ENCODINGS["hashing"], [8, 8]),
    ],
)
def test_rows_of_ids(values, options, expected):
    column = pa.array(values)
    assert fit([categorical(**options)], [{"x": column}]).transform_batch({"x": column})["x"].tolist() == expected


def test_an_id_is_the_same_as_number_and_as_text():
    features = FeatureSet([categorical(**ENCODINGS["hashing"])])
    rows = {features.transform_one({"x": value})["x"] for value in (1, 1.0, "1", b"1", True, np.int8(1), np.float32(1))}
    assert len(rows) == 1
    assert {features.transform_one({"x": value})["x"] for value in (None, "", float("nan"))} == {8}
    assert features.transform_one({})["x"] == 8


def test_hashing_is_the_published_hash():
    # XXH64 of "a" with seed 0, as its specification lists it.
    features = FeatureSet([categorical(cardinality=2**40, encoding="Hashing")])
    assert features.transform_one({"x": "a"})["x"] == 0xD24EC4F1A98C6E5B % 2**40


@pytest.mark.parametrize(("cardinality", "dtype"), [(2**31 - 2, np.int32), (2**31 - 1, np.int64)])
def test_rows_of_a_table_fit_their_type(cardinality, dtype):
    features = FeatureSet([categorical(cardinality=cardinality)])
    missing = features.transform_one({"x": None})["x"]
    assert (missing.dtype, missing) == (dtype, cardinality + 1)


@pytest.mark.parametrize(
    ("options", "values", "expected"),
    [
        ({}, [1.5, None, -0.25], [1.5, 0, -0.25]),
        ({"fill_missing": 7}, [None, 1.0], [7, 1]),
        ({"transform": "Log"}, [0.0, np.e - 1, 1 - np.e], [0, 1, -1]),
        ({"transform": "Standard"}, [1.0, 3.0, 5.0], [-np.sqrt(1.5), 0, np.sqrt(1.5)]),
        ({"transform": "Standard", "fill_missing": 5}, [1.0, 3.0, None], [-np.sqrt(1.5), 0, np.sqrt(1.5)]),
        ({"transform": "Standard"}, [0.1, 0.1, 0.1], [0, 0, 0]),
        ({"transform": "Bucket", "boundaries": [0, 10]}, [-1.0, 0.0, 9.0, 10.0], [0, 0.5, 0.5, 1]),
        ({"transform": "Bucket", "num_buckets": 2}, [1.0, 2.0, 3.0, 4.0], [0, 0, 1, 1]),
        ({"transform": "Bucket", "num_buckets": 4}, [5.0, 5.0], [1, 1]),
    ],
)
def test_scaled_numbers(options, values, expected):
    column = pa.array(values)
    scaled = fit([dense(**options)], [{"x": column}]).transform_batch({"x": column})["x"]
    np.testing.assert_allclose(scaled, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("padding", "expected"),
    [("Right", [[2, 3, 4], [0, 11, -1], [-1] * 3, [-1] * 3]), ("Left", [[2, 3, 4], [-1, 0, 11], [-1] * 3, [-1] * 3])],
)
def test_the_last_elements_are_kept_and_padding_is_no_id(padding, expected):
    features = [categorical("item", cardinality=10), sequence(of="item", max_length=3, padding=padding)]
    batch = {"item": pa.array([1] * 4), "x": pa.array([[99, 2, 3, 4], [0, None], [], None])}
    assert FeatureSet(features).transform_batch(batch)["x"].tolist() == expected


@pytest.mark.parametrize(
    ("feature", "value", "problem"),
    [
        (categorical(cardinality=10), 10, "x: value 10 is not an id from 0 to 9 (cardinality 10)"),
        (categorical(cardinality=10), -1, "x: value -1 is not an id from 0 to 9 (cardinality 10)"),
        (categorical(cardinality=10), 2**63 - 1, "value 9223372036854775807 is not an id from 0 to 9"),
        (categorical(cardinality=10), "9" * 30, f"value '{'9' * 30}' is not an id"),
        (categorical(cardinality=10), "1\n2", r"value '1\n2' is not an id"),
        (categorical(cardinality=10), 1.5, "value 1.5 is not an id"),
        (categorical(cardinality=10), float("inf"), "value inf is not an id"),
        (categorical(cardinality=10), [1], ""),
        (dense(), float("nan"), "value nan is not a finite number"),
        (dense(), float("-inf"), "value -inf is not a finite number"),
        (dense(), 1e39, "value 1e+39 does not fit a 32-bit float"),
        (dense(), "abc", "value 'abc'"),
        (dense(), "nan", "finite number"),
        (dense(), b"1", ""),
        (sequence(cardinality=10, max_length=2), [3, 10], "value 10 is not an id from 0 to 9"),
        (sequence(cardinality=10, max_length=2), "3", "list of ids"),
        (sequence(cardinality=10, max_length=2), 3, "list of ids"),
    ],
)
def test_what_is_no_value_of_a_feature_is_refused_alone_and_in_a_batch(feature, value, problem):
    features = FeatureSet([feature])
    for attempt in (
        lambda: features.transform_one({"x": value}),
        lambda: features.transform_batch({"x": pa.array([None, value, value])}),
    ):
        with pytest.raises(ValueRefusedError) as caught:
            attempt()
        assert problem in str(caught.value)
        assert str(caught.value).startswith("x: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [{"a": 1}, {1, 2}, object(), 2.5])
def test_what_is_no_list_is_refused_as_a_sequence(value):
    with pytest.raises(ValueRefusedError, match="is not a list of ids"):
        FeatureSet([sequence(cardinality=10, max_length=2)]).transform_one({"x": value})


@pytest.mark.parametrize(
    ("feature", "column", "row"),
    [
        (categorical(cardinality=10), [0, None, 3, 10, 11], 3),
        (categorical(cardinality=10), ["0", "3", "x"], 2),
        (dense(), [0.0, None, float("nan")], 2),
        (dense(), ["1", "", "2", "three", "four"], 3),
        (sequence(cardinality=10, max_length=2), [[77, 1, 2], None, [], [3], [4, -1]], 4),
    ],
)
def test_a_refused_value_of_a_batch_has_its_row(feature, column, row):
    with pytest.raises(ValueRefusedError) as caught:
        FeatureSet([feature]).transform_batch({"x": pa.array(column)})
    assert caught.value.row == row
