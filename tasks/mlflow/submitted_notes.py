"""What became of each version of thirdparty.<name>, noted once in the store: MLflow's tags can be written by all."""

from __future__ import annotations

import json
from typing import Any

from tasks.store.base import Store
from vetgate.digest import canonical_json


def is_noted(store: Store, model: str, version: str) -> bool:
    """Whether it is known what became of a version."""
    return store.exists(note_key(model, version))


def note(store: Store, model: str, version: str, what: dict[str, Any]) -> None:
    """Keep, once, what became of a version: {"manifest_sha256"} or {"refused"}."""
    store.create(note_key(model, version), canonical_json(what))


def noted(store: Store, model: str, version: str) -> dict[str, Any]:
    """What `note` kept; raises KeyError."""
    found: dict[str, Any] = json.loads(store.read(note_key(model, version)))
    return found


def note_key(model: str, version: str) -> str:
    """Where the note on a version lies."""
    return f"registered/{model}/{version}.json"
