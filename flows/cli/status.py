"""Status: at a glance what waits, what was decided, what is in production until when, and what is about to run out.

Everything is read from store and registry as it is now. A part that cannot be read is None, and named under `unknown`;
`errors` says why, and what was passed over in a part that can be read. The rest is shown all the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from flows.production.watch import Standing, coverages, standings, watch
from flows.vetting.submit import queue
from tasks.mlflow.aliases import Registered
from tasks.mlflow.reader import read_production
from tasks.records.attestations import taken_back
from tasks.records.coverage import Coverage
from tasks.records.ledger_state import ledger_state
from tasks.records.rescans import last_rescan
from tasks.records.submitters import submitters_of
from tasks.records.waivers import approvals_of, revoked, waivers_of
from tasks.settings import Settings
from tasks.store.base import Store
from tasks.store.key_forms import strange_objects
from tasks.store.open import open_store
from tasks.vetting.queue import waiting
from vetgate.errors import Denied, VetgateError
from vetgate.shape import Blob
from vetgate.trust.keys import read_trust_root, utc_now
from vetgate.trust.strict_json import as_time, time_text
from vetgate.trust.waivers import Waiver, counted, too_few, why_never, why_not
from vetgate.verdict.policy import load_policy
from vetgate.verdict.reasons import Reason
from vetgate.verdict.wording import render

SOON = timedelta(days=7)


def at_a_glance(settings: Settings, *, now: datetime | None = None) -> Blob:
    """Queue, verdicts, production, waivers and the last rescan, each with what its people ask about it first."""
    moment, store = now or utc_now(), open_store(settings)
    errors: dict[str, str] = {}
    unknown: list[str] = []

    def part(name: str, read: Callable[[Callable[[str], object]], Any]) -> Any:
        wrong: dict[str, None] = {}
        try:
            return read(wrong.setdefault)
        except VetgateError as error:
            unknown.append(name)
            wrong[str(error)] = None
        finally:
            if wrong:
                errors[name] = "; ".join(wrong)

    submissions = part("submissions", lambda wrong: _submissions(settings, moment, wrong))
    rows = submissions or ()
    counts = {state: sum(row["state"] == state for row in rows) for state in ("waiting", "at work")}
    production = part("production", lambda wrong: _production(settings, moment))
    if any(row["covered"] is None for row in production or ()):
        unknown.append("production")
    return {
        "submissions": submissions,
        "queue": None if submissions is None else counts,
        "verdicts": None if submissions is None else dict(Counter(row["verdict"] for row in rows if row["verdict"])),
        "production": production,
        "waivers": part("waivers", lambda wrong: _waivers(settings, store, moment)),
        "rescan": part("rescan", lambda wrong: _last_rescan(settings, store, wrong)),
        "strange": part("strange", lambda wrong: strange_objects(store)),
        "unknown": unknown,
        "errors": errors,
    }


def _submissions(settings: Settings, now: datetime, wrong: Callable[[str], object]) -> list[Blob]:
    """Every submission, oldest first: its newest verdict, or since when it waits and who is at work on it."""
    state = ledger_state(settings)
    revoked_ones = partial(taken_back, state)
    left = waiting(settings, lambda manifest: state.verdict(manifest) is not None, now.timestamp(), wrong, revoked_ones)
    unfinished = {item.record.id: item for item in left}
    rows = []
    for row in queue(settings, wrong):
        item = unfinished.get(row["manifest_sha256"])
        holder = item.lease if item is not None and item.at_work else None
        held = None
        if holder is not None:
            held = {"host": holder.host.split("/")[0], "pid": holder.pid, "until": _text(holder.until)}
        if item is not None:
            stands = "waiting" if holder is None else "at work"
        else:
            # a canary is vetted with its batch only and has no verdict of its own
            stands = "decided" if row["verdict"] else "not queued"
        rows.append({**row, "state": stands, "attempts": item.attempts if item else None, "held_by": held})
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
    """Every waiver in this ledger that a trusted key signed, the first to run out first."""
    manifests = dict.fromkeys(key.split("/")[1] for key in store.list("waivers/"))
    if not manifests:
        return []
    state, policy = ledger_state(settings), load_policy(settings.policy).waivers
    trust = state.trust
    gone = revoked(state)
    rows = []
    for manifest in manifests:
        submitters = submitters_of(state, manifest)
        for waiver in waivers_of(state, manifest, now):
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


def _last_rescan(settings: Settings, store: Store, wrong: Callable[[str], object]) -> Blob | None:
    # an installation that decided nothing has no keys yet, and no rescan
    if next(iter(store.list("rescans/")), None) is None:
        return None
    passed_over: list[str] = []
    found = last_rescan(store, read_trust_root(settings.trust_root), passed_over.append)
    for said in passed_over[:3]:
        wrong(said)
    return found


def _text(moment: float) -> str:
    return time_text(datetime.fromtimestamp(moment, UTC))
