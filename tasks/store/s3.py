"""The store on any S3 endpoint that honours conditional writes; boto3 reads its credentials from the environment."""

from __future__ import annotations

import base64
import hashlib
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import IO, Any

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
)

from tasks.store.base import CHUNK, LARGEST_READ, Changed, check_key, check_prefix, check_size, passed_over
from tasks.store.directory import check_digest, write_whole
from tasks.store.key_forms import keys_among
from vetgate.errors import StoreError

MAX_SINGLE_PUT = 5 * 2**30
PROBE = ".conditional-writes"
ABSENT = {"404", "NoSuchKey", "NotFound"}
LOST = {"412", "PreconditionFailed"}
BUSY = {"409", "ConditionalRequestConflict"}
ATTEMPTS_WHEN_BUSY = 20


class S3Store:
    """Objects below s3://bucket/prefix. The first write asks the endpoint to prove that it refuses a second creator.

    It may be silent for `seconds`.
    """

    def __init__(self, bucket: str, prefix: str = "", *, endpoint_url: str | None = None, seconds: int = 60) -> None:
        self.bucket = bucket
        self.prefix = f"{check_key(prefix)}/" if prefix else ""
        self._where = f"s3://{bucket}/{prefix} at {endpoint_url or 'AWS'}"
        self._proved = False
        # two tries of three seconds: an endpoint that is not there is reported within ten, unless one asks for patience
        config = Config(
            connect_timeout=max(3, seconds / 20),
            read_timeout=seconds,
            retries={"total_max_attempts": 2, "mode": "standard"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": "path"} if endpoint_url else {},
        )
        with self._explained():
            session = boto3.Session()
            region = session.region_name or "us-east-1"
            self._s3: Any = session.client("s3", endpoint_url=endpoint_url, region_name=region, config=config)
        self._told: tuple[datetime, float] | None = None
        self._s3.meta.events.register("after-call.s3", self._hear)

    def create(self, key: str, data: bytes) -> bool:
        digest = hashlib.sha256(data).digest()
        return self._put(key, lambda: data, digest, IfNoneMatch="*") is not None

    def copy_in_file(self, key: str, path: Path, *, sha256: str | None = None) -> bool:
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256")
                if (size := file.tell()) > MAX_SINGLE_PUT:
                    raise StoreError(f"expected a file of at most 5 GiB, got {path} with {size} bytes; make it smaller")
                check_digest(digest.hexdigest(), sha256)
                return self._put(key, lambda: _rewound(file), digest.digest(), IfNoneMatch="*") is not None
        except OSError as error:
            raise StoreError(f"expected to read {path}, got {error.strerror}; check the file") from error

    def replace(self, key: str, data: bytes, *, if_match: str) -> str:
        etag = self._put(key, lambda: data, hashlib.sha256(data).digest(), IfMatch=if_match)
        if etag is None:
            raise Changed(f"expected {key} with etag {if_match}, got another one or none; read it again and retry")
        return etag

    def read(self, key: str) -> bytes:
        return self.read_tagged(key)[0]

    def read_tagged(self, key: str) -> tuple[bytes, str]:
        with self._explained():
            answer = self._get(key)
            with closing(answer["Body"]) as body:
                check_size(key, int(answer["ContentLength"]))
                return bytes(body.read()), str(answer["ETag"])

    def etag(self, key: str) -> str:
        head = self._head(check_key(key))
        if head is None:
            raise KeyError(key)
        return str(head["ETag"])

    def exists(self, key: str) -> bool:
        return self._head(check_key(key)) is not None

    def list(self, prefix: str, strange: Callable[[str], object] = passed_over) -> Iterator[str]:
        pages = self._s3.get_paginator("list_objects_v2")
        with self._explained():
            for page in pages.paginate(Bucket=self.bucket, Prefix=self.prefix + check_prefix(prefix)):
                names = [item["Key"].removeprefix(self.prefix) for item in page.get("Contents", [])]
                yield from keys_among((name for name in names if not name.startswith(".")), strange)

    def fetch(self, key: str, path: Path, *, most: int = LARGEST_READ) -> str:
        with self._explained():
            answer = self._get(key)
            try:
                with closing(answer["Body"]) as body:
                    check_size(key, int(answer["ContentLength"]), most)
                    return write_whole(path, lambda file: _drain(body, file, key, most))
            except OSError as error:
                raise StoreError(f"expected to write {path}, got {error.strerror}; check the disk") from error

    def clock(self) -> datetime | None:
        if self._told is None:
            return None
        moment, then = self._told
        return moment + timedelta(seconds=time.monotonic() - then)

    def url(self, key: str) -> str:
        return f"s3://{self.bucket}/{self.prefix}{check_key(key)}"

    def _hear(self, http_response: Any, **_: Any) -> None:
        """Keep what the endpoint says of the time."""
        try:
            said = parsedate_to_datetime(http_response.headers["Date"])
            self._told = said.replace(tzinfo=said.tzinfo or UTC), time.monotonic()
        except (KeyError, ValueError, TypeError):
            return

    def _get(self, key: str) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = self._s3.get_object(Bucket=self.bucket, Key=self.prefix + check_key(key))
        except ClientError as error:
            if _code(error) in ABSENT:
                raise KeyError(key) from error
            raise
        return answer

    def _head(self, key: str) -> dict[str, Any] | None:
        with self._explained():
            try:
                head: dict[str, Any] = self._s3.head_object(Bucket=self.bucket, Key=self.prefix + key)
            except ClientError as error:
                if _code(error) in ABSENT:
                    self._s3.head_bucket(Bucket=self.bucket)  # a missing bucket is no missing object
                    return None
                raise
            return head

    def _put(self, key: str, body: Callable[[], Any], sha256: bytes, **condition: str) -> str | None:
        self._prove()
        return self._put_if(check_key(key), body, sha256, **condition)

    def _put_if(self, key: str, body: Callable[[], Any], sha256: bytes, **condition: str) -> str | None:
        """The new etag, or None when the condition does not hold."""
        writer = uuid.uuid4().hex
        checksum = base64.b64encode(sha256).decode()
        where = {"Bucket": self.bucket, "Key": self.prefix + key}
        with self._explained():
            for _ in range(ATTEMPTS_WHEN_BUSY):
                try:
                    answer = self._s3.put_object(
                        **where, **condition, Body=body(), ChecksumSHA256=checksum, Metadata={"writer": writer}
                    )
                    return str(answer["ETag"])
                except ClientError as error:
                    if _code(error) in BUSY:
                        continue
                    if _code(error) not in LOST and not (_code(error) in ABSENT - {"404"} and "IfMatch" in condition):
                        raise
                    # a repeated request loses to its own first try when only the answer was lost
                    head = self._head(key)
                    return str(head["ETag"]) if head and head["Metadata"].get("writer") == writer else None
        raise StoreError(f"expected {self._where} to take {key}, got conflicts {ATTEMPTS_WHEN_BUSY} times; retry later")

    def _prove(self) -> None:
        """Refuse an endpoint that would let a second creator overwrite the first."""
        if self._proved:
            return
        nothing = hashlib.sha256(b"").digest()
        self._put_if(PROBE, lambda: b"", nothing, IfNoneMatch="*")
        second_creator = self._put_if(PROBE, lambda: b"", nothing, IfNoneMatch="*")
        if second_creator or self._put_if(PROBE, lambda: b"", nothing, IfMatch='"0"'):
            raise StoreError(
                f"expected an endpoint that honours If-None-Match and If-Match, got {self._where}, which overwrites; "
                "use another S3 server"
            )
        self._proved = True

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except ClientError as error:
            raise StoreError(f"expected {self._where} to answer, got {error}; {_remedy(_code(error))}") from error
        except (BotoCoreError, ValueError) as error:
            raise StoreError(f"expected {self._where} to answer, got {error}; {_mend(error)}") from error


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _mend(error: Exception) -> str:
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile"
    if isinstance(error, HTTPClientError | ConnectionError):
        return "see that it runs, correct VETGATE_S3_ENDPOINT, or allow more time by VETGATE_REMOTE_SECONDS"
    return "check VETGATE_S3_ENDPOINT, VETGATE_STORE and the network"


def _remedy(code: str) -> str:
    return {
        "NoSuchBucket": "make the bucket, or correct VETGATE_STORE",
        "404": "make the bucket, or correct VETGATE_STORE",
        "AccessDenied": "give these credentials the right to read and write it",
        "403": "give these credentials the right to read and write it",
        "InvalidAccessKeyId": "correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        "SignatureDoesNotMatch": "correct AWS_SECRET_ACCESS_KEY",
        "NotImplemented": "use an S3 server that has conditional writes",
    }.get(code, "check the S3 server")


def _rewound(file: IO[bytes]) -> IO[bytes]:
    file.seek(0)
    return file


def _drain(body: Any, target: IO[bytes], key: str, most: int) -> str:
    digest, size = hashlib.sha256(), 0
    for chunk in body.iter_chunks(CHUNK):
        size += len(chunk)
        check_size(key, size, most)
        digest.update(chunk)
        target.write(chunk)
    return digest.hexdigest()
