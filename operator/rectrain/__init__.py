"""rectrain: Kubernetes-native distributed training of recommender models."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rectrain.api import RecTrainingJob, RecTrainingJobSpec, UserError
    from rectrain.sdk import AsyncClient, Client

__all__ = ["AsyncClient", "Client", "RecTrainingJob", "RecTrainingJobSpec", "UserError"]


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for, so that the command line starts fast."""
    from importlib import import_module

    if name in ("RecTrainingJob", "RecTrainingJobSpec", "UserError"):
        return getattr(import_module("rectrain.api"), name)
    if name in ("AsyncClient", "Client"):
        return getattr(import_module("rectrain.sdk"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
