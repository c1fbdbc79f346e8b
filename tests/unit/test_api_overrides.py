from typing import Any

import pytest

from rectrain.api import UserError, parse_job
from rectrain.api.overrides import apply_override

JOB = """
apiVersion: rectrain.io/v1alpha1
kind: RecTrainingJob
metadata: {name: ranking}
spec:
  model: {type: DLRM, dlrm: {}}
  features:
    - {name: price, kind: Dense}
    - {name: brand, kind: Categorical, cardinality: 10}
  labels: [{name: click, task: Binary}]
  data: {train: {uri: train}, validation: {uri: validation}}
  sharding: {constraints: [{table: brand}]}
  evaluation: {metrics: [auc, log_loss]}
"""


def test_overridden_fields_have_their_types() -> None:
    job = parse_job(
        JOB,
        source="job",
        overrides=[
            "training.batchSize=64",
            "training.optimizers.dense.learningRate=1e-3",
            "training.checkpoint.keepBest=false",
            "training.checkpoint.uri=s3://bucket/a=b",
            "model.dlrm.overDims=[8, 4]",
            "tracking.mlflow.experiment='1e5'",
            "spec.runPolicy.suspend=true",
            "metadata.name=other",
        ],
    )
    training = job.spec.training
    assert training.batch_size == 64
    assert training.optimizers.dense.learning_rate == 0.001
    assert training.checkpoint.keep_best is False
    assert training.checkpoint.uri == "s3://bucket/a=b"
    assert job.spec.tracking.mlflow.experiment == "1e5"
    assert job.spec.run_policy.suspend is True
    assert job.metadata.name == "other"
    assert job.spec.model.dlrm is not None
    assert job.spec.model.dlrm.over_dims == [8, 4]


@pytest.mark.parametrize(
    ("before", "assignment", "after"),
    [
        ({"spec": {"a": {"b": 1}}}, "a.b=2", {"spec": {"a": {"b": 2}}}),
        ({"spec": {}}, "a.b.c=2", {"spec": {"a": {"b": {"c": 2}}}}),
        ({"spec": {"a": None}}, "a.b=2", {"spec": {"a": {"b": 2}}}),
        ({"spec": {"a": {"b": 1}}}, "a={}", {"spec": {"a": {}}}),
        ({"spec": {"a": 1}}, "a=", {"spec": {"a": None}}),
        ({"spec": {"a": 1}}, "a=null", {"spec": {"a": None}}),
        ({"spec": {"a": 1}}, 'a=""', {"spec": {"a": ""}}),
        ({"spec": {"a": 1}}, " a = 2 ", {"spec": {"a": 2}}),
        ({"spec": {"l": [1, 2]}}, "l[1]=3", {"spec": {"l": [1, 3]}}),
        ({"spec": {"l": [1, 2]}}, "l.0=3", {"spec": {"l": [3, 2]}}),
        (
            {"spec": {"l": [{"name": "x"}, {"name": "y"}]}},
            "l[y].v=3",
            {"spec": {"l": [{"name": "x"}, {"name": "y", "v": 3}]}},
        ),
        ({"spec": {"l": [{"table": "x"}]}}, "l.x.v=3", {"spec": {"l": [{"table": "x", "v": 3}]}}),
        ({"spec": {"l": [{"name": "x"}]}}, "l[x]={name: z}", {"spec": {"l": [{"name": "z"}]}}),
        ({}, "metadata.labels[rectrain.io/team]=ads", {"metadata": {"labels": {"rectrain.io/team": "ads"}}}),
        ({}, "spec.a=1", {"spec": {"a": 1}}),
        ({"spec": 1}, "spec={a: 1}", {"spec": {"a": 1}}),
    ],
)
def test_override(before: dict[str, Any], assignment: str, after: dict[str, Any]) -> None:
    apply_override(before, assignment)
    assert before == after


@pytest.mark.parametrize(
    ("assignment", "error"),
    [
        ("training.maxSteps", "must be path=value, for example training.maxSteps=50"),
        ("=5", "a path of fields such as training.maxSteps is missing"),
        ("a..b=5", "'a..b' is no path of fields"),
        ("a.=5", "'a.' ends with a dot"),
        (".a=5", "'.a' is no path of fields"),
        ("a[=5", "'a[' is no path of fields"),
        ("a[]=5", "'a[]' is no path of fields"),
        ("labels=[", "the value is not valid YAML: line 1: "),
        ("labels={a: 1, a: 2}", "the value is not valid YAML: line 1: the key 'a' is there twice"),
        ("features[tags].cardinality=5", "'tags' is none of the list's elements: price, brand"),
        ("features[2].cardinality=5", "'2' is none of the list's elements: price, brand"),
        ("evaluation.metrics[2]=auc", "'2' is none of the list's elements: 0 to 1"),
        ("model.type.x=5", "'x' is below 'DLRM', which has no fields"),
        ("model.type.x.y=5", "'x' is below 'DLRM', which has no fields"),
    ],
)
def test_override_that_cannot_be_applied(assignment: str, error: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_job(JOB, source="job", overrides=[assignment])
    assert str(caught.value).startswith(f"--set {assignment}: {error}")


def test_override_of_an_unknown_field_is_found_by_validation() -> None:
    with pytest.raises(
        UserError, match=r"spec\.trainin: is not a field of RecTrainingJobSpec; did you mean training\?"
    ):
        parse_job(JOB, source="job", overrides=["trainin.maxSteps=5"])


def test_override_changes_one_of_two_places_that_an_alias_joins() -> None:
    text = JOB + "  training: {optimizers: {dense: &o {learningRate: 0.1}, embedding: *o}}\n"
    optimizers = parse_job(
        text, source="job", overrides=["training.optimizers.dense.learningRate=0.5"]
    ).spec.training.optimizers
    assert (optimizers.dense.learning_rate, optimizers.embedding.learning_rate) == (0.5, 0.1)


def test_later_overrides_win() -> None:
    job = parse_job(JOB, source="job", overrides=["training.maxSteps=1", "training.maxSteps=2"])
    assert job.spec.training.max_steps == 2
