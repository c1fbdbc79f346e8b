"""Rules between the parts of a job: its model, features, labels, data, training and evaluation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from rectrain.api.data import SourceFormat
from rectrain.api.features import Feature, FeatureKind, Label, Pooling, Side, Task
from rectrain.api.metric_names import DEFINITIONS, parse_metric
from rectrain.api.models import RETRIEVAL_TYPES, SECTION_OF_TYPE, ModelType, RetrievalLoss, TwoTower
from rectrain.api.rules import Condition, Places, Rule, cel_text

if TYPE_CHECKING:
    from rectrain.api.job import RecTrainingJobSpec as Spec

RETRIEVAL_METRICS = ("recall@20", "ndcg@20", "hit_rate@20")
"""What is measured of a retrieval model that does not say it."""

METRICS_OF_TASK = {
    "auc": (Task.BINARY, Task.MULTI_LABEL),
    "log_loss": (Task.BINARY, Task.MULTI_LABEL),
    "accuracy": (Task.MULTI_CLASS,),
    "rmse": (Task.REGRESSION,),
}
"""What is measured of other models that do not say it: each metric where a label has one of its tasks."""


def default_metrics(spec: Spec) -> list[str]:
    """Return what is measured where evaluation.metrics is left out."""
    if spec.model.is_retrieval:
        return list(RETRIEVAL_METRICS)
    tasks = {label.task for label in spec.labels}
    return [metric for metric, of_tasks in METRICS_OF_TASK.items() if tasks.intersection(of_tasks)]


def _cel_list(values: Iterable[str]) -> str:
    return "[" + ", ".join(cel_text(str(value)) for value in values) + "]"


_IS_RETRIEVAL = Condition(
    f"(self.model.type in {_cel_list(RETRIEVAL_TYPES)})", lambda spec: bool(spec.model.is_retrieval)
)
_IS_MIND = Condition('(self.model.type == "MIND")', lambda spec: spec.model.type is ModelType.MIND)


def _implies(condition: Condition, cel: str) -> str:
    return f"!{condition.cel} || {cel}"


def _places(condition: Condition, field: str, is_wrong: Callable[[Spec, Feature], bool]) -> Callable[[Spec], Places]:
    """Return what tells at which features a field is wrong, of jobs for which a condition holds."""

    def find(spec: Spec) -> Places:
        wrong = (place for place, feature in enumerate(spec.features) if is_wrong(spec, feature))
        return [(place, field) for place in wrong] if condition.test(spec) else []

    return find


# ---- names


def _repeated(names: list[str]) -> set[str]:
    return {name for name, count in Counter(names).items() if count > 1}


def _repeated_features(spec: Spec) -> Places:
    repeated = _repeated([feature.name for feature in spec.features])
    return [(place, "name") for place, feature in enumerate(spec.features) if feature.name in repeated]


def _repeated_labels(spec: Spec) -> Places:
    taken = {feature.name for feature in spec.features} | _repeated([label.name for label in spec.labels])
    return [(place, "name") for place, label in enumerate(spec.labels) if label.name in taken]


_UNIQUE = "must be unique among features and labels"
_NAMES = (
    # The API server knows that features, and labels, are told apart by name, and says so itself.
    Rule("features", _UNIQUE, broken=_repeated_features, cel=None),
    Rule(
        "labels",
        _UNIQUE,
        broken=_repeated_labels,
        cel="self.labels.all(l, !self.features.exists(f, f.name == l.name))",
    ),
)

# ---- sequences and tables


def _of_no_categorical(spec: Spec) -> Places:
    categorical = {feature.name for feature in spec.features if feature.kind is FeatureKind.CATEGORICAL}
    wrong = (f.of is not None and f.of not in categorical for f in spec.features)
    return [(place, "of") for place, is_wrong in enumerate(wrong) if is_wrong]


def _table_owners(spec: Spec) -> Iterator[tuple[int, Feature]]:
    for place, feature in enumerate(spec.features):
        if feature.kind is not FeatureKind.DENSE and feature.of is None and feature.side is not Side.NONE:
            yield place, feature


def _differing(field: str) -> Callable[[Spec], Places]:
    def find(spec: Spec) -> Places:
        first: dict[str, Feature] = {}
        for place, feature in _table_owners(spec):
            if getattr(feature, field) != getattr(first.setdefault(feature.table or feature.name, feature), field):
                yield place, "table"

    return find


def _differing_pooling(spec: Spec) -> Places:
    owners = {feature.name: feature.table or feature.name for feature in spec.features}
    pooling_of_table: dict[str, Pooling] = {}
    for place, feature in enumerate(spec.features):
        if feature.kind is FeatureKind.SEQUENCE:
            table = owners.get(feature.of or feature.name, feature.name)
            pooling = feature.pooling or Pooling.MEAN
            if pooling_of_table.setdefault(table, pooling) is not pooling:
                yield place, "pooling"


def _constraints_without_table(spec: Spec) -> Places:
    tables = {feature.table or feature.name for _, feature in _table_owners(spec)}
    return [(i, "table") for i, constraint in enumerate(spec.sharding.constraints) if constraint.table not in tables]


_TABLES = (
    Rule(
        "features",
        "must name a Categorical feature of this job with `of`",
        broken=_of_no_categorical,
        cel='sets.contains(self.features.filter(f, f.kind == "Categorical").map(f, f.name), '
        "self.features.filter(f, has(f.of)).map(f, f.of))",
    ),
    # Comparing every feature with every other is above the limit on the cost of CEL.
    *(
        Rule(
            "features",
            f"is shared, so {words} must be the same in all features of the table",
            broken=_differing(field),
            cel=None,
        )
        for field, words in (
            ("cardinality", "cardinality"),
            ("encoding", "encoding"),
            ("embedding_dim", "embeddingDim"),
        )
    ),
    Rule("features", "must be the same in all features of the table", broken=_differing_pooling, cel=None),
)

_CONSTRAINTS = (
    Rule(
        "sharding.constraints",
        "must be an embedding table: the `table`, or else the name, of a Categorical feature or of a Sequence feature "
        "without `of`",
        broken=_constraints_without_table,
        cel='sets.contains(self.features.filter(f, f.kind != "Dense" && !has(f.of) && !(has(f.side) && '
        'f.side == "None")).map(f, has(f.table) ? f.table : f.name), self.sharding.constraints.map(c, c.table))',
    ),
)

# ---- retrieval models


def _names_id(field: str, *sides: Side) -> Rule:
    def is_missing(spec: Spec) -> bool:
        name = spec.model.user_id if field == "userId" else spec.model.item_id
        found = (f for f in spec.features if f.name == name and f.kind is FeatureKind.CATEGORICAL)
        return spec.model.is_retrieval and not any(f.side is None or f.side in sides for f in found)

    return Rule(
        f"model.{field}",
        f"must name a Categorical feature of side {sides[0]}; there is none called {{model.{field}}}",
        broken=is_missing,
        cel=_implies(
            _IS_RETRIEVAL,
            f'self.features.exists(f, f.name == self.model.{field} && f.kind == "Categorical" && '
            f"(!has(f.side) || f.side in {_cel_list(sides)}))",
        ),
    )


def _has_wrong_labels(spec: Spec) -> bool:
    is_right = len(spec.labels) <= 1 and all(label.task is Task.BINARY for label in spec.labels)
    return spec.model.is_retrieval and not is_right


def _lacks_label(spec: Spec) -> bool:
    model = spec.model.section
    return isinstance(model, TwoTower) and model.loss is RetrievalLoss.BINARY_CROSS_ENTROPY and not spec.labels


def _has_no_user(spec: Spec) -> bool:
    sides = {feature.side for feature in spec.features}
    return spec.model.is_retrieval and Side.NONE in sides and Side.USER not in sides


_RETRIEVAL = (
    Rule(
        "features",
        "must have side User or Item: side None is for {model.userId}, model.userId",
        broken=_places(_IS_RETRIEVAL, "side", lambda spec, f: f.side is Side.NONE and f.name != spec.model.user_id),
        cel=_implies(
            _IS_RETRIEVAL,
            'self.features.all(f, !has(f.side) || f.side != "None" || f.name == self.model.userId)',
        ),
    ),
    Rule(
        "features",
        "is required for {model.type}: side User or Item",
        broken=_places(_IS_RETRIEVAL, "side", lambda _, f: f.side is None),
        cel=_implies(_IS_RETRIEVAL, "self.features.all(f, has(f.side))"),
    ),
    _names_id("userId", Side.USER, Side.NONE),
    _names_id("itemId", Side.ITEM),
    Rule(
        "features",
        "must have a feature of side User, such as a Sequence of the user's items",
        broken=_has_no_user,
        cel=_implies(
            _IS_RETRIEVAL,
            'self.features.exists(f, has(f.side) && f.side == "User") || '
            '!self.features.exists(f, has(f.side) && f.side == "None")',
        ),
    ),
    Rule(
        "labels",
        "must be at most one Binary label for {model.type}",
        broken=_has_wrong_labels,
        cel=_implies(_IS_RETRIEVAL, 'self.labels.size() <= 1 && self.labels.all(l, l.task == "Binary")'),
    ),
    Rule(
        "labels",
        "must have one Binary label: twoTower.loss is BinaryCrossEntropy",
        broken=_lacks_label,
        cel='self.model.type != "TwoTower" || !has(self.model.twoTower) || '
        'self.model.twoTower.loss != "BinaryCrossEntropy" || self.labels.size() > 0',
    ),
)


def _lacks_history(spec: Spec) -> bool:
    name = spec.model.mind.history if spec.model.mind is not None else None
    return _IS_MIND.test(spec) and not any(
        f.name == name and f.of == spec.model.item_id and f.side in (Side.USER, None) for f in spec.features
    )


_MIND = (
    Rule(
        "model.mind.history",
        "must name a Sequence feature `of: {model.itemId}`, side User; there is none called {model.mind.history}",
        broken=_lacks_history,
        cel=_implies(
            _IS_MIND,
            "!has(self.model.mind) || self.features.exists(f, f.name == self.model.mind.history && has(f.of) && "
            'f.of == self.model.itemId && (!has(f.side) || f.side == "User"))',
        ),
    ),
    Rule(
        "features",
        "must have side User: an item of MIND is its embedding alone, so {model.itemId} is its only Item feature",
        broken=_places(_IS_MIND, "side", lambda spec, f: f.side is Side.ITEM and f.name != spec.model.item_id),
        cel=_implies(_IS_MIND, 'self.features.all(f, !has(f.side) || f.side != "Item" || f.name == self.model.itemId)'),
    ),
)

# ---- other models

_HAS_ONE_WIDTH = Condition('(self.model.type != "TwoTower")', lambda spec: spec.model.type is not ModelType.TWO_TOWER)


def _model_width() -> str:
    sections = [section for type_, section in SECTION_OF_TYPE.items() if type_ is not ModelType.TWO_TOWER]
    tried = "".join(f"has(self.model.{s}) ? self.model.{s}.embeddingDim : " for s in sections)
    return f"({tried}f.embeddingDim)"


_RANKING = (
    Rule(
        "features",
        "must have at least one Categorical or Sequence feature for {model.type}",
        broken=lambda spec: not spec.model.is_retrieval and all(f.kind is FeatureKind.DENSE for f in spec.features),
        cel=f'{_IS_RETRIEVAL.cel} || self.features.exists(f, f.kind != "Dense")',
    ),
    Rule(
        "features",
        "must be the model's embeddingDim or left out: {model.type} needs one width",
        broken=_places(
            _HAS_ONE_WIDTH,
            "embeddingDim",
            lambda spec, f: f.embedding_dim not in (None, spec.model.section.embedding_dim),
        ),
        cel=_implies(
            _HAS_ONE_WIDTH,
            f"self.features.all(f, !has(f.embeddingDim) || f.embeddingDim == {_model_width()})",
        ),
    ),
    Rule(
        "features",
        "must be left out: side None is for retrieval models, not {model.type}",
        broken=_places(~_IS_RETRIEVAL, "side", lambda _, f: f.side is Side.NONE),
        cel=f'{_IS_RETRIEVAL.cel} || self.features.all(f, !has(f.side) || f.side != "None")',
    ),
    Rule(
        "labels",
        "must have at least one label for {model.type}",
        broken=lambda spec: not spec.model.is_retrieval and not spec.labels,
        cel=f"{_IS_RETRIEVAL.cel} || self.labels.size() > 0",
    ),
    Rule(
        "publish.index",
        "is only for retrieval models, not {model.type}",
        broken=lambda spec: spec.publish.index is not None and not spec.model.is_retrieval,
        cel=f"{_IS_RETRIEVAL.cel} || !has(self.publish.index)",
    ),
)

# ---- metrics

_RANKING_KINDS = tuple(kind for kind, definition in DEFINITIONS.items() if definition.family == "ranking")


def _ranking_metrics(spec: Spec) -> Places:
    if spec.model.is_retrieval:
        return []
    metrics = enumerate(spec.evaluation.metrics or [])
    return [(place,) for place, name in metrics if parse_metric(name).kind in _RANKING_KINDS]


def _needs_label_of(tasks: frozenset[str]) -> Rule:
    kinds = [kind for kind, found in DEFINITIONS.items() if found.family == "pointwise" and found.tasks == tasks]

    def unmet(spec: Spec) -> Places:
        if tasks & {str(label.task) for label in spec.labels}:
            return []
        return [(i,) for i, name in enumerate(spec.evaluation.metrics or []) if parse_metric(name).kind in kinds]

    return Rule(
        "evaluation.metrics",
        f"must go with a label of task {' or '.join(sorted(tasks))}: {', '.join(kinds)}",
        broken=unmet,
        cel=f"!has(self.evaluation.metrics) || !self.evaluation.metrics.exists(m, m in {_cel_list(kinds)}) || "
        f"self.labels.exists(l, l.task in {_cel_list(sorted(tasks))})",
    )


_TASK_SETS = sorted({d.tasks for d in DEFINITIONS.values() if d.family == "pointwise"}, key=sorted)
_HAS_METRICS = Condition("has(self.evaluation.metrics)", lambda spec: spec.evaluation.metrics is not None)
_STOPS_EARLY = Condition("has(self.training.earlyStopping)", lambda spec: spec.training.early_stopping is not None)
_HAS_VALIDATION = Condition("has(self.data.validation)", lambda spec: spec.data.validation is not None)


def _watches(metrics_of: Callable[[Spec], list[str]], when: Condition) -> Callable[[Spec], bool]:
    def is_unknown(spec: Spec) -> bool:
        stopping = spec.training.early_stopping
        return stopping is not None and when.test(spec) and stopping.metric not in metrics_of(spec)

    return is_unknown


def _watched_by_default() -> str:
    cases = [
        f"(self.training.earlyStopping.metric == {cel_text(metric)} && "
        f"self.labels.exists(l, l.task in {_cel_list(tasks)}))"
        for metric, tasks in METRICS_OF_TASK.items()
    ]
    watched = f"self.training.earlyStopping.metric in {_cel_list(RETRIEVAL_METRICS)}"
    return f"({_IS_RETRIEVAL.cel} ? {watched} : ({' || '.join(cases)}))"


_METRICS = (
    Rule(
        "evaluation.metrics",
        f"must be none of {', '.join(_RANKING_KINDS)}: those are for retrieval models, not {{model.type}}",
        broken=_ranking_metrics,
        cel=f"{_IS_RETRIEVAL.cel} || !has(self.evaluation.metrics) || "
        f"self.evaluation.metrics.all(m, !(m.split('@')[0] in {_cel_list(_RANKING_KINDS)}))",
    ),
    *(_needs_label_of(tasks) for tasks in _TASK_SETS),
    Rule(
        "training.earlyStopping.metric",
        "must be one of evaluation.metrics",
        broken=_watches(lambda spec: spec.evaluation.metrics or [], _HAS_METRICS),
        cel=f"!{_STOPS_EARLY.cel} || !{_HAS_METRICS.cel} || "
        "self.training.earlyStopping.metric in self.evaluation.metrics",
    ),
    Rule(
        "training.earlyStopping.metric",
        f"must be one of evaluation.metrics, or without them of {', '.join(RETRIEVAL_METRICS)} for a retrieval model, "
        "and for others, by their labels, of "
        + ", ".join(f"{metric} ({', '.join(tasks)})" for metric, tasks in METRICS_OF_TASK.items()),
        broken=_watches(default_metrics, ~_HAS_METRICS),
        cel=f"!{_STOPS_EARLY.cel} || {_HAS_METRICS.cel} || {_watched_by_default()}",
    ),
    Rule(
        "data.validation",
        "is required: training.earlyStopping evaluates on it",
        broken=(_STOPS_EARLY & ~_HAS_VALIDATION).test,
        cel=f"!{_STOPS_EARLY.cel} || {_HAS_VALIDATION.cel}",
    ),
    Rule(
        "data.validation",
        "is required: evaluation.metrics are measured on it",
        broken=lambda spec: bool(spec.evaluation.metrics) and spec.data.validation is None,
        cel=f"!{_HAS_METRICS.cel} || self.evaluation.metrics.size() == 0 || {_HAS_VALIDATION.cel}",
    ),
)

# ---- raw input

_GIVES_USER_AND_ITEM = Condition(
    '(has(self.data.source) && self.data.source.format in ["Interactions", "Sequences"])',
    lambda spec: (
        spec.data.source is not None and spec.data.source.format in (SourceFormat.INTERACTIONS, SourceFormat.SEQUENCES)
    ),
)


def _unknown_columns(spec: Spec) -> Places:
    items: list[Feature | Label] = [*spec.features, *spec.labels]
    names = {item.name for item in items}
    return [(column,) for column in (spec.data.source.columns if spec.data.source else ()) if column not in names]


def _gives(field: str) -> Rule:
    def is_missing(spec: Spec) -> bool:
        name = spec.model.user_id if field == "userId" else spec.model.item_id
        return _GIVES_USER_AND_ITEM.test(spec) and all(feature.name != name for feature in spec.features)

    return Rule(
        "features",
        f"must have a Categorical feature {{model.{field}}}: {{data.source.format}} gives user and item",
        broken=is_missing,
        cel=_implies(_GIVES_USER_AND_ITEM, f"self.features.exists(f, f.name == self.model.{field})"),
    )


_SOURCE = (
    Rule(
        "data.source.columns",
        "must be a feature or a label",
        broken=_unknown_columns,
        cel="!has(self.data.source) || sets.contains(self.features.map(f, f.name) + self.labels.map(l, l.name), "
        "self.data.source.columns.map(c, c))",
    ),
    _gives("userId"),
    _gives("itemId"),
)

COLUMN_RULES: tuple[Rule, ...] = (*_NAMES, *_TABLES)
"""Rules of features and labels alone, whatever the model."""

JOB_RULES: tuple[Rule, ...] = (*COLUMN_RULES, *_CONSTRAINTS, *_RETRIEVAL, *_MIND, *_RANKING, *_METRICS, *_SOURCE)
"""Rules of RecTrainingJobSpec."""
