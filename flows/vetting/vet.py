"""Vet one submission: what happens in which order, from the quarantined bytes to a signed verdict and a repair."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from prefect import flow

from flows.gate.client import gate
from flows.gate.decided import Answer
from flows.gate.issue import check_not_taken_back
from flows.params import uses
from flows.vetting.examine import Vetting, inspect_submission, opened, request_of
from flows.vetting.repair import repair_submission
from flows.vetting.result import guards_of, publish, result_of
from tasks import events
from tasks.records.attestations import attestation_at, taken_back
from tasks.records.ledger_state import ledger_state
from tasks.settings import Settings, load_settings
from tasks.store.lease import LeaseHeld, leased
from tasks.store.open import open_store
from tasks.vetting import intake, steps
from tasks.vetting.results import Result
from vetgate.errors import Denied, StoreError
from vetgate.shape import Blob
from vetgate.trust import dsse
from vetgate.trust.keys import GATE, read_trust_root
from vetgate.verdict.policy import load_policy

logger = logging.getLogger(__name__)
# how long a vetting that a caller waits for waits for another one of the same bytes
WAIT_SECONDS = 24 * 3600.0


@flow(name="vet", flow_run_name="vet-{manifest_sha256}", persist_result=True, result_serializer="json")
def vet(manifest_sha256: str, unless_vetted: bool = False, wait_seconds: float | None = None) -> Blob:
    """The result of vetting a submission: design.md's object, its verdict signed and kept in the store.

    It is that of the submission which vetgate wrote in place of this one, unless it is of the canonical form already.

    What an earlier run of the same submission finished is not done again. `unless_vetted` is for runs that an event or
    a sweep started: a submission that has its result, or is being vetted by another, is left alone, and a verdict in
    the ledger stands. They raise Revoked where that was revoked: only a person who asks has such bytes vetted anew.
    """
    settings = load_settings()
    policy = load_policy(settings.policy)
    for method in policy.repair.methods:
        # a name that does not exist is said before hours of work, not after
        uses(method)
    store = open_store(settings)
    record = intake.read_record(store, manifest_sha256)
    stored = last_result(settings, record.id) if unless_vetted else None
    if stored is not None:
        return stored
    if unless_vetted:
        check_not_taken_back(ledger_state(settings), record.id)
    if wait_seconds is None:
        wait_seconds = 0.0 if unless_vetted else WAIT_SECONDS
    try:
        with leased(settings, record.id, wait=wait_seconds) as lease:
            stored = last_result(settings, record.id) if unless_vetted else None
            result = stored or _vet(settings, record, unless_vetted, lease.check)
    except LeaseHeld as error:
        if wait_seconds:
            raise
        return {"submission": record.submission.name, "manifest_sha256": record.id, "verdict": None, "held": str(error)}
    if result["manifest_sha256"] != record.id:
        return result
    automatic = policy.promotion.automatic is not None
    events.verdict_issued(record.id, result["verdict"], once=result["mlflow_run"], automatic=automatic)
    return result


def last_result(settings: Settings, manifest_sha256: str) -> Blob | None:
    """The newest published result of a submission, or None while it has none.

    A result lies under the name of the attestation that speaks for its verdict; any other object is passed over.
    """
    store = open_store(settings)
    # their names begin with the moment of the verdict
    for key in sorted(store.list(f"results/{manifest_sha256}/"), reverse=True):
        try:
            signed = attestation_at(store, f"attestations/{key.removeprefix('results/')}")
            dsse.signed_payload(signed.envelope, read_trust_root(settings.trust_root), {GATE})
            result = Result.from_json(json.loads(store.read(key)))
            waived = signed.claims["verdict"] == "WAIVED" and result.verdict != "PASS"
            if result.manifest_sha256 == manifest_sha256 and (waived or result.verdict == signed.claims["verdict"]):
                return result.to_json()
            raise Denied(f"expected the verdict {signed.claims['verdict']}, got {result.verdict:.80}")
        except (Denied, KeyError, StoreError, ValueError) as error:
            logger.warning("%s is not the result of a vetting, and is passed over: %s", key, error)
    return None


def _vet(settings: Settings, record: intake.Record, unless_vetted: bool, check: Callable[[], None]) -> Blob:
    """The result of a vetting: of these bytes, or of those that vetgate wrote in their place."""
    started = time.monotonic()
    gate(settings)
    with opened(settings, record.id) as (vetting, workplace):
        vetting, seen = inspect_submission(vetting, workplace)
        # a process that lost the lease must not write a second verdict
        check()
        if seen.written is None:
            question = replace(request_of(vetting, seen, workplace.sandbox.level), asked=not unless_vetted)
            ruling = Answer.from_json(steps.decide(gate(settings).ask, question.to_json()))
            # it stays open: where a copy does not pass, the next repair is run in it
            repaired = repair_submission(vetting, seen, ruling, partial(_vet_copy, vetting, unless_vetted))
    if seen.written is not None:
        written: Blob = vet(seen.written, unless_vetted, WAIT_SECONDS)
        return written
    check()
    guards, level = guards_of(settings, ruling, seen.guards, vetting.policy.guard), workplace.sandbox.level
    result = result_of(settings, record, ruling, seen, repaired, level, started, guards)
    return steps.register(partial(publish, settings, record, vetting.case.data, ruling, result, repaired))


def _vet_copy(vetting: Vetting, unless_vetted: bool, directory: Path) -> tuple[intake.Record, Result]:
    """The repaired model in a directory as a submission of its own, vetted from the first step by the same rules."""
    # what is repaired in the course of a demonstration is a part of it
    origin = f"{vetting.record.origin}/repaired" if vetting.record.origin else ""
    record = intake.take(vetting.settings, directory, origin=origin)
    submission = record.submission
    if submission.parent != vetting.record.id or submission.name != vetting.record.submission.name:
        raise StoreError(f"expected a repair of {vetting.record.id}, got one of {submission.parent}; it is refused")
    # who asks for the model has not asked for a repair of it that was revoked
    by_itself = unless_vetted or taken_back(ledger_state(vetting.settings), record.id)
    return record, Result.from_json(vet(record.id, by_itself, WAIT_SECONDS))
