"""Wrong raw data, wrong places and failing stores: one line that names what is wrong, and nothing published."""

import errno
import gzip
import os
import socket
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rectrain.api.data import DataSource
from rectrain.api.errors import UserError
from rectrain.api.features import Feature, Label
from rectrain_jobs.data.convert import convert
from rectrain_jobs.data.formats import Definition
from rectrain_jobs.data.infer import infer_definition
from rectrain_jobs.data.mds import MDSDataset
from rectrain_jobs.storage import LocalStore, Storage
from rectrain_jobs.storage.local import local_errors

USER = {"name": "user_id", "kind": "Categorical", "cardinality": 10}
ITEM = {"name": "item_id", "kind": "Categorical", "cardinality": 10}
HISTORY = {"name": "history", "kind": "Sequence", "of": "item_id", "maxLength": 3}
AGE = {"name": "age", "kind": "Dense"}
TAGS = {"name": "tags", "kind": "Sequence", "cardinality": 10, "maxLength": 2}
LEARNT = {**USER, "encoding": "Vocabulary"}
LEARNT_TAGS = {**TAGS, "encoding": "Vocabulary"}
PAIR = [USER, ITEM]
BINARY = [{"name": "label", "task": "Binary"}]
CLASSES = [{"name": "label", "task": "MultiClass", "numClasses": 3}]
GOOD = "0 1 2\n1 3\n"
CRITEO = [AGE, {"name": "c", "kind": "Categorical", "cardinality": 10, "encoding": "Hashing"}]
CRITEO_LINE = "\t".join(["1", *["2"] * 13, *["ab"] * 26])


