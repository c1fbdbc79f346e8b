"""Each raw format, converted from a small file and read back: exactly these rows."""

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from rectrain.api.data import DataSource
from rectrain.api.features import Feature, Label
from rectrain_jobs.data.convert import Conversion, convert
from rectrain_jobs.data.formats import Definition, delimited, lines
from rectrain_jobs.data.formats.base import is_held_out
from rectrain_jobs.data.formats.synthetic import SyntheticReader
from rectrain_jobs.data.infer import infer_definition
from rectrain_jobs.data.mds import MDSDataset
from rectrain_jobs.data.mds.upstream import streaming_module

EXAMPLES = Path(__file__).parents[2] / "examples"
USER = {"name": "user_id", "kind": "Categorical", "cardinality": 10}
ITEM = {"name": "item_id", "kind": "Categorical", "cardinality": 100}
HISTORY = {"name": "history", "kind": "Sequence", "of": "item_id", "maxLength": 3}
PAIR = [USER, ITEM]
BINARY = [{"name": "label", "task": "Binary"}]


def put(path: Path, content: str | bytes) -> str:
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def definition(features: list[dict], labels: list[dict] = (), **source) -> Definition:
    return Definition(
        source=DataSource.model_validate(source),
        features=[Feature.model_validate(feature) for feature in features],
        labels=[Label.model_validate(label) for label in labels],
    )


def rows_of(uri: Path | str) -> list[dict]:
    dataset = MDSDataset(str(uri))
    columns = dataset.gather(np.arange(dataset.num_samples))
    return [{name: values[row].tolist() for name, values in columns.items()} for row in range(dataset.num_samples)]


def tuples_of(uri: Path | str, *names: str) -> list[tuple]:
    return [tuple(row[name] for name in names) for row in rows_of(uri)]


def converted(folder: Path, asked: Definition, validation: bool = True, **options) -> Conversion:
    return convert(asked, str(folder / "train"), str(folder / "validation") if validation else None, **options)


@pytest.fixture(params=["train.txt", "train.txt.gz"])
def name(request) -> str:
    return request.param


def test_interactions(tmp_path, name):
    train = put(tmp_path / name, "\ufeff0 1 2\n\n3\n4  9\t7 \r\n")  # with the mark that Windows programs begin with
    test = put(tmp_path / f"test.{name}", "0 3\n5 8")
    converted(tmp_path, definition(PAIR, BINARY, format="Interactions", uri=train, validationUri=test))
    assert rows_of(tmp_path / "train") == [
        {"item_id": item, "label": 1.0, "user_id": user} for user, item in [(0, 1), (0, 2), (4, 9), (4, 7)]
    ]
    assert tuples_of(tmp_path / "validation", "user_id", "item_id") == [(0, 3), (5, 8)]


@pytest.mark.parametrize(("name", "rows"), [("train", 604_475), ("test", 172_951)])
def test_the_example_has_as_many_interactions_as_it_says(name, rows):
    with gzip.open(EXAMPLES / f"amazon-cds/{name}.txt.gz", "rt") as lines:
        assert sum(len(line.split()) - 1 for line in lines) == rows
    assert f"{rows:,} interactions" in (EXAMPLES / "amazon-cds/README.md").read_text()


def test_histories_of_interactions_leave_out_the_own_item(tmp_path):
    train = put(tmp_path / "train.txt", "0 1 2 3 4 5\n1 6\n0 7\n")
    test = put(tmp_path / "test.txt", "0 9\n1 9\n8 9\n")
    converted(tmp_path, definition([*PAIR, HISTORY], format="Interactions", uri=train, validationUri=test))
    assert tuples_of(tmp_path / "train", "user_id", "item_id", "history") == [
        (0, 1, [4, 5, 7]),
        (0, 2, [4, 5, 7]),
        (0, 3, [4, 5, 7]),
        (0, 4, [3, 5, 7]),
        (0, 5, [3, 4, 7]),
        (1, 6, [-1, -1, -1]),
        (0, 7, [3, 4, 5]),
    ]
    assert tuples_of(tmp_path / "validation", "user_id", "history") == [
        (0, [4, 5, 7]),
        (1, [6, -1, -1]),
        (8, [-1, -1, -1]),
    ]


