import json
import shutil
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from streaming import MDSWriter

from rectrain.api.errors import UserError
from rectrain_jobs.data.mds import MDSDataset
from rectrain_jobs.data.mds.upstream import streaming_module

SCALARS = [
    "int",
    *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)),
    "float16",
    "float32",
    "float64",
]
COMPRESSIONS = ["br", "bz2", "gz", "snappy", "zstd", "zstd:7"]


def write(path: Path, columns: dict[str, str], samples: list[dict], **options) -> Path:
    with MDSWriter(out=str(path), columns=columns, **options) as out:
        for sample in samples:
            out.write(sample)
    return path


def read_with_streaming(path: Path) -> list[dict]:
    """Decode every sample with streaming's own reader."""
    reader = streaming_module("format.mds.reader").MDSReader
    decompress = streaming_module("compression").decompress
    samples = []
    for entry in json.loads((path / "index.json").read_text())["shards"]:
        if entry["zip_data"] and not (path / entry["raw_data"]["basename"]).exists():
            raw = decompress(entry["compression"], (path / entry["zip_data"]["basename"]).read_bytes())
            (path / entry["raw_data"]["basename"]).write_bytes(raw)
        shard = reader.from_json(str(path), "", entry)
        samples += [shard[number] for number in range(len(shard))]
    return samples


def assert_same(dataset: MDSDataset, samples: list[dict], ids: np.ndarray, names: list[str] | None = None) -> None:
    got = dataset.gather(ids, names)
    assert list(got) == list(names or dataset.columns)
    for name, values in got.items():
        column = dataset.columns[name]
        assert values.dtype == column.dtype
        assert values.shape == (len(ids), *column.shape)
        for row, sample_id in enumerate(ids):
            expected = samples[sample_id][name]
            if isinstance(expected, np.ndarray):
                assert values[row].dtype == expected.dtype
                assert values[row].shape == expected.shape
                assert values[row].tobytes() == expected.tobytes()
            else:
                value = values[row]
                assert value == expected or (value != value and expected != expected)  # NaN


def numbered(path: Path, rows: int = 100, **options) -> Path:
    samples = [{"id": number, "x": np.float32(number), "name": "n" * (number % 3)} for number in range(rows)]
    return write(path, {"id": "int", "x": "float32", "name": "str"}, samples, **{"size_limit": 500, **options})


def numbered_fixed(path: Path, rows: int = 100, **options) -> Path:
    samples = [{"id": number, "x": np.float32(number)} for number in range(rows)]
    return write(path, {"id": "int", "x": "float32"}, samples, **{"size_limit": 500, **options})


@st.composite
def _values(draw, encoding: str):
    kind, *rest = encoding.split(":")
    if kind == "ndarray":
        dtype = np.dtype(rest[0] if rest else draw(st.sampled_from([name for name in SCALARS if name != "int"])))
        if len(rest) > 1:
            shape = tuple(int(dimension) for dimension in rest[1].split(","))
        else:
            shape = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
        count = int(np.prod(shape))
        return np.frombuffer(
            draw(st.binary(min_size=count * dtype.itemsize, max_size=count * dtype.itemsize)), dtype
        ).reshape(shape)
    if kind in ("bytes", "str"):
        return draw(st.binary(max_size=20) if kind == "bytes" else st.text(max_size=10))
    if kind == "json":
        return draw(
            st.recursive(st.integers() | st.text(max_size=5) | st.none(), lambda inner: st.lists(inner, max_size=3))
        )
    if kind == "str_int":
        return draw(st.integers())
    if kind == "str_float":
        return draw(st.floats(allow_nan=False))
    if kind == "str_decimal":
        return Decimal(draw(st.integers())) / 8
    dtype = np.dtype("int64" if kind == "int" else kind)
    value = np.frombuffer(draw(st.binary(min_size=dtype.itemsize, max_size=dtype.itemsize)), dtype)[0]
    return int(value) if kind == "int" else value


