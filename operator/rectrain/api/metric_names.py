"""The metrics that a job can ask for: their names, what they apply to and which way is better.

The names are part of the job file, so they are checked here, without torch; the computation is in
`rectrain_jobs.evaluation`, the formulas and sources are on the page docs/metrics.md.
"""

import difflib
import math
import re
from dataclasses import dataclass
from typing import Literal

from rectrain.api.errors import UserError

Direction = Literal["maximize", "minimize", "one"]
Family = Literal["pointwise", "ranking"]
Cutoff = Literal["none", "optional", "required"]


class MetricNameError(UserError, ValueError):
    """A metric name is unknown or malformed. A ValueError too, so that a pydantic validator reports its field."""


@dataclass(frozen=True)
class MetricDefinition:
    """What one kind of metric means.

    Attributes:
        kind: The name without its cut-off, as in `recall`.
        family: `pointwise` metrics compare a prediction with a label, `ranking` metrics judge a list of items.
        direction: Which way is better; `one` means that the value should be close to 1.
        cutoff: Whether `@K` belongs to the name.
        tasks: The label tasks that a pointwise metric applies to; empty for ranking metrics.
        summary: The definition in a line.
        source: Where the definition is from.
    """

    kind: str
    family: Family
    direction: Direction
    cutoff: Cutoff
    tasks: frozenset[str]
    summary: str
    source: str

    @property
    def pattern(self) -> str:
        """The way the name is written, as in `recall@K`."""
        return {"none": self.kind, "optional": f"{self.kind}[@K]", "required": f"{self.kind}@K"}[self.cutoff]


def _pointwise(kind: str, direction: Direction, tasks: str, summary: str, source: str) -> MetricDefinition:
    return MetricDefinition(kind, "pointwise", direction, "none", frozenset(tasks.split()), summary, source)


def _ranking(kind: str, summary: str, source: str, cutoff: Cutoff = "required") -> MetricDefinition:
    return MetricDefinition(kind, "ranking", "maximize", cutoff, frozenset(), summary, source)


_SKLEARN = "equals sklearn.metrics."
_COMIREC = "THUDM/ComiRec src/train.py evaluate_full"

DEFINITIONS: dict[str, MetricDefinition] = {
    definition.kind: definition
    for definition in (
        _pointwise(
            "auc",
            "maximize",
            "Binary MultiLabel",
            "Area under the ROC curve, exact: the share of (positive, negative) pairs in the right order, ties half.",
            "Fawcett 2006, An introduction to ROC analysis; equals sklearn.metrics.roc_auc_score",
        ),
        _pointwise(
            "log_loss",
            "minimize",
            "Binary MultiClass MultiLabel",
            "Mean negative log likelihood in nats; predictions are clipped to [2^-23, 1 - 2^-23].",
            "equals sklearn.metrics.log_loss on float32 predictions",
        ),
        _pointwise(
            "normalized_entropy",
            "minimize",
            "Binary MultiLabel",
            "Log loss over the log loss of predicting the average label for everyone.",
            "He et al. 2014, Practical Lessons from Predicting Clicks on Ads at Facebook, section 3",
        ),
        _pointwise(
            "calibration",
            "one",
            "Binary MultiLabel",
            "Sum of predictions over sum of labels.",
            "He et al. 2014, Practical Lessons from Predicting Clicks on Ads at Facebook, section 3",
        ),
        _pointwise(
            "mse",
            "minimize",
            "Binary Regression",
            "Mean squared error; on a binary label, the Brier score.",
            _SKLEARN + "mean_squared_error",
        ),
        _pointwise(
            "rmse",
            "minimize",
            "Binary Regression",
            "Square root of the mean squared error.",
            _SKLEARN + "root_mean_squared_error",
        ),
        _pointwise("mae", "minimize", "Binary Regression", "Mean absolute error.", _SKLEARN + "mean_absolute_error"),
        _pointwise(
            "accuracy",
            "maximize",
            "MultiClass",
            "Share of examples whose most probable class is right.",
            _SKLEARN + "accuracy_score",
        ),
        _ranking(
            "recall",
            "Share of a user's distinct relevant items in the first K, mean over users.",
            "He et al. 2020 (LightGCN) and RecBole recbole/evaluator/metrics.py Recall",
        ),
        _ranking(
            "recall_comirec",
            "Distinct hits in the first K over the length of the relevant list with its repeats, mean over users.",
            f"{_COMIREC}, branch master",
        ),
        _ranking("hit_rate", "Share of users with a relevant item in the first K.", _COMIREC),
        _ranking(
            "ndcg",
            "Binary relevance, discount 1/log2(rank + 1), ideal over min(relevant, K) items.",
            "Jarvelin & Kekalainen 2002 with binary gains; RecBole recbole/evaluator/metrics.py NDCG",
        ),
        _ranking("ndcg_comirec", "As ndcg, but the ideal is over the number of hits.", f"{_COMIREC}, branch master"),
        _ranking(
            "ndcg_comirec_paper",
            "Discount by the position in the user's own relevant list, not by rank; ideal over the number of hits.",
            f"{_COMIREC}, branch paper",
        ),
        _ranking(
            "mrr",
            "Mean of 1/rank of the first relevant item; 0 when it is past K, without @K over the whole ranking.",
            "Voorhees 1999, The TREC-8 Question Answering Track Report",
            cutoff="optional",
        ),
    )
}


