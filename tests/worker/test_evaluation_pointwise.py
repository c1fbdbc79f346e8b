import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, log_loss, mean_absolute_error, mean_squared_error, roc_auc_score

from rectrain.api.errors import UserError
from rectrain.api.metric_names import parse_metric
from rectrain_jobs.evaluation.auc import exact_auc
from rectrain_jobs.evaluation.pointwise import PointwiseMetrics

BINARY = ["auc", "log_loss", "normalized_entropy", "calibration", "mse", "rmse", "mae"]


def metrics_of(task, names, batches, **options):
    metrics = PointwiseMetrics("label", task, [parse_metric(name) for name in names], **options)
    for batch in batches:
        metrics.update(*batch)
    return metrics.compute()


def brute_force_auc(scores, labels):
    rows = list(zip(scores, labels, strict=True))
    pairs = [(p, n) for p, y in rows for n, z in rows if y and not z]
    return sum(1.0 if p > n else 0.5 if p == n else 0.0 for p, n in pairs) / len(pairs)


@given(
    st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=40).filter(
        lambda rows: 0 < sum(y for _, y in rows) < len(rows)
    ),
    st.integers(1, 5),
)
@settings(deadline=None)
def test_auc_equals_the_count_of_pairs_with_ties_as_half(rows, chunk):
    scores, labels = zip(*rows, strict=True)
    auc = exact_auc(torch.tensor(scores, dtype=torch.float32), torch.tensor(labels), chunk=chunk)
    assert auc == brute_force_auc(scores, labels)


@pytest.mark.parametrize("positive_rate", [0.02, 0.5, 0.97])
def test_binary_metrics_equal_sklearn(positive_rate):
    rng = np.random.default_rng(0)
    labels = (rng.random(5000) < positive_rate).astype(np.float32)
    # Rounding makes ties.
    predictions = np.clip(rng.normal(0.4 + 0.2 * labels, 0.2).round(2), 0, 1).astype(np.float32)
    result = metrics_of("Binary", BINARY, [(predictions[:1700], labels[:1700]), (predictions[1700:], labels[1700:])])
    mean = labels.mean(dtype=np.float64)
    entropy = -(mean * np.log(mean) + (1 - mean) * np.log(1 - mean))
    loss = log_loss(labels, predictions)
    assert result.values == pytest.approx(
        {
            "auc": roc_auc_score(labels, predictions),
            "log_loss": loss,
            "normalized_entropy": loss / entropy,
            "calibration": predictions.sum(dtype=np.float64) / labels.sum(),
            "mse": mean_squared_error(labels, predictions.astype(np.float64)),
            "rmse": math.sqrt(mean_squared_error(labels, predictions.astype(np.float64))),
            "mae": mean_absolute_error(labels, predictions.astype(np.float64)),
        },
        rel=1e-6,
    )
    assert (result.undefined, result.examples) == ({}, 5000)


def test_binary_metrics_of_a_small_table():
    # Pairs in order: .9 over .2 and .4, .3 over .2 but not .4: 3 of 4.
    result = metrics_of("Binary", BINARY, [(np.array([0.9, 0.2, 0.3, 0.4]), np.array([1, 0, 1, 0]))])
    loss = -(math.log(0.9) + math.log(0.8) + math.log(0.3) + math.log(0.6)) / 4
    assert result.values == pytest.approx(
        {
            "auc": 0.75,
            "log_loss": loss,
            "normalized_entropy": loss / math.log(2),
            "calibration": 1.8 / 2,
            "mse": (0.01 + 0.04 + 0.49 + 0.16) / 4,
            "rmse": math.sqrt(0.7 / 4),
            "mae": (0.1 + 0.2 + 0.7 + 0.4) / 4,
        }
    )


def test_log_loss_of_certain_predictions_is_clipped():
    result = metrics_of("Binary", ["log_loss"], [(np.array([1.0, 0.0, 1.0]), np.array([0, 1, 1]))])
    assert result.values["log_loss"] == pytest.approx(2 / 3 * 23 * math.log(2))


def test_regression_and_class_metrics_equal_sklearn():
    rng = np.random.default_rng(1)
    ratings, predicted = rng.integers(1, 6, 300).astype(np.float64), rng.normal(3, 1, 300)
    assert metrics_of("Regression", ["mse", "rmse", "mae"], [(predicted, ratings)]).values == pytest.approx(
        {
            "mse": mean_squared_error(ratings, predicted),
            "rmse": math.sqrt(mean_squared_error(ratings, predicted)),
            "mae": mean_absolute_error(ratings, predicted),
        }
    )
    probabilities, classes = rng.dirichlet(np.ones(4), 300), rng.integers(0, 4, 300)
    batches = [(probabilities[:100], classes[:100]), (probabilities[100:], classes[100:])]
    assert metrics_of("MultiClass", ["accuracy", "log_loss"], batches, classes=4).values == pytest.approx(
        {
            "accuracy": accuracy_score(classes, probabilities.argmax(1)),
            "log_loss": log_loss(classes, probabilities, labels=range(4)),
        }
    )


