"""dataset.json: what shards were made from, kept beside them, to tell when they have to be made again."""

import hashlib
import importlib.metadata
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rectrain.api.errors import UserError
from rectrain_jobs.data.formats.base import Definition
from rectrain_jobs.data.source import SourceFile
from rectrain_jobs.storage import ObjectNotFoundError, ObjectStore

FORMAT_VERSION = 1
RECORD_FILE = "dataset.json"

# What a feature or label says about the model, not about the data.
_MODEL_FIELDS = {"side", "embedding_dim", "pooling", "weight"}


def rectrain_version() -> str:
    """Return the version of rectrain that is installed."""
    return importlib.metadata.version("rectrain")


@dataclass(frozen=True)
class Input:
    """One raw file as it was read: where, size in bytes, time of the last write, and digest of its content.

    A remote file's digest stands for its size and time of the last write, since computing one means downloading it.
    """

    uri: str
    size: int
    modified: float
    digest: str


@dataclass(frozen=True)
class DatasetRecord:
    """What is known about a dataset of shards.

    Attributes:
        split: "train" or "validation".
        rows: Number of rows.
        source: Settings of the source that decide what the rows are.
        inputs: The raw files, training first.
        source_digest: Digest of the settings and of the content of the raw files.
        features_digest: Digest of what the definitions of features and labels say about the data.
        labels: Statistics of each label.
        metadata: What the source knows beyond the rows.
        index_digest: SHA-256 of index.json; another one means that a conversion was cut off while it was published.
        rectrain_version: Version that wrote the shards.
        version: Version of this format.
    """

    split: str
    rows: int
    source: dict[str, Any]
    inputs: list[Input]
    source_digest: str
    features_digest: str
    labels: dict[str, Any]
    metadata: dict[str, Any]
    index_digest: str
    rectrain_version: str = field(default_factory=rectrain_version)
    version: int = FORMAT_VERSION

    def save(self, store: ObjectStore) -> None:
        """Write dataset.json."""
        store.write_bytes(RECORD_FILE, (json.dumps(asdict(self), indent=1) + "\n").encode())

    @classmethod
    def load(cls, store: ObjectStore) -> "DatasetRecord | None":
        """Read dataset.json; None when there is none.

        Raises:
            UserError: It is damaged or of an unknown version.
        """
        where = store.uri_of(RECORD_FILE)
        try:
            document = json.loads(store.read_bytes(RECORD_FILE))
            if document["version"] != FORMAT_VERSION:
                raise UserError(
                    f"{where}: version {document['version']!r} is not known; this release reads {FORMAT_VERSION}"
                )
            return cls(**{**document, "inputs": [Input(**entry) for entry in document["inputs"]]})
        except ObjectNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{where}: is not a dataset record of rectrain: {type(error).__name__}: {error}") from None


def describe_inputs(files: Sequence[SourceFile], known: Sequence[Input] = ()) -> list[Input]:
    """Digest raw files; those whose size and time of the last write are known as they are not read again.

    Args:
        files: The files.
        known: What was recorded about files before.
    """
    recorded = {(entry.uri, entry.size, entry.modified): entry.digest for entry in known}
    inputs = []
    for file in files:
        digest = recorded.get((file.uri, file.size, file.modified))
        if digest is None:
            digest = file.sha256() if file.store is None else f"{file.size}@{file.modified}"
        inputs.append(Input(file.uri, file.size, file.modified, digest))
    return inputs


def source_settings(definition: Definition) -> dict[str, Any]:
    """Return the settings of a source that decide what the rows are; not where its files are."""
    settings = definition.source.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    for name in ("uri", "validationUri"):
        settings.pop(name, None)
    return {**settings, "userId": definition.user_id, "itemId": definition.item_id, "holdOut": definition.hold_out}


def source_digest(definition: Definition, inputs: Sequence[Input]) -> str:
    """Return the digest of a source: its settings and what its files hold."""
    return _digest([source_settings(definition), [entry.digest for entry in inputs]])


def features_digest(definition: Definition) -> str:
    """Return the digest of what features and labels say about the data."""
    return _digest(
        [
            [part.model_dump(mode="json", exclude_defaults=True, exclude=_MODEL_FIELDS) for part in parts]
            for parts in (definition.features, definition.labels)
        ]
    )


def _digest(document: Any) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
