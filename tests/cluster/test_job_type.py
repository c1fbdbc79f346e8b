"""The generated type on a real API server: what it accepts, fills in, refuses and shows, as the Python types do."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from harness.api_server import ApiServer
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from rule_cases import CASES, FIELDS_OF_OTHER_KINDS, FIELDS_THAT_OF_REPLACES, RANKING, TWO_TOWER

from rectrain.api import InvalidJobError, validate_job
from rectrain.api.overrides import apply_override
from rectrain.api.paths import format_path
from rectrain.api.rules import Problem
from rectrain.api.yaml_text import dump_yaml, load_yaml

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(ROOT.glob("examples/*/job.yaml"))

CHECKED_IN_PYTHON_ALONE = {
    "a shared table has one cardinality",
    "a shared table has one encoding",
    "a shared table has one width",
    "a table has one pooling",
}
"""Rules whose check costs more than CEL may; the controller finds what breaks them."""

REFUSED_IN_THE_SERVERS_WORDS = {
    "names are unique among features": "spec.features[2]",
    "boundaries increase": "spec.features[0].boundaries[2]",
}
"""Repeated elements, which the server knows of lists with keys and of sets, and where it sees them."""


class Cause(NamedTuple):
    field: str
    message: str


class Jobs(NamedTuple):
    """RecTrainingJobs of an API server, by dry run: it says what it would do, and keeps nothing."""

    api: client.CustomObjectsApi

    def create(self, document: dict[str, Any]) -> dict[str, Any]:
        created = self.api.create_namespaced_custom_object(
            "rectrain.io", "v1alpha1", "default", "rectrainingjobs", document, dry_run="All", field_validation="Strict"
        )
        assert isinstance(created, dict)
        return created

    def causes(self, document: dict[str, Any]) -> list[Cause]:
        with pytest.raises(ApiException) as refusal:
            self.create(document)
        assert refusal.value.status == 422, refusal.value.body
        causes = json.loads(refusal.value.body)["details"]["causes"]
        return [Cause(cause["field"], cause["message"]) for cause in causes]


@pytest.fixture(scope="module")
def jobs(api_server: ApiServer, job_type: None) -> Iterator[Jobs]:
    with config.new_client_from_config(str(api_server.kubeconfig)) as connection:
        yield Jobs(client.CustomObjectsApi(connection))


def document_of(job: str, overrides: list[str]) -> dict[str, Any]:
    document = load_yaml(job)
    for override in overrides:
        apply_override(document, override)
    assert isinstance(document, dict)
    return document


def problems_of(document: dict[str, Any]) -> list[Problem]:
    with pytest.raises(InvalidJobError) as refusal:
        validate_job(document, source="job")
    return refusal.value.problems


def is_said(problem: Problem, causes: list[Cause]) -> bool:
    """Return whether the server says the same words of the same field, or of the list that the field is in."""
    path = format_path(problem.path)
    return any(path.startswith(cause.field) and cause.message.endswith(f": {problem.message}") for cause in causes)


BROKEN = {
    **{name: (case.job, case.broken.split(" ; ")) for name, case in CASES.items()},
    **{
        f"{feature}.{field}": (RANKING, [f"features[{feature}].{field}={value}"])
        for feature, field, value, _ in FIELDS_OF_OTHER_KINDS
    },
    **{
        f"of and {field}": (TWO_TOWER, [f"features[history].{field}={value}"])
        for field, value in FIELDS_THAT_OF_REPLACES.items()
    },
    "a name with capitals": (RANKING, ["metadata.name=job.one"]),
    "a long name": (RANKING, [f"metadata.name={'a' * 52}"]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_says_of_a_broken_rule_what_validate_says(jobs: Jobs, name: str) -> None:
    document = document_of(*BROKEN[name])
    problems = problems_of(document)
    if name in CHECKED_IN_PYTHON_ALONE:
        jobs.create(document)
    elif name in REFUSED_IN_THE_SERVERS_WORDS:
        assert any(cause.message.startswith("Duplicate value") for cause in jobs.causes(document))
        assert REFUSED_IN_THE_SERVERS_WORDS[name] in {cause.field for cause in jobs.causes(document)}
    else:
        causes = jobs.causes(document)
        assert [problem for problem in problems if not is_said(problem, causes)] == [], causes


@pytest.mark.parametrize("name", CASES)
def test_accepts_what_keeps_the_rules(jobs: Jobs, name: str) -> None:
    jobs.create(document_of(CASES[name].job, CASES[name].kept.split(" ; ")))


@pytest.mark.parametrize("job", [RANKING, TWO_TOWER, *(path.read_text() for path in EXAMPLES)])
def test_fills_in_the_defaults_of_the_types(jobs: Jobs, job: str) -> None:
    document = load_yaml(job)
    expected = validate_job(document, source="job").spec.model_dump(mode="json", exclude_none=True)
    assert jobs.create(document)["spec"] == expected


def test_takes_as_many_features_as_the_types(jobs: Jobs) -> None:
    document = document_of(RANKING, [])
    document["spec"]["features"] = [{"name": f"f{i}", "kind": "Categorical", "cardinality": 10} for i in range(2000)]
    validate_job(document, source="job")
    jobs.create(document)


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("training.batchSize=0", "spec.training.batchSize"),
        ("training.batchSize=16777217", "spec.training.batchSize"),
        ("training.optimizers.dense.learningRate=0", "spec.training.optimizers.dense.learningRate"),
        ("model.type=Transformer", "spec.model.type"),
        ("features[brand].cardinality=many", "spec.features[1].cardinality"),
        ("features[brand].name=a-b", "spec.features[1].name"),
        ("evaluation.metrics=[recall]", "spec.evaluation.metrics[0]"),
        ("data.cache.sizeLimit=50 GB", "spec.data.cache.sizeLimit"),
        ("data.storage.endpointUrl=minio:9000", "spec.data.storage.endpointUrl"),
        ("workers.replicas=10001", "spec.workers.replicas"),
        ("workers.resources.limits.memory=[1]", "spec.workers.resources.limits.memory"),
        ("workers.resources.limits.memory=lots", "spec.workers.resources.limits.memory"),
        ("workers.resources.requests.cpu=-1", "spec.workers.resources.requests.cpu"),
        ("runPolicy.ttlSecondsAfterFinished=2147483648", "spec.runPolicy.ttlSecondsAfterFinished"),
        ("features=[]", "spec.features"),
        ("data.train=", "spec.data.train"),
    ],
)
def test_refuses_values_that_the_types_refuse(jobs: Jobs, override: str, field: str) -> None:
    document = document_of(RANKING, [override])
    assert {format_path(problem.path) for problem in problems_of(document)} == {field}
    assert field in {cause.field for cause in jobs.causes(document)}


def test_names_an_unknown_field(api_server: ApiServer, job_type: None) -> None:
    document = document_of(RANKING, ["training.batchsize=5"])
    with pytest.raises(subprocess.CalledProcessError) as refusal:
        api_server.kubectl("apply", "-f", "-", stdin=dump_yaml(document))
    assert 'unknown field "spec.training.batchsize"' in refusal.value.stderr


@pytest.fixture
def applied(api_server: ApiServer, job_type: None) -> Iterator[ApiServer]:
    """An API server that has the ranking job."""
    api_server.kubectl("apply", "-f", "-", stdin=RANKING)
    yield api_server
    api_server.kubectl("delete", "rtj", "ranking")


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("model", {"dlrm": {"embeddingDim": 32}}),
        ("labels", [{"name": "click", "task": "Binary", "weight": 2}]),
        ("data", {"train": {"uri": "elsewhere"}}),
        ("training", {"batchSize": 1}),
        ("sharding", {"hbmPerDevice": "80Gi"}),
        ("evaluation", {"batchSize": 5}),
        ("tracking", {"mlflow": {"enabled": False}}),
        ("output", {"uri": "s3://bucket/run"}),
        ("publish", {"index": {"type": "Faiss", "uri": "index"}}),
        ("workers", {"replicas": 3}),
    ],
)
def test_refuses_changes_of_what_is_trained(applied: ApiServer, part: str, change: object) -> None:
    patch = json.dumps({"spec": {part: change}})
    with pytest.raises(subprocess.CalledProcessError) as refusal:
        applied.kubectl("patch", "rtj", "ranking", "--type=merge", "-p", patch)
    assert f"spec.{part}: Forbidden: must not change once the job exists: delete the job" in refusal.value.stderr


def test_lets_the_run_policy_change(applied: ApiServer) -> None:
    policy = {
        "suspend": True,
        "activeDeadlineSeconds": 60,
        "ttlSecondsAfterFinished": 5,
        "maxRestarts": 7,
        "cleanPodPolicy": "All",
    }
    applied.kubectl("patch", "rtj", "ranking", "--type=merge", "-p", json.dumps({"spec": {"runPolicy": policy}}))
    assert applied.get("rtj", "ranking")["spec"]["runPolicy"] == policy  # type: ignore[index]


def test_shows_state_and_progress_in_columns(applied: ApiServer) -> None:
    now = "2026-01-31T12:00:00Z"
    status = {
        "state": "Running",
        "restarts": 1,
        "conditions": [{"type": "Running", "status": "True", "reason": "Training", "lastTransitionTime": now}],
        "progress": {
            **{"step": 450, "totalSteps": 1000, "completed": "45%", "epoch": 1, "loss": 0.25},
            **{"examplesPerSecond": 12345.75, "lastUpdateTime": now},
        },
        "results": {"mlflowRunId": "r1", "modelUri": "s3://bucket/run/bundle"},
    }
    before = applied.get("rtj", "ranking")
    applied.kubectl(
        "patch", "rtj", "ranking", "--subresource=status", "--type=merge", "-p", json.dumps({"status": status})
    )
    heading, row = (line.split() for line in applied.kubectl("get", "rtj").splitlines())
    assert heading == ["NAME", "STATE", "STEP", "PROGRESS", "EXAMPLES/S", "RESTARTS", "AGE"]
    assert row[:6] == ["ranking", "Running", "450", "45%", "12345", "1"]
    wide = applied.kubectl("get", "rectrain", "-o", "wide").splitlines()[1].split()
    assert wide[7:] == ["DLRM", "0.25", "r1", "s3://bucket/run/bundle"]
    after = applied.get("rtj", "ranking")
    assert after["spec"] == before["spec"]
    assert validate_job(after, source="job").status is not None


def test_status_is_written_by_its_subresource_alone(applied: ApiServer) -> None:
    applied.kubectl("patch", "rtj", "ranking", "--type=merge", "-p", '{"status": {"state": "Succeeded"}}')
    assert "status" not in applied.get("rtj", "ranking")


def test_explains_fields(api_server: ApiServer, job_type: None) -> None:
    assert "Rows in a step, on each rank." in api_server.kubectl("explain", "rtj.spec.training.batchSize")
