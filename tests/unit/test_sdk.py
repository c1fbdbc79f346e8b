"""What the client makes of what it finds, without a cluster."""

import re
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, get_args

import pytest
from controller_objects import T0, document
from pydantic import BaseModel

from rectrain import Client, RecTrainingJob, api
from rectrain.api.yaml_text import load_yaml
from rectrain.sdk import ClusterError, ClusterUnreachableError
from rectrain.sdk.stored import body_of, job_of

SERVER = {
    "uid": "job-uid",
    "resourceVersion": "7",
    "generation": 3,
    "creationTimestamp": T0.isoformat(),
    "managedFields": [{"manager": "kubectl"}],
    "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}", "team": "ads"},
    "ownerReferences": [{"kind": "Workflow", "name": "w", "uid": "w", "apiVersion": "argoproj.io/v1alpha1"}],
}


def stored(**spec: Any) -> dict[str, Any]:
    raw = document(**spec)
    return {**raw, "metadata": {**raw["metadata"], **SERVER}, "status": {"restarts": 1}}


def test_a_job_that_breaks_a_rule_is_read_because_it_is_there() -> None:
    tables = [{"name": n, "kind": "Categorical", "cardinality": c, "table": "t"} for n, c in (("a", 10), ("b", 20))]
    assert len(job_of(stored(features=tables)).spec.features) == 2


def test_a_job_is_read_without_what_only_a_newer_version_knows() -> None:
    raw = stored(training={"batchSize": 8, "new": 1})
    raw["status"]["progress"] = {"step": 1, "totalSteps": 2, "epoch": 0, "examplesPerSecond": 3, "new": {}}
    raw["status"]["progress"]["lastUpdateTime"] = T0.isoformat()
    job = job_of(raw)
    assert job.spec.training.batch_size == 8
    assert job.status is not None and job.status.progress is not None
    assert (job.metadata.model_extra or {})["resourceVersion"] == "7"


def test_a_job_of_another_form_is_named() -> None:
    with pytest.raises(
        ClusterError, match=r"^RecTrainingJob team/clicks: is of another version .*spec\.model\.type: must"
    ):
        job_of(stored(model={"type": "Transformer"}))


def test_a_job_of_a_cluster_becomes_a_job_file() -> None:
    job = job_of(stored())
    written = load_yaml(job.to_yaml())
    assert written["metadata"] == {"name": "clicks", "namespace": "team", "annotations": {"team": "ads"}}
    assert "status" not in written


def test_a_job_of_a_cluster_can_be_submitted_again() -> None:
    body = body_of(job_of(stored()), "other")
    assert "status" not in body
    assert body["metadata"] == {
        "name": "clicks",
        "namespace": "other",
        "labels": {},
        "annotations": {"team": "ads"},
        "ownerReferences": SERVER["ownerReferences"],
    }


def test_a_job_built_in_python_is_sent_as_it_was_built() -> None:
    job = RecTrainingJob.model_validate(document(uid=None))
    body = body_of(job, "team")
    assert body["kind"] == "RecTrainingJob"
    assert body["spec"]["training"] == {"checkpoint": {"uri": "s3://bucket/checkpoints"}}


@pytest.mark.parametrize("content", [b"hello", b"{}", b"[1]", b"\x00\xff", b"a: [", b"", b"clusters: 5", None])
def test_a_kubeconfig_that_is_none_is_named(content: bytes | None, tmp_path: Path) -> None:
    config = tmp_path / "config"
    if content is not None:
        config.write_bytes(content)
    with pytest.raises(ClusterUnreachableError, match=f"^kubeconfig {config}: "):
        Client(kubeconfig=str(config))


def types_in(model: type[BaseModel]) -> Iterator[type]:
    """Yield the types of a model's fields: models, and enumerations."""
    waiting: list[Any] = [field.annotation for field in model.model_fields.values()]
    while waiting:
        found = waiting.pop()
        waiting += get_args(found)
        if isinstance(found, type) and issubclass(found, BaseModel | Enum):
            yield found
            if issubclass(found, BaseModel):
                yield from types_in(found)


def test_every_type_of_a_job_can_be_had_from_one_place() -> None:
    assert {found.__name__ for found in types_in(RecTrainingJob)} <= set(api.__all__)


def test_the_guides_job_that_is_built_in_python_is_the_same_as_a_file(tmp_path: Path) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "client.md").read_text()
    (block,) = [text for text in re.findall(r"```python\n(.*?)```", guide, re.DOTALL) if "RecTrainingJob(" in text]
    names: dict[str, Any] = {}
    exec(block, names)
    file = tmp_path / "job.yaml"
    file.write_text(names["job"].to_yaml())
    assert RecTrainingJob.from_yaml(file) == names["job"]
    assert body_of(names["job"], "team")["spec"]["workers"] == {
        "replicas": 2,
        "resources": {"limits": {"memory": "8Gi"}},
    }
