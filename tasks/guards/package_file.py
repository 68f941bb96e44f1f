"""The file with the guards of a model in the store: written once under its own SHA-256, and checked when it is read."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tasks.settings import Settings
from tasks.store.base import Store
from tasks.store.open import open_store
from vetgate.errors import Altered, Denied, StoreError


def keep(store: Store, manifest: str, path: Path, sha256: str) -> None:
    """Write the file of the guards of this model into the store; raises StoreError unless it is these bytes."""
    store.copy_in_file(package_key(manifest, sha256), path, sha256=sha256)


def package_bytes(settings: Settings, manifest: str, sha256: str) -> bytes:
    """The bytes with this SHA-256; raises Altered for any other, StoreError where there are none."""
    key = package_key(manifest, sha256)
    try:
        data = open_store(settings).read(key)
    except KeyError as error:
        raise StoreError(f"expected the guards of {manifest} in {key}, got none; run `vetgate vet` on it") from error
    except Denied as error:
        raise Altered(f"expected exactly the attested guards in {key}, got another file; restore it") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise Altered(f"expected exactly the attested guards in {key}, got other bytes; restore them, or vet again")
    return data


def package_key(manifest: str, sha256: str) -> str:
    """Where the file is kept."""
    return f"guards/{manifest}/{sha256}.safetensors"
