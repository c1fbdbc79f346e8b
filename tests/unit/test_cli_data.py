"""`rectrain data convert` and `rectrain data inspect`: what they print, and how they fail."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from streaming import MDSWriter

from rectrain.cli.main import cli
from rectrain_jobs.data.mds import MDSDataset

JOB = """
apiVersion: rectrain.io/v1alpha1
kind: RecTrainingJob
metadata: {name: job}
spec:
  model: {type: TwoTower, twoTower: {embeddingDim: 8, hiddenDims: []}}
  features:
    - {name: user_id, kind: Categorical, side: User, cardinality: 10}
    - {name: item_id, kind: Categorical, side: Item, cardinality: 10}
  data:
    source: {format: Interactions, uri: train.txt}
    train: {uri: shards/train}
    validation: {uri: shards/validation}
  training: {batchSize: 2, maxSteps: 1}
"""


def invoke(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, ["data", *map(str, args)])


def refusal(*args: str | Path) -> str:
    result = invoke(*args)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    return errors[0].removeprefix("error: ")


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    file = tmp_path / "train.txt"
    file.write_text("0 1 2\n1 3 9\n")
    return file


@pytest.fixture
def job(raw: Path) -> Path:
    file = raw.parent / "job.yaml"
    file.write_text(JOB)
    return file


def test_conversion_if_needed_is_done_once(job: Path) -> None:
    first = invoke("convert", "--job", job, "--if-needed", "--set", "data.validation=")
    assert (first.exit_code, first.output.count("train rows")) == (0, 1), first.output
    again = invoke("convert", "--job", job, "--if-needed", "--set", "data.validation=")
    assert (again.exit_code, again.stdout) == (0, f"{job.parent}/shards/train: is as the job wants it\n")


@pytest.mark.parametrize("others", [["--output", "x"], ["--overwrite"], ["--rows", "5"], ["--label", "a:Binary"]])
def test_conversion_if_needed_goes_with_a_job_alone(job: Path, others: list[str]) -> None:
    assert refusal("convert", "--job", job, "--if-needed", *others).startswith("--if-needed: goes with a --job")


@pytest.mark.parametrize("command", ["convert", "inspect"])
def test_help_has_examples(command):
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert "Examples:" in result.stdout and f"rectrain data {command} " in result.stdout


def test_convert_by_options(raw, tmp_path):
    result = invoke("convert", "--format", "interactions", "--input", raw, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "The features, for a job file:",
        "features:",
        "- {name: user_id, kind: Categorical, side: User, cardinality: 2}",
        "- {name: item_id, kind: Categorical, side: Item, cardinality: 10}",
        f"{tmp_path}/out/train: 4 train rows",
    ]
    assert result.stderr == "Finding the features of Interactions.\n"
    assert MDSDataset(str(tmp_path / "out/train")).num_samples == 4


def test_convert_by_job(job, tmp_path):
    result = invoke("convert", "--job", job, "--set", "data.source.validationFraction=0.8")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"{tmp_path}/shards/train", f"{tmp_path}/shards/validation"]
    assert sum(MDSDataset(line.split(":")[0]).num_samples for line in lines) == 4


def test_convert_declared_features(tmp_path):
    raw = tmp_path / "a.csv"
    raw.write_text("uid,age,stars\nx,1,5\ny,2,3\nx,3,1\n")
    result = invoke(
        *("convert", "--format", "Triples", "--input", raw, "--output", tmp_path / "out", "--column", "user=uid"),
        *("--column", "rating=stars", "--label", "rating:Regression", "--feature", "age:Dense:transform=Standard"),
        *("--feature", "user:Categorical:encoding=Vocabulary:cardinality=5"),
    )
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{tmp_path}/out/train: 3 train rows\n  rating: mean 3\n"
    assert result.stderr == "Learning age, user from the training rows, then reading them again.\n"
    rows = MDSDataset(str(tmp_path / "out/train")).gather(np.arange(3))
    assert rows["user"].tolist() == [0, 1, 0] and rows["age"][1] == 0


@pytest.mark.parametrize("rows", [1, 500])
def test_synthetic_prints_what_is_best_possible(tmp_path, rows):
    result = invoke("convert", "--format", "Synthetic", "--rows", rows, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "best possible on these rows (the planted model): AUC " in result.stdout
    result = invoke("inspect", tmp_path / "out/validation")
    assert result.exit_code == 0, result.output
    assert "best possible: AUC " in result.stdout and "dense_12" in result.stdout and "cat_25" in result.stdout


def test_inspect(job, tmp_path):
    invoke("convert", "--job", job)
    result = invoke("inspect", tmp_path / "shards/train", "--job", job)
    assert result.exit_code == 0, result.output
    first, second, *table = result.stdout.splitlines()
    assert first.startswith(f"{tmp_path}/shards/train: 4 rows, 1 shard, ")
    assert second.startswith("train rows from Interactions, by rectrain ")
    cells = {line.split()[0]: line.split() for line in table if line.strip().startswith(("user_id", "item_id"))}
    assert cells["user_id"][1:6] == ["Categorical", "int32", "0", "to", "1"] and "10" in cells["user_id"]
    assert cells["item_id"][1:6] == ["Categorical", "int32", "1", "to", "9"]

    report = json.loads(invoke("inspect", tmp_path / "shards/train", "--json").stdout)
    assert (report["rows"], report["shards"], report["problems"]) == (4, 1, [])
    user = next(column for column in report["columns"] if column["name"] == "user_id")
    assert (user["minimum"], user["maximum"], user["cardinality"], user["missing"]) == (0, 1, 10, 0.0)


def test_inspect_shards_of_another_writer(tmp_path):
    with MDSWriter(out=str(tmp_path / "out"), columns={"x": "float32", "name": "str", "n": "int"}) as out:
        for number in range(3):
            out.write({"x": np.float32(number), "name": "n" * number, "n": number})
    result = invoke("inspect", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "3 rows, 1 shard" in result.stdout and "name" in result.stdout


def test_inspect_says_what_does_not_fit_the_job(job, tmp_path):
    invoke("convert", "--job", job)
    job.write_text(JOB.replace("side: Item, cardinality: 10", "side: Item, cardinality: 3"))
    line = refusal("inspect", tmp_path / "shards/train", "--job", job)
    assert line == (
        f"{tmp_path}/shards/train: does not fit {job}: item_id: has 1 values outside the table's rows (cardinality 3)"
    )
    job.write_text(
        JOB.replace("name: item_id", "name: goods_id").replace("hiddenDims: []}", "hiddenDims: []}, itemId: goods_id")
    )
    assert "goods_id: there is no such column; the shards have" in refusal(
        "inspect", tmp_path / "shards/train", "--job", job
    )


def test_inspect_finds_damage(job, tmp_path):
    invoke("convert", "--job", job)
    (shard,) = (tmp_path / "shards/train").glob("*.mds")
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert str(shard) in refusal("inspect", tmp_path / "shards/train")
    (tmp_path / "shards/train/features.json").write_text("{")
    assert "features.json: is not a feature file of rectrain" in refusal("inspect", tmp_path / "shards/train")
    assert "nothing" in refusal("inspect", tmp_path / "nothing")


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        ([], "--format: is required without a job that has data.source"),
        (["--format", "Interactions", "--output", "x"], "--input: is required for format Interactions"),
        (["--format", "Interactions", "--input", "RAW", "--output", ""], "--output: must name the folder"),
        (["--format", "Interactions", "--input", "RAW"], "--output: is required without --job"),
        (["--set", "a=b"], "--set a=b: needs --job"),
        (["--format", "Interactions", "--input", "RAW", "--output", "OUT", "--rows", "3"], "--rows: is only for"),
        (
            ["--format", "Interactions", "--input", "RAW", "--output", "OUT", "--validation-fraction", "2"],
            "--validation-fraction: must be less than 1 (got 2.0)",
        ),
        (["--format", "Triples", "--input", "RAW", "--output", "OUT"], "Triples implies no features"),
        (
            ["--format", "Triples", "--input", "RAW", "--output", "OUT", "--column", "x"],
            "--column x: must be name=value",
        ),
        (["--format", "Criteo", "--input", "RAW", "--output", "OUT", "--feature", "x"], "--feature x: kind"),
        (
            ["--format", "Criteo", "--input", "RAW", "--output", "OUT", "--feature", "x:Dense:y"],
            "--feature x:Dense:y y:",
        ),
        (["--format", "Criteo", "--input", "RAW", "--output", "OUT", "--label", "x:Yes"], "--label x:Yes: task"),
        (["--format", "Interactions", "--input", "NONE", "--output", "OUT"], "NONE: there is no such file"),
        (
            [
                "--format",
                "Interactions",
                "--input",
                "RAW",
                "--output",
                "OUT",
                "--feature",
                "item_id:Categorical:cardinality=3",
            ],
            "RAW:2: item_id: value 3 is not an id from 0 to 2 (cardinality 3)",
        ),
    ],
)
def test_mistakes_are_a_line_and_exit_code_2(raw, tmp_path, args, problem):
    places = {"RAW": str(raw), "OUT": str(tmp_path / "out"), "NONE": str(tmp_path / "none")}
    for name, place in places.items():
        problem = problem.replace(name, place)
    line = refusal("convert", *(places.get(arg, arg) for arg in args))
    assert line.startswith(problem)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["train.txt"]


def test_inspect_finds_that_a_vocabulary_is_gone(raw, tmp_path):
    ids = ["user_id:Categorical:encoding=Vocabulary:cardinality=9", "item_id:Categorical:cardinality=10"]
    declared = [argument for text in ids for argument in ("--feature", text)]
    result = invoke("convert", "--format", "Interactions", "--input", raw, "--output", tmp_path / "out", *declared)
    assert result.exit_code == 0, result.output
    (tmp_path / "out/train/vocabulary.user_id.parquet").unlink()
    assert refusal("inspect", tmp_path / "out/train").endswith("vocabulary.user_id.parquet: no such file")


def test_a_job_in_a_folder_whose_name_is_no_text(job):
    folder = os.fsdecode(os.fsencode(job.parent) + b"/\xff")
    os.mkdir(folder)
    moved = shutil.copy(job, folder)
    assert refusal("convert", "--job", moved).endswith("is not UTF-8 text; give the folder another name")


TRIPLES = ["--format", "Triples", "--input", "RAW", "--output", "OUT", "--feature"]


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["a:Categorical:cardinality=[1"], "--feature a:Categorical:cardinality=[1: cardinality: is not valid YAML"),
        (["a:Sequence:max_length=3"], "--feature a:Sequence:max_length=3: max_length: is not a field of Feature; did "),
        (["a:Sequence:of=b:maxLength=3"], "features[0].of: must name a Categorical feature of this job"),
        (["a:Dense", "--feature", "a:Dense"], "features[0].name: must be unique among features and labels"),
        (["a:Dense", "--label", "a:Binary"], "labels[0].name: must be unique among features and labels"),
        (["a:Dense", "--column", "b=c"], "--column b=c: must name a feature or a label"),
    ],
)
def test_declarations_are_checked_as_those_of_a_job(raw, tmp_path, args, problem):
    test_mistakes_are_a_line_and_exit_code_2(raw, tmp_path, [*TRIPLES, *args], problem)


def test_a_target_that_is_not_empty(job, tmp_path):
    assert invoke("convert", "--job", job).exit_code == 0
    line = refusal("convert", "--job", job)
    assert line == (
        f"{tmp_path}/shards/train: already holds a dataset (1 shards and index.json); "
        "choose another place, or give --overwrite to replace it"
    )
    assert invoke("convert", "--job", job, "--overwrite").exit_code == 0


@pytest.mark.parametrize("option", [["--format", "Word"], ["--rows", "many"], ["--unknown"]])
def test_wrong_options(option):
    result = invoke("convert", *option)
    assert result.exit_code == 2 and "Traceback" not in result.output
