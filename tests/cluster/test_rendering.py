"""What `rectrain render` prints is accepted by an API server, down to the pods, which meet the restricted standard."""

from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from harness.api_server import ApiServer
from render_cases import CASES, rendered

from rectrain.api.yaml_text import dump_yaml

RESTRICTED = "pod-security.kubernetes.io/enforce=restricted"


@pytest.fixture(scope="module")
def namespaces(api_server: ApiServer) -> Iterator[None]:
    """The namespaces of the jobs, and one that takes only pods of the restricted standard."""
    names = ("ads", "recommender", "restricted")
    for name in names:
        api_server.kubectl("create", "namespace", name)
    api_server.kubectl("label", "namespace", "restricted", RESTRICTED)
    yield
    api_server.kubectl("delete", "namespace", *names, "--wait=false")


def apply(api_server: ApiServer, document: dict[str, Any]) -> None:
    """Have the server check an object as if it was to keep it, unknown fields included."""
    api_server.kubectl(
        "apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-", stdin=dump_yaml(document)
    )


def templates_of(document: dict[str, Any]) -> list[dict[str, Any]]:
    if document["kind"] == "PyTorchJob":
        return [replicas["template"] for replicas in document["spec"]["pytorchReplicaSpecs"].values()]
    return [document["spec"]["template"]] if document["kind"] == "Job" else []


def pod_of(template: dict[str, Any], namespace: str) -> dict[str, Any]:
    metadata = {**template["metadata"], "name": "pod", "namespace": namespace}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


@pytest.mark.parametrize("name", CASES)
def test_objects_and_their_pods_are_accepted(api_server: ApiServer, namespaces: None, name: str) -> None:
    documents = list(yaml.safe_load_all(rendered(name)))
    assert {document["kind"] for document in documents} >= {"ConfigMap", "PyTorchJob"}
    for document in documents:
        apply(api_server, document)
        for template in templates_of(document):
            apply(api_server, pod_of(template, "default"))


@pytest.mark.parametrize("name", ["amazon-cds", "conversion"])
def test_pods_meet_the_restricted_standard(api_server: ApiServer, namespaces: None, name: str) -> None:
    for document in yaml.safe_load_all(rendered(name)):
        for template in templates_of(document):
            apply(api_server, pod_of(template, "restricted"))