@st.composite
def _datasets(draw):
    arrays = [f"ndarray:{dtype}:{shape}" for dtype in ("uint8", "float32", "int64") for shape in ("1", "7", "2,3")]
    fixed = st.sampled_from(SCALARS + arrays)
    varying = st.sampled_from(
        ["bytes", "str", "json", "str_int", "str_float", "str_decimal", "ndarray", "ndarray:int64"]
    )
    names = st.text("abcXYZ_09é", min_size=1, max_size=6)
    columns = draw(st.dictionaries(names, draw(st.sampled_from([fixed, fixed | varying])), min_size=1, max_size=8))
    samples = draw(
        st.lists(
            st.fixed_dictionaries({name: _values(code) for name, code in columns.items()}), min_size=1, max_size=30
        )
    )
    return columns, samples


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(
    data=st.data(),
    dataset=_datasets(),
    extra=st.integers(1, 400),
    compression=st.sampled_from([None, None, *COMPRESSIONS]),
)
def test_any_samples_are_read_as_streaming_reads_them(tmp_path_factory, data, dataset, extra, compression):
    columns, samples = dataset
    path = tmp_path_factory.mktemp("any") / "mds"
    # Room for the configuration in each shard's header and about `extra` bytes of samples.
    write(
        path,
        columns,
        samples,
        size_limit=400 + 60 * len(columns) + extra,
        compression=compression,
        hashes=["sha1", "xxh64"],
    )
    mds = MDSDataset(str(path), cache_dir=path.parent / "cache")
    ids = np.array(data.draw(st.lists(st.integers(0, len(samples) - 1), max_size=40)), np.int64)
    names = data.draw(st.none() | st.lists(st.sampled_from(sorted(columns)), unique=True, min_size=1))
    got = mds.gather(ids, names)
    expected = read_with_streaming(path)
    assert len(expected) == mds.num_samples == len(samples)
    assert_same(mds, expected, ids, sorted(names) if names else None)
    assert set(got) == set(names or columns)


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("make", [numbered, numbered_fixed])
def test_compressed_shards_are_read_and_the_source_is_left_alone(tmp_path, compression, make):
    path = make(tmp_path / "mds", compression=compression, hashes=["sha1", "xxh3_64"])
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    mds = MDSDataset(path.as_uri(), cache_dir=tmp_path / "cache")
    assert mds.gather(np.arange(99, -1, -1), ["id"])["id"].tolist() == list(range(99, -1, -1))
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    assert len(list((tmp_path / "cache").rglob("*.mds"))) == len(mds.index.shards) > 1


def test_padding_is_zero_and_none(tmp_path):
    mds = MDSDataset(str(numbered(tmp_path / "mds")))
    got = mds.gather(np.array([5, -1, 80, -1]))
    assert got["id"].tolist() == [5, 0, 80, 0]
    assert got["name"].tolist() == ["nn", None, "nn", None]
    assert mds.gather(np.array([-1, -1]), ["x"])["x"].tolist() == [0, 0]


def test_columns_of_a_gather_are_contiguous_and_writable(tmp_path):
    columns = {"a": "float32", "b": "float32", "c": "ndarray:int64:2", "d": "int8"}
    samples = [{"a": 1.0, "b": 2.0, "c": np.array([3, number]), "d": 4} for number in range(20)]
    got = MDSDataset(str(write(tmp_path / "mds", columns, samples))).gather(np.arange(20))
    for values in got.values():
        assert values.flags.c_contiguous and values.flags.writeable and values.flags.aligned


def test_wrong_requests_are_refused(tmp_path):
    mds = MDSDataset(str(numbered_fixed(tmp_path / "mds")))
    with pytest.raises(UserError, match=r"no column 'y'; it has id, x$"):
        mds.gather(np.array([0]), ["y"])
    for bad in (-2, 100):
        with pytest.raises(IndexError, match=r"not within 0\.\.99"):
            mds.gather(np.array([0, bad]))


