"""Status: at a glance what waits, what was decided, what is in production until when, and what is about to run out.

Everything is read from store and registry as it is now. A part that cannot be read says so under `errors`, and the rest
is shown all the same.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from flows.production.watch import Standing, coverages, standings, watch
from flows.vetting.submit import queue
from tasks.mlflow.aliases import Registered
from tasks.mlflow.reader import read_production
from tasks.records.coverage import Coverage
from tasks.records.ledger_chain import read_entry
from tasks.records.ledger_state import LedgerState, ledger_state
from tasks.records.submitters import submitters_of
from tasks.records.waivers import approvals_of, revoked, waivers_of
from tasks.settings import Settings
from tasks.store.base import Store
from tasks.store.open import open_store
from tasks.vetting.queue import waiting
from vetgate.errors import Denied, VetgateError
from vetgate.shape import Blob
from vetgate.trust.keys import utc_now
from vetgate.trust.strict_json import as_time, parse, time_text
from vetgate.trust.waivers import Waiver, counted, too_few, why_never, why_not
from vetgate.verdict.policy import load_policy
from vetgate.verdict.reasons import Reason
from vetgate.verdict.wording import render

SOON = timedelta(days=7)
BATCH = re.compile(r"rescans/((\d{4}-\d\d-\d\d)-([1-9]\d{0,5}))\.json", re.ASCII)
COUNTS, LISTS = ("checked", "uncovered", "unchanged", "stale"), ("canaries", "vetted", "taken_back", "errors")


def at_a_glance(settings: Settings, *, now: datetime | None = None) -> Blob:
    """Queue, verdicts, production, waivers and the last rescan, each with what its people ask about it first."""
    moment, store = now or utc_now(), open_store(settings)
    errors: dict[str, str] = {}

    def part(name: str, read: Callable[[], Any], otherwise: Any) -> Any:
        try:
            return read()
        except VetgateError as error:
            errors[name] = str(error)
            return otherwise

    wrong: dict[str, None] = {}
    submissions = part("submissions", lambda: _submissions(settings, moment, lambda said: wrong.setdefault(said)), [])
    if wrong:
        errors["submissions"] = "; ".join(wrong)
    odd: list[str] = []
    # without its store there is no status
    batches = sorted(store.list("rescans/"), key=_order, reverse=True)
    last = part("rescan", lambda: _last_rescan(settings, batches, moment, odd.append), None)
    if odd:
        errors["rescan"] = "; ".join(odd)
    return {
        "submissions": submissions,
        "queue": {state: sum(row["state"] == state for row in submissions) for state in ("waiting", "at work")},
        "verdicts": dict(Counter(row["verdict"] for row in submissions if row["verdict"])),
        "production": part("production", lambda: _production(settings, moment), []),
        "waivers": part("waivers", lambda: _waivers(settings, store, moment), []),
        "rescan": last,
        "errors": errors,
    }


def _submissions(settings: Settings, now: datetime, wrong: Callable[[str], object]) -> list[Blob]:
    """Every submission, oldest first: its newest verdict, or since when it waits and who is at work on it."""
    unfinished = {item.record.id: item for item in waiting(settings, now.timestamp(), wrong)}
    rows = []
    for row in queue(settings, wrong):
        item = unfinished.get(row["manifest_sha256"])
        holder = item.lease if item is not None and item.at_work else None
        held = None
        if holder is not None:
            held = {"host": holder.host.split("/")[0], "pid": holder.pid, "until": _text(holder.until)}
        if item is not None:
            state = "waiting" if holder is None else "at work"
        else:
            # a canary is vetted with its batch only and has no verdict of its own
            state = "decided" if row["verdict"] else "not queued"
        rows.append({**row, "state": state, "attempts": item.attempts if item else None, "held_by": held})
    return rows


def _production(settings: Settings, now: datetime) -> list[Blob]:
    """Every alias and stage of every prod.* model: its version, and until when what covers it, or why nothing does."""
    held = read_production(settings)
    if not held:
        return []
    seen = watch(settings, now)
    answers = zip(held, coverages(seen, held), strict=True)
    return [_row(item, name, now) for item, answer in answers for name in standings(seen, item, answer)]


def _row(held: Registered, name: Standing, now: datetime) -> Blob:
    """An alias or a stage and the version it resolves to; `covered` is None where an outage kept us from knowing."""
    row: Blob = {"name": held.name, "model": f"prod.{held.name}", "version": held.version}
    row |= {"alias": name.alias, "stage": name.stage}
    answer = name.answer
    if not isinstance(answer, Coverage):
        state = False if isinstance(answer, Denied) else None
        nothing: Blob = {"manifest_sha256": None, "verdict": None, "until": None, "soon": False, "grace": False}
        return {**row, "covered": state, **nothing, "why": str(answer)}
    return {
        **row,
        "covered": True,
        "manifest_sha256": answer.manifest,
        "verdict": answer.claims["verdict"],
        "until": time_text(answer.until),
        "soon": answer.until - now <= SOON,
        "grace": answer.grace,
        "why": None,
    }


def _waivers(settings: Settings, store: Store, now: datetime) -> list[Blob]:
    """Every waiver that a trusted key signed, the first to run out first."""
    manifests = dict.fromkeys(key.split("/")[1] for key in store.list("waivers/"))
    if not manifests:
        return []
    state, policy = ledger_state(settings), load_policy(settings.policy).waivers
    trust = state.trust
    gone = revoked(state)
    rows = []
    for manifest in manifests:
        submitters = submitters_of(store, trust, manifest)
        for waiver in waivers_of(store, trust, manifest, now):
            given = counted(approvals_of(store, trust, waiver.digest, now), waiver.digest, submitters, gone)
            why = why_never(waiver.finding, policy, submitters) or why_not(waiver, policy, now, gone)
            rows.append(_waiver(waiver, len(given), why or too_few(len(given), policy), now))
    return sorted(rows, key=lambda row: (row["expires"], row["waiver"]))


def _waiver(waiver: Waiver, approvals: int, why: Reason | None, now: datetime) -> Blob:
    return {
        "waiver": waiver.digest,
        "manifest_sha256": waiver.manifest,
        "finding": waiver.finding,
        "reason": waiver.reason,
        "requested_by": waiver.requested_by,
        "approvals": approvals,
        "expires": waiver.expires,
        "soon": now < as_time(waiver.expires, "expires") <= now + SOON,
        "in_force": why is None,
        "why": None if why is None else render(why),
    }


def _last_rescan(settings: Settings, keys: list[str], now: datetime, wrong: Callable[[str], object]) -> Blob | None:
    """The newest batch with a record under these keys; `wrong` is told of newer ones that are none."""
    if not keys:
        return None
    state = ledger_state(settings)
    for key in keys:
        try:
            return _batch(state, key, now)
        except KeyError:
            continue
        except Denied as error:
            wrong(str(error))
    return None


def _batch(state: LedgerState, key: str, now: datetime) -> Blob:
    """The record of a batch, with what the ledger says of it; raises Denied for one that no rescan can have written."""
    named = BATCH.fullmatch(key)
    if named is None or named[2] > (now + timedelta(days=1)).date().isoformat():
        raise Denied(f"expected a nightly rescan of before now, got {key}; remove it")
    data = state.store.read(key)
    try:
        found = parse(data, key)
    except Denied:
        found = None
    if not isinstance(found, dict) or not _is_batch(found, named[1]):
        raise Denied(f"expected the record of a nightly rescan in {key}, got something else; remove it")
    entered = state.entered(f"rescan {named[1]}")
    if entered is None:
        if found["stale"]:
            raise Denied(f"expected the nightly rescan in {key} to be in the ledger, got none there; remove it")
        return found
    subject = read_entry(state.store, state.trust, entered).subject
    return found | {field: subject[field] for field in ("verdict", "stale", "canaries") if field in subject}


def _is_batch(found: Blob, name: str) -> bool:
    counts = all(isinstance(found.get(field), int) for field in COUNTS)
    lists = all(isinstance(found.get(field), list) for field in LISTS)
    return counts and lists and found.get("batch") == name and found.get("verdict") in ("DONE", "INCONCLUSIVE")


def _order(key: str) -> tuple[str, int]:
    # a day and the number of its batch, whose tenth comes after the ninth
    named = BATCH.fullmatch(key)
    return (key, 0) if named is None else (f"rescans/{named[2]}", int(named[3]))


def _text(moment: float) -> str:
    return time_text(datetime.fromtimestamp(moment, UTC))
