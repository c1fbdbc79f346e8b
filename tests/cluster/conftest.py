import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import api_server as servers
from harness import built_images, requirements, services
from harness import cluster as clusters
from harness.api_server import ApiServer, ControlPlane
from harness.cluster import Cluster
from installed import RELEASE, Place, Release, interactions


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


@pytest.fixture(scope="session")
def storage(running_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> services.Storage:
    """Object storage and an MLflow server beside the cluster's node."""
    if running_cluster.node is None:
        pytest.skip("about the node that the tests start, and RECTRAIN_TEST_KUBECONFIG names another")
    folder = tmp_path_factory.mktemp("services")
    with running_cluster.entered():
        services.start_mlflow(running_cluster.node, folder)
        return services.start_storage(running_cluster.node, folder)


@pytest.fixture(scope="session")
def release(running_cluster: Cluster, storage: services.Storage) -> Iterator[Release]:
    """The chart, installed from the operator's image with two replicas."""
    assert running_cluster.node is not None
    running_cluster.node.load_image(built_images.build("operator"))
    installed = Release(running_cluster)
    with running_cluster.entered():
        installed.install()
    yield installed
    with running_cluster.entered():
        installed.helm("uninstall", RELEASE, "--wait")


@pytest.fixture
def place(release: Release, cluster: Cluster, namespace: str, storage: services.Storage) -> Place:
    """A namespace of the cluster in which a job can be applied, with raw data for it."""
    bucket = f"test-{secrets.token_hex(4)}"
    s3 = storage.client()
    s3.create_bucket(Bucket=bucket)
    s3.put_object(Bucket=bucket, Key="raw/train.txt", Body=interactions(range(5)))
    s3.put_object(Bucket=bucket, Key="raw/test.txt", Body=interactions(range(5, 7)))
    made = Place(cluster, namespace, bucket, storage)
    keys = (f"AWS_ACCESS_KEY_ID={storage.access_key}", f"AWS_SECRET_ACCESS_KEY={storage.secret_key}")
    made.kubectl("create", "secret", "generic", "storage", *(f"--from-literal={key}" for key in keys))
    return made
