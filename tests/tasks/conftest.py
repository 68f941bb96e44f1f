"""A real HTTP S3 endpoint (moto's) and a store of each kind."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from tasks.store.base import Store
from tasks.store.open import open_store


@pytest.fixture(params=["directory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store of each kind."""
    if request.param == "directory":
        return open_store(str(tmp_path / "store"))
    endpoint = request.getfixturevalue("s3_endpoint")
    return open_store(f"s3://vetgate/{uuid.uuid4().hex}", endpoint=endpoint)
