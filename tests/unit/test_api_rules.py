"""Every rule of the job is named by its path and message where it is broken, and silent where it is kept."""

import pytest
from rule_cases import CASES, FIELDS_OF_OTHER_KINDS, FIELDS_THAT_OF_REPLACES, MIND, RANKING, TWO_TOWER, Case

from rectrain.api import InvalidJobError, parse_job


def problems_of(job: str, overrides: list[str]) -> list[tuple[str, str]]:
    with pytest.raises(InvalidJobError) as caught:
        parse_job(job, source="job", overrides=overrides)
    lines = [line.removeprefix("job: ").split(": ", 1) for line in str(caught.value).splitlines()]
    return [(path, message) for path, message in lines]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_rule(case: Case) -> None:
    found = problems_of(case.job, case.broken.split(" ; "))
    assert any(path == case.path and message.startswith(case.message) for path, message in found), found
    parse_job(case.job, source="job", overrides=case.kept.split(" ; "))


@pytest.mark.parametrize(("feature", "field", "value", "message"), FIELDS_OF_OTHER_KINDS)
def test_field_of_another_kind(feature: str, field: str, value: str, message: str) -> None:
    found = problems_of(RANKING, [f"features[{feature}].{field}={value}"])
    assert any(path.endswith(f".{field}") and line.startswith(message) for path, line in found), found


@pytest.mark.parametrize(("field", "value"), FIELDS_THAT_OF_REPLACES.items())
def test_sequence_of_a_feature_leaves_the_rest_to_it(field: str, value: str) -> None:
    (path, message) = problems_of(TWO_TOWER, [f"features[history].{field}={value}"])[0]
    assert path == f"spec.features[3].{field}"
    assert message.startswith("must be left out: `of: item_id` says it")


def test_all_problems_are_named_at_once() -> None:
    overrides = ["labels=[]", "evaluation.metrics=[recall@20]", "publish.index={type: Faiss, uri: index}"]
    assert [path for path, _ in problems_of(RANKING, overrides)] == [
        "spec.labels",
        "spec.publish.index",
        "spec.evaluation.metrics[0]",
    ]


@pytest.mark.parametrize(
    ("job", "overrides", "metrics"),
    [
        (TWO_TOWER, [], ["recall@20", "ndcg@20", "hit_rate@20"]),
        (MIND, [], ["recall@20", "ndcg@20", "hit_rate@20"]),
        (RANKING, [], ["auc", "log_loss"]),
        (RANKING, ["labels[click].task=Regression"], ["rmse"]),
        (RANKING, ["labels=[{name: a, task: MultiClass, numClasses: 3}]"], ["accuracy"]),
        (RANKING, ["labels=[{name: a, task: Regression}, {name: b, task: Binary}]"], ["auc", "log_loss", "rmse"]),
        (RANKING, ["evaluation.metrics=[mse]"], ["mse"]),
    ],
)
def test_default_metrics_follow_model_and_labels(job: str, overrides: list[str], metrics: list[str]) -> None:
    assert parse_job(job, source="job", overrides=overrides).spec.metrics == metrics