@pytest.mark.parametrize("history", [[], [HISTORY]])
def test_a_fraction_of_the_rows_is_held_out(tmp_path, history):
    lines = [[user, *range(user * 10, user * 10 + 10)] for user in range(10)]
    train = put(tmp_path / "train.txt", "\n".join(" ".join(map(str, line)) for line in lines))
    asked = definition([*PAIR, *history], format="Interactions", uri=train, validationFraction=0.25)
    converted(tmp_path, asked)
    items = {split: [row["item_id"] for row in rows_of(tmp_path / split)] for split in ("train", "validation")}
    held_out = np.flatnonzero(is_held_out(np.arange(100), 0.25)).tolist()
    assert items == {"train": [item for item in range(100) if item not in held_out], "validation": held_out}
    assert 15 < len(held_out) < 35
    if history:
        # What is held out is in no history.
        seen = {item for split in items for row in rows_of(tmp_path / split) for item in row["history"]} - {-1}
        assert seen <= set(items["train"])


TRIPLES = [
    {"name": "user", "kind": "Categorical", "cardinality": 4, "encoding": "Vocabulary"},
    {"name": "age", "kind": "Dense", "fillMissing": -1},
    {"name": "tags", "kind": "Sequence", "cardinality": 9, "maxLength": 2},
]
RATING = [{"name": "rating", "task": "Regression"}]
TRIPLES_ROWS = [
    {"age": 1.5, "rating": 5.0, "tags": [1, 2], "user": 1},
    {"age": -1.0, "rating": 0.5, "tags": [-1, -1], "user": 0},
    {"age": 3.0, "rating": 1.0, "tags": [3, -1], "user": 0},
]


@pytest.mark.parametrize(
    ("file", "content", "options"),
    [
        ("a.csv", 'uid,age,tags,stars\n"b, c",1.5,0 1 2,5\na,,,0.5\na,3,3,1\n', {}),
        ("a.csv.gz", "\ufeffuid,age,tags,stars\r\nb,1.5,0 1 2,5\r\na,,,0.5\r\na,3,3,1", {}),
        ("a.csv", 'uid,age,tags,stars\r"b, c",1.5,0 1 2,5\ra,,,0.5\ra,3,3,1\r', {}),
        ("a.tsv", 'uid\tage\ttags\tstars\nb"\t1.5\t0 1 2\t5\na\t\t\t0.5\na\t3\t3\t1\n', {}),
        ("a.inter", "uid:token\tage:float\ttags:token_seq\tstars:float\nb\t1.5\t1 2\t5\na\t\t\t.5\na\t3\t3\t1\n", {}),
        ("a.dat", "uid|age|tags|stars|more\nb|1.5|1 2|5|x\na|||0.5|x\na|3|3|1|x\n", {"delimiter": "|"}),
    ],
)
def test_triples_as_text(tmp_path, file, content, options):
    columns = {"user": "uid", "rating": "stars"}
    source = {"format": "Triples", "uri": put(tmp_path / file, content), "columns": columns, **options}
    converted(tmp_path, definition(TRIPLES, RATING, **source), validation=False)
    assert rows_of(tmp_path / "train") == TRIPLES_ROWS


def test_a_row_whose_wanted_values_are_all_missing_is_a_row_and_an_empty_line_is_none(tmp_path):
    asked = definition([USER], format="Triples", uri=put(tmp_path / "rows.csv", "user_id,other\n1,5\n,9\n,\n2,\n"))
    converted(tmp_path, asked, validation=False)
    missing = USER["cardinality"] + 1
    assert tuples_of(tmp_path / "train", "user_id") == [(1,), (missing,), (2,)]


