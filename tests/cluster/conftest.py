import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import api_server as servers
from harness import cluster as clusters
from harness import requirements
from harness.api_server import ApiServer, ControlPlane
from harness.cluster import Cluster


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """The API server alone, for tests that stop and start it under a client."""
    with servers.running(tmp_path_factory.mktemp("api-server")) as plane:
        yield plane


@pytest.fixture(scope="session")
def api_server(control_plane: ControlPlane) -> ApiServer:
    """An API server on loopback with the PyTorchJob type and nothing that runs pods."""
    return control_plane.api


@pytest.fixture(scope="session")
def job_type(api_server: ApiServer) -> None:
    """The API server knows RecTrainingJobs, by the generated CustomResourceDefinition."""
    definition = Path(__file__).parents[2] / "charts" / "rectrain" / "files" / "rectrainingjobs.rectrain.io.yaml"
    api_server.kubectl("apply", "--server-side", "-f", definition)
    api_server.kubectl("wait", "--for=condition=Established", "crd/rectrainingjobs.rectrain.io", "--timeout=30s")


@pytest.fixture(scope="session")
def running_cluster() -> Iterator[Cluster]:
    """The cluster that all tests share: started here, or named by RECTRAIN_TEST_KUBECONFIG."""
    kubeconfig = os.environ.get("RECTRAIN_TEST_KUBECONFIG")
    if kubeconfig:
        yield clusters.given(Path(kubeconfig))
        return
    lack = requirements.missing()
    if lack and os.environ.get("CI"):
        pytest.fail(lack)
    if lack:
        pytest.skip(lack)
    with clusters.running() as cluster:
        yield cluster


@pytest.fixture
def cluster(running_cluster: Cluster) -> Iterator[Cluster]:
    """A cluster that runs pods; during the test this process is in its network."""
    with running_cluster.entered():
        yield running_cluster


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A fresh Kubernetes namespace of the cluster, deleted with all that is in it."""
    name = f"test-{secrets.token_hex(4)}"
    cluster.api.kubectl("create", "namespace", name)
    yield name
    cluster.api.kubectl("delete", "namespace", name, "--wait=false")