def put(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def definition(features: list[dict], labels: list[dict] = (), storage: Storage | None = None, **source) -> Definition:
    return Definition(
        source=DataSource.model_validate(source),
        features=[Feature.model_validate(feature) for feature in features],
        labels=[Label.model_validate(label) for label in labels],
        storage=storage or Storage(),
    )


def refusal(asked: Definition, target: Path | str, validation: Path | str | None = None, **options) -> str:
    with pytest.raises(UserError) as caught:
        convert(asked, str(target), str(validation) if validation else None, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def good(folder: Path, **source) -> Definition:
    raw = put(folder / "good.txt", GOOD)
    return definition(PAIR, format="Interactions", uri=raw, **source)


def files_below(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


WRONG = [
    # format, file, content, features, labels, what the line says after the file
    ("Triples", "a.csv", "user_id,age\n1,2\n3,4,5\n", [USER, AGE], [], ":3: has 3 values; a line has 2"),
    ("Triples", "a.csv", "user_id,age\n1,2\n3\n", [USER, AGE], [], ":3: has 1 values; a line has 2"),
    ("Triples", "a.tsv", "user_id\tage\n1\t2\t3\n", [USER, AGE], [], ":2: has 3 values; a line has 2"),
    ("Criteo", "day_0", f"{CRITEO_LINE}\n1\t2\n", CRITEO, BINARY, ":2: has 2 values; a line has 40"),
    ("LibSVM", "a.svm", "1 1:1 2:1\n0 3:1\n", PAIR, BINARY, ":2: has 1 fields; a line has 2"),
    ("LibSVM", "a.svm", "1 1:1 2\n", PAIR, BINARY, ":1: item_id: field '2' is not index:value"),
    ("LibSVM", "a.svm", "1 1:1 2:3\n", PAIR, BINARY, ":1: item_id: field '2:3' must have the value 1"),
    ("ComiRec", "a.txt", "1,2,3\n1,2\n", PAIR, [], ":2: has 2 values; a line has 3"),
    ("ComiRec", "a.txt", "1,2,3\n1,2,soon\n", PAIR, [], ":2: time: value 'soon' is not a number"),
    ("ComiRec", "a.txt", "1,2,3\n,2,4\n", [*PAIR, HISTORY], [], ":2: user: is missing; a line is user,item,time"),
    ("ComiRec", "a.txt", "1,2,3\n1,,4\n", PAIR, [], ":2: item: is missing"),
    ("Interactions", "a.txt", "0 1\n2 3 10\n", PAIR, [], ":2: item_id: value 10 is not an id from 0 to 9"),
    ("Interactions", "a.txt", "0 1\n\n2 3 -1\n", PAIR, [], ":3: item_id: value -1 is not an id from 0 to 9"),
    ("Interactions", "a.txt", f"0 1\n{10**30} 3\n", PAIR, [], f":2: user_id: value '{10**30}' is not an id"),
    ("Interactions", "a.txt", "0 1\n2 x\n", PAIR, [], ":2: item_id: value 'x' is not an id from 0 to 9"),
    ("Interactions", "a.txt", "0 1\n2 12\n", [*PAIR, HISTORY], [], ":2: item_id: value 12 is not an id"),
    (
        "Interactions",
        "a.txt",
        "0 1\r\n2 3\r4 5\r",
        PAIR,
        [],
        ":2: has a CR within the line; lines end with LF",
    ),
    ("Interactions", "a.txt", b"0 1\n2 \xff\n", PAIR, [], ":2: is not UTF-8 text"),
    ("Triples", "a.csv", b"user_id,age\n1,2\n\xff,3\n", [USER, AGE], [], ":3: is not UTF-8 text"),
    ("Sequences", "a.txt", "0 1 2\n2 10 3\n", [*PAIR, HISTORY], [], ":2: item_id: value 10 is not an id"),
    ("Triples", "a.csv", "user_id,age\n1,2\n3,nan\n", [USER, AGE], [], ":3: age: value nan is not a finite number"),
    ("Triples", "a.csv", "user_id,age\n1,-inf\n", [USER, AGE], [], ":2: age: value -inf is not a finite number"),
    ("Triples", "a.csv", "user_id,age\n1,1e39\n", [USER, AGE], [], ":2: age: value 1e+39 does not fit a 32-bit"),
    ("Triples", "a.csv", "user_id,age\n1,old\n", [USER, AGE], [], ":2: age: value 'old' is not a number"),
    ("Triples", "a.csv", "user_id,tags\n1,2 3\n4,5 11\n", [USER, TAGS], [], ":3: tags: value 11 is not an id"),
    ("Triples", "a.csv", "user_id,label\n1,1\n2,2\n", [USER], BINARY, ":3: label: value '2' is not 0 or 1"),
    ("Triples", "a.csv", "user_id,label\n1,1\n2,\n", [USER], BINARY, ":3: label: "),
    ("Triples", "a.csv", "user_id,label\n1,2\n2,3\n", [USER], CLASSES, ":3: label: value '3' is not a class from 0"),
    ("Triples", "a.csv", "user_id,age\n1,2\n", [ITEM], [], ": item_id: there is no column 'item_id'; it has user_id"),
    ("Triples", "a.csv", "\n1,2\n", [ITEM], [], ":1: has no column names"),
    ("Triples", "a.csv", f"{'x' * 200_000}\n1\n", [USER], [], ":1: names no columns: field larger than"),
    ("Triples", "a.csv", "user_id,user_id\n1,2\n", [USER], [], ": user_id: there are 2 columns 'user_id'"),
    ("Triples", "a.csv", "user_id,age\n", [USER], [], ": gives no train rows"),
    ("Triples", "a.csv", "user_id,age", [USER], [], ": has no rows"),
    (
        "Triples",
        "a.csv",
        f"user_id,age\n1,2\n3,{'x' * (1 << 23)}\n",
        [USER],
        [],
        ":3: this line or one after it is longer",
    ),
    ("Criteo", "day_0", b"\xf2\x80\n", CRITEO, BINARY, ":1: has 1 values; a line has 40"),
    ("Interactions", "a.txt", "\n \n", PAIR, [], ": gives no train rows"),
    ("Interactions", "a.txt", "", PAIR, [], ": is empty; raw data has at least one row"),
    ("Interactions", "a.txt.gz", gzip.compress(b""), PAIR, [], ": gives no train rows"),
    ("Interactions", "a.txt.gz", b"no gzip at all", PAIR, [], ": cannot be read: "),
    ("Interactions", "a.txt.gz", gzip.compress(os.urandom(99999))[:5000], PAIR, [], ":"),
    ("Triples", "a.csv.gz", gzip.compress(b"user_id\n" + b"1\n" * 99999)[:-30], [USER], [], ": cannot be read: "),
    ("Triples", "a.parquet", b"PAR1 no parquet", [USER], [], ": cannot be read as Parquet: "),
    ("Parquet", "a.parquet", b"x", [USER], [], ": cannot be read as Parquet: "),
]


@pytest.mark.parametrize(("format_", "file", "content", "features", "labels", "problem"), WRONG)
def test_wrong_data_is_named_and_nothing_published(tmp_path, format_, file, content, features, labels, problem):
    raw = put(tmp_path / file, content)
    line = refusal(definition(features, labels, format=format_, uri=raw), tmp_path / "out" / "train")
    assert line.startswith(f"{raw}{problem}")
    assert [path.name for path in tmp_path.iterdir()] == [file] and Path(raw).is_file()


@pytest.mark.parametrize(
    ("table", "features", "problem"),
    [
        ({"user_id": [1, 10]}, [USER], ": row 2: user_id: value 10 is not an id from 0 to 9"),
        ({"user_id": [1, 2**62]}, [USER], f": row 2: user_id: value {2**62} is not an id"),
        ({"user_id": [[1]]}, [USER], ": row 1: user_id: "),
        ({"age": [1.0, float("inf")]}, [AGE], ": row 2: age: value inf is not a finite number"),
        ({"age": [["x"]]}, [AGE], ": row 1: age: has type"),
        ({"tags": [1, 2]}, [TAGS], ": row 1: tags: has type int64; a sequence is a list of ids"),
        ({"tags": [[1], [2, 3], [-7]]}, [TAGS], ": row 3: tags: value -7 is not an id"),
        ({"other": [1]}, [USER], ": user_id: there is no column 'user_id'; it has other"),
        ({"user_id": [b"a", b"\xff"]}, [LEARNT], ": row 2: user_id: value b'\\xff' is not UTF-8 text"),
        ({"tags": [[], [b"a"], None, [b"b", b"\xff"]]}, [LEARNT_TAGS], ": row 4: tags: value b'\\xff' is not UTF-8"),
    ],
)
def test_a_wrong_row_of_a_table_is_named(tmp_path, table, features, problem):
    raw = tmp_path / "a.parquet"
    pq.write_table(pa.table(table), raw)
    line = refusal(definition(features, format="Parquet", uri=str(raw)), tmp_path / "out")
    assert line.startswith(f"{raw}{problem}")
    assert list(files_below(tmp_path)) == ["a.parquet"]


def test_a_column_that_is_there_twice_is_refused(tmp_path):
    raw = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["user_id", "user_id"]), raw)
    line = refusal(definition([USER], format="Parquet", uri=str(raw)), tmp_path / "out")
    assert line == f"{raw}: user_id: there are 2 columns 'user_id'; give one another name"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("user_id:1 hist_item:2\n", ":1: has 1 user_id and 0 eval_item"),
        ("user_id:1 eval_item:2\nuser_id:1 user_id:2 eval_item:2\n", ":2: has 2 user_id and 1 eval_item"),
        ("user_id:1 eval_item:2\nuser_id:1 what:3 eval_item:2\n", ":2: 'what:3' is not one of user_id:id"),
        ("user_id:1 eval_item:2\nuser_id:1 7 eval_item:2\n", ":2: '7' is not one of user_id:id"),
        ("user_id:1 eval_item:12\n", ":1: item_id: value 12 is not an id from 0 to 9"),
        ("user_id:1 hist_item:12 eval_item:2\n", ":1: history: value 12 is not an id from 0 to 9"),
    ],
)
def test_wrong_validation_data_leaves_no_training_shards(tmp_path, content, problem):
    train, test = put(tmp_path / "train.txt", "1,2,3\n"), put(tmp_path / "test.txt", content)
    asked = definition([*PAIR, HISTORY], format="ComiRec", uri=train, validationUri=test)
    assert refusal(asked, tmp_path / "train", tmp_path / "validation").startswith(f"{test}{problem}")
    assert list(files_below(tmp_path)) == ["test.txt", "train.txt"]


