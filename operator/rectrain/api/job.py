"""RecTrainingJob: the whole job."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from rectrain.api.base import ApiModel, keyed_by
from rectrain.api.data import DataSpec
from rectrain.api.features import Feature, Label
from rectrain.api.job_rules import JOB_RULES, default_metrics
from rectrain.api.models import ModelSpec
from rectrain.api.operations import Output, Publish, RunPolicy, Tracking
from rectrain.api.rules import Rule, cel_text
from rectrain.api.status import State, Status, state_of
from rectrain.api.training import Evaluation, Sharding, Training
from rectrain.api.workers import MAX_REPLICAS, Workers

GROUP = "rectrain.io"
VERSION = "v1alpha1"
KIND = "RecTrainingJob"

LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
"""Annotation in which kubectl keeps what it applied last."""

_DNS_LABEL = r"[a-z]([-a-z0-9]*[a-z0-9])?"
_LONGEST_SUFFIX = f"-worker-{MAX_REPLICAS - 1}"
MAX_NAME_LENGTH = 63 - len(_LONGEST_SUFFIX)
"""Longest name of a job: its pods and their services have DNS labels of at most 63 characters."""


class ObjectMeta(ApiModel):
    """Name, labels and annotations of the job; what the API server adds is kept as it is."""

    model_config = ConfigDict(extra="allow")

    name: str
    """Name of the job: lower-case letters, digits and dashes, beginning with a letter; at most 51 characters."""
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

    RULES = JOB_RULES

    model: ModelSpec
    """The model."""
    features: Annotated[list[Feature], Field(min_length=1, max_length=2000), keyed_by("name")]
    """The features that the model reads."""
    labels: Annotated[list[Label], Field(max_length=64), keyed_by("name")] = Field(default_factory=list)
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

    def feature(self, name: str) -> Feature:
        """Return the feature of that name; KeyError when there is none."""
        for feature in self.features:
            if feature.name == name:
                return feature
        raise KeyError(name)

    @property
    def metrics(self) -> list[str]:
        """The metrics to evaluate: those asked for, or the defaults of the model and its labels."""
        return default_metrics(self) if self.evaluation.metrics is None else self.evaluation.metrics


class RecTrainingJob(ApiModel):
    """A training job of a recommender model."""

    RULES = (
        Rule(
            "metadata.name",
            "must be lower-case letters, digits and dashes, beginning with a letter: services are named after it",
            broken=lambda job: re.fullmatch(_DNS_LABEL, job.metadata.name) is None,
            cel=f"self.metadata.name.matches({cel_text(f'^{_DNS_LABEL}$')})",
        ),
        Rule(
            "metadata.name",
            f"must be at most {MAX_NAME_LENGTH} characters: pods and services are named after it, up to "
            f"{_LONGEST_SUFFIX}, and have at most 63",
            broken=lambda job: len(job.metadata.name) > MAX_NAME_LENGTH,
            cel=f"self.metadata.name.size() <= {MAX_NAME_LENGTH}",
        ),
    )

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

    @property
    def state(self) -> State:
        """The state that its conditions come to; Pending before the controller has seen it."""
        return state_of(self.status.conditions) if self.status is not None else State.PENDING

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Iterable[str] = ()) -> "RecTrainingJob":
        """Read a job file.

        Args:
            path: A YAML or JSON file.
            overrides: Assignments such as ``training.maxSteps=50``.

        Raises:
            InvalidJobError: The job is not valid, with every problem.
            UserError: The file cannot be read, or is no YAML mapping.
        """
        from rectrain.api.loading import load_job  # which stands on this class

        return load_job(path, overrides)

    def to_yaml(self) -> str:
        """Return the job as the text of a job file: without defaults, and without what a cluster has added."""
        from rectrain.api.loading import dump_job

        metadata = {name: getattr(self.metadata, name) for name in ("name", "namespace", "labels", "annotations")}
        metadata["annotations"] = {k: v for k, v in self.metadata.annotations.items() if k != LAST_APPLIED}
        return dump_job(self.model_copy(update={"metadata": ObjectMeta(**metadata), "status": None}))
