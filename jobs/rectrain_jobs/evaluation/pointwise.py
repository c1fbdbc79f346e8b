"""Metrics that compare a prediction with a label: accumulated batch by batch, made final across ranks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rectrain.api.errors import UserError
from rectrain.api.metric_names import MetricName
from rectrain_jobs.evaluation.auc import exact_auc
from rectrain_jobs.evaluation.collectives import Group, sum_over_ranks

Task = Literal["Binary", "Regression", "MultiClass", "MultiLabel"]
Array = Tensor | npt.NDArray[np.generic]

# Log loss clips probabilities to [CLIP, 1 - CLIP]: a float32 prediction of exactly 1 cannot be told from 1 - CLIP.
CLIP = 2.0**-23
# Rows of class probabilities must sum to 1 within this; logits given by mistake do not.
_SUM_TOLERANCE = 1e-2

_SUMS = (
    "examples",
    "bad_targets",
    "bad_predictions",
    "target",
    "prediction",
    "log_loss",
    "squared",
    "absolute",
    "correct",
)


@dataclass(frozen=True)
class PointwiseResult:
    """One label's metrics over all ranks.

    Attributes:
        values: Metric name to value; nan where it is undefined.
        undefined: Metric name to the reason why it is undefined.
        examples: Examples counted, without padding.
    """

    values: dict[str, float]
    undefined: dict[str, str]
    examples: int


class PointwiseMetrics:
    """One label's metrics over an evaluation set that comes in batches on every rank.

    Sums are float64 (one reduction across ranks); for `auc` each rank keeps its own scores, 5 bytes an example.
    Nothing is copied off the device before `compute`. A padded row never counts, whatever it holds.
    """

    def __init__(
        self,
        label: str,
        task: Task,
        metrics: Sequence[MetricName],
        *,
        device: torch.device | str = "cpu",
        classes: int = 1,
    ) -> None:
        """Start with no examples.

        Args:
            label: The label's name, for messages.
            task: What the label is. MultiLabel is `classes` binary labels, whose metrics are averaged (macro).
            metrics: The metrics to compute.
            device: Where the sums live; with NCCL, the rank's GPU.
            classes: Columns of a MultiClass or MultiLabel prediction.

        Raises:
            UserError: A metric does not apply to the task.
        """
        for metric in metrics:
            if task not in metric.definition.tasks:
                tasks = ", ".join(sorted(metric.definition.tasks)) or "rankings, not to single predictions"
                raise UserError(f"metric {metric} does not apply to label {label!r} ({task}): it applies to {tasks}")
        self.label = label
        self.task = task
        self.metrics = list(metrics)
        self.classes = classes
        self.columns = classes if task == "MultiLabel" else 1
        self.device = torch.device(device)
        self._sums = torch.zeros((self.columns, len(_SUMS)), dtype=torch.float64, device=self.device)
        self._scores: list[Tensor] = []  # float32 [n, columns]
        self._marks: list[Tensor] = []  # int8 [n, columns]: 1 positive, 0 negative, -1 not counted

    def update(self, predictions: Array, targets: Array, mask: Array | None = None) -> None:
        """Add this rank's batch.

        Args:
            predictions: Probabilities [n] for Binary, values [n] for Regression, class probabilities [n, classes] for
                MultiClass, probabilities [n, classes] for MultiLabel; any float type.
            targets: 0 or 1 [n], values [n], class indices [n], or 0 or 1 [n, classes].
            mask: Bool [n], True where the row counts; None counts all rows.

        Raises:
            ValueError: The shapes do not fit together.
        """
        with torch.no_grad():
            predicted = self._to_device(predictions)
            target = self._to_device(targets)
            rows = len(target)
            wide = (rows, self.classes)
            expected = {"MultiClass": (wide, (rows,)), "MultiLabel": (wide, wide)}.get(self.task, ((rows,), (rows,)))
            counted = (
                torch.ones(rows, dtype=torch.bool, device=self.device) if mask is None else self._to_device(mask).bool()
            )
            if (tuple(predicted.shape), tuple(target.shape)) != expected or counted.shape != (rows,):
                raise ValueError(
                    f"label {self.label!r} ({self.task}): predictions {tuple(predicted.shape)}, targets "
                    f"{tuple(target.shape)} and mask {tuple(counted.shape)} do not fit {expected[0]}, {expected[1]}, "
                    f"{(rows,)}"
                )
            if self.task == "MultiClass":
                self._sums += _class_sums(predicted.double(), target.long(), counted)
                return
            scores, labels = predicted.reshape(rows, self.columns), target.reshape(rows, self.columns)
            sums = _binary_sums if self.task in ("Binary", "MultiLabel") else _regression_sums
            self._sums += sums(scores.double(), labels.double(), counted[:, None])
            if any(metric.kind == "auc" for metric in self.metrics):
                self._scores.append(scores.float().clone())
                self._marks.append(torch.where(counted[:, None], (labels > 0.5).to(torch.int8), -1))

    def compute(self, group: Group = None) -> PointwiseResult:
        """Compute the metrics over all ranks; every rank must call it, and gets the same result.

        Raises:
            UserError: There are no examples, or targets or predictions are not what the task asks for.
        """
        sums = sum_over_ranks(self._sums, group)
        by_column = [dict(zip(_SUMS, column, strict=True)) for column in sums.tolist()]
        self._check(by_column)
        values: dict[str, float] = {}
        undefined: dict[str, str] = {}
        aucs = self._aucs(group) if any(metric.kind == "auc" for metric in self.metrics) else []
        for metric in self.metrics:
            if metric.kind == "auc":
                results = [(auc, _single_class(column)) for auc, column in zip(aucs, by_column, strict=True)]
            else:
                results = [_from_sums(metric.kind, column) for column in by_column]
            defined = [value for value, reason in results if not reason]
            values[str(metric)] = math.fsum(defined) / len(defined) if defined else math.nan
            reasons = [
                f"class {i}: {reason}" if self.columns > 1 else reason
                for i, (_, reason) in enumerate(results)
                if reason
            ]
            if reasons:
                undefined[str(metric)] = "; ".join(reasons)
        return PointwiseResult(values, undefined, int(by_column[0]["examples"]))

    def _to_device(self, values: Array) -> Tensor:
        return torch.as_tensor(values, device=self.device)

    def _check(self, by_column: list[dict[str, float]]) -> None:
        if by_column[0]["examples"] == 0:
            raise UserError(f"label {self.label!r}: the evaluation set has no examples")
        bad_targets = int(sum(column["bad_targets"] for column in by_column))
        bad_predictions = int(sum(column["bad_predictions"] for column in by_column))
        if bad_targets:
            right = {"Regression": "finite numbers", "MultiClass": f"whole numbers from 0 to {self.classes - 1}"}
            raise UserError(
                f"label {self.label!r} ({self.task}): {bad_targets} targets are not {right.get(self.task, '0 or 1')}"
            )
        if bad_predictions:
            right = {"Regression": "finite numbers", "MultiClass": "probabilities that sum to 1"}
            wanted = {"Regression": "finite numbers", "MultiClass": "probabilities that sum to 1"}
            raise UserError(
                f"label {self.label!r} ({self.task}): {bad_predictions} predictions are not "
                f"{wanted.get(self.task, 'probabilities from 0 to 1')}: the model has diverged, or gave logits"
            )

    def _aucs(self, group: Group) -> list[float]:
        empty = torch.zeros((0, self.columns), device=self.device)
        scores = torch.cat([empty, *self._scores])
        marks = torch.cat([empty.to(torch.int8), *self._marks])
        aucs = []
        for column in range(self.columns):
            counted = marks[:, column] >= 0
            aucs.append(exact_auc(scores[counted, column], marks[counted, column] == 1, group))
        return aucs


def _sums(columns: int, device: torch.device, **totals: Tensor) -> Tensor:
    """Lay out the totals, each [columns] or a scalar, as float64 [columns, len(_SUMS)]."""
    zero = torch.zeros(columns, dtype=torch.float64, device=device)
    return torch.stack([zero + totals[name] if name in totals else zero for name in _SUMS], dim=1)


def _binary_sums(p: Tensor, y: Tensor, counted: Tensor) -> Tensor:
    clipped = p.clamp(CLIP, 1 - CLIP)
    losses = -torch.where(y > 0.5, clipped.log(), (1 - clipped).log())
    return _weighted_sums(
        p, y, counted, bad_targets=(y != 0) & (y != 1), bad_predictions=~((p >= 0) & (p <= 1)), log_loss=losses
    )


def _regression_sums(p: Tensor, y: Tensor, counted: Tensor) -> Tensor:
    return _weighted_sums(p, y, counted, bad_targets=~y.isfinite(), bad_predictions=~p.isfinite())


def _weighted_sums(p: Tensor, y: Tensor, counted: Tensor, **more: Tensor) -> Tensor:
    error = p - y
    terms = {
        "examples": torch.ones_like(p),
        "target": y,
        "prediction": p,
        "squared": error.square(),
        "absolute": error.abs(),
    }
    return _sums(
        p.shape[1], p.device, **{name: torch.where(counted, term, 0.0).sum(0) for name, term in (terms | more).items()}
    )


def _class_sums(p: Tensor, y: Tensor, counted: Tensor) -> Tensor:
    bad_targets = (y < 0) | (y >= p.shape[1])
    bad_predictions = ~((p >= 0) & (p <= 1)).all(1) | ((p.sum(1) - 1).abs() > _SUM_TOLERANCE)
    index = torch.where(counted & ~bad_targets, y, 0)
    losses = -p.gather(1, index[:, None])[:, 0].clamp(CLIP, 1 - CLIP).log()
    terms = {
        "examples": torch.ones_like(losses),
        "bad_targets": bad_targets,
        "bad_predictions": bad_predictions,
        "log_loss": losses,
        "correct": p.argmax(1) == y,
    }
    return _sums(1, p.device, **{name: torch.where(counted, term, 0.0).sum() for name, term in terms.items()})


def _single_class(sums: dict[str, float]) -> str:
    """Say why a metric that needs both classes is undefined; empty when both occur."""
    if sums["target"] == 0:
        return f"all {sums['examples']:.0f} labels are 0"
    if sums["target"] == sums["examples"]:
        return f"all {sums['examples']:.0f} labels are 1"
    return ""


def _from_sums(kind: str, sums: dict[str, float]) -> tuple[float, str]:
    """Compute a metric from its sums; returns the value and, when it is undefined, why."""
    n = sums["examples"]
    match kind:
        case "log_loss":
            return sums["log_loss"] / n, ""
        case "normalized_entropy":
            if reason := _single_class(sums):
                return math.nan, reason
            mean = sums["target"] / n
            return sums["log_loss"] / n / -(mean * math.log(mean) + (1 - mean) * math.log(1 - mean)), ""
        case "calibration":
            return (sums["prediction"] / sums["target"], "") if sums["target"] else (math.nan, _single_class(sums))
        case "mse":
            return sums["squared"] / n, ""
        case "rmse":
            return math.sqrt(sums["squared"] / n), ""
        case "mae":
            return sums["absolute"] / n, ""
        case "accuracy":
            return sums["correct"] / n, ""
    raise ValueError(f"{kind} is not a pointwise metric")