@pytest.mark.parametrize(
    ("format_", "content", "problem"),
    [
        ("Interactions", "0 1\n2 -3\n", ":2: item_id: value -3 is not an id from 0 to 1099511627775"),
        ("Interactions", "0 1\n2 3\n4 x\n", ":3: item_id: value 'x' is not an id"),
        ("Interactions", f"0 1\n2 {2**40}\n", f":2: item_id: value {2**40} is not an id"),
        ("Interactions", f"0 1\n2 {10**30}\n", f":2: item_id: value '{10**30}' is not an id"),
        ("LibSVM", "1 1:1 2:1\n0 3:1 -4:1\n", ":2: field_1: value -4 is not an id"),
        ("Interactions", "\n", ": has no rows"),
    ],
)
def test_ids_from_which_no_schema_follows(tmp_path, format_, content, problem):
    raw = put(tmp_path / "a.txt", content)
    with pytest.raises(UserError) as caught:
        infer_definition(definition([], format=format_, uri=raw))
    assert str(caught.value).startswith(f"{raw}{problem}")


def test_an_id_of_a_history_from_which_no_schema_follows(tmp_path):
    train = put(tmp_path / "train.txt", "1,2,3\n")
    test = put(
        tmp_path / "test.txt", "user_id:1 hist_item:1 hist_item:2 eval_item:2\nuser_id:1 hist_item:-5 eval_item:2\n"
    )
    with pytest.raises(UserError, match=rf"^{test}:2: history: value -5 is not an id from 0"):
        infer_definition(definition([], format="ComiRec", uri=train, validationUri=test))


