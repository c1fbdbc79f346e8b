"""Workers: how many pods or processes, on what, and where they are placed."""

import re
from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from rectrain.api.base import ApiModel
from rectrain.api.pod_template import reserved_parts
from rectrain.api.rules import Problem, Rule

MAX_REPLICAS = 10_000
"""Most pods of a job; with the name of a job it bounds the length of their names."""

Replicas = Annotated[int, Field(ge=1, le=MAX_REPLICAS)]


class Elastic(ApiModel):
    """Range of the number of workers."""

    RULES = (
        Rule(
            "minReplicas",
            "must be at most maxReplicas",
            broken=lambda elastic: elastic.min_replicas > elastic.max_replicas,
            cel="self.minReplicas <= self.maxReplicas",
        ),
    )

    min_replicas: Replicas
    """Smallest number of workers that training starts with."""
    max_replicas: Replicas
    """Largest number of workers."""


class PlacementStrategy(StrEnum):
    """Where the pods of a job go in relation to each other."""

    SPREAD = "Spread"
    PACK = "Pack"


class Placement(ApiModel):
    """A wish for where the pods go; a scheduler that cannot meet it places them all the same."""

    strategy: PlacementStrategy
    """Spread (evenly over domains, so that a lost one costs few workers) or Pack (in one domain, whose network is
    fast)."""
    topology_key: Annotated[str, Field(min_length=1, max_length=317)] = "kubernetes.io/hostname"
    """Label of nodes whose values are the domains, such as topology.kubernetes.io/zone."""


def _check_amount(value: Any) -> Any:
    if isinstance(value, str | int) and not isinstance(value, bool) and _AMOUNT.fullmatch(str(value)):
        return value
    raise ValueError("must be text such as 500m or 16Gi, or a whole number, and not negative")


_AMOUNT = re.compile(r"([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][-+]?[0-9]+)?")
Amount = Annotated[
    str | int,
    BeforeValidator(_check_amount),
    # The server checks texts by the pattern, and numbers by the minimum.
    Field(json_schema_extra={"pattern": f"^({_AMOUNT.pattern})$", "maxLength": 64, "minimum": 0}),
]
"""Amount of a resource as Kubernetes writes it: 500m, 16Gi or a whole number."""


class Resources(ApiModel):
    """Resources of a container."""

    requests: dict[str, Amount] | None = None
    """What a node has to have left."""
    limits: dict[str, Amount] | None = None
    """What a worker may use at most."""


class Workers(ApiModel):
    """Where the job runs: pods on Kubernetes, processes on one machine."""

    RULES = (
        Rule(
            "replicas",
            "must be between elastic.minReplicas and elastic.maxReplicas",
            broken=lambda workers: (
                workers.elastic is not None
                and not workers.elastic.min_replicas <= workers.replicas <= workers.elastic.max_replicas
            ),
            cel="!has(self.elastic) || "
            "(self.elastic.minReplicas <= self.replicas && self.replicas <= self.elastic.maxReplicas)",
        ),
    )

    replicas: Replicas = 1
    """Number of pods. `rectrain run` starts one process for each process of each."""
    processes_per_replica: Annotated[int, Field(ge=1, le=1024)] = 1
    """Processes in a pod: one for each GPU."""
    image: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    """Worker image. Default: the operator's."""
    resources: Resources | None = None
    """Requests and limits of a worker, as in a container."""
    elastic: Elastic | None = None
    """Let training start with fewer workers than replicas, and take in those that come later. It goes on from the
    newest checkpoint when the number changes."""
    placement: Placement | None = None
    """Whether pods are spread or packed. Default: as the scheduler likes."""
    template: dict[str, Any] | None = None
    """A PodTemplateSpec that is merged into the pods, by name: its container `pytorch` is merged into the worker's.
    What the job itself says there (command, image, restart policy, ...) cannot be set."""

    def problems(self) -> Iterator[Problem]:
        """Yield a number of replicas outside the elastic range, and reserved parts of the template."""
        yield from super().problems()
        for problem in reserved_parts(self.template or {}):
            yield problem._replace(path=("template", *problem.path))

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.replicas * self.processes_per_replica