@pytest.mark.parametrize("format_", ["Triples", "Parquet"])
def test_parquet(tmp_path, format_):
    table = {"uid": ["b", "a", "a"], "age": [1.5, None, 3.0], "tags": [[0, 1, 2], None, [3]], "rating": [5, 0.5, 1]}
    pq.write_table(pa.table(table), tmp_path / "a.parquet", row_group_size=2)
    asked = definition(
        TRIPLES,
        RATING,
        format=format_,
        uri=str(tmp_path / "a.parquet"),
        columns={"user": "uid"},
        validationFraction=0.8,
    )
    held_out = is_held_out(np.arange(3), 0.8)
    assert held_out.any() and not held_out.all()
    converted(tmp_path, asked)
    parts = {split: rows_of(tmp_path / split) for split in ("train", "validation")}
    # The vocabulary is that of the training rows.
    assert [row["rating"] for row in parts["train"]] == [
        r["rating"] for r, h in zip(TRIPLES_ROWS, held_out, strict=True) if not h
    ]
    assert [row["age"] for row in parts["validation"]] == [
        r["age"] for r, h in zip(TRIPLES_ROWS, held_out, strict=True) if h
    ]
    converted(
        tmp_path / "all",
        definition(TRIPLES, RATING, format=format_, uri=asked.source.uri, columns={"user": "uid"}),
        False,
    )
    assert rows_of(tmp_path / "all" / "train") == TRIPLES_ROWS


