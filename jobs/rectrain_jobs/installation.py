"""Whether the installed TorchRec kernels can load, told before a library says it in a page of linker errors."""

import ctypes
import json
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from rectrain.api.errors import UserError

CPU_KERNELS = "fbgemm-gpu-cpu"
_DRIVER = "libnvidia-ml.so.1"


def check_kernels() -> None:
    """Refuse an installation whose CUDA kernels need a driver that this machine has not.

    torchrec depends on fbgemm-gpu outright. uv is told to leave it out for the extra `cpu`; pip cannot be, and puts its
    files over those of fbgemm-gpu-cpu.

    Raises:
        UserError: With the command that mends it.
    """
    package = find_spec("fbgemm_gpu")
    if package is None or package.origin is None or _variant(Path(package.origin).parent) != "cuda" or _has_driver():
        return
    try:
        wanted = f"{CPU_KERNELS}=={version(CPU_KERNELS)}"
    except PackageNotFoundError:
        wanted = CPU_KERNELS
    raise UserError(
        "TorchRec's kernels are those for CUDA, and this machine has no NVIDIA driver; install the CPU ones over them: "
        f"pip install --force-reinstall --no-deps {wanted}"
    )


def _variant(folder: Path) -> str | None:
    try:
        found = json.loads((folder / "docs" / "target.default.json.py").read_text())
    except (OSError, ValueError):
        return None
    return str(found.get("variant"))


def _has_driver() -> bool:
    try:
        ctypes.CDLL(_DRIVER)
    except OSError:
        return False
    return True
