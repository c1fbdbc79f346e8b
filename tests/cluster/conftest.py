from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import api_server as servers
from harness.api_server import ApiServer, ControlPlane


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
