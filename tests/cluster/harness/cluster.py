"""A whole one-node Kubernetes with Kubeflow's training-operator, in namespaces of its own; a second node on demand."""

import fcntl
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import gotools
import yaml

from . import api_server, cgroups, images
from .api_server import ApiServer, ControlPlane
from .namespace import Namespace
from .node import ADDRESS, HOST_RUNTIME, PAUSE_IMAGE, Node, containers

REPOSITORY = Path(__file__).resolve().parents[3]
FOLDERS = Path("/var/tmp")  # on a disk, for overlayfs, and short, for the paths of sockets
PREFIX = "rectrain-cluster-"
WORKER_IMAGE = "rectrain.test/worker:host"
WAITING_IMAGE = "rectrain.test/wait-for-host:1"
TRAINING_OPERATOR = "manifests/overlays/standalone"


@dataclass(frozen=True)
class Cluster:
    """A cluster that runs pods. `node` and `plane` are there when the tests started it, and not when it was given."""

    api: ApiServer
    node: Node | None = None
    plane: ControlPlane | None = None

    def entered(self) -> AbstractContextManager[None]:
        """Have this thread in the network from which the cluster's addresses are reached."""
        return self.node.namespace.entered() if self.node else nullcontext()

    @contextmanager
    def second_node(self) -> Iterator[Node]:
        """Run another node of the cluster; closing its namespace before the end is a power cut."""
        assert self.node and self.plane
        folder = self.node.folder / "node-2"
        folder.mkdir()
        namespace = Namespace()
        node = Node(folder, namespace, "node-2", "10.244.0.2", ("10.244.0.210", "10.244.0.250"))
        try:
            node.make_network()
            self.node.connect(node)
            node.start_containerd(host_environment())
            for archive in write_worker_images(folder):
                node.load_image(archive)
            node.start_kubelet(self.plane)
            yield node
        finally:
            namespace.close()
            cgroups.remove(containers(folder))
            shutil.rmtree(folder)
            self.api.kubectl("delete", "node", node.name, "--ignore-not-found")


def given(kubeconfig: Path) -> Cluster:
    """Return a cluster that somebody else runs, with the training-operator in it."""
    address = yaml.safe_load(kubeconfig.read_text())["clusters"][0]["cluster"]["server"]
    return Cluster(ApiServer(address, kubeconfig, gotools.build("kubectl")["kubectl"]))


@contextmanager
def running() -> Iterator[Cluster]:
    """Start a cluster; at its end nothing is left of it, nor of one whose test run was killed."""
    with own_folder() as folder:
        namespace = Namespace()
        node = Node(folder, namespace)
        try:
            plane = api_server.plan(folder, address=ADDRESS, prefix=namespace.prefix)
            node.make_network()
            node.start_containerd(host_environment())
            with namespace.entered():
                plane.start()
            for archive in write_images(folder):
                node.load_image(archive)
            node.start_components(plane)
            node.start_kubelet(plane)
            with namespace.entered():
                install(plane.api)
            yield Cluster(plane.api, node, plane)
        finally:
            namespace.close()


