"""What a machine needs to run a node of the test cluster, in words that say how to get it."""

import os
import shutil
from pathlib import Path

PACKAGES = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "iptables": "iptables",
    "ip": "iproute2",
    "mount": "mount",
    "setpriv": "util-linux",
    "unshare": "util-linux",
    "nsenter": "util-linux",
}
PLUGINS = Path("/usr/lib/cni")


def missing() -> str | None:
    """Return what keeps this machine from running a node, or None."""
    if os.geteuid() != 0:
        return "the cluster tests run a kubelet, which takes root; or name a cluster with RECTRAIN_TEST_KUBECONFIG"
    packages = {package for program, package in PACKAGES.items() if shutil.which(program) is None}
    if not (PLUGINS / "bridge").exists():
        packages.add("containernetworking-plugins")
    if packages:
        return f"`make setup-cluster` installs what the cluster tests need: {', '.join(sorted(packages))}"
    return None
