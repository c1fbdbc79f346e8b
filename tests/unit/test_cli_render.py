"""`rectrain render`: the objects that it prints, and what it refuses."""

from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from render_cases import AMAZON_CDS, CASES, golden, rendered

from rectrain.cli.main import cli
from rectrain.manifests.settings import DEFAULT_WORKER_IMAGE


def render(*args: str) -> Result:
    return CliRunner().invoke(cli, ["render", *args])


def objects_of(*args: str) -> dict[str, dict[str, object]]:
    result = render(*args)
    assert result.exit_code == 0, result.stderr
    return {document["kind"]: document for document in yaml.safe_load_all(result.stdout)}


@pytest.mark.parametrize("name", CASES)
def test_prints_what_was_agreed(name: str) -> None:
    assert rendered(name) == golden(name).read_text(), "python tests/unit/render_cases.py writes the files anew"


def test_help_has_examples() -> None:
    assert "rectrain render job.yaml -n team-a --image" in render("--help").output


def test_without_options_the_objects_have_the_default_image_and_no_namespace_and_no_owner() -> None:
    objects = objects_of(str(golden("elastic").with_name("elastic.job.yaml")))
    assert all("namespace" not in document["metadata"] for document in objects.values())
    assert all("ownerReferences" not in document["metadata"] for document in objects.values())
    assert DEFAULT_WORKER_IMAGE in str(objects["PyTorchJob"])


def test_options_go_before_the_job() -> None:
    file = str(golden("gpu").with_name("gpu.job.yaml"))
    objects = objects_of(file, "-n", "true", "--image", "it's:1", "--set", "metadata.namespace=x")
    assert {document["metadata"]["namespace"] for document in objects.values()} == {"true"}
    assert "it's:1" in yaml.safe_dump(objects["PyTorchJob"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--set", "data.source="],
            f"{AMAZON_CDS}: spec.data.train.uri: must be s3://... or a path below a volume that workers.template "
            'mounts: pods read it (got "shards/train")',
        ),
        ([], "spec.output.uri: is required on Kubernetes: s3://... for checkpoints, metrics and the model bundle"),
        (["--set", "output.uri=/out"], "spec.output.uri: must be s3://..."),
        (["--set", "training.batchSize=0"], "spec.training.batchSize: must be greater than or equal to 1"),
        (["--set", "sharding.hbmPerDevice=1Mi"], "the embedding tables do not fit"),
        (["--namespace", "x", "--image", ""], "spec.workers.image: "),
    ],
)
def test_what_cannot_run_in_pods_is_refused(arguments: list[str], message: str) -> None:
    result = render(str(AMAZON_CDS), *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert any(message in line and line.startswith("error: ") for line in result.stderr.splitlines()), result.stderr


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    result = render(str(tmp_path / "none.yaml"))
    assert (result.exit_code, result.stdout) == (2, "")
    assert "none.yaml: cannot be read" in result.stderr