@contextmanager
def own_folder() -> Iterator[Path]:
    """Make a folder that is locked while its cluster runs; remove it then, and those that nobody locks any more."""
    with gotools.locked(gotools.BINARIES.with_name("cluster.lock")):
        for left in FOLDERS.glob(f"{PREFIX}*"):
            with (left / "lock").open("w") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                clear(left)
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=FOLDERS))
        lock = (folder / "lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
    with lock:
        try:
            yield folder
        finally:
            clear(folder)


def clear(folder: Path) -> None:
    """Remove what is left of a cluster whose processes have ended."""
    for node in (folder, *folder.glob("node-*")):
        cgroups.remove(containers(node))
    shutil.rmtree(folder)


def host_environment() -> list[dict[str, object]]:
    """Return the mounts that give a container this machine's programs, this Python, its packages and our sources."""
    sources = {"/usr": "/usr", "/bin": "/usr/bin", "/lib": "/usr/lib", "/lib64": "/usr/lib64"}
    # The interpreter stays where its environment looks for it. The checkout may lie anywhere, also in /tmp, over which
    # pods have a volume of their own, so it goes elsewhere.
    sources |= {sys.base_prefix: sys.base_prefix, "/opt/rectrain": sys.prefix}
    sources |= {f"/opt/source/{folder}": str(REPOSITORY / folder) for folder in ("operator", "jobs")}
    options = ["rbind", "ro", "rprivate", "nosuid", "nodev"]
    return [
        {"destination": inside, "type": "bind", "source": source, "options": options}
        for inside, source in sources.items()
    ]


def write_images(folder: Path) -> Iterator[Path]:
    """Write the images that the cluster and its tests use, under the names by which pods ask for them."""
    yield from write_worker_images(folder)
    yield images.write(
        folder / "training-operator.tar",
        training_operator_image(),
        files={
            "manager": gotools.build("training-operator")["training-operator"],
            "etc/config/initContainer.yaml": INIT_CONTAINER,
        },
        entrypoint=["/manager"],
    )


def write_worker_images(folder: Path) -> Iterator[Path]:
    """Write those that a node needs to run workers."""
    binaries = gotools.build("pause", "wait-for-host")
    yield images.write(folder / "pause.tar", PAUSE_IMAGE, files={"pause": binaries["pause"]}, entrypoint=["/pause"])
    yield images.write(
        folder / "wait-for-host.tar",
        WAITING_IMAGE,
        files={"wait-for-host": binaries["wait-for-host"]},
        entrypoint=["/wait-for-host"],
        user="1000:1000",  # pods that may not run as root have it in front
    )
    # As good as empty: pods that run in the class `host-environment` find this machine's Python in it.
    yield images.write(
        folder / "worker.tar",
        WORKER_IMAGE,
        files={"entry/torchrun": TORCHRUN, "entry/rectrain": RECTRAIN},
        environment={
            "PATH": "/entry:/opt/rectrain/bin:/usr/bin:/bin",
            "PYTHONPATH": "/opt/source/operator:/opt/source/jobs",
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        user="1000:1000",
    )


# The environment's own name their interpreter by the path that it has outside.
RECTRAIN = """#!/usr/bin/env python
from rectrain.cli.main import main

main()
"""
TORCHRUN = """#!/usr/bin/env python
from torch.distributed.run import main

main()
"""

# In the place of the operator's own, which takes an Alpine with a shell: same purpose, resources and name.
INIT_CONTAINER = f"""
- name: init-pytorch
  image: {WAITING_IMAGE}
  command: [/wait-for-host, "{{{{.MasterAddr}}}}"]
  resources:
    limits: {{cpu: 100m, memory: 20Mi}}
    requests: {{cpu: 50m, memory: 10Mi}}
"""


def training_operator_image() -> str:
    text = (gotools.module_folder("training-operator") / TRAINING_OPERATOR / "kustomization.yaml").read_text()
    image = yaml.safe_load(text)["images"][0]
    return f"{image['name']}:{image['newTag']}"


def install(api: ApiServer) -> None:
    """Install the training-operator from its own manifests, and the class of pods that run on this machine's files."""
    runtime_class = {
        "apiVersion": "node.k8s.io/v1",
        "kind": "RuntimeClass",
        "metadata": {"name": HOST_RUNTIME},
        "handler": HOST_RUNTIME,
    }
    api.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(runtime_class))
    published = api.kubectl("kustomize", gotools.module_folder("training-operator") / TRAINING_OPERATOR)
    manifests = list(yaml.load_all(published, yaml.CSafeLoader))
    deployment = next(one for one in manifests if one["kind"] == "Deployment")
    probe = deployment["spec"]["template"]["spec"]["containers"][0]["readinessProbe"]
    probe |= {"initialDelaySeconds": 1, "periodSeconds": 1}
    api.kubectl("apply", "--server-side", "-f", "-", stdin=yaml.dump_all(manifests, Dumper=yaml.CSafeDumper))
    api.kubectl("-n", "kubeflow", "rollout", "status", "deployment/training-operator", "--timeout=120s")
