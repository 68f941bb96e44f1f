"""Versions whose bytes were once found altered: noted in the store, and from then on hashed at every question."""

from __future__ import annotations

from tasks.mlflow.aliases import check_bytes
from tasks.records.promotions import Promotion
from tasks.settings import Settings
from tasks.store.base import Store
from vetgate.digest import canonical_json
from vetgate.errors import Denied


def untampered(settings: Settings, store: Store, promotion: Promotion) -> None:
    """Raise Denied when the bytes of a version were found altered and still are; others cost one question."""
    if store.exists(_key(promotion)):
        check_bytes(settings, promotion)


def rehash(settings: Settings, store: Store, promotion: Promotion) -> int:
    """Hash the bytes of a version, and note it when they are altered; how many they are. Raises Denied, StoreError."""
    try:
        return check_bytes(settings, promotion)
    except Denied as error:
        note = {"name": promotion.name, "version": promotion.version, "found": str(error)}
        store.create(_key(promotion), canonical_json(note))
        raise


def _key(promotion: Promotion) -> str:
    return f"tampered/{promotion.name}/{promotion.version}.json"
