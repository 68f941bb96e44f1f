from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tasks.records.ledger_state import Told
from tasks.records.promotions import (
    Promotion,
    Taken,
    promotion_in,
    promotion_key,
    promotion_of,
    promotions_of,
    save_promotion,
)
from tasks.store.base import Store
from tasks.store.open import open_store
from vetgate.errors import Denied
from vetgate.trust.keys import APPROVER, GATE, PublicKey, TrustRoot, raw_public

NOW = datetime(2026, 11, 23, 9, 30, tzinfo=UTC)
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
SAID: dict[str, Any] = {
    "name": "digits",
    "version": "3",
    "manifest": "a" * 64,
    "files": {"model.onnx": "b" * 64},
    "source": "s3://vetted/it",
    "run_id": "r",
    "attestation": "c" * 64,
}


def public(key: Ed25519PrivateKey, role: str = GATE) -> PublicKey:
    return PublicKey(raw_public(key), role, NOW - timedelta(days=1), NOW + timedelta(days=9))


def trust(role: str = GATE) -> TrustRoot:
    return TrustRoot((public(KEY, role),))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path))


def save(store: Store, key: Ed25519PrivateKey = KEY, **changes: Any) -> Promotion:
    said = SAID | changes
    sha256 = save_promotion(store, trust(), key, now=NOW, **said)
    data = store.read(promotion_key(said["name"], said["version"]))
    assert sha256 == hashlib.sha256(data).hexdigest()
    return promotion_in(said["name"], said["version"], data, TrustRoot((*trust().keys, public(key))), now=NOW)


def test_what_a_version_stands_for_is_read_as_it_was_signed(store: Store) -> None:
    made = save(store)
    assert promotion_of(store, trust(), "digits", "3", now=NOW) == made
    assert (made.manifest, made.files, made.source, made.issued) == (
        "a" * 64,
        {"model.onnx": "b" * 64},
        "s3://vetted/it",
        "2026-11-23T09:30:00Z",
    )
    assert promotion_of(store, trust(), "digits", "4", now=NOW) is None


def test_saving_it_again_keeps_the_first_also_after_the_verdict_was_renewed(store: Store) -> None:
    made = save(store)
    assert save(store, attestation="d" * 64) == made


@pytest.mark.parametrize(
    "change", [{"manifest": "e" * 64}, {"source": "s3://elsewhere"}, {"files": {}}, {"run_id": "x"}]
)
def test_a_number_that_stands_for_something_else_is_taken(store: Store, change: dict[str, Any]) -> None:
    save(store)
    with pytest.raises(Taken, match="expected version 3"):
        save(store, **change)


@pytest.mark.parametrize("left", [None, b"other bytes"])
def test_a_number_whose_record_is_not_as_the_ledger_tells_of_it_is_taken(tmp_path: Path, left: bytes | None) -> None:
    store = open_store(str(tmp_path))
    if left is not None:
        store.create(promotion_key("digits", "3"), left)
    told = Told(7, promotion_key("digits", "3"), "e" * 64, "c" * 64)
    with pytest.raises(Taken):
        save_promotion(store, trust(), KEY, now=NOW, told=told, **SAID)
    assert store.exists(promotion_key("digits", "3")) == (left is not None)


def test_one_that_another_key_signed_is_denied_and_takes_the_number(store: Store) -> None:
    forged = open_store(str(Path(store.url("x").removeprefix("file://")).parent / "forger"))
    save(forged, Ed25519PrivateKey.generate())
    store.create(promotion_key("digits", "3"), forged.read(promotion_key("digits", "3")))
    with pytest.raises(Denied, match="trust root"):
        promotion_of(store, trust(), "digits", "3", now=NOW)
    with pytest.raises(Taken):
        save(store)


def test_one_that_was_moved_to_another_name_or_version_is_denied(store: Store) -> None:
    save(store)
    for name, version in (("digits", "4"), ("other", "3")):
        store.create(promotion_key(name, version), store.read(promotion_key("digits", "3")))
        with pytest.raises(Denied, match=f"expected the promotion of {name} {version}"):
            promotion_of(store, trust(), name, version, now=NOW)


def test_only_a_gate_promotes(store: Store) -> None:
    save(store)
    with pytest.raises(Denied, match="role gate"):
        promotion_of(store, trust(APPROVER), "digits", "3", now=NOW)
    with pytest.raises(Denied, match="valid now"):
        promotion_of(store, trust(), "digits", "3", now=NOW + timedelta(days=10))


def test_the_newest_version_comes_first_and_what_is_not_the_gate_s_is_left_out(store: Store) -> None:
    for version in ("2", "10", "9"):
        save(store, version=version)
    store.create(promotion_key("digits", "11"), b"{}")
    assert [p.version for p in promotions_of(store, trust(), "digits", now=NOW)] == ["10", "9", "2"]
    assert promotions_of(store, trust(), "other", now=NOW) == []
