"""RecTrainingJob: the whole job, and the rules between its parts."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from rectrain.api.base import ApiModel, Problem
from rectrain.api.data import DataSpec, SourceFormat
from rectrain.api.features import Feature, FeatureKind, Label, Pooling, Side, Task
from rectrain.api.metric_names import parse_metric
from rectrain.api.models import ModelSpec, ModelType, RetrievalLoss, TwoTower
from rectrain.api.operations import Output, Publish, RunPolicy, Tracking
from rectrain.api.status import Status
from rectrain.api.training import Evaluation, Sharding, Training
from rectrain.api.workers import Workers

GROUP = "rectrain.io"
VERSION = "v1alpha1"
KIND = "RecTrainingJob"


class ObjectMeta(ApiModel):
    """Name, labels and annotations of the job; what the API server adds is kept as it is."""

    model_config = ConfigDict(extra="allow")

    name: Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
    """Name of the job: lower-case letters, digits and dashes, beginning with a letter."""
    namespace: str | None = None
    """Namespace of the job."""
    uid: str | None = None
    """Identity of the job on its cluster; set by the API server."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Labels."""
    annotations: dict[str, str] = Field(default_factory=dict)
    """Annotations."""


class RecTrainingJobSpec(ApiModel):
    """What to train, on what, how, where, and what becomes of it."""

    model: ModelSpec
    """The model."""
    features: Annotated[list[Feature], Field(min_length=1, max_length=2000)]
    """The features that the model reads."""
    labels: Annotated[list[Label], Field(max_length=64)] = Field(default_factory=list)
    """The targets. A retrieval model trained on positives alone needs none."""
    data: DataSpec
    """The data."""
    training: Training = Training()
    """How the model is trained."""
    sharding: Sharding = Sharding()
    """How the embedding tables are split over ranks."""
    evaluation: Evaluation = Evaluation()
    """What is measured on the validation data."""
    tracking: Tracking = Tracking()
    """Where the run is recorded."""
    output: Output = Output()
    """Where the results go."""
    publish: Publish = Publish()
    """What is done with the trained model."""
    workers: Workers = Workers()
    """Where the job runs."""
    run_policy: RunPolicy = RunPolicy()
    """How the job is run on Kubernetes."""

    def rules(self) -> Iterator[Problem]:
        """Yield what does not fit between the parts of the job."""
        yield from _name_rules(self)
        yield from _sequence_rules(self)
        yield from _table_rules(self)
        if self.model.type is ModelType.TWO_TOWER:
            yield from _two_tower_rules(self)
        else:
            yield from _ranking_model_rules(self)
        yield from _metric_rules(self)
        yield from _data_rules(self)
        if self.publish.index is not None and not self.model.is_retrieval:
            yield Problem(
                ("publish", "index"), self.publish.index.uri, f"is for retrieval models, not {self.model.type}"
            )

    def feature(self, name: str) -> Feature:
        """Return the feature of that name; KeyError when there is none."""
        for feature in self.features:
            if feature.name == name:
                return feature
        raise KeyError(name)

    @property
    def metrics(self) -> list[str]:
        """The metrics to evaluate: those asked for, or the defaults of the model and its labels."""
        if self.evaluation.metrics is not None:
            return self.evaluation.metrics
        if self.model.is_retrieval:
            return ["recall@20", "ndcg@20", "hit_rate@20"]
        tasks = {label.task for label in self.labels}
        metrics = ["auc", "log_loss"] if tasks & {Task.BINARY, Task.MULTI_LABEL} else []
        return (
            metrics
            + (["accuracy"] if Task.MULTI_CLASS in tasks else [])
            + (["rmse"] if Task.REGRESSION in tasks else [])
        )


class RecTrainingJob(ApiModel):
    """A training job of a recommender model."""

    api_version: Literal["rectrain.io/v1alpha1"] = "rectrain.io/v1alpha1"
    """Version of the job's types."""
    kind: Literal["RecTrainingJob"] = "RecTrainingJob"
    """Kind of the object."""
    metadata: ObjectMeta
    """Name and labels."""
    spec: RecTrainingJobSpec
    """What is wanted."""
    status: Status | None = None
    """What is observed."""


def _name_rules(spec: RecTrainingJobSpec) -> Iterator[Problem]:
    names = [f.name for f in spec.features] + [label.name for label in spec.labels]
    twice = {name for name, count in Counter(names).items() if count > 1}
    parts: tuple[tuple[str, Sequence[Feature | Label]], ...] = (("features", spec.features), ("labels", spec.labels))
    for part, items in parts:
        for position, item in enumerate(items):
            if item.name in twice:
                yield Problem((part, position, "name"), item.name, "must be unique among features and labels")


def _sequence_rules(spec: RecTrainingJobSpec) -> Iterator[Problem]:
    categorical = {f.name for f in spec.features if f.kind is FeatureKind.CATEGORICAL}
    for position, feature in enumerate(spec.features):
        if feature.of is not None and feature.of not in categorical:
            yield Problem(("features", position, "of"), feature.of, "must name a Categorical feature of this job")