@pytest.mark.parametrize("format_", ["Triples", "Parquet"])
def test_formats_that_imply_no_features(tmp_path, format_):
    with pytest.raises(UserError, match=f"^{format_} implies no features: give --job, or --feature"):
        infer_definition(definition([], format=format_, uri=put(tmp_path / "a", "x")))


@pytest.mark.parametrize(
    ("format_", "features", "labels", "problem"),
    [
        ("Interactions", [USER], [], "features: item_id is required"),
        ("Interactions", [*PAIR, AGE], [], "features[age]: is not in the data"),
        ("Interactions", PAIR, CLASSES, "labels[label].task: must be Binary for Interactions"),
        ("Criteo", [TAGS], [], "features[tags].kind: must be Dense or Categorical"),
        ("Criteo", [{"name": f"d{n}", "kind": "Dense"} for n in range(14)], [], "features: must be at most 13 Dense"),
        ("LibSVM", [TAGS], [], "features[tags].kind: must be Dense or Categorical"),
        ("LibSVM", [USER], [*BINARY, {"name": "y", "task": "Binary"}], "labels: must be at most one for LibSVM, not 2"),
        ("Synthetic", [USER], BINARY, "features[user_id]: Synthetic has dense_0 to dense_12 and cat_0 to cat_25 only"),
        ("Synthetic", [{"name": "cat_26", "kind": "Dense"}], BINARY, "features[cat_26]: Synthetic has cat_0 to cat_25"),
        ("Synthetic", [{"name": "cat_0", "kind": "Dense"}], BINARY, "features[cat_0].kind: must be Categorical"),
        ("Synthetic", [{"name": "dense_0", "kind": "Dense"}], [], "labels: must be one Binary label for Synthetic"),
    ],
)
def test_what_a_format_cannot_give(tmp_path, format_, features, labels, problem):
    source = {} if format_ == "Synthetic" else {"uri": put(tmp_path / "a.txt", GOOD)}
    assert refusal(definition(features, labels, format=format_, **source), tmp_path / "out").startswith(problem)