@dataclass(frozen=True)
class MetricName:
    """A metric that a job asks for; `str()` gives the name as it is written in the job file.

    Attributes:
        kind: A key of `DEFINITIONS`.
        k: The cut-off, or None when the metric has none.
    """

    kind: str
    k: int | None = None

    def __str__(self) -> str:
        """Return the name as in the job file."""
        return self.kind if self.k is None else f"{self.kind}@{self.k}"

    @property
    def definition(self) -> MetricDefinition:
        """What the metric means."""
        return DEFINITIONS[self.kind]

    @property
    def direction(self) -> Direction:
        """Which way is better."""
        return self.definition.direction

    def goodness(self, value: float) -> float:
        """Map a value to a number that is higher the better the value is, for early stopping and best checkpoints.

        An undefined value (nan) is worse than any other.
        """
        if math.isnan(value):
            return -math.inf
        if self.direction == "one":
            return -abs(value - 1.0)
        return value if self.direction == "maximize" else -value


METRIC_PATTERN = (
    "^("
    + "|".join(
        definition.kind + {"none": "", "optional": "(@[1-9][0-9]*)?", "required": "@[1-9][0-9]*"}[definition.cutoff]
        for definition in DEFINITIONS.values()
    )
    + ")$"
)
"""Pattern that all names match, and nothing else."""

_NAME = re.compile(r"(?P<kind>[a-z][a-z0-9_]*)(?:@(?P<k>[1-9][0-9]*))?")


def parse_metric(name: str) -> MetricName:
    """Parse a metric name such as `auc` or `recall@20`.

    Args:
        name: The name as written in the job file.

    Returns:
        The metric.

    Raises:
        MetricNameError: The name is not a known metric, lacks its cut-off or has one that it does not take.
    """
    match = _NAME.fullmatch(name)
    kind = match["kind"] if match else name.partition("@")[0]
    definition = DEFINITIONS.get(kind)
    if definition is None:
        close = difflib.get_close_matches(kind, DEFINITIONS, n=1)
        hint = f"did you mean {DEFINITIONS[close[0]].pattern}? " if close else ""
        known = ", ".join(known.pattern for known in DEFINITIONS.values())
        raise MetricNameError(f"unknown metric {name!r}: {hint}known metrics are {known}")
    if definition.cutoff == "none":
        if name != kind:
            raise MetricNameError(f"metric {name!r} takes no cut-off: write {kind}")
        return MetricName(kind)
    if match is None or (match["k"] is None and definition.cutoff == "required"):
        raise MetricNameError(f"metric {name!r} needs a whole number K of 1 or more: write {kind}@K, as in {kind}@20")
    return MetricName(kind, None if match["k"] is None else int(match["k"]))
