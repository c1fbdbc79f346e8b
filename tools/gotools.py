"""The Go programs that tests talk to, built from the pinned modules beside this file.

The binaries lie in a cache of the user, which survives `make clean` and is shared by checkouts.

`python tools/gotools.py` lists them; with names, it builds those and prints where they are.
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MODULES = Path(__file__).resolve().parent
BINARIES = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "rectrain" / "bin"
STATIC = {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly"}

_PAUSES = (0.0, 5.0, 30.0)
"""Seconds before each attempt to build: modules are downloaded meanwhile, and networks fail for a moment."""


@dataclass(frozen=True)
class Tool:
    """A program of a module that a go.mod in this folder pins; its `{version}` can be stamped into the program."""

    folder: str
    module: str
    package: str
    stamp: str = ""

    @property
    def go_mod(self) -> str:
        """The text of the file that pins it."""
        return (MODULES / self.folder / "go.mod").read_text()

    @property
    def version(self) -> str:
        """The version of the module that go.mod asks for; of a program whose source is here, a digest of that."""
        if self.module.startswith("rectrain.io/"):
            return hashlib.sha256((MODULES / self.folder / "main.go").read_bytes()).hexdigest()[:12]
        found = re.search(rf"^\s*(?:require )?{re.escape(self.module)} (v\S+)", self.go_mod, re.M)
        assert found, f"tools/{self.folder}/go.mod does not pin {self.module}"
        return found[1]


def kubernetes(name: str) -> Tool:
    """A component of Kubernetes that knows its version."""
    # Without the stamp a component calls itself v0.0.0, and clients take it for too old.
    stamp = "-X k8s.io/component-base/version.gitVersion={version}"
    return Tool("kubernetes", "k8s.io/kubernetes", f"k8s.io/kubernetes/cmd/{name}", stamp)


def own(folder: str) -> Tool:
    """A program whose source is in this repository, in one file."""
    return Tool(folder, f"rectrain.io/tools/{folder}", ".")


TOOLS = {
    "etcd": Tool("etcd", "go.etcd.io/etcd/server/v3", "go.etcd.io/etcd/server/v3"),
    "kube-apiserver": kubernetes("kube-apiserver"),
    "kube-controller-manager": kubernetes("kube-controller-manager"),
    "kube-scheduler": kubernetes("kube-scheduler"),
    "kubelet": kubernetes("kubelet"),
    "kube-proxy": kubernetes("kube-proxy"),
    "kubectl": kubernetes("kubectl"),
    "coredns": Tool("coredns", "github.com/coredns/coredns", "."),
    "training-operator": Tool(
        "training-operator",
        "github.com/kubeflow/training-operator",
        "github.com/kubeflow/training-operator/cmd/training-operator.v1",
    ),
    "helm": Tool(
        "helm", "helm.sh/helm/v3", "helm.sh/helm/v3/cmd/helm", "-X helm.sh/helm/v3/internal/version.version={version}"
    ),
    "kueue": Tool("kueue", "sigs.k8s.io/kueue", "sigs.k8s.io/kueue/cmd/kueue"),
    "kwok": Tool("kwok", "sigs.k8s.io/kwok", "sigs.k8s.io/kwok/cmd/kwok"),
    "pause": own("pause"),
    "wait-for-host": own("wait-for-host"),
    "minio": Tool("minio", "github.com/minio/minio", "github.com/minio/minio"),
}


def build(*names: str) -> dict[str, Path]:
    """Return the binaries of tools by name, building those that this machine does not have yet.

    Raises:
        RuntimeError: There is no Go new enough, or a build failed; its output is on standard error.
    """
    return {name: build_one(name, TOOLS[name]) for name in names}


def build_one(name: str, tool: Tool) -> Path:
    """Return one binary, built if need be."""
    binary = BINARIES / f"{name}-{tool.version}"
    if binary.exists():
        return binary
    # One build of a folder at a time, so that two test runs do not compile the same packages side by side.
    with locked(BINARIES / f".{tool.folder}.lock"):
        if not binary.exists():
            temporary = binary.with_name(f".{binary.name}-{os.getpid()}")
            print(f"building {binary.name}", file=sys.stderr, flush=True)
            stamp = f"-s -w {tool.stamp.format(version=tool.version)}".rstrip()
            command = [go(tool), "build", "-trimpath", "-ldflags", stamp, "-o", str(temporary), tool.package]
            if not any(_runs(command, tool, pause) for pause in _PAUSES):
                raise RuntimeError(f"{name} did not build: {' '.join(command)}")
            temporary.replace(binary)
    return binary


def _runs(command: list[str], tool: Tool, pause: float) -> bool:
    """Run a build after a pause; return whether it has ended well."""
    time.sleep(pause)
    # Standard output belongs to the caller: `python tools/gotools.py` prints paths there.
    environment = {**os.environ, **STATIC}
    return subprocess.run(command, cwd=MODULES / tool.folder, env=environment, stdout=sys.stderr).returncode == 0


def module_folder(name: str) -> Path:
    """Return the folder with a tool's module as published: its manifests lie beside its code."""
    tool = TOOLS[name]
    environment = {**os.environ, **STATIC}
    for command in (["mod", "download", tool.module], ["list", "-m", "-f", "{{.Dir}}", tool.module]):
        done = subprocess.run(
            [go(tool), *command], cwd=MODULES / tool.folder, env=environment, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"go {' '.join(command)} in tools/{tool.folder}: {done.stderr}")
    return Path(done.stdout.strip())


def go(tool: Tool) -> str:
    """Return a Go new enough for the module: the machine's, or the one in the development dependencies."""
    needed = re.search(r"^go (\d+)\.(\d+)", tool.go_mod, re.M)
    assert needed
    for candidate in (shutil.which("go"), str(Path(sys.executable).parent / "go")):
        if candidate and Path(candidate).exists():
            said = subprocess.run(
                [candidate, "version"], capture_output=True, text=True, env={**os.environ, "GOTOOLCHAIN": "local"}
            ).stdout
            found = re.search(r"go(\d+)\.(\d+)", said)
            if found and (int(found[1]), int(found[2])) >= (int(needed[1]), int(needed[2])):
                return candidate
    raise RuntimeError(f"no Go of at least {needed[1]}.{needed[2]}; install the development dependencies")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file: it is let go with the process, however that ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    unknown = [name for name in sys.argv[1:] if name not in TOOLS]
    if unknown:
        sys.exit(f"no tool {', '.join(unknown)}; there are {', '.join(TOOLS)}")
    if sys.argv[1:]:
        print(*build(*sys.argv[1:]).values(), sep="\n")
    else:
        print(*(f"{name} {tool.version}" for name, tool in TOOLS.items()), sep="\n")
