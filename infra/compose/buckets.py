"""Make the buckets of an installation, and prove that the S3 server keeps the promises that vetgate relies on.

`python buckets.py --store BUCKET --reference BUCKET --artifacts BUCKET` can be run again: what is there stays. Exits
with 2 when the server lacks versioning, object lock or conditional writes. What vetgate reads it hashes itself.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

# the object that vetgate's own first write uses for the same question
PROBE = ".conditional-writes"
ABSENT = {"404", "NoSuchBucket"}
REFUSED = {"412", "PreconditionFailed"}


class Unfit(Exception):
    """The server lacks something."""


def client(endpoint: str | None) -> Any:
    """An S3 client; credentials and region come from the environment."""
    config = Config(connect_timeout=5, retries={"total_max_attempts": 5}, s3={"addressing_style": "path"})
    return boto3.client("s3", endpoint_url=endpoint or None, config=config)


def make(s3: Any, bucket: str, *, locked: bool) -> None:
    """A versioned bucket, with object lock if `locked`."""
    if not _exists(s3, bucket):
        region = s3.meta.region_name
        where = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
        s3.create_bucket(Bucket=bucket, **where, **({"ObjectLockEnabledForBucket": True} if locked else {}))
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    if s3.get_bucket_versioning(Bucket=bucket).get("Status") != "Enabled":
        raise Unfit(f"expected {bucket} to be versioned, got a server that does not version; use another")
    if locked:
        _lock(s3, bucket)


def _exists(s3: Any, bucket: str) -> bool:
    try:
        s3.head_bucket(Bucket=bucket)
    except ClientError as error:
        if _code(error) not in ABSENT:
            raise
        return False
    return True


def _lock(s3: Any, bucket: str) -> None:
    try:
        lock = s3.get_object_lock_configuration(Bucket=bucket)["ObjectLockConfiguration"]["ObjectLockEnabled"]
    except ClientError as error:
        lock = _code(error)
    if lock != "Enabled":
        raise Unfit(f"expected {bucket} to have object lock, got {lock}; make a new bucket, or use another S3 server")


def prove_conditional_writes(s3: Any, bucket: str, prefix: str = "") -> None:
    """Raise Unfit unless a second creator and a stale replacer are refused."""
    key = f"{prefix.strip('/')}/{PROBE}".lstrip("/")

    def refusal(**condition: str) -> str | None:
        """The code with which the server refuses to write, or None when it wrote."""
        try:
            s3.put_object(Bucket=bucket, Key=key, Body=b"", **condition)
        except ClientError as error:
            return _code(error)
        return None

    refusal(IfNoneMatch="*")
    for what, answer in (
        ("a second creator (If-None-Match)", refusal(IfNoneMatch="*")),
        ("a replacer of another version (If-Match)", refusal(IfMatch='"0"')),
    ):
        if answer not in REFUSED:
            raise Unfit(f"expected {bucket} to refuse {what}, got {answer or 'a yes'}; use another S3 server")


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def main(arguments: list[str] | None = None) -> int:
    """Make and prove; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for name in ("store", "reference", "artifacts"):
        parser.add_argument(f"--{name}", required=True, help=f"bucket of the {name}")
    given = parser.parse_args(arguments)
    try:
        s3 = client(os.environ.get("VETGATE_S3_ENDPOINT"))
        make(s3, given.store, locked=True)
        make(s3, given.reference, locked=False)
        make(s3, given.artifacts, locked=False)
        prove_conditional_writes(s3, given.store)
    except (Unfit, ClientError, BotoCoreError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{given.store}, {given.reference} and {given.artifacts} are there; the server keeps its promises")
    return 0


if __name__ == "__main__":
    sys.exit(main())
