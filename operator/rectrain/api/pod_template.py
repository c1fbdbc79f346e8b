"""What a job's pod template may not say, because the job itself says it."""

import posixpath
from collections.abc import Iterator, Mapping
from typing import Any

from rectrain.api.rules import Problem

CONTAINER = "pytorch"
"""Name of the worker's container; the training operator knows it by this name."""

CONVERSION_CONTAINER = "convert"
"""Name of the container that converts a job's data."""

CONVERSION_NAME_LABEL = "batch.kubernetes.io/job-name"
"""Label by which Kubernetes says of a pod which batch/v1 Job it is of."""

CHILD_NAME_LABEL = "training.kubeflow.org/job-name"
REPLICA_TYPE_LABEL, REPLICA_INDEX_LABEL = "training.kubeflow.org/replica-type", "training.kubeflow.org/replica-index"
"""Labels by which the training operator says of a pod whose it is, and which worker."""

PROGRESS_PORT_NAME, PROGRESS_PORT = "progress", 8471
"""Port of a worker pod on which rank 0 serves /progress and /metrics."""

RENDEZVOUS_PORT_NAME, RENDEZVOUS_PORT = "pytorchjob-port", 23456
"""Port on which the ranks of a job find each other; name and number are the training operator's."""

JOB_FOLDER, CACHE_FOLDER = "/etc/rectrain", "/var/cache/rectrain"
"""Folders of a worker's container that hold the job file and the local copies of shards."""

VOLUME_PREFIX = "rectrain-"
MOUNT_PATHS = (JOB_FOLDER, CACHE_FOLDER, "/dev/shm", "/tmp")
OWN_LABELS = ("app.kubernetes.io/", "rectrain.io/", "training.kubeflow.org/")

_OWN_ENV = ("RECTRAIN_", "PET_", "TORCHELASTIC_")
_OWN_ENV_NAMES = {
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "NODE_RANK"),
    *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
}
_POD_FIELDS = {
    "restartPolicy": "must be left out: the operator restarts all workers together, up to runPolicy.maxRestarts times",
    "automountServiceAccountToken": "must be left out: workers call no Kubernetes API",
    "hostname": "must be left out: the training operator names the pods",
    "subdomain": "must be left out: the training operator names the pods",
}
_CONTAINER_FIELDS = {
    "command": "must be left out: a worker runs the job",
    "args": "must be left out: a worker runs the job",
    "image": "must be left out: set workers.image",
    "resources": "must be left out: set workers.resources",
    "workingDir": "must be left out: a worker runs in /tmp",
    "terminationMessagePath": "must be left out: the operator reads the result from it",
    "terminationMessagePolicy": "must be left out: the operator reads the result from it",
}
_ELEMENT_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "volumeMounts": "mountPath",
    "ports": "containerPort",
    "imagePullSecrets": "name",
}
"""Lists of a pod template whose elements are told apart by a key, as the API server does it."""


def list_key(field: str) -> str | None:
    """Return the key by which elements of a list of a pod template are merged; None where they are appended."""
    return _ELEMENT_KEYS.get(field)


