"""Byte quantities the way Kubernetes writes them."""

import re

_SUFFIXES = {
    "": 1,
    **{suffix: 1000**power for power, suffix in enumerate("kMGTP", start=1)},
    **{f"{suffix}i": 1024**power for power, suffix in enumerate("KMGTP", start=1)},
}
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(|[kMGTP]|[KMGTP]i)")


def parse_bytes(text: str) -> int:
    """Return the number of bytes that a quantity such as ``80Gi`` stands for.

    Raises:
        ValueError: The text is not a quantity.
    """
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError(f"must be a number of bytes such as 512Mi, 80Gi or 1000000, not {text!r}")
    number, suffix = match.groups()
    return int(float(number) * _SUFFIXES[suffix])


def format_bytes(count: int | float) -> str:
    """Return a count of bytes as people read it, for example ``1.5 GiB``."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1024 or unit == "TiB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("unreachable")
