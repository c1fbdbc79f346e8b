"""The model bundle: a trained model with everything that serving it needs, and nothing that runs code when read."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rectrain_jobs.bundle.reading import Bundle, load_bundle
    from rectrain_jobs.bundle.writing import write_bundle

__all__ = ["Bundle", "load_bundle", "write_bundle"]


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: `bundle.files` reads a bundle without torch."""
    from importlib import import_module

    if name in ("Bundle", "load_bundle"):
        return getattr(import_module("rectrain_jobs.bundle.reading"), name)
    if name == "write_bundle":
        return getattr(import_module("rectrain_jobs.bundle.writing"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