def reserved_parts(template: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield what a user's PodTemplateSpec sets although it is the job's, and what has not the form of a template."""
    if shape := list(_shape_problems(template)):
        yield from shape
        return
    for field in template:
        if field not in ("metadata", "spec"):
            yield Problem((field,), None, "is not a field of a PodTemplateSpec, which has metadata and spec")
    for kind in ("labels", "annotations"):
        for name in (template.get("metadata") or {}).get(kind) or {}:
            if name.startswith(OWN_LABELS):
                domain = name.partition("/")[0]
                yield Problem(("metadata", kind, name), None, f"must be left out: {domain}/ is the operator's")
    spec = template.get("spec") or {}
    for field, message in _POD_FIELDS.items():
        if field in spec:
            yield Problem(("spec", field), spec[field], message)
    for position, volume in enumerate(spec.get("volumes") or []):
        if volume["name"].startswith(VOLUME_PREFIX):
            yield Problem(("spec", "volumes", position, "name"), volume["name"], f"must not begin with {VOLUME_PREFIX}")
    for position, container in enumerate(spec.get("containers") or []):
        if container["name"] == CONTAINER:
            for problem in _container_problems(container):
                yield problem._replace(path=("spec", "containers", position, *problem.path))


def _container_problems(container: Mapping[str, Any]) -> Iterator[Problem]:
    for field, message in _CONTAINER_FIELDS.items():
        if field in container:
            yield Problem((field,), container[field], message)
    for position, variable in enumerate(container.get("env") or []):
        name = variable["name"]
        if name.startswith(_OWN_ENV) or name in _OWN_ENV_NAMES:
            yield Problem(("env", position, "name"), name, "must be left out: torchrun or the operator sets it")
    for position, mount in enumerate(container.get("volumeMounts") or []):
        if posixpath.normpath(mount["mountPath"]) in MOUNT_PATHS:
            taken = ", ".join(MOUNT_PATHS)
            yield Problem(("volumeMounts", position, "mountPath"), mount["mountPath"], f"must be none of {taken}")
    for position, port in enumerate(container.get("ports") or []):
        if port["containerPort"] in (PROGRESS_PORT, RENDEZVOUS_PORT):
            yield Problem(
                ("ports", position, "containerPort"),
                port["containerPort"],
                f"must be neither {PROGRESS_PORT} nor {RENDEZVOUS_PORT}: the worker's own ports",
            )
        if port.get("name") in (PROGRESS_PORT_NAME, RENDEZVOUS_PORT_NAME):
            taken = f"must be neither {PROGRESS_PORT_NAME} nor {RENDEZVOUS_PORT_NAME}: the worker's own ports"
            yield Problem(("ports", position, "name"), port["name"], taken)


def _shape_problems(template: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield where the parts that are read or merged have another form than Kubernetes gives them."""
    for field in ("metadata", "spec"):
        if not isinstance(template.get(field), Mapping | None):
            yield Problem((field,), template[field], "must be a mapping")
            return
    metadata, spec = template.get("metadata") or {}, template.get("spec") or {}
    for kind in ("labels", "annotations"):
        if not isinstance(metadata.get(kind), Mapping | None):
            yield Problem(("metadata", kind), metadata[kind], "must be a mapping")
            continue
        for name, value in (metadata.get(kind) or {}).items():
            if not isinstance(value, str):
                yield Problem(("metadata", kind, name), value, _TEXT)
    grace = spec.get("terminationGracePeriodSeconds")
    if grace is not None and (not isinstance(grace, int) or isinstance(grace, bool) or grace < 0):
        yield Problem(("spec", "terminationGracePeriodSeconds"), grace, "must be a whole number of seconds, 0 or more")
    yield from _list_problems(spec, ("spec",))


_TEXT = "must be text: put it in quotes"
_UNIQUE = ("containers", "initContainers", "volumes")


def _list_problems(node: Mapping[str, Any], path: tuple[str | int, ...]) -> Iterator[Problem]:
    """Yield where the lists that are merged by a key, and those in their elements, have another form."""
    for field, key in _ELEMENT_KEYS.items():
        elements, seen = node.get(field), set()
        if elements is None:
            continue
        if not isinstance(elements, list):
            yield Problem((*path, field), elements, "must be a list")
            continue
        for position, element in enumerate(elements):
            place = (*path, field, position)
            if not isinstance(element, Mapping) or key not in element:
                yield Problem(place, element, f"must be a mapping with {key}")
                continue
            value = element[key]
            if key == "containerPort" and (not isinstance(value, int) or isinstance(value, bool)):
                yield Problem((*place, key), value, "must be a whole number")
            elif key != "containerPort" and not isinstance(value, str):
                yield Problem((*place, key), value, _TEXT)
            elif field in _UNIQUE and value in seen:
                yield Problem((*place, key), value, "must not be there twice")
            elif field == "env" and not isinstance(element.get("value"), str | None):
                yield Problem((*place, "value"), element["value"], _TEXT)
            else:
                seen.add(value)
                yield from _list_problems(element, place)
