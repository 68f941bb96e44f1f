"""Production held against what the gate says of it: which versions are covered, many at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from tasks.mlflow.aliases import TAMPERED, Registered, promotable, untampered
from tasks.mlflow.heads import whole_ledger
from tasks.records.alias_moves import misplaced
from tasks.records.coverage import Coverage, covered, promoted_at
from tasks.records.ledger_chain import gate_key, signing_time
from tasks.records.ledger_state import LedgerState
from tasks.records.proven_time import last_of
from tasks.settings import Settings
from tasks.store.base import Store
from tasks.store.open import open_store
from vetgate.errors import Denied, IssuedLater, Removed, StoreError, WrongClock
from vetgate.trust.keys import TrustRoot, utc_now
from vetgate.trust.strict_json import as_time, time_text

logger = logging.getLogger(__name__)
READERS = 16
# so many answers that fail are an outage: asking for the rest would take hours and find nothing out
OUTAGE = 10
# a version is registered a moment before it is signed, and one whose verdict has just ended may get another
SETTLING = timedelta(minutes=5)
# what nightly rescans keep in force is vetted again longer than this before it expires
TRUSTED_QUIET = timedelta(days=7)


@dataclass(frozen=True)
class Watch:
    """What production is held against: store, public keys, the ledger, or why it cannot be read, and the moment.

    `proven` is the moment of the ledger's last entry where nothing else says that so much time has passed since, and
    None where the clock is not in doubt.
    """

    settings: Settings
    store: Store
    trust: TrustRoot
    state: LedgerState | Removed
    now: datetime
    proven: datetime | None


def watch(settings: Settings, now: datetime | None = None) -> Watch:
    """Raises StoreError without the gate's keys, WrongClock where the gate could sign nothing now.

    Both are faults of this machine, and no model is taken back for them.
    """
    try:
        _, trust = gate_key(settings)
    except Denied as error:
        raise StoreError(str(error)) from error
    state: LedgerState | Removed
    moment, proven = now or utc_now(), None
    try:
        state = whole_ledger(settings)
        moment = signing_time(settings, moment)
        proven = _proven(state, moment)
    except Removed as error:
        state = error
    return Watch(settings, open_store(settings), trust, state, moment, proven)


def _proven(state: LedgerState, now: datetime) -> datetime | None:
    last = last_of(state)
    # `signing_time` has held the clock against the store's, where that has one
    if last is None or state.store.clock() is not None or now <= as_time(last.issued, "issued") + TRUSTED_QUIET:
        return None
    return as_time(last.issued, "issued")


def coverages(seen: Watch, held: Iterable[Registered]) -> list[Coverage | Denied | StoreError]:
    """What covers each version, in their order, or why nothing does, or what kept us from knowing."""
    failed: list[StoreError] = []

    def ask(item: Registered) -> Coverage | Denied | StoreError:
        if len(failed) >= OUTAGE:
            return failed[0]
        try:
            return coverage(seen, item.name, item.version, item.place)
        except Denied as error:
            return error
        except WrongClock as error:
            # no outage: what it has nothing to do with is still to be found out
            return StoreError(str(error))
        except StoreError as error:
            failed.append(error)
            return error
        except Exception as error:
            return unforeseen(item, error)

    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(ask, held))


def unforeseen(item: Registered, error: Exception) -> StoreError:
    """What kept us from knowing of one version, whatever it is: it must not keep us from knowing of the others."""
    logger.exception("version %r of prod.%r", item.version, item.name, exc_info=error)
    return StoreError(
        f"expected an answer for version {item.version!r:.40} of prod.{item.name!r:.80}, got {error!r:.300}; see what "
        "store and registry hold of it"
    )


def coverage(seen: Watch, name: str, version: str, source: str) -> Coverage:
    """What covers a version whose bytes were not found altered; raises Denied, Stale, StoreError or WrongClock.

    WrongClock is for what only this clock speaks against, while that is in doubt. Where the ledger is broken,
    `seen.state` is raised for whatever the gate promoted: it may stay, and is not served.
    """
    if not promotable(name, version):
        raise Denied(
            f"expected a model that the gate could have promoted, got version {version!r:.40} of prod.{name!r:.80}; "
            "delete it"
        )
    try:
        found = _covered(seen, name, version, source, seen.now)
    except IssuedLater as error:
        raise WrongClock(str(error)) from error
    except Denied:
        if seen.proven is None or isinstance(seen.state, Removed):
            raise
        _covered(seen, name, version, source, seen.proven)
        raise WrongClock(
            f"expected a clock within {TRUSTED_QUIET.days} days of the ledger's last entry, of "
            f"{time_text(seen.proven)}, got {time_text(seen.now)}, by which version {version} of prod.{name} is no "
            "longer covered; set the clock right, or, where it is right, vet what is in production again"
        ) from None
    untampered(seen.settings, seen.store, found.promotion)
    return found


def _covered(seen: Watch, name: str, version: str, source: str, moment: datetime) -> Coverage:
    if isinstance(seen.state, Removed):
        promoted_at(seen.store, seen.trust, name, version, source, moment)
        raise seen.state
    return covered(seen.settings, name, version, source, now=moment, state=seen.state)


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


def outlived(
    seen: Watch, found: Iterable[Registered], failed: Callable[[StoreError], object]
) -> Iterator[tuple[Registered, Denied]]:
    """The versions that only their number, or `latest`, resolves to, and that nothing has covered for a while; and why.

    What cannot be read now stays until it can be; `failed` is told of what was not foreseen.
    """
    altered = {key.removesuffix(".json") for key in seen.store.list(TAMPERED)}
    for item in found:
        try:
            doubtful = _doubtful_since(seen, item)
            if (
                item.loads is None
                and f"{TAMPERED}{item.name}/{item.version}" not in altered
                and (doubtful is None or seen.now - doubtful < SETTLING)
            ):
                continue
            coverage(seen, item.name, item.version, item.place)
        except Denied as why:
            if why is not seen.state:
                yield item, why
        except (StoreError, WrongClock):
            continue
        except Exception as error:
            failed(unforeseen(item, error))


def _doubtful_since(seen: Watch, item: Registered) -> datetime | None:
    """When a version ceased to be covered, as far as the ledger tells; None where it is."""
    if not isinstance(seen.state, Removed):
        manifest = seen.state.promoted(item.name, item.version)
        if manifest is not None:
            return seen.state.not_admitted_since(manifest, seen.now)
    # a time to come is what somebody wrote there; clocks may differ a little
    told = item.created if item.created <= (seen.now + SETTLING).timestamp() else 0.0
    return datetime.fromtimestamp(told, UTC)
