"""etcd and kube-apiserver on loopback: everything that the API server itself does, and nothing that runs a pod."""

import json
import socket
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import gotools

from .certificates import Authority, Pair
from .processes import Service
from .waiting import wait_until

READY_SECONDS = 60
KUBECTL_SECONDS = 600  # more than any wait that is asked of it
SERVICE_CIDR = "10.96.0.0/16"
SERVICE_ADDRESS = "10.96.0.1"  # of the service `kubernetes`: the first of the range
PYTORCHJOB_CRD = "manifests/base/crds/kubeflow.org_pytorchjobs.yaml"


@dataclass(frozen=True)
class ApiServer:
    """A running API server and the way to it as cluster administrator."""

    url: str
    kubeconfig: Path
    kubectl_binary: Path

    def kubectl(self, *arguments: str | Path, stdin: str | None = None) -> str:
        """Run kubectl as cluster administrator and return what it prints.

        Raises:
            subprocess.CalledProcessError: kubectl said no; its words are in `stderr`, and shown with the error.
        """
        cache = self.kubeconfig.with_name("kubectl-cache")
        command = [self.kubectl_binary, "--kubeconfig", self.kubeconfig, "--cache-dir", cache, *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=KUBECTL_SECONDS)
        if done.returncode:
            error = subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
            error.add_note(done.stderr)
            raise error
        return done.stdout

    def get(self, *arguments: str) -> dict[str, object]:
        """Return an object (or a list of them) as `kubectl get -o json` gives it."""
        found = json.loads(self.kubectl("get", *arguments, "-o", "json"))
        assert isinstance(found, dict)
        return found


@dataclass(frozen=True)
class ControlPlane:
    """The two programs, for tests that stop and start them under a client, and what others need to join them."""

    api: ApiServer
    authority: Authority
    service_account_key: Path
    etcd: Service
    kube_apiserver: Service

    def start(self) -> None:
        """Start what is not running and wait until the API server answers."""
        for service in (self.etcd, self.kube_apiserver):
            if service.process is None or service.process.poll() is not None:
                service.start()
        self.kube_apiserver.wait_until(lambda: ready(self.api, self.authority), READY_SECONDS)

    def stop(self) -> None:
        self.kube_apiserver.stop()
        self.etcd.stop()


def ready(api: ApiServer, authority: Authority) -> bool:
    context = ssl.create_default_context(cafile=str(authority.pair.certificate))
    try:
        # /readyz is open to anyone by the default cluster roles, which are in place once it says yes.
        with urllib.request.urlopen(f"{api.url}/readyz", timeout=2, context=context):
            return True
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def plan(
    folder: Path, *, address: str = "127.0.0.1", flags: Sequence[str] = (), prefix: Sequence[str] = ()
) -> ControlPlane:
    """Lay out certificates and commands in an empty folder; nothing runs yet. `prefix` as `Service` has it."""
    binaries = gotools.build("etcd", "kube-apiserver", "kubectl")
    authority = Authority(folder / "pki")
    admin = authority.issue("admin", "admin", groups=["system:masters"])
    hosts = sorted({"localhost", "kubernetes.default", "kubernetes.default.svc", "127.0.0.1", SERVICE_ADDRESS, address})
    serving = authority.issue("apiserver", "kube-apiserver", hosts=hosts)
    signing, verifying = authority.signing_keys("service-account")
    port, etcd_port, peer_port = free_ports(3)
    api = ApiServer(f"https://{address}:{port}", folder / "admin.conf", binaries["kubectl"])
    authority.kubeconfig(api.kubeconfig, api.url, admin)
    etcd_url = f"http://127.0.0.1:{etcd_port}"
    etcd = [
        binaries["etcd"],
        f"--data-dir={folder / 'etcd'}",
        f"--listen-client-urls={etcd_url}",
        f"--advertise-client-urls={etcd_url}",
        f"--listen-peer-urls=http://127.0.0.1:{peer_port}",
        "--unsafe-no-fsync",  # a test's cluster does not outlive the machine
        "--log-level=warn",
    ]
    apiserver = [
        binaries["kube-apiserver"],
        *apiserver_flags(api, etcd_url, authority, admin, serving),
        f"--service-account-signing-key-file={signing}",
        f"--service-account-key-file={verifying}",
        *flags,
    ]
    return ControlPlane(
        api=api,
        authority=authority,
        service_account_key=signing,
        etcd=Service("etcd", etcd, folder / "etcd.log", prefix),
        kube_apiserver=Service("kube-apiserver", apiserver, folder / "kube-apiserver.log", prefix),
    )


def apiserver_flags(api: ApiServer, etcd_url: str, authority: Authority, admin: Pair, serving: Pair) -> list[str]:
    address, port = api.url.removeprefix("https://").rsplit(":", 1)
    return [
        f"--etcd-servers={etcd_url}",
        f"--bind-address={address}",
        f"--advertise-address={address}",
        f"--secure-port={port}",
        f"--tls-cert-file={serving.certificate}",
        f"--tls-private-key-file={serving.key}",
        f"--client-ca-file={authority.pair.certificate}",
        f"--kubelet-client-certificate={admin.certificate}",
        f"--kubelet-client-key={admin.key}",
        "--kubelet-preferred-address-types=InternalIP",  # nothing resolves a node's name
        f"--service-cluster-ip-range={SERVICE_CIDR}",
        "--service-account-issuer=https://kubernetes.default.svc",
        "--authorization-mode=Node,RBAC",
        "--allow-privileged",
    ]


@contextmanager
def running(folder: Path) -> Iterator[ControlPlane]:
    """The API server alone, on free ports of loopback, with the PyTorchJob type installed."""
    alone = (
        # Nobody makes the default service accounts, and nobody keeps the endpoints of the service `kubernetes`.
        "--disable-admission-plugins=ServiceAccount",
        "--endpoint-reconciler-type=none",
    )
    control_plane = plan(folder, flags=alone)
    try:
        control_plane.start()
        crd = gotools.module_folder("training-operator") / PYTORCHJOB_CRD
        control_plane.api.kubectl("apply", "--server-side", "-f", crd)
        wait_until("PyTorchJobs to be served", lambda: served(control_plane.api, "pytorchjobs.kubeflow.org"), 30)
        yield control_plane
    finally:
        control_plane.stop()


def served(api: ApiServer, resource: str) -> bool:
    """Whether the API server lists a resource in its discovery, so that clients find it."""
    group = resource.partition(".")[2]
    return resource in api.kubectl("api-resources", f"--api-group={group}", "-o", "name").split()


def free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
