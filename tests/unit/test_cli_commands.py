"""`rectrain validate`, `rectrain explain` and `rectrain schema`."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from rectrain.api import parse_job
from rectrain.api.schema import job_schema
from rectrain.cli.main import cli

EXAMPLE = Path(__file__).parents[2] / "examples/amazon-cds/job.yaml"


def invoke(*args: str, stdin: bytes = b"") -> Result:
    return CliRunner().invoke(cli, args, input=stdin)


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    file = tmp_path / "broken.yaml"
    file.write_text(EXAMPLE.read_text().replace("batchSize", "batchSiz").replace("kind: Categorical", "kind: Cat"))
    return file


def test_valid_file() -> None:
    result = invoke("validate", str(EXAMPLE))
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"{EXAMPLE}: valid RecTrainingJob amazon-cds-two-tower\n"


def test_every_problem_is_a_line(broken: Path) -> None:
    result = invoke("validate", str(broken))
    assert (result.exit_code, result.stdout) == (2, "")
    kinds = "must be 'Categorical', 'Dense' or 'Sequence' (got \"Cat\")"
    assert result.stderr.splitlines() == [
        f"error: {broken}: spec.features[0].kind: {kinds}",
        f"error: {broken}: spec.features[1].kind: {kinds}",
        f"error: {broken}: spec.training.batchSiz: is not a field of Training; did you mean batchSize? (got 1024)",
    ]


def test_every_file_is_checked(broken: Path, tmp_path: Path) -> None:
    result = invoke("validate", str(tmp_path / "none.yaml"), str(broken), str(EXAMPLE))
    assert result.exit_code == 2
    assert result.stdout == f"{EXAMPLE}: valid RecTrainingJob amazon-cds-two-tower\n"
    assert len(result.stderr.splitlines()) == 4


def test_overrides_are_part_of_the_check() -> None:
    assert invoke("validate", str(EXAMPLE), "--set", "training.batchSize=64").exit_code == 0
    result = invoke("validate", str(EXAMPLE), "--set", "training.batchSize=64", "--set", "training.epochs=0")
    assert result.exit_code == 2
    assert "spec.training.epochs: must be greater than or equal to 1 (got 0)" in result.stderr


def test_standard_input() -> None:
    assert (
        invoke("validate", "-", stdin=EXAMPLE.read_bytes()).stdout == "-: valid RecTrainingJob amazon-cds-two-tower\n"
    )
    result = invoke("validate", "-", stdin=b"kind: 1")
    assert (result.exit_code, result.stderr.splitlines()[0]) == (
        2,
        "error: standard input: apiVersion: is required: 'rectrain.io/v1alpha1'",
    )
    assert invoke("validate", "-", stdin=b"\xff").stderr == "error: standard input: is not UTF-8 text\n"


def test_file_is_required() -> None:
    result = invoke("validate")
    assert result.exit_code == 2
    assert "Missing argument 'FILE...'" in result.stderr


def test_printed_job_has_every_default_and_is_the_same_job() -> None:
    result = invoke("validate", "--print", str(EXAMPLE), "--set", "training.seed=5")
    assert result.exit_code == 0
    assert "logEverySteps: 50" in result.stdout
    assert "null" not in result.stdout
    expected = parse_job(EXAMPLE.read_text(), source="example", overrides=["training.seed=5"])
    assert parse_job(result.stdout, source="printed") == expected


def test_printed_jobs_are_documents_of_one_stream() -> None:
    result = invoke("validate", "--print", str(EXAMPLE), str(EXAMPLE))
    documents = result.stdout.split("---\n")
    assert documents[0] == ""
    assert documents[1] == documents[2]


def test_printed_schema_is_the_schema() -> None:
    result = invoke("schema")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == job_schema()


@pytest.mark.parametrize("path", ["training.checkpoint", "spec.training.checkpoint"])
def test_explain_shows_a_field_and_those_below(path: str) -> None:
    lines = invoke("explain", path).output.splitlines()
    assert lines[0] == "spec.training.checkpoint  (Checkpoint; default {})"
    assert "  keep  (integer (1 to 2147483647); default 3)" in lines
    assert "    Number of newest checkpoints that are kept." in lines


@pytest.mark.parametrize(
    ("path", "first"),
    [
        ("features[0].kind", "spec.features.kind  (one of Categorical, Dense, Sequence; required)"),
        ("metadata.namespace", "metadata.namespace  (string; optional)"),
        ("status.progress.step", "status.progress.step  (integer; required)"),
        ("apiVersion", "apiVersion  (rectrain.io/v1alpha1; required)"),
    ],
)
def test_explain_finds_fields_everywhere(path: str, first: str) -> None:
    assert invoke("explain", path).output.splitlines()[0] == first


def test_explain_without_a_path_lists_the_parts_of_a_job() -> None:
    output = invoke("explain").output
    assert output.startswith("spec  (RecTrainingJobSpec; required)\n")
    assert "\n  runPolicy  (RunPolicy; default {})\n" in output


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("training.epoch", "PATH spec.training.epoch: is not a field of spec.training; did you mean epochs?"),
        ("publish.zzz", "PATH spec.publish.zzz: is not a field of spec.publish; its fields are index"),
        ("training.epochs.x", "PATH spec.training.epochs.x: spec.training.epochs has no fields"),
        ("a..b", "PATH 'a..b' is no path of fields such as training.maxSteps or features[user_id].cardinality"),
    ],
)
def test_explain_of_what_is_no_field(path: str, error: str) -> None:
    result = invoke("explain", path)
    assert (result.exit_code, result.stderr) == (2, f"error: {error}\n")