@pytest.mark.parametrize("uri", ["none.txt", "none/*.txt", "empty"])
def test_missing_input(tmp_path, uri):
    (tmp_path / "empty").mkdir()
    line = refusal(definition(PAIR, format="Interactions", uri=str(tmp_path / uri)), tmp_path / "out")
    assert line == f"{tmp_path / uri}: there is no such file, and no file below it or that matches it"


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("x" * 300, "cannot be read: File name too long"),
        ("/dev/zero", "is neither a file nor a folder"),
        ("ftp://host/a.txt", "has the unsupported scheme 'ftp'"),
    ],
)
def test_input_that_is_no_file(tmp_path, uri, problem):
    line = refusal(definition(PAIR, format="Interactions", uri=uri), tmp_path / "out")
    assert line.startswith(f"{uri}: {problem}")


def test_unreadable_input(tmp_path, monkeypatch):
    asked = good(tmp_path)
    raw = asked.source.uri

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", raw)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        line = refusal(asked, tmp_path / "out")
    assert line == f"{raw}: cannot be read: Permission denied"
    with monkeypatch.context() as patch:
        patch.setattr(pa, "input_stream", refuse)
        line = refusal(asked, tmp_path / "out")
    assert line.startswith(f"{raw}: cannot be read: ") and "Permission denied" in line
    assert list(files_below(tmp_path)) == ["good.txt"]


@pytest.mark.parametrize(
    ("there", "found"),
    [
        (["notes.txt"], "is not empty: it holds notes.txt"),
        (["a", "b", "c", "d"], "is not empty: it holds a, b, c ..."),
        (["shard.00000.mds", "conversion.json"], "is half-written: it holds 1 shards but no index.json"),
        (["conversion.json"], "is half-written: it holds 0 shards but no index.json"),
        (["shard.00000.mds", "index.json"], "already holds a dataset (1 shards and index.json)"),
    ],
)
def test_what_is_there_is_replaced_only_when_asked(tmp_path, there, found):
    out = tmp_path / "out"
    out.mkdir()
    for name in there:
        put(out / name, "{}")
    asked = good(tmp_path)
    before = files_below(out)
    line = refusal(asked, out)
    assert line == f"{out}: {found}; choose another place, or give --overwrite to replace it"
    assert files_below(out) == before
    convert(asked, str(out), overwrite=True)
    assert MDSDataset(str(out)).num_samples == 3
    # Files that no conversion wrote stay.
    others = {name for name in there if name in ("notes.txt", "a", "b", "c", "d")}
    ours = {"dataset.json", "features.json", "index.json"} | {path.name for path in out.glob("*.mds")}
    assert set(files_below(out)) == ours | others


def test_training_and_validation_need_two_places(tmp_path):
    raw = put(tmp_path / "a.txt", GOOD)
    asked = definition(PAIR, format="Interactions", uri=raw, validationUri=raw)
    assert "is the place of training and of validation shards" in refusal(asked, tmp_path / "x", tmp_path / "x/")


@pytest.mark.parametrize(
    ("target", "is_refused"),
    [("raw", True), ("raw/shards/train", True), ("link/shards", True), ("raw/_shards", False), ("raw2", False)],
)
def test_shards_in_the_raw_data_would_be_read_as_such(tmp_path, target, is_refused):
    raw = tmp_path / "raw"
    raw.mkdir()
    put(raw / "a.txt", GOOD)
    (tmp_path / "link").symlink_to(raw)
    asked = definition(PAIR, format="Interactions", uri=str(raw))
    if is_refused:
        line = refusal(asked, tmp_path / target, overwrite=True)
        assert line == f"{tmp_path / target}: is in the raw data {raw}, and would be read as such; choose another place"
        assert list(files_below(raw)) == ["a.txt"]
    else:
        assert convert(asked, str(tmp_path / target)).records["train"].rows == 3