def test_files_of_a_folder_are_read_by_name(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    for number, file in enumerate(["b.txt", "a.txt.gz", "_skipped.txt", ".hidden"]):
        put(folder / file, f"{number} {number}\n")
    for uri in (folder, folder.as_uri(), folder / "[ab].*"):
        converted(tmp_path, definition(PAIR, format="Interactions", uri=str(uri)), validation=False, overwrite=True)
        assert tuples_of(tmp_path / "train", "user_id") == [(1,), (0,)]


@pytest.mark.parametrize("validation", [True, False])
def test_sequences_hold_out_the_last_item(tmp_path, name, validation):
    train = put(tmp_path / name, "0 5 6 7 8 9\n1 4\n2\n3 1 2\n")
    asked = definition([*PAIR, HISTORY], format="Sequences", uri=train)
    if not validation:
        asked = Definition(asked.source, asked.features, asked.labels, hold_out=False)
    converted(tmp_path, asked, validation=validation)
    rows = [
        (0, 5, [-1, -1, -1]),
        (0, 6, [5, -1, -1]),
        (0, 7, [5, 6, -1]),
        (0, 8, [5, 6, 7]),
        (0, 9, [6, 7, 8]),
        (1, 4, [-1, -1, -1]),
        (3, 1, [-1, -1, -1]),
        (3, 2, [1, -1, -1]),
    ]
    last = [rows[4], rows[7]]
    names = ("user_id", "item_id", "history")
    if validation:
        assert tuples_of(tmp_path / "validation", *names) == last
        rows = [row for row in rows if row not in last]
    assert tuples_of(tmp_path / "train", *names) == rows


def test_sequences_with_separate_validation(tmp_path):
    train, test = put(tmp_path / "train.txt", "0 5 6\n"), put(tmp_path / "test.txt", "0 5 6 7\n1 2\n")
    converted(tmp_path, definition([*PAIR, HISTORY], format="Sequences", uri=train, validationUri=test))
    names = ("user_id", "item_id", "history")
    assert tuples_of(tmp_path / "train", *names) == [(0, 5, [-1, -1, -1]), (0, 6, [5, -1, -1])]
    assert tuples_of(tmp_path / "validation", *names) == [(0, 7, [5, 6, -1])]


def test_libsvm(tmp_path, name):
    features = [
        {"name": "a", "kind": "Categorical", "cardinality": 8, "table": "ids"},
        {"name": "b", "kind": "Categorical", "cardinality": 8, "table": "ids"},
        {"name": "price", "kind": "Dense"},
    ]
    train = put(tmp_path / name, "1 0:1 7:1 3:0.5\n0 2:1.0 3:1 3:-2\n")
    converted(tmp_path, definition(features, BINARY, format="LibSVM", uri=train), validation=False)
    assert rows_of(tmp_path / "train") == [
        {"a": 0, "b": 7, "label": 1.0, "price": 0.5},
        {"a": 2, "b": 3, "label": 0.0, "price": -2.0},
    ]


def test_libsvm_of_its_own_schema(tmp_path):
    train = put(tmp_path / "train.txt", "1 0:1 7:1\n0 2:1 3:1\n")
    asked = infer_definition(definition([], format="LibSVM", uri=train))
    assert [(f.name, f.table, f.cardinality) for f in asked.features] == [("field_0", "ids", 8), ("field_1", "ids", 8)]
    converted(tmp_path, asked, validation=False)
    assert tuples_of(tmp_path / "train", "field_0", "field_1", "label") == [(0, 7, 1.0), (2, 3, 0.0)]


def test_criteo(tmp_path, name):
    full = ["1", *map(str, range(13)), *(f"{number:08x}" for number in range(26))]
    bare = ["0", *[""] * 39]
    train = put(tmp_path / name, "\t".join(full) + "\n" + "\t".join(bare) + "\n")
    asked = infer_definition(definition([], format="Criteo", uri=train))
    conversion = converted(tmp_path, asked, validation=False)
    first, second = rows_of(tmp_path / "train")
    assert (first["label"], second["label"]) == (1.0, 0.0)
    for number in range(13):
        assert first[f"dense_{number}"] == pytest.approx(np.log1p(number))
        assert second[f"dense_{number}"] == 0
    for number in range(26):
        row = conversion.features.transformers[f"cat_{number}"].transform_one(f"{number:08x}")
        assert 0 <= first[f"cat_{number}"] == row < 2**18
        assert second[f"cat_{number}"] == 2**18 + 1


def test_criteo_of_fewer_features(tmp_path):
    features = [
        {"name": "x", "kind": "Dense"},
        {"name": "c", "kind": "Categorical", "cardinality": 5, "encoding": "Vocabulary"},
    ]
    line = "\t".join(["1", *map(str, range(3, 16)), "ff", *["00"] * 25])
    train = put(tmp_path / "day_0", line + "\n")
    converted(tmp_path, definition(features, BINARY, format="Criteo", uri=train), validation=False)
    assert rows_of(tmp_path / "train") == [{"c": 0, "label": 1.0, "x": 3.0}]


@pytest.mark.parametrize("target", ["", " target_item:0"])
def test_comirec(tmp_path, name, target):
    # Times decide the order, then lines; user 1's lines are not together.
    train = put(tmp_path / name, "1,10,5\n0,20,1\n1,11,2\n1,12,5\n1,13,9\n1,14,10\n")
    lines = [
        f"user_id:1{target} hist_item:10 hist_item:11 hist_item:12 hist_item:13 eval_item:50 eval_item:51",
        f"user_id:3{target} eval_item:52",
    ]
    test = put(tmp_path / f"test.{name}", "\n".join(lines) + "\n")
    converted(tmp_path, definition([*PAIR, HISTORY], BINARY, format="ComiRec", uri=train, validationUri=test))
    names = ("user_id", "item_id", "history", "label")
    assert tuples_of(tmp_path / "train", *names) == [
        (1, 10, [11, -1, -1], 1),
        (0, 20, [-1, -1, -1], 1),
        (1, 11, [-1, -1, -1], 1),
        (1, 12, [11, 10, -1], 1),
        (1, 13, [11, 10, 12], 1),
        (1, 14, [10, 12, 13], 1),
    ]
    assert tuples_of(tmp_path / "validation", *names) == [
        (1, 50, [11, 12, 13], 1),
        (1, 51, [11, 12, 13], 1),
        (3, 52, [-1, -1, -1], 1),
    ]


def test_comirec_without_history(tmp_path):
    train = put(tmp_path / "train.txt", "1,10,5\n0,20,1\n")
    test = put(tmp_path / "test.txt", "user_id:1 hist_item:10 eval_item:50\n")
    converted(tmp_path, definition(PAIR, format="ComiRec", uri=train, validationUri=test))
    assert tuples_of(tmp_path / "train", "user_id", "item_id") == [(1, 10), (0, 20)]
    assert tuples_of(tmp_path / "validation", "user_id", "item_id") == [(1, 50)]


@pytest.mark.parametrize("format_", ["Interactions", "Sequences"])
def test_ids_of_a_format_of_its_own_schema(tmp_path, format_):
    train = put(tmp_path / "train.txt", "0 5 6\n3 1 2\n")
    asked = infer_definition(definition([], format=format_, uri=train))
    cardinalities = {feature.name: feature.cardinality for feature in asked.features}
    assert cardinalities == {"user_id": 4, "item_id": 7, **({"history": None} if format_ == "Sequences" else {})}


def test_blocks_do_not_show(tmp_path, monkeypatch):
    """Files are read in blocks; what is converted does not depend on where these end."""
    text = "".join(f"{number % 10} {number % 100} {number % 7}\n" for number in range(500))
    csv = "user_id,item_id\n" + "".join(f"{number % 10},{number % 100}\n" for number in range(500))
    sources = [
        {"format": "Interactions", "uri": put(tmp_path / "train.txt.gz", text)},
        {"format": "Triples", "uri": put(tmp_path / "train.csv", csv)},
    ]
    for number, source in enumerate(sources):
        converted(tmp_path / f"whole{number}", definition(PAIR, **source), validation=False)
    monkeypatch.setattr(lines, "BLOCK_BYTES", 37)
    monkeypatch.setattr(delimited, "BLOCK_BYTES", 64)
    for number, source in enumerate(sources):
        converted(tmp_path / f"cut{number}", definition(PAIR, **source), validation=False, shard_bytes=700)
        assert rows_of(tmp_path / f"cut{number}/train") == rows_of(tmp_path / f"whole{number}/train")
        assert len(list((tmp_path / f"cut{number}/train").glob("*.mds"))) > 10


def test_streamings_own_reader_reads_the_shards(tmp_path):
    train = put(tmp_path / "train.txt", " ".join(map(str, range(40))))
    asked = definition([*PAIR, HISTORY], BINARY, format="Interactions", uri=train)
    converted(tmp_path, asked, validation=False, shard_bytes=700)
    reader = streaming_module("format.mds.reader").MDSReader
    folder = tmp_path / "train"
    entries = json.loads((folder / "index.json").read_text())["shards"]
    assert len(entries) > 1
    shards = [reader.from_json(str(folder), "", entry) for entry in entries]
    samples = [shard[number] for shard in shards for number in range(len(shard))]
    assert [{name: sample[name].tolist() for name in sample} for sample in samples] == rows_of(folder)
    assert samples[0]["history"].dtype == np.int32


SYNTHETIC = [{"name": "dense_0", "kind": "Dense"}, {"name": "dense_1", "kind": "Dense"}] + [
    {"name": f"cat_{number}", "kind": "Categorical", "cardinality": cardinality}
    for number, cardinality in enumerate((50, 40, 3))
]


def test_synthetic_knows_how_good_its_planted_model_is(tmp_path):
    asked = definition(SYNTHETIC, BINARY, format="Synthetic", rows=20_000, seed=3)
    conversion = converted(tmp_path, asked)
    bayes = conversion.records["validation"].metadata["bayes"]
    dataset = MDSDataset(str(tmp_path / "validation"))
    assert MDSDataset(str(tmp_path / "train")).num_samples == 20_000
    assert dataset.num_samples == bayes["rows"] == 4_000
    rows = dataset.gather(np.arange(4_000))
    model = SyntheticReader(asked).model
    dense = np.stack([rows["dense_0"], rows["dense_1"]], axis=1)
    logits = model.logits(dense, {number: rows[f"cat_{number}"].astype(np.int64) for number in range(3)})
    chance = 1 / (1 + np.exp(-logits))
    assert bayes["auc"] == pytest.approx(roc_auc_score(rows["label"], logits), abs=1e-12)
    assert bayes["logLoss"] == pytest.approx(log_loss(rows["label"], chance), rel=1e-9)
    entropy = -(chance * np.log(chance) + (1 - chance) * np.log(1 - chance))
    assert bayes["expectedLogLoss"] == pytest.approx(entropy.mean(), rel=1e-9)
    assert bayes["positives"] == pytest.approx(rows["label"].mean(), rel=1e-6)
    # The labels are drawn from the model: their number is within four deviations of what it expects.
    deviation = np.sqrt((chance * (1 - chance)).sum())
    assert abs(rows["label"].sum() - chance.sum()) < 4 * deviation
    assert 0.55 < bayes["auc"] < 0.95
    assert set(np.unique(rows["cat_2"])) == {0, 1, 2}


def test_synthetic_rows_do_not_depend_on_their_number_but_on_the_seed(tmp_path):
    for folder, settings in (("a", {"rows": 100}), ("b", {"rows": 300}), ("c", {"rows": 100, "seed": 1})):
        converted(tmp_path / folder, definition(SYNTHETIC, BINARY, format="Synthetic", **settings))
    first, longer, other = (rows_of(tmp_path / folder / "train") for folder in "abc")
    assert first == longer[:100]
    assert first != other
    assert not any(row in rows_of(tmp_path / "a" / "validation") for row in first)
