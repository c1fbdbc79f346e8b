"""Objects in a bucket of S3 or an S3-compatible store such as MinIO."""

import io
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rectrain_jobs.storage.base import (
    ObjectInfo,
    ObjectNotFoundError,
    Storage,
    StorageError,
    checked_key,
    folder_prefix,
)
from rectrain_jobs.storage.local import local_errors, temporary_beside

if TYPE_CHECKING:
    from boto3.s3.transfer import TransferConfig
    from mypy_boto3_s3 import S3Client

_T = TypeVar("_T")

CONNECT_TIMEOUT_SECONDS = 2
READ_TIMEOUT_SECONDS = 30
REQUEST_ATTEMPTS = 3
# A wrong endpoint has to show in seconds, but one that has answered before is given time to come back.
PATIENCE_SECONDS = 45
LONGEST_PAUSE_SECONDS = 5
# Of one object's parts, in both directions: enough to fill a fast link, few enough for many processes on a machine.
TRANSFER_THREADS = 4
DELETE_BATCH = 1000  # the most keys one DeleteObjects request takes


class S3Store:
    """A prefix of a bucket; keys are relative to it.

    May be used from several threads, and in a forked child, which makes its own connections.
    """

    def __init__(self, bucket: str, prefix: str, options: Storage) -> None:
        """Describe the prefix `prefix` (no slash at either end) of `bucket`; nothing is contacted."""
        self.bucket = bucket
        self.prefix = prefix
        self.options = options
        self._client_of: tuple[int, S3Client] | None = None
        self._answered = False

    def __reduce__(self) -> tuple[type["S3Store"], tuple[str, str, Storage]]:
        """Pickle the address without the connections."""
        return S3Store, (self.bucket, self.prefix, self.options)

    @property
    def uri(self) -> str:
        """Where the store lies, without a trailing slash."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def uri_of(self, key: str) -> str:
        """Return the full URI of `key`, as used in messages."""
        return f"{self.uri}/{key}"

    def local_path(self, key: str) -> None:
        """Return None: the objects are not local files."""

    def read_bytes(self, key: str) -> bytes:
        """Read a whole object."""

        def read(s3: "S3Client") -> bytes:
            buffer = io.BytesIO()
            s3.download_fileobj(self.bucket, self._name(key), buffer, Config=_transfer_config())
            return buffer.getvalue()

        return self._call(key, read)

    def write_bytes(self, key: str, data: bytes) -> None:
        """Create or replace an object; S3 shows it only once it is complete."""
        self._call(
            key,
            lambda s3: s3.upload_fileobj(io.BytesIO(data), self.bucket, self._name(key), Config=_transfer_config()),
        )

    def download(self, key: str, path: Path) -> None:
        """Copy an object to the file `path`, which appears only once it is complete."""
        with temporary_beside(path) as temporary, local_errors(path):
            self._call(
                key,
                lambda s3: s3.download_file(self.bucket, self._name(key), str(temporary), Config=_transfer_config()),
            )
            temporary.replace(path)

    def upload(self, path: Path, key: str) -> None:
        """Copy the file `path` to an object, which appears only once it is complete."""

        def send(s3: "S3Client") -> None:
            with path.open("rb") as file:
                s3.upload_fileobj(file, self.bucket, self._name(key), Config=_transfer_config())

        with local_errors(path):
            self._call(key, send)

    def stat(self, key: str) -> ObjectInfo:
        """Return an object's size and time of last write."""
        head = self._call(key, lambda s3: s3.head_object(Bucket=self.bucket, Key=self._name(key)))
        return ObjectInfo(key, head["ContentLength"], head["LastModified"].timestamp())

    def exists(self, key: str) -> bool:
        """Tell whether an object exists."""
        try:
            self.stat(key)
        except ObjectNotFoundError:
            return False
        return True

    def list(self, prefix: str = "") -> list[ObjectInfo]:
        """List the objects in the folder `prefix` and below, ordered by key; a missing folder is empty."""
        folder = folder_prefix(prefix)
        base = f"{self.prefix}/" if self.prefix else ""

        def pages(s3: "S3Client") -> list[ObjectInfo]:
            paginator = s3.get_paginator("list_objects_v2")
            return [
                ObjectInfo(entry["Key"].removeprefix(base), entry["Size"], entry["LastModified"].timestamp())
                for page in paginator.paginate(Bucket=self.bucket, Prefix=base + folder)
                for entry in page.get("Contents", [])
            ]

        return sorted(self._call(folder, pages), key=lambda info: info.key)

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; those already absent are passed over."""
        names = [self._name(key) for key in keys]
        for start in range(0, len(names), DELETE_BATCH):
            batch = names[start : start + DELETE_BATCH]
            answer = self._call(
                "",
                lambda s3, batch=batch: s3.delete_objects(  # type: ignore[misc]
                    Bucket=self.bucket, Delete={"Objects": [{"Key": name} for name in batch], "Quiet": True}
                ),
            )
            for error in answer.get("Errors", []):
                raise StorageError(f"s3://{self.bucket}/{error.get('Key')}: cannot delete: {error.get('Message')}")

    def delete_prefix(self, prefix: str) -> None:
        """Delete every object in the folder `prefix` and below."""
        self.delete(info.key for info in self.list(prefix))

    def exclusive(self, when_taken: Callable[[], None], below: Iterable[str] = ()) -> AbstractContextManager[None]:
        """Hold nothing: S3 has no locks. What is half-written there is no object."""
        return nullcontext()

    def _name(self, key: str) -> str:
        return f"{self.prefix}/{checked_key(key)}" if self.prefix else checked_key(key)

    def _call(self, key: str, operation: Callable[["S3Client"], _T]) -> _T:
        """Run an operation about `key`, again if the connection breaks, and turn its errors into the user's."""
        from botocore.exceptions import ConnectionError, HTTPClientError

        give_up = time.monotonic() + (PATIENCE_SECONDS if self._answered else 0)
        pause = 0.5
        with self._errors(key):
            while True:
                try:
                    result = operation(self._client())
                except (ConnectionError, HTTPClientError):
                    if time.monotonic() + pause > give_up:
                        raise
                    time.sleep(pause)
                    pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
                else:
                    self._answered = True
                    return result

    def _client(self) -> "S3Client":
        # A client serves many threads but not a forked child. Threads that race here both make one, which is harmless,
        # while a lock could be left held by another thread at a fork.
        if self._client_of is None or self._client_of[0] != os.getpid():
            self._client_of = (os.getpid(), _new_client(self.options))
        return self._client_of[1]

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        from boto3.exceptions import Boto3Error
        from botocore import exceptions as aws

        uri = self.uri_of(key) if key else self.uri
        endpoint = self.options.endpoint_url or os.environ.get("AWS_ENDPOINT_URL_S3") or "the AWS endpoint"
        try:
            yield
        except (aws.NoCredentialsError, aws.PartialCredentialsError) as error:
            raise StorageError(
                f"{uri}: no S3 credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY "
                "or another source that boto3 reads"
            ) from error
        except (aws.ConnectionError, aws.HTTPClientError) as error:
            raise StorageError(f"{uri}: cannot reach {endpoint}: {_one_line(error)}") from error
        except aws.ClientError as error:
            raise self._refusal(uri, error.response) from error
        except (aws.BotoCoreError, Boto3Error, ValueError) as error:  # ValueError: boto3 on a malformed endpoint
            raise StorageError(f"{uri}: {endpoint}: {_one_line(error)}") from error

    def _refusal(self, uri: str, response: object) -> StorageError:
        """Explain what the server answered; a HEAD request's answer has only the status for a code."""
        assert isinstance(response, dict)
        code = str(response.get("Error", {}).get("Code", ""))
        if code in ("404", "NotFound") and not self._bucket_exists():
            code = "NoSuchBucket"
        match code:
            case "NoSuchBucket":
                return StorageError(f"{uri}: bucket {self.bucket!r} does not exist; create it or correct the URI")
            case "404" | "NotFound" | "NoSuchKey":
                return ObjectNotFoundError(f"{uri}: no such object")
            case "403" | "AccessDenied" | "Forbidden":
                return StorageError(f"{uri}: access denied; give these credentials a policy that allows it")
            case "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "ExpiredToken" | "InvalidToken":
                return StorageError(f"{uri}: the server does not accept the S3 credentials ({code})")
        message = _one_line(response.get("Error", {}).get("Message", ""))
        return StorageError(f"{uri}: the server answered {code}: {message}")

    def _bucket_exists(self) -> bool:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            self._client().head_bucket(Bucket=self.bucket)
        except ClientError as error:
            return str(error.response.get("Error", {}).get("Code")) not in ("404", "NoSuchBucket")
        except BotoCoreError:  # what the caller already knows says more
            return True
        return True


def _new_client(options: Storage) -> "S3Client":
    import boto3
    from botocore.config import Config

    return boto3.session.Session().client(
        "s3",
        endpoint_url=options.endpoint_url,
        region_name=options.region,
        config=Config(
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
            read_timeout=READ_TIMEOUT_SECONDS,
            retries={"mode": "standard", "total_max_attempts": REQUEST_ATTEMPTS},
            # Virtual-host addressing needs a DNS name per bucket, which a server of one's own seldom has.
            s3={"addressing_style": "path" if options.endpoint_url else "auto"},
            # Only where the protocol asks: not every S3-compatible store knows the newer checksum trailers.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )


def _transfer_config() -> "TransferConfig":
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(max_concurrency=TRANSFER_THREADS)


def _one_line(message: object) -> str:
    return " ".join(str(message).split())
