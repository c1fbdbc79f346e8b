"""What is where in a bundle.

``bundle.json`` says what the bundle is and is written last: without it there is no bundle. ``weights.json`` lists the
parts of every parameter; the parts are in ``weights/rank-<rank>-<number>.safetensors``, one file or more for each rank
that trained.
``features.json`` and its vocabularies are those that the training data was made with. A retrieval model also has
``item_counts.safetensors``: how many training rows have each item.
"""

from typing import Any

from pydantic import Field

from rectrain.api.base import ApiModel

FORMAT_VERSION = 1
MANIFEST = "bundle.json"
INDEX = "weights.json"
ITEM_COUNTS = "item_counts.safetensors"


def weights_file(rank: int, number: int) -> str:
    """Return the key of a file of a rank's weights."""
    return f"weights/rank-{rank:05d}-{number:05d}.safetensors"


class Part(ApiModel):
    """A block of a parameter that one rank held."""

    file: str
    """Key of the safetensors file."""
    tensor: str
    """Name in the file."""
    offsets: list[int]
    """First index in each dimension of the parameter."""
    sizes: list[int]
    """Length in each dimension."""


class Parameter(ApiModel):
    """A parameter or buffer of the model."""

    shape: list[int]
    """Shape of the whole."""
    dtype: str
    """Type, such as float32."""
    parts: list[Part]
    """Blocks that cover it."""


class WeightsIndex(ApiModel):
    """Where every parameter is."""

    files: dict[str, str]
    """SHA-256 of each file of weights, by key."""
    parameters: dict[str, Parameter]
    """By name in the model."""


class Manifest(ApiModel):
    """What a bundle is, how it was made and how good it is."""

    format_version: int = FORMAT_VERSION
    """Version of this layout."""
    name: str
    """Name of the job."""
    spec: dict[str, Any]
    """The job's model, features and labels, from which the model is built."""
    metrics: dict[str, float] = Field(default_factory=dict)
    """Final metrics."""
    lineage: dict[str, Any] = Field(default_factory=dict)
    """Data digests, steps, seed, versions, git commit, MLflow run."""
    item_counts_sha256: str | None = None
    """Retrieval models: SHA-256 of the file with the items' frequencies in the training data."""
