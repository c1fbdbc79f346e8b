"""Container images for a node without a registry: one layer of files, written without any build tool."""

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path


def write(
    archive: Path,
    name: str,
    *,
    files: Mapping[str, Path | str] | None = None,
    folders: Sequence[str] = (),
    entrypoint: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    user: str = "",
) -> Path:
    """Write an image archive as `docker save` does: `files` by path inside, copied from a path or given as text."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for folder in folders:
            entry = tarfile.TarInfo(folder.strip("/"))
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        for inside, content in (files or {}).items():
            data = content.read_bytes() if isinstance(content, Path) else content.encode()
            entry = tarfile.TarInfo(inside.strip("/"))
            entry.size, entry.mode = len(data), 0o755
            tar.addfile(entry, io.BytesIO(data))
    blob = layer.getvalue()
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "Entrypoint": list(entrypoint),
            "Env": [
                f"{key}={value}" for key, value in (environment or {"PATH": "/usr/local/bin:/usr/bin:/bin"}).items()
            ],
            "User": user,
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(blob).hexdigest()}"]},
        "history": [],
    }
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    with tarfile.open(archive, "w") as tar:
        for member, data in {
            "config.json": json.dumps(config).encode(),
            "layer.tar": blob,
            "manifest.json": json.dumps(manifest).encode(),
        }.items():
            entry = tarfile.TarInfo(member)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return archive
