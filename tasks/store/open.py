"""Which store is meant: the one of the settings, or one named by a path or URL."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from tasks.settings import Settings, location
from tasks.store.base import Store
from tasks.store.directory import DirectoryStore
from vetgate.errors import StoreError


def open_store(where: Settings | str, *, endpoint: str | None = None) -> Store:
    """The store at a path, file:// or s3://bucket/prefix URL, or the one that the settings name.

    An S3 endpoint other than AWS is `endpoint`, VETGATE_S3_ENDPOINT or AWS_ENDPOINT_URL, in this order.
    """
    seconds = 60
    if isinstance(where, Settings):
        endpoint, seconds = endpoint or where.s3_endpoint, where.remote_seconds
        where = where.store
    try:
        parts = urlsplit(where := location(where))
    except ValueError as error:
        raise StoreError(str(error)) from error
    if parts.scheme == "s3":
        # boto3 takes a second to import, and a store in a directory needs none of it
        from tasks.store.s3 import S3Store

        endpoint = endpoint or os.environ.get("VETGATE_S3_ENDPOINT") or os.environ.get("AWS_ENDPOINT_URL")
        return S3Store(parts.netloc, parts.path.strip("/"), endpoint_url=endpoint, seconds=seconds)
    return DirectoryStore(Path(where))
