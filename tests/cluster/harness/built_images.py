"""The project's real images, built from their Dockerfiles by buildah over a Debian that debootstrap makes.

There is no registry to pull a base from, so the base is made here; it and the images are kept in the user's cache, an
image under a digest of all that it is made of.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import gotools

REPOSITORY = Path(__file__).resolve().parents[3]
IMAGES = gotools.BINARIES.with_name("images")
BASE = "localhost/debian-python:bookworm"
SOURCES = ("pyproject.toml", "uv.lock", "README.md", "LICENSE", "images", "operator", "jobs")
BUILD_SECONDS = 1200
# Buildah's own storage, so that nothing of it is left on the machine.
STORAGE = """[storage]
driver = "overlay"
graphroot = "{folder}/graph"
runroot = "{folder}/run"
"""


def name_of(image: str) -> str:
    """Return the name that an image has on the node, without the tag: the package's version."""
    return f"localhost/rectrain-{image}"


def build(image: str) -> Path:
    """Return an archive of an image, built if this machine has none of these sources yet.

    Args:
        image: As `images/build` names it, such as operator.

    Raises:
        RuntimeError: A program failed; with the end of what it said.
    """
    IMAGES.mkdir(parents=True, exist_ok=True)
    archive = IMAGES / f"{image}-{digest()}.tar"
    with gotools.locked(IMAGES / ".lock"):
        if not archive.exists():
            for old in IMAGES.glob(f"{image}-*.tar"):
                old.unlink()
            # On a disk, and not in /tmp, which may be an overlay itself.
            with tempfile.TemporaryDirectory(prefix="rectrain-image-", dir="/var/tmp") as folder:
                made = build_in(Path(folder), image, base())
                shutil.copy(made, archive.with_suffix(".part"))
            archive.with_suffix(".part").rename(archive)
    return archive


def digest() -> str:
    """Return a digest of the files that images are made of."""
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *SOURCES)
    content = hashlib.sha256()
    for name in sorted(filter(None, listed.split("\0"))):
        path = REPOSITORY / name
        if path.is_file():
            content.update(name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return content.hexdigest()[:16]


def base() -> Path:
    """Return an archive of the root file system of a Debian with Python, made once."""
    archive = IMAGES / "debian-python-bookworm.tar"
    if not archive.exists():
        with tempfile.TemporaryDirectory(prefix="rectrain-base-", dir="/var/tmp") as folder:
            root = Path(folder) / "root"
            packages = "--include=python3,python3-pip,ca-certificates"
            run("debootstrap", "--variant=minbase", packages, "bookworm", str(root))
            for left in (*root.glob("var/cache/apt/archives/*.deb"), *root.glob("var/lib/apt/lists/*_*")):
                left.unlink()
            run("tar", "-C", str(root), "-cf", str(archive.with_suffix(".part")), ".")
        archive.with_suffix(".part").rename(archive)
    return archive


def build_in(folder: Path, image: str, base_archive: Path) -> Path:
    """Build an image in a folder that buildah keeps everything in; return its archive there."""
    storage = folder / "storage.conf"
    storage.write_text(STORAGE.format(folder=folder))
    shutil.copy(base_archive, folder / "base.tar")
    (folder / "Dockerfile").write_text("FROM scratch\nADD base.tar /\n")
    environment = {"CONTAINERS_STORAGE_CONF": str(storage)}
    build_environment = {**environment, "BASE": BASE, "BUILD_ARGS": " ".join(build_arguments())}
    try:
        run("buildah", "build", "--isolation", "chroot", "--tag", BASE, str(folder), environment=environment)
        run(str(REPOSITORY / "images" / "build"), image, environment=build_environment)
    except BaseException:
        run("buildah", "rm", "--all", environment=environment)  # a build that failed leaves its file system mounted
        raise
    archive = folder / f"{image}.tar"
    name = f"{name_of(image)}:{version('rectrain')}"  # the tag that `images/build` gives it
    run("buildah", "push", name, f"docker-archive:{archive}:{name}", environment=environment)
    return archive


def build_arguments() -> list[str]:
    """Return what `images/build` passes on: no nested containers, and the network's own certificate authority."""
    arguments = ["--isolation", "chroot"]
    if certificates := os.environ.get("SSL_CERT_FILE"):
        folder = str(Path(certificates).parent)
        arguments += ["--volume", f"{folder}:{folder}:ro"]
        arguments += [f"--build-arg={name}={certificates}" for name in ("SSL_CERT_FILE", "PIP_CERT")]
    return arguments


def run(*command: str, environment: Mapping[str, str] | None = None) -> str:
    """Run a program in the repository and return what it prints."""
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {(done.stderr or done.stdout)[-2000:]}")
    return done.stdout
