"""What is generated from the types: the schema, the reference page, and that both are as committed."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from rectrain.api import RecTrainingJob, load_job
from rectrain.api.generate import differences, generated_files, main, write
from rectrain.api.paths import model_at
from rectrain.api.reference import fields_of, reference_page, sections
from rectrain.api.schema import job_schema

ROOT = Path(__file__).parents[2]
SCHEMA = job_schema()


def definition(name: str) -> dict[str, Any]:
    return SCHEMA["$defs"][name]["properties"]


def keys_and_values(node: Any) -> list[tuple[str, Any]]:
    if isinstance(node, list):
        return [found for element in node for found in keys_and_values(element)]
    if not isinstance(node, dict):
        return []
    return [*node.items(), *(found for value in node.values() for found in keys_and_values(value))]


def test_schema_of_fields() -> None:
    assert SCHEMA["required"] == ["apiVersion", "kind", "metadata", "spec"]
    assert SCHEMA["properties"]["kind"] == {
        "const": "RecTrainingJob",
        "type": "string",
        "description": "Kind of the object.",
    }
    training = definition("Training")
    assert training["batchSize"] == {
        "type": "integer",
        "minimum": 1,
        "maximum": 2**24,
        "default": 1024,
        "description": "Rows in a step, on each rank.",
    }
    assert training["optimizers"]["default"] == {}
    assert "default" not in training["epochs"]
    assert definition("DLRM")["overDims"]["default"] == [256, 128]
    assert SCHEMA["$defs"]["Precision"]["enum"] == ["Auto", "Float32", "BFloat16"]
    assert SCHEMA["$defs"]["Training"]["additionalProperties"] is False


def test_schema_has_no_noise() -> None:
    found = keys_and_values(SCHEMA)
    assert not [value for key, value in found if key == "title"]
    assert not [value for key, value in found if key == "default" and value is None]
    assert not [value for key, value in found if key == "description" and isinstance(value, str) and "\n" in value]


def test_every_field_of_the_types_is_in_the_reference_with_a_description() -> None:
    documented = {
        (model_at(RecTrainingJob, tuple(section.paths[0].replace("[]", "").split("."))), field.name)
        for section in sections(SCHEMA)
        if section.paths[0]
        for field in section.fields
    }
    assert documented == {
        (model, field.alias) for model in models_below(RecTrainingJob) for field in model.model_fields.values()
    }
    assert all(field.description for section in sections(SCHEMA) for field in section.fields)


def models_below(root: type[BaseModel]) -> set[type[BaseModel]]:
    found: set[type[BaseModel]] = set()
    todo = [model for name in root.model_fields if (model := model_at(root, (name,)))]
    while todo:
        model = todo.pop()
        if model not in found:
            found.add(model)
            todo += [below for name in model.model_fields if (below := model_at(model, (name,)))]
    return found


@pytest.mark.parametrize(
    ("section", "field", "expected"),
    [
        ("Training", "batchSize", ("integer (1 to 16777216)", False, "1024")),
        ("Training", "epochs", ("integer (1 to 2147483647)", False, None)),
        ("Training", "precision", ("one of `Auto`, `Float32`, `BFloat16`", False, '"Auto"')),
        ("Training", "checkpoint", ("Checkpoint", False, "{}")),
        ("DenseOptimizer", "learningRate", ("number (> 0)", False, "0.001")),
        ("TwoTower", "embeddingDropout", ("number (≥ 0, < 1)", False, "0.0")),
        ("DataSource", "delimiter", (r"string (length ≤ 1, matching `^[\t -~]$`)", False, None)),
        ("DataSource", "columns", ("mapping to string (length ≤ 256)", False, "{}")),
        ("RecTrainingJobSpec", "features", ("list of Feature, 1 to 2000 elements", True, None)),
        ("Workers", "resources", ("Resources", False, None)),
        ("Workers", "template", ("mapping", False, None)),
        ("RecTrainingJob", "kind", ("`RecTrainingJob`", True, None)),
        ("Condition", "lastTransitionTime", ("date-time", True, None)),
    ],
)
def test_field_in_words(section: str, field: str, expected: tuple[str, bool, str | None]) -> None:
    (found,) = [f for f in fields_of(SCHEMA, section) if f.name == field]
    assert (found.type, found.required, found.default) == expected


def test_types_used_in_several_places_are_described_once() -> None:
    by_name = {section.name: section for section in sections(SCHEMA)}
    assert by_name["Schedule"].paths == (
        "spec.training.optimizers.embedding.schedule",
        "spec.training.optimizers.dense.schedule",
    )


def test_links_of_the_page_lead_somewhere() -> None:
    page = reference_page(SCHEMA)
    targets = re.findall(r'<a id="([^"]+)">', page)
    assert len(targets) == len(set(targets))
    assert set(re.findall(r"\]\(#([^)]+)\)", page)) == set(targets)


def test_rows_of_the_page_have_four_cells() -> None:
    rows = [line for line in reference_page(SCHEMA).splitlines() if line.startswith("|")]
    assert rows
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {5}


def test_committed_files_are_up_to_date() -> None:
    assert differences(ROOT, generated_files()) == ""


def test_generation_writes_what_check_accepts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pyproject.toml").touch()
    root = ["--root", str(tmp_path)]
    assert main([*root, "--check"]) == 1
    assert main(root) == 0
    assert main([*root, "--check"]) == 0
    page = tmp_path / "docs/reference/job.md"
    page.write_text(page.read_text().replace("Rows in a step", "Lines in a step"))
    assert main([*root, "--check"]) == 1
    assert "+| `batchSize` | integer (1 to 16777216) | `1024` | Rows in a step, on each rank. |" in (
        capsys.readouterr().err
    )


def test_generation_outside_the_repository_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["--root", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_generation_is_deterministic(tmp_path: Path) -> None:
    write(tmp_path, generated_files())
    assert differences(tmp_path, generated_files()) == ""
    assert json.loads((tmp_path / "docs/reference/job.schema.json").read_text()) == SCHEMA


@pytest.mark.parametrize("file", sorted(ROOT.glob("examples/*/*.yaml")), ids=lambda file: file.parent.name)
def test_examples_have_only_fields_of_the_schema(file: Path) -> None:
    def check(name: str, value: dict[str, Any]) -> None:
        node = SCHEMA if name == "RecTrainingJob" else SCHEMA["$defs"][name]
        assert set(node.get("required", ())) <= set(value) <= set(node["properties"])
        for field in fields_of(SCHEMA, name):
            if field.section is not None and field.name in value:
                below = value[field.name]
                for element in below if isinstance(below, list) else [below]:
                    check(field.section, element)

    check("RecTrainingJob", load_job(file).model_dump(mode="json", exclude_none=True))