def _table_rules(spec: RecTrainingJobSpec) -> Iterator[Problem]:
    first_of_table: dict[str, Feature] = {}
    for position, feature in enumerate(spec.features):
        if feature.kind is FeatureKind.DENSE or feature.of is not None:
            continue
        first = first_of_table.setdefault(feature.table or feature.name, feature)
        for field in ("cardinality", "encoding", "embedding_dim"):
            if getattr(feature, field) != getattr(first, field):
                yield Problem(
                    ("features", position, "table"),
                    feature.table or feature.name,
                    f"is shared with {first.name}, so {field.replace('_', ' ')} must be the same",
                )
    yield from _pooling_rules(spec)
    for position, constraint in enumerate(spec.sharding.constraints):
        if constraint.table not in first_of_table:
            known = ", ".join(sorted(first_of_table))
            yield Problem(
                ("sharding", "constraints", position, "table"), constraint.table, f"must be an embedding table: {known}"
            )


def _pooling_rules(spec: RecTrainingJobSpec) -> Iterator[Problem]:
    owners = {f.name: f.table or f.name for f in spec.features}
    pooling_of_table: dict[str, Pooling] = {}
    for position, feature in enumerate(spec.features):
        if feature.kind is FeatureKind.SEQUENCE:
            table = owners.get(feature.of or feature.name, feature.name)
            pooling = feature.pooling or Pooling.MEAN
            if pooling_of_table.setdefault(table, pooling) is not pooling:
                other = pooling_of_table[table]
                yield Problem(("features", position, "pooling"), pooling, f"must be {other}, as table {table} has it")


def _two_tower_rules(spec: RecTrainingJobSpec) -> Iterator[Problem]:
    for position, feature in enumerate(spec.features):
        if feature.side is None:
            yield Problem(("features", position, "side"), None, "is required for TwoTower: User or Item")
    for field, side in (("user_id", Side.USER), ("item_id", Side.ITEM)):
        name = getattr(spec.model, field)
        alias = "userId" if field == "user_id" else "itemId"
        match = next((f for f in spec.features if f.name == name), None)
        if match is None or match.kind is not FeatureKind.CATEGORICAL or match.side not in (side, None):
            found = f"it is {match.kind} of side {match.side}" if match else "there is no feature of that name"
            yield Problem(("model", alias), name, f"must name a Categorical feature of side {side}; {found}")
    assert isinstance(spec.model.section, TwoTower)
    binary = [label for label in spec.labels if label.task is Task.BINARY]
    if len(spec.labels) > 1 or len(binary) != len(spec.labels):
        yield Problem(("labels",), [x.name for x in spec.labels], "must be at most one Binary label for TwoTower")
    elif spec.model.section.loss is RetrievalLoss.BINARY_CROSS_ENTROPY and not binary:
        yield Problem(("labels",), None, "must have one Binary label: twoTower.loss is BinaryCrossEntropy")


def _ranking_model_rules(spec: RecTrainingJobSpec) -> Iterator[Problem]:
    if all(f.kind is FeatureKind.DENSE for f in spec.features):
        yield Problem(
            ("features",), None, f"must have at least one Categorical or Sequence feature for {spec.model.type}"
        )
    for position, feature in enumerate(spec.features):
        if feature.embedding_dim is not None and feature.embedding_dim != spec.model.section.embedding_dim:
            yield Problem(
                ("features", position, "embeddingDim"),
                feature.embedding_dim,
                f"must be the model's, {spec.model.section.embedding_dim}: {spec.model.type} needs one width",
            )
    if not spec.labels:
        yield Problem(("labels",), None, f"must have at least one label for {spec.model.type}")


def _metric_rules(spec: RecTrainingJobSpec) -> Iterator[Problem]:
    tasks = {str(label.task) for label in spec.labels}
    for position, name in enumerate(spec.evaluation.metrics or []):
        definition = parse_metric(name).definition
        path = ("evaluation", "metrics", position)
        if definition.family == "ranking":
            if not spec.model.is_retrieval:
                yield Problem(path, name, f"is a ranking metric, which needs a retrieval model, not {spec.model.type}")
        elif not tasks & definition.tasks:
            yield Problem(path, name, f"needs a label of task {' or '.join(sorted(definition.tasks))}")
    stopping = spec.training.early_stopping
    if stopping is not None:
        if stopping.metric not in spec.metrics:
            yield Problem(
                ("training", "earlyStopping", "metric"), stopping.metric, f"must be one of {', '.join(spec.metrics)}"
            )
        if spec.data.validation is None:
            yield Problem(("data", "validation"), None, "is required: training.earlyStopping evaluates on it")
    if spec.evaluation.metrics and spec.data.validation is None:
        yield Problem(("data", "validation"), None, "is required: evaluation.metrics are measured on it")


def _data_rules(spec: RecTrainingJobSpec) -> Iterator[Problem]:
    source = spec.data.source
    if source is None:
        return
    if source.validation_uri is not None and spec.data.validation is None:
        yield Problem(("data", "validation"), None, "is required: source.validationUri is converted to it")
    names = {f.name for f in spec.features} | {label.name for label in spec.labels}
    for column in source.columns:
        if column not in names:
            yield Problem(("data", "source", "columns", column), source.columns[column], "must be a feature or a label")
    if source.format in (SourceFormat.INTERACTIONS, SourceFormat.SEQUENCES):
        for name in (spec.model.user_id, spec.model.item_id):
            if name not in names:
                yield Problem(
                    ("features",), None, f"must have a Categorical feature {name}: {source.format} gives user and item"
                )