def test_multi_label_metrics_are_the_mean_over_labels_where_they_are_defined():
    rng = np.random.default_rng(2)
    predictions, labels = rng.random((200, 3)), rng.integers(0, 2, (200, 3))
    result = metrics_of("MultiLabel", ["auc", "log_loss"], [(predictions, labels)], classes=3)
    assert result.values["auc"] == pytest.approx(roc_auc_score(labels, predictions, average="macro"), rel=1e-6)
    assert result.values["log_loss"] == pytest.approx(
        np.mean([log_loss(labels[:, c], predictions[:, c]) for c in range(3)])
    )
    labels[:, 1] = 0
    result = metrics_of("MultiLabel", ["auc"], [(predictions, labels)], classes=3)
    assert result.values["auc"] == pytest.approx(
        roc_auc_score(labels[:, [0, 2]], predictions[:, [0, 2]], average="macro"), rel=1e-6
    )
    assert result.undefined == {"auc": "class 1: all 200 labels are 0"}


@given(
    st.lists(st.tuples(st.floats(0, 1, width=32), st.booleans(), st.booleans()), min_size=1, max_size=30).filter(
        lambda rows: any(kept for *_, kept in rows)
    ),
    st.sampled_from([math.nan, math.inf, -7.0, 0.5]),
    st.sampled_from([math.nan, 0.0, 1.0, 5.0]),
)
@settings(deadline=None)
def test_padded_rows_never_count_whatever_they_hold(rows, junk_prediction, junk_label):
    kept = [(p, float(y)) for p, y, keep in rows if keep]
    padded = [(p, float(y)) if keep else (junk_prediction, junk_label) for p, y, keep in rows]
    mask = np.array([keep for *_, keep in rows])
    names = BINARY
    expected = metrics_of("Binary", names, [tuple(np.array(column) for column in zip(*kept, strict=True))])
    actual = metrics_of("Binary", names, [(*(np.array(column) for column in zip(*padded, strict=True)), mask)])
    assert actual.examples == expected.examples == len(kept)
    assert actual.undefined == expected.undefined
    assert actual.values == pytest.approx(expected.values, nan_ok=True)


@pytest.mark.parametrize(
    ("task", "names"), [("MultiClass", ["accuracy", "log_loss"]), ("MultiLabel", ["auc", "log_loss"])]
)
def test_padded_rows_never_count_with_several_columns(task, names):
    predictions = np.array([[0.7, 0.3], [math.nan, math.nan], [0.4, 0.6], [0.2, 0.8]])
    targets = np.array([0, 99, 0, 1]) if task == "MultiClass" else np.array([[1, 0], [9, 9], [0, 0], [1, 1]])
    mask = np.array([True, False, True, True])
    expected = metrics_of(task, names, [(predictions[mask], targets[mask])], classes=2)
    assert metrics_of(task, names, [(predictions, targets, mask)], classes=2) == expected


@pytest.mark.parametrize("label", [0, 1])
def test_single_class_gives_nan_and_the_reason(label):
    result = metrics_of("Binary", BINARY, [(np.array([0.2, 0.7, 0.4]), np.full(3, label))])
    undefined = {"auc", "normalized_entropy"} | ({"calibration"} if label == 0 else set())
    assert result.undefined == {name: f"all 3 labels are {label}" for name in undefined}
    assert {name for name, value in result.values.items() if math.isnan(value)} == undefined


@pytest.mark.parametrize(
    ("task", "predictions", "targets", "message"),
    [
        ("Binary", [0.5, math.nan], [0, 1], r"'label' \(Binary\): 1 predictions are not probabilities"),
        ("Binary", [0.5, 1.5], [0, 1], "1 predictions are not probabilities"),
        ("Binary", [0.5, 0.5], [0, 2], "1 targets are not 0 or 1"),
        ("Binary", [0.5, 0.5], [0, math.nan], "1 targets are not 0 or 1"),
        ("Regression", [math.inf, 0.5], [3, 4], "1 predictions are not finite"),
        ("Regression", [0.5, 0.5], [3, math.nan], "1 targets are not finite"),
        ("MultiClass", [[0.5, 0.5], [2.0, -1.0]], [0, 1], "1 predictions are not probabilities that sum to 1"),
        ("MultiClass", [[0.5, 0.5], [0.5, 0.5]], [0, 2], "1 targets are not whole numbers from 0 to 1"),
        ("Binary", [], [], "no examples"),
    ],
)
def test_wrong_values_are_named(task, predictions, targets, message):
    name = {"Binary": "auc", "Regression": "rmse", "MultiClass": "accuracy"}[task]
    with pytest.raises(UserError, match=message):
        metrics_of(task, [name], [(np.array(predictions), np.array(targets))], classes=2)


def test_metric_of_another_task_and_ill_fitting_shapes_are_refused():
    with pytest.raises(UserError, match="metric auc does not apply to label 'rating'"):
        PointwiseMetrics("rating", "Regression", [parse_metric("auc")])
    metrics = PointwiseMetrics("click", "Binary", [parse_metric("auc")])
    for shapes in itertools.permutations([(3,), (3, 1), (4,)], 2):
        with pytest.raises(ValueError, match="do not fit"):
            metrics.update(np.zeros(shapes[0]), np.zeros(shapes[1]))


def test_auc_counts_millions_of_tied_pairs_exactly():
    scores = torch.zeros(200_001)
    positive = torch.arange(200_001) < 100_000
    scores[0] = 1.0
    expected = (100_001 + 0.5 * 99_999 * 100_001) / (100_000 * 100_001)
    assert exact_auc(scores, positive) == expected
