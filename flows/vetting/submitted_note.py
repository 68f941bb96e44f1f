"""Versions that a vetting itself registered: what came in is there already, and need not be taken in again."""

from __future__ import annotations

import re

from tasks.mlflow import submitted as registered
from tasks.mlflow import submitted_notes as registered_notes
from tasks.settings import Settings
from tasks.store.open import open_store


def note_own_version(settings: Settings, found: registered.Registered) -> bool:
    """Note a version whose source is the quarantined bytes of a submission; whether it was one.

    The key of a quarantined directory is the digest of what lies there, so nothing needs to be read.
    """
    store = open_store(settings)
    match = re.search(r"/quarantine/([0-9a-f]{64})$", found.source)
    if match is None or found.source != store.url(f"quarantine/{match[1]}"):
        return False
    if not store.exists(f"submissions/{match[1]}.json"):
        return False
    registered_notes.note(store, found.model, found.version, {"manifest_sha256": match[1]})
    return True