def test_the_digest_is_that_of_the_index(tmp_path):
    import hashlib

    path = numbered(tmp_path / "mds")
    assert MDSDataset(str(path)).digest == hashlib.sha256((path / "index.json").read_bytes()).hexdigest()


def _edit(path, change):
    index = json.loads((path / "index.json").read_text())
    change(index)
    (path / "index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index.update(version=3), "MDS version 3 is not supported; expected 2"),
        (lambda index: index.update(shards={}), "not an MDS index"),
        (lambda index: index.update(shards=[]), "the dataset has no shards"),
        (lambda index: [shard.update(samples=0) for shard in index["shards"]], "the dataset has no samples"),
        (lambda index: index["shards"][1].update(format="json"), r"shards\[1\]: format 'json'"),
        (lambda index: index["shards"][1].update(samples="7"), r"shards\[1\]: samples is '7'; expected int"),
        (
            lambda index: index["shards"][1].update(samples=2**64),
            r"shards\[1\]: samples is \d+; expected a count below",
        ),
        (lambda index: index["shards"][1].update(column_names=["a", "b", "c"]), r"shards\[1\]: its columns differ"),
        (lambda index: index["shards"][0].update(column_names=["id", "id", "x"]), "names repeat"),
        (lambda index: index["shards"][0].update(column_names=["id", [], "x"]), "column_names are .*; expected texts"),
        (lambda index: index["shards"][0].update(column_sizes=[8, None, 8]), "column 'x' .float32. has size 8"),
        (
            lambda index: index["shards"][0].update(column_encodings=["int", "pkl", "float32"]),
            "'pkl': pickled values are never",
        ),
        (
            lambda index: index["shards"][0].update(column_encodings=["int", "what", "float32"]),
            "'what': unknown encoding",
        ),
        (lambda index: index["shards"][1].update(compression="rar"), "compression 'rar' is not supported"),
        (lambda index: index["shards"][1].update(compression="zstd"), "compression is 'zstd' but zip_data is None"),
        (lambda index: index["shards"][1].update(raw_data=None), r"shards\[1\].raw_data: basename is None"),
        (
            lambda index: index["shards"][1]["raw_data"].update(basename="../x"),
            "'../x' is not a file below the dataset",
        ),
    ],
)
def test_an_index_that_cannot_be_read_is_refused_in_one_line(tmp_path, change, message):
    path = numbered(tmp_path / "mds")
    _edit(path, change)
    with pytest.raises(UserError, match=message) as caught:
        MDSDataset(str(path))
    assert str(path / "index.json") in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_and_a_truncated_index_are_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere/index\.json: not found"):
        MDSDataset(str(tmp_path / "nowhere"))
    path = numbered(tmp_path / "mds")
    text = (path / "index.json").read_text()
    (path / "index.json").write_text(text[: len(text) // 2])
    with pytest.raises(UserError, match=r"index\.json: not valid JSON"):
        MDSDataset(str(path))


def _overwrite(position, values):
    def damage(file):
        content = bytearray(file.read_bytes())
        content[position : position + len(values)] = values
        file.write_bytes(content)

    return damage


def _replace_by_other_dataset(file):
    samples = [{"id": number, "y": np.float32(number), "name": "n" * (number % 3)} for number in range(100)]
    other = write(file.parent / "other", {"id": "int", "y": "float32", "name": "str"}, samples, size_limit=500)
    shutil.copy(other / file.name, file)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), r"has \d+ bytes, the index says \d+"),
        (lambda file: file.write_bytes(b""), r"has 0 bytes, the index says \d+"),
        (Path.unlink, "no such file, but the index names it"),
        (_overwrite(0, b"\x01"), r"its header says 1 samples in \d+ bytes, the index says \d+ samples"),
        (_overwrite(4, b"\xff\xff"), "its sample offsets run from"),
        (_overwrite(8, b"\xff\xff"), "its sample offsets run from"),
        (_replace_by_other_dataset, "its columns are .*'y'.*; the index says .*'x'"),
    ],
    ids=["truncated", "empty", "missing", "count", "first offset", "second offset", "other dataset"],
)
def test_a_damaged_shard_is_named(tmp_path, damage, message):
    path = numbered(tmp_path / "mds")
    mds = MDSDataset(str(path))
    damage(path / "shard.00001.mds")
    second = np.array([int(mds.index.shard_ends[0])])
    assert mds.gather(np.array([0]))["id"].tolist() == [0]
    with pytest.raises(UserError, match=message) as caught:
        mds.gather(second)
    assert str(path / "shard.00001.mds") in str(caught.value) and "\n" not in str(caught.value)


