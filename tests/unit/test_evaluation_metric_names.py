import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rectrain.api.errors import UserError
from rectrain.api.metric_names import DEFINITIONS, MetricName, parse_metric


@pytest.mark.parametrize(
    ("name", "kind", "k"),
    [
        ("auc", "auc", None),
        ("normalized_entropy", "normalized_entropy", None),
        ("recall@20", "recall", 20),
        ("ndcg_comirec_paper@50", "ndcg_comirec_paper", 50),
        ("mrr", "mrr", None),
        ("mrr@10", "mrr", 10),
    ],
)
def test_name_is_parsed_and_written_back(name, kind, k):
    metric = parse_metric(name)
    assert (metric.kind, metric.k, str(metric)) == (kind, k, name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("recal@20", "did you mean recall@K"),
        ("f1", "known metrics are auc, "),
        ("", "known metrics are auc, "),
        ("AUC", "unknown metric 'AUC'"),
        ("auc@5", "takes no cut-off: write auc"),
        ("recall", "as in recall@20"),
        ("recall@0", "as in recall@20"),
        ("recall@-1", "as in recall@20"),
        ("recall@2.5", "as in recall@20"),
        ("recall@020", "as in recall@20"),
        ("recall@20 ", "as in recall@20"),
        ("mrr@", "as in mrr@20"),
    ],
)
def test_wrong_name_is_refused_with_what_would_be_right(name, message):
    with pytest.raises(UserError, match=message) as error:
        parse_metric(name)
    assert isinstance(error.value, ValueError)  # so pydantic names the field
    assert "\n" not in str(error.value)


@given(st.sampled_from(sorted(DEFINITIONS)), st.integers(1, 10_000))
def test_every_definition_parses_in_its_own_pattern(kind, k):
    definition = DEFINITIONS[kind]
    assert definition.summary and definition.source
    assert (definition.family == "pointwise") == bool(definition.tasks)
    if definition.cutoff != "required":
        assert parse_metric(kind) == MetricName(kind)
    if definition.cutoff != "none":
        assert parse_metric(f"{kind}@{k}") == MetricName(kind, k)


@pytest.mark.parametrize(
    ("name", "better", "worse"),
    [
        ("auc", 0.8, 0.7),
        ("log_loss", 0.3, 0.4),
        ("calibration", 1.02, 1.05),
        ("calibration", 1.02, 0.9),
        ("recall@20", 0.2, 0.1),
        ("auc", 0.0, math.nan),
        ("log_loss", 100.0, math.nan),
    ],
)
def test_goodness_orders_values_whatever_the_direction(name, better, worse):
    metric = parse_metric(name)
    assert metric.goodness(better) > metric.goodness(worse)


def test_documentation_page_has_every_metric():
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    assert [d.pattern for d in DEFINITIONS.values() if f"`{d.pattern}`" not in page] == []
