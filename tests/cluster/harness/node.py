"""A node: its network, the container runtime, and the Kubernetes components beside the API server."""

import json
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import gotools
import yaml

from .api_server import SERVICE_CIDR, ControlPlane
from .namespace import Namespace
from .processes import Service

ADDRESS = "10.244.0.1"  # of the first node, on which is everything that is there once
POD_CIDR = "10.244.0.0/24"
BRIDGE = "kbr0"
PAUSE_IMAGE = "rectrain.test/pause:1"
HOST_RUNTIME = "host-environment"
READY_SECONDS = 60
NODE_LOST_SECONDS = 20


@dataclass
class Node:
    """Writes configuration into `folder` and runs the components inside `namespace`.

    All nodes and their pods are on one segment. `address` is the node's, `pod_addresses` are the first and the last of
    its pods'.
    """

    folder: Path
    namespace: Namespace
    name: str = "node-1"
    address: str = ADDRESS
    pod_addresses: tuple[str, str] = ("10.244.0.10", "10.244.0.199")
    services: dict[str, Service] = field(default_factory=dict)

    @property
    def socket(self) -> Path:
        return self.folder / "containerd.sock"

    def run(self, name: str, *command: str | Path) -> Service:
        service = Service(name, command, self.folder / f"{name}.log", prefix=self.namespace.prefix)
        service.start()
        self.services[name] = service
        return service

    def make_network(self) -> None:
        """Make the bridge that pods hang on; the node has its address, for a kubelet takes none of loopback."""
        self.namespace.run("ip", "link", "add", BRIDGE, "type", "bridge")
        self.namespace.run("ip", "addr", "add", f"{self.address}/24", "dev", BRIDGE)
        self.namespace.run("ip", "link", "set", BRIDGE, "up")
        # With no default route, addresses of services need one before kube-proxy's rules can translate them.
        self.namespace.run("ip", "route", "add", SERVICE_CIDR, "dev", BRIDGE)
        self.namespace.write("/proc/sys/net/ipv4/ip_forward", "1")

    def connect(self, other: "Node") -> None:
        """Lay a cable between the bridges of this node and another."""
        port, its_port = f"to-{other.name}", f"to-{self.name}"
        peer = ("peer", "name", its_port, "netns", str(other.namespace.pid))
        # By its number outside the other's process namespace, so not from inside this one's.
        with self.namespace.entered():
            subprocess.run(["ip", "link", "add", port, "type", "veth", *peer], check=True)
        for node, end in ((self, port), (other, its_port)):
            node.namespace.run("ip", "link", "set", end, "master", BRIDGE, "up")

    def start_containerd(self, host_mounts: list[dict[str, object]]) -> None:
        """Start the runtime; the runtime class `host-environment` lays `host_mounts` over a container's image."""
        cni = self.folder / "cni"
        cni.mkdir()
        (cni / "10-bridge.conflist").write_text(json.dumps(pod_network(self)))
        spec = json.loads(self.namespace.run("ctr", "oci", "spec"))
        spec["mounts"] += host_mounts
        base_spec = self.folder / "host-environment.json"
        base_spec.write_text(json.dumps(spec))
        config = self.folder / "containerd.toml"
        config.write_text(CONTAINERD.format(folder=self.folder, socket=self.socket, base_spec=base_spec, cni=cni))
        containerd = self.run("containerd", "containerd", "--config", config)
        containerd.wait_until(lambda: self._answers("ctr", "--address", self.socket, "version"), READY_SECONDS)

    def load_image(self, archive: Path) -> None:
        """Import an image archive as docker or buildah save it."""
        self.namespace.run("ctr", "--address", self.socket, "--namespace", "k8s.io", "images", "import", archive)

    def tag_image(self, name: str, other: str) -> None:
        """Give an image that is here another name too."""
        self.namespace.run("ctr", "--address", self.socket, "--namespace", "k8s.io", "images", "tag", name, other)

    def start_components(self, plane: ControlPlane) -> None:
        """Start what a cluster has once: its controllers, the scheduler, addresses of services and their names."""
        binaries = gotools.build("kube-controller-manager", "kube-scheduler", "kube-proxy", "coredns")
        admin = plane.api.kubeconfig
        self.run(
            "kube-controller-manager",
            binaries["kube-controller-manager"],
            f"--kubeconfig={admin}",
            f"--service-account-private-key-file={plane.service_account_key}",
            f"--root-ca-file={plane.authority.pair.certificate}",
            "--use-service-account-credentials",
            "--leader-elect=false",
            f"--node-monitor-grace-period={NODE_LOST_SECONDS}s",
        )
        self.run("kube-scheduler", binaries["kube-scheduler"], f"--kubeconfig={admin}", "--leader-elect=false")
        self.run(
            "kube-proxy",
            binaries["kube-proxy"],
            f"--kubeconfig={admin}",
            f"--hostname-override={self.name}",
            "--proxy-mode=iptables",
            f"--cluster-cidr={POD_CIDR}",
            # The limits of connection tracking are the machine's, and not ours to set.
            "--conntrack-max-per-core=0",
            "--conntrack-tcp-timeout-established=0",
            "--conntrack-tcp-timeout-close-wait=0",
        )
        corefile = self.folder / "Corefile"
        corefile.write_text(COREFILE.format(address=ADDRESS, kubeconfig=admin))
        self.run("coredns", binaries["coredns"], "-conf", corefile)

    def start_kubelet(self, plane: ControlPlane) -> None:
        """Start what runs pods, and wait until the node says that it is ready."""
        authority = plane.authority
        user, hosts = f"system:node:{self.name}", [self.name, self.address]
        node = authority.issue(self.name, user, groups=["system:nodes"], hosts=hosts)
        kubelet_login = authority.kubeconfig(self.folder / "kubelet.conf", plane.api.url, node)
        resolver = self.folder / "resolv.conf"
        resolver.write_text(f"nameserver {ADDRESS}\n")
        config = self.folder / "kubelet.yaml"
        client_ca = str(authority.pair.certificate)
        config.write_text(yaml.safe_dump(kubelet_configuration(self, client_ca)))
        self.run(
            "kubelet",
            gotools.build("kubelet")["kubelet"],
            f"--config={config}",
            f"--kubeconfig={kubelet_login}",
            f"--hostname-override={self.name}",
            f"--node-ip={self.address}",
            f"--root-dir={self.folder / 'kubelet'}",
            f"--cert-dir={self.folder / 'kubelet-pki'}",
        )
        with self.namespace.entered():
            plane.api.kubectl("wait", "--for=create", f"node/{self.name}", f"--timeout={READY_SECONDS}s")
            plane.api.kubectl("wait", "--for=condition=Ready", f"node/{self.name}", f"--timeout={READY_SECONDS}s")

    def _answers(self, *command: str | Path) -> bool:
        try:
            self.namespace.run(*command)
        except RuntimeError:
            return False
        return True


