"""Promote what passed without anybody asking, where the policy says so."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from flows.production.promote import promote
from tasks.records.attestations import newest_attestation
from tasks.settings import Settings
from tasks.store.base import Store
from tasks.store.open import open_store
from tasks.vetting.intake import Record, records
from vetgate.errors import Denied
from vetgate.trust import dsse
from vetgate.trust.statements import PROMOTION, claimed
from vetgate.verdict.policy import load_policy

Blob = dict[str, Any]


def promote_if_due(settings: Settings, manifest_sha256: str) -> Blob | None:
    """The promotion of a submission that is due, or None when the policy promotes nothing by itself or it is not.

    Raises Denied when the gate refuses.
    """
    alias = load_policy(settings.policy).promotion.automatic
    due = {record.id: record for record in _due(settings)} if alias else {}
    if alias is None or manifest_sha256 not in due:
        return None
    return promote(settings, due[manifest_sha256].submission.name, manifest_sha256, alias)


def promote_all_due(settings: Settings) -> list[Blob]:
    """What an event was lost of: every promotion that is due, oldest first, or why it was refused."""
    if load_policy(settings.policy).promotion.automatic is None:
        return []
    done: list[Blob] = []
    for record in _due(settings):
        try:
            granted = promote_if_due(settings, record.id)
        except Denied as error:
            granted = {"manifest_sha256": record.id, "refused": str(error)}
        done += [granted] if granted else []
    return done


def _due(settings: Settings) -> Iterator[Record]:
    """Submissions that passed, were never promoted, and are younger than what was promoted under their name."""
    store = open_store(settings)
    canaries = {key.split("/")[1].removesuffix(".json") for key in store.list("canaries/")}
    everything = records(store)
    promoted = {name: _promoted(store, name) for name in {r.submission.name for r in everything}}
    order = {record.id: turn for turn, record in enumerate(everything)}
    for record in everything:
        before = promoted[record.submission.name]
        if record.id in canaries or any(order.get(m, -1) >= order[record.id] for m in before):
            continue
        try:
            newest = newest_attestation(store, record.id)
        except Denied:
            continue  # somebody altered it: promotion by hand says so
        if (
            newest is not None
            and newest.claims["verdict"] == "PASS"
            and newest.claims["name"] == record.submission.name
        ):
            yield record


def _promoted(store: Store, name: str) -> set[str]:
    """The manifests that were promoted under a name; unverified, because promotion verifies for itself."""
    keys = store.list(f"promotions/{name}/")
    return {str(claimed(PROMOTION, dsse.read_envelope(store.read(key)))["manifest"]) for key in keys}