def test_shards_in_raw_data_in_object_storage_too():
    asked = definition(PAIR, format="Interactions", uri="s3://bucket/raw/")
    assert "is in the raw data s3://bucket/raw/" in refusal(asked, "s3://bucket/raw/shards")


def fail_at(monkeypatch, failing: str) -> None:
    """Let the disk be full from the first write of a certain file on; what is written again after may fit."""
    folder, name = failing.split("/")
    write = LocalStore.write_bytes

    def write_bytes(self, key, data):
        if f"{self.root.name}/{key}".startswith(folder) and key.endswith(name):
            monkeypatch.setattr(LocalStore, "write_bytes", write)
            with local_errors(Path(self.uri_of(key))):
                raise OSError(errno.ENOSPC, "No space left on device")
        write(self, key, data)

    monkeypatch.setattr(LocalStore, "write_bytes", write_bytes)


PLACES = [
    f"{split}/{name}"
    for split in ("train", "validation")
    for name in ("conversion.json", ".mds", "vocabulary.item_id.parquet", "features.json", "dataset.json", "index.json")
]


@pytest.mark.parametrize("place", PLACES)
def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch, place):
    raw = put(tmp_path / "a.txt", GOOD)
    learnt = {**ITEM, "encoding": "Vocabulary"}
    asked = definition([USER, learnt], format="Interactions", uri=raw, validationUri=raw)
    targets = tmp_path / "out" / "train", tmp_path / "out" / "validation"
    for is_first in (True, False):
        before = files_below(tmp_path / "out")
        with monkeypatch.context() as patch:
            fail_at(patch, place)
            line = refusal(asked, *targets, overwrite=not is_first)
        assert line.startswith(str(tmp_path / "out")) and "no space left on the disk" in line
        assert files_below(tmp_path / "out") == before
        convert(asked, *map(str, targets), overwrite=not is_first)
        assert [MDSDataset(str(target)).num_samples for target in targets] == [3, 3]
        raw = put(tmp_path / "a.txt", "5 6\n7 8 9\n")


@pytest.fixture
def closed_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        yield listener.getsockname()[1]


@pytest.fixture
def no_credentials(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.mark.parametrize("has_credentials", [True, False])
@pytest.mark.parametrize("is_input", [True, False])
def test_a_store_that_cannot_be_reached(tmp_path, monkeypatch, closed_port, no_credentials, has_credentials, is_input):
    if has_credentials:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    endpoint = f"http://127.0.0.1:{closed_port}"
    storage = Storage(endpoint_url=endpoint, region="us-east-1")
    uri = "s3://bucket/raw.txt" if is_input else put(tmp_path / "a.txt", GOOD)
    asked = definition(PAIR, format="Interactions", uri=uri, storage=storage)
    line = refusal(asked, tmp_path / "out" if is_input else "s3://bucket/out")
    assert "s3://bucket" in line
    assert endpoint in line if has_credentials else "credentials" in line
    assert not (tmp_path / "out").exists()


def test_a_smaller_cardinality_stops_before_any_shard_of_many_rows(tmp_path):
    """The wrong row is in the last of several shards."""
    rows = np.arange(2000) % 10
    rows[-1] = 10
    raw = put(tmp_path / "a.csv", "user_id\n" + "\n".join(map(str, rows)) + "\n")
    line = refusal(definition([USER], format="Triples", uri=raw), tmp_path / "out", shard_bytes=1000)
    assert line.startswith(f"{raw}:2001: user_id: value 10 is not an id from 0 to 9 (cardinality 10)")
    assert list(files_below(tmp_path)) == ["a.csv"]
