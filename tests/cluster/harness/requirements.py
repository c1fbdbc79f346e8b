"""What a machine needs to run a node of the test cluster, in words that say how to get it.

`python tests/cluster/harness/requirements.py` installs it where that is possible without a question: as root, with apt.
"""

import os
import shutil
import subprocess
import sys
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
    "buildah": "buildah",
    "debootstrap": "debootstrap",
}
PLUGINS = Path("/usr/lib/cni")


def missing() -> str | None:
    """Return what keeps this machine from running a node, or None."""
    if os.geteuid() != 0:
        return "the cluster tests run a kubelet, which takes root; or name a cluster with RECTRAIN_TEST_KUBECONFIG"
    if packages := missing_packages():
        return f"`make setup-cluster` installs what the cluster tests need: {', '.join(packages)}"
    return None


def missing_packages() -> list[str]:
    """Return the system packages that are not installed, by their names in Debian."""
    packages = {package for program, package in PACKAGES.items() if shutil.which(program) is None}
    if not (PLUGINS / "bridge").exists():
        packages.add("containernetworking-plugins")
    return sorted(packages)


def install() -> None:
    """Install what is missing.

    Elsewhere than on Debian, and without root, this says what is missing and leaves the rest to the tests, which skip
    what needs a node or, where the environment variable CI is set, fail.
    """
    packages = missing_packages()
    if not packages:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        print(f"tests on a node need root and these packages: {', '.join(packages)}", file=sys.stderr)
        return
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "update", "-q"], check=True, env=environment)
    subprocess.run(
        ["apt-get", "install", "-q", "-y", "--no-install-recommends", *packages], check=True, env=environment
    )


if __name__ == "__main__":
    install()