CONTAINERD = """
version = 2
root = "{folder}/containerd/root"
state = "{folder}/containerd/state"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
  address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{cni}"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{host_runtime}]
    runtime_type = "io.containerd.runc.v2"
    base_runtime_spec = "{base_spec}"
""".replace("{pause}", PAUSE_IMAGE).replace("{host_runtime}", HOST_RUNTIME)

COREFILE = """.:53 {{
    bind {address}
    errors
    kubernetes cluster.local in-addr.arpa {{
        kubeconfig {kubeconfig} test
        ttl 2
    }}
}}
"""


def containers(folder: Path) -> list[str]:
    """Return the ids of the containers that ran when the node in a folder ended."""
    return [path.name for path in (folder / "containerd" / "state").glob("io.containerd.runtime.v2.task/k8s.io/*")]


def pod_network(node: Node) -> dict[str, object]:
    first, last = node.pod_addresses
    addresses = {
        "type": "host-local",
        "dataDir": str(node.folder / "addresses"),
        "ranges": [[{"subnet": POD_CIDR, "rangeStart": first, "rangeEnd": last, "gateway": node.address}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = {"type": "bridge", "bridge": BRIDGE, "isGateway": True, "ipMasq": True, "ipam": addresses}
    ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "0.4.0", "name": "bridge", "plugins": [bridge, ports]}


def kubelet_configuration(node: Node, client_ca: str) -> dict[str, object]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": node.address,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": client_ca},
        },
        "authorization": {"mode": "Webhook"},
        "containerRuntimeEndpoint": f"unix://{node.socket}",
        "podLogsDir": str(node.folder / "pod-logs"),
        "resolvConf": str(node.folder / "resolv.conf"),
        "clusterDomain": "cluster.local",
        "clusterDNS": [ADDRESS],
        # A machine that is itself a sandbox lets nobody raise resource limits, and shares its control groups.
        "featureGates": {"KubeletInUserNamespace": True},
        "cgroupDriver": "cgroupfs",
        "cgroupsPerQOS": False,
        "enforceNodeAllocatable": [],
        "failSwapOn": False,
        "localStorageCapacityIsolation": False,
        "makeIPTablesUtilChains": False,
        "evictionHard": {"memory.available": "100Mi"},
    }
