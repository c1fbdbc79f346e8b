"""Where the data come from: raw input, shards, object storage, cache and order."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from rectrain.api.base import ApiModel, Count, Quantity, Uri
from rectrain.api.rules import Rule, forbidden, given, one_of, required, without_credentials


class SourceFormat(StrEnum):
    """Raw formats that `rectrain data convert` reads."""

    INTERACTIONS = "Interactions"
    TRIPLES = "Triples"
    SEQUENCES = "Sequences"
    LIBSVM = "LibSVM"
    CRITEO = "Criteo"
    COMIREC = "ComiRec"
    PARQUET = "Parquet"
    SYNTHETIC = "Synthetic"


class DataSource(ApiModel):
    """Raw input that is converted to shards when they are missing or the input has changed."""

    RULES = (
        *(
            forbidden(field, ~one_of("format", "Synthetic"), "must be left out: Synthetic makes its rows")
            for field in ("uri", "validationUri", "validationFraction")
        ),
        required("uri", ~one_of("format", "Synthetic"), "is required for format {format}: the raw training input"),
        forbidden("rows", one_of("format", "Synthetic"), "is only for format Synthetic"),
        forbidden("delimiter", one_of("format", "Triples"), "is only for format Triples"),
        Rule(
            "columns",
            "is only for formats Triples and Parquet",
            broken=lambda source: bool(source.columns) and source.format not in ("Triples", "Parquet"),
            cel='self.columns.size() == 0 || self.format in ["Triples", "Parquet"]',
        ),
        forbidden("validationFraction", ~given("validationUri"), "must be left out: validationUri is given"),
    )

    format: SourceFormat
    """Interactions (`user item item ...`), Triples (CSV or TSV with named columns), Sequences (as Interactions, in time
    order, leave-one-out split), LibSVM (`label index:value ...`, one index a field), Criteo (label, 13 integers, 26
    hexadecimal values), ComiRec (`uid,item,time` and `user_id:.. hist_item:.. eval_item:..`), Parquet or Synthetic."""
    uri: Uri | None = None
    """The raw training input: a file, a folder or a pattern; .gz is read as it is. Needed by every format but
    Synthetic."""
    validation_uri: Uri | None = None
    """The raw validation input, where it is separate."""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Without validationUri: the share of rows held out for validation, chosen by a hash of their position. Sequences
    hold out each user's last item instead."""
    columns: Annotated[
        dict[Annotated[str, Field(max_length=63)], Annotated[str, Field(max_length=256)]], Field(max_length=2064)
    ] = Field(default_factory=dict)
    """Triples, Parquet: the source's column for a feature or label of another name."""
    delimiter: Annotated[str, Field(pattern=r"^[\t -~]$", max_length=1)] | None = None
    """Triples: the column separator, one ASCII character. Default: a tab in .tsv, .inter, .item and .user files, else a
    comma."""
    rows: Count | None = None
    """Synthetic: number of training rows; a fifth as many are made for validation. Default 2,000,000."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """Synthetic: seed of the rows. The planted model is always the same."""


class Shards(ApiModel):
    """A dataset of MDS shards."""

    uri: Uri
    """Folder of the shards' index.json: s3://bucket/prefix, file:///path or a path relative to the job file."""


class SecretRef(ApiModel):
    """A Secret in the job's namespace."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)]
    """Name of the Secret."""


class ObjectStorage(ApiModel):
    """How s3:// URIs are reached. Credentials come from the environment (AWS_ACCESS_KEY_ID, ...), never the job."""

    RULES = (without_credentials("endpointUrl", "name a Secret by credentialsSecretRef"),)

    endpoint_url: Annotated[str, Field(pattern="^https?://", max_length=2048)] | None = None
    """Endpoint of an S3-compatible server such as MinIO. Default: AWS."""
    region: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """Region of the buckets."""
    credentials_secret_ref: SecretRef | None = None
    """On Kubernetes: the Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."""


class Cache(ApiModel):
    """Local copies of remote or compressed shards."""

    directory: Uri | None = None
    """Folder of the cache. Default: $RECTRAIN_CACHE, or ~/.cache/rectrain/shards."""
    size_limit: Quantity = "50Gi"
    """The least recently used shards are removed above it."""


class ShuffleAlgorithm(StrEnum):
    """Orders of mosaicml-streaming."""

    PY1E = "py1e"
    PY1S = "py1s"
    PY1BR = "py1br"


class Shuffle(ApiModel):
    """Order of the training rows; the same as StreamingDataset's with the same settings."""

    enabled: bool = True
    """Whether rows are shuffled."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 9176
    """Seed of the order."""
    algorithm: ShuffleAlgorithm = ShuffleAlgorithm.PY1E
    """Algorithm of mosaicml-streaming."""
    block_size: Count | None = None
    """Rows shuffled together. Default: mosaicml-streaming's."""


class DataSpec(ApiModel):
    """The data of a job: shards, and the raw input they are made from."""

    RULES = (
        Rule(
            "validation",
            "is required: source.validationUri is converted to it",
            broken=lambda data: (
                data.source is not None and data.source.validation_uri is not None and data.validation is None
            ),
            cel="has(self.validation) || !has(self.source) || !has(self.source.validationUri)",
        ),
    )

    source: DataSource | None = None
    """Raw input: converted first when the shards are missing or the input's digest has changed."""
    train: Shards
    """Shards to train on."""
    validation: Shards | None = None
    """Shards to evaluate on."""
    storage: ObjectStorage = ObjectStorage()
    """How s3:// URIs are reached."""
    cache: Cache = Cache()
    """Local copies of shards."""
    shuffle: Shuffle = Shuffle()
    """Order of the training rows."""
