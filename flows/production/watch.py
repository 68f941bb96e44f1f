"""Production held against what the gate says of it: which versions are covered, many at a time."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from tasks.mlflow.aliases import TAMPERED, Registered, untampered
from tasks.mlflow.heads import whole_ledger
from tasks.records.alias_moves import misplaced
from tasks.records.coverage import Coverage, covered, promoted_at
from tasks.records.ledger_chain import gate_key
from tasks.records.ledger_state import LedgerState
from tasks.settings import Settings
from tasks.store.base import Store
from tasks.store.open import open_store
from vetgate.errors import Denied, Removed, StoreError
from vetgate.formats.model_name import MODEL_NAME
from vetgate.trust.keys import TrustRoot, utc_now

READERS = 16
# so many answers that fail are an outage: asking for the rest would take hours and find nothing out
OUTAGE = 10
# a version is registered a moment before it is signed, and one whose verdict has just ended may get another
SETTLING = timedelta(minutes=5)
VERSION = re.compile(r"[1-9][0-9]{0,8}")


@dataclass(frozen=True)
class Watch:
    """What production is held against: store, public keys, the ledger, or why it cannot be read, and the moment."""

    settings: Settings
    store: Store
    trust: TrustRoot
    state: LedgerState | Removed
    now: datetime


def watch(settings: Settings, now: datetime | None = None) -> Watch:
    """Raises StoreError without the gate's keys: that is a fault of this machine, and no model is taken back for it."""
    try:
        _, trust = gate_key(settings)
    except Denied as error:
        raise StoreError(str(error)) from error
    state: LedgerState | Removed
    try:
        state = whole_ledger(settings)
    except Removed as error:
        state = error
    return Watch(settings, open_store(settings), trust, state, now or utc_now())


def coverages(seen: Watch, held: Iterable[Registered]) -> list[Coverage | Denied | StoreError]:
    """What covers each version, in their order, or why nothing does, or what kept us from knowing."""
    failed: list[StoreError] = []

    def ask(item: Registered) -> Coverage | Denied | StoreError:
        if len(failed) >= OUTAGE:
            return failed[0]
        try:
            return coverage(seen, item.name, item.version, item.source)
        except Denied as error:
            return error
        except StoreError as error:
            failed.append(error)
            return error

    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(ask, held))


def coverage(seen: Watch, name: str, version: str, source: str) -> Coverage:
    """What covers a version whose bytes were not found altered; raises Denied, Stale or StoreError.

    Where the ledger is broken, `seen.state` is raised for whatever the gate promoted: it may stay, and is not served.
    """
    if not promotable(name, version):
        raise Denied(
            f"expected a model that the gate could have promoted, got version {version!r:.40} of prod.{name!r:.80}; "
            "delete it"
        )
    if isinstance(seen.state, Removed):
        promoted_at(seen.store, seen.trust, name, version, source, seen.now)
        raise seen.state
    found = covered(seen.settings, name, version, source, now=seen.now, state=seen.state)
    untampered(seen.settings, seen.store, found.promotion)
    return found


def promotable(name: str, version: str) -> bool:
    """Whether the gate could ever have promoted something as this: only then is there a key of the store for it."""
    return bool(MODEL_NAME.fullmatch(name) and VERSION.fullmatch(version))


@dataclass(frozen=True)
class Standing:
    """An alias or a stage that resolves to a version, and what covers the version under it, or why nothing does."""

    alias: str | None
    stage: str | None
    answer: Coverage | Denied | StoreError


def standings(seen: Watch, item: Registered, answer: Coverage | Denied | StoreError) -> list[Standing]:
    """Each name of a version, of which `answer` is what covers it under any; the gate must have put it there itself."""
    found: list[Standing] = []
    for alias in item.aliases:
        wrong = None
        if isinstance(answer, Coverage) and not isinstance(seen.state, Removed):
            wrong = misplaced(seen.state, item.name, alias, item.version, seen.now)
        found.append(Standing(alias, None, wrong or answer))
    if item.stage is not None:
        staged = Denied(
            f"expected version {item.version} of prod.{item.name} in no stage, which no gate sets, got {item.stage}; "
            "promote to an alias"
        )
        found.append(Standing(None, item.stage, answer if isinstance(answer, StoreError) else staged))
    return found


def outlived(seen: Watch, found: Iterable[Registered]) -> Iterator[tuple[Registered, Denied]]:
    """The versions that only their number, or `latest`, resolves to, and that nothing has covered for a while; and why.

    Raises no StoreError: what cannot be read now stays until it can be.
    """
    altered = {key.removesuffix(".json") for key in seen.store.list(TAMPERED)}
    for item in found:
        doubtful = _doubtful_since(seen, item)
        if f"{TAMPERED}{item.name}/{item.version}" not in altered and (
            doubtful is None or seen.now - doubtful < SETTLING
        ):
            continue
        try:
            coverage(seen, item.name, item.version, item.source)
        except Denied as why:
            if why is not seen.state:
                yield item, why
        except StoreError:
            continue


def _doubtful_since(seen: Watch, item: Registered) -> datetime | None:
    """When a version ceased to be covered, as far as the ledger tells; None where it is."""
    manifest = None if isinstance(seen.state, Removed) else seen.state.promoted(item.name, item.version)
    if isinstance(seen.state, Removed) or manifest is None:
        # a time to come is what somebody wrote there; clocks may differ a little
        told = item.created if item.created <= (seen.now + SETTLING).timestamp() else 0.0
        return datetime.fromtimestamp(told, UTC)
    return seen.state.not_admitted_since(manifest, seen.now)