def test_sample_sizes_that_do_not_add_up_are_found(tmp_path):
    path = numbered(tmp_path / "mds")
    mds = MDSDataset(str(path))
    file = path / "shard.00000.mds"
    begin = int(np.frombuffer(file.read_bytes()[4:8], np.uint32)[0])
    _overwrite(begin, b"\x07")(file)  # the size of the first sample's name
    with pytest.raises(UserError, match=f"the columns of the sample at byte {begin} end at"):
        mds.gather(np.array([0, 1]))


def test_a_value_that_cannot_be_decoded_is_named(tmp_path):
    path = write(tmp_path / "mds", {"name": "str"}, [{"name": "abc"}])
    file = path / "shard.00000.mds"
    file.write_bytes(file.read_bytes()[:-3] + b"\xff\xff\xff")
    with pytest.raises(
        UserError, match=r"shard.00000.mds: corrupt: column 'name' \(str\) at bytes .* cannot be decoded"
    ):
        MDSDataset(str(path)).gather(np.array([0]))


@pytest.mark.parametrize("hashes", [["sha1"], ["xxh64"], ["md5", "xxh3_64"], ["sha256", "xxh32"]])
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_a_flipped_bit_is_found_by_the_strongest_hash(tmp_path, hashes, compression):
    path = numbered_fixed(tmp_path / "mds", hashes=hashes, compression=compression)
    file = next(path.glob("shard.00000.mds*"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    strongest = next(name for name in ("sha256", "sha1", "md5", "xxh3_64", "xxh64") if name in hashes)
    with pytest.raises(UserError, match=f"{file.name}: corrupt: its {strongest} is .*, the index says"):
        MDSDataset(str(path), cache_dir=tmp_path / "cache").gather(np.array([0]))
    assert not list((tmp_path / "cache").rglob("*.mds"))
    if compression is None:
        assert MDSDataset(str(path), verify_hashes=False).gather(np.array([0]))["id"].tolist() == [0]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.write_bytes(bytes(file.stat().st_size)), "corrupt: cannot be decompressed"),
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), r"has \d+ bytes, the index says \d+"),
        (Path.unlink, "no such file, but the index names it"),
    ],
    ids=["zeroed", "truncated", "missing"],
)
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_damaged_compressed_shard_is_named_and_not_cached(tmp_path, compression, damage, message):
    path = numbered(tmp_path / "mds", compression=compression)
    file = next(path.glob("shard.00000.mds.*"))
    damage(file)
    with pytest.raises(UserError, match=message) as caught:
        MDSDataset(str(path), cache_dir=tmp_path / "cache").gather(np.array([0]))
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)
    assert [each.name for each in (tmp_path / "cache").rglob("*") if each.is_file()] == [".lock"]


def test_the_streaming_package_is_left_as_it_is():
    import sys

    before = sys.modules.get("streaming")
    streaming_module.cache_clear()
    assert callable(streaming_module("partition").get_partitions)
    assert sys.modules.get("streaming") is before
