"""Promote: let exactly the vetted bytes of a model into production, and nothing else.

The attestation is verified against the bytes in quarantine, these go to the vetted part of the store and are hashed
again there, a fresh version of prod.<name> is registered, what it stands for is signed and entered into the ledger, and
its alias is set last: at whatever step this is killed, production is what it was, and doing it again ends the same.
Only then is the same model registered behind its guards, as guarded.<name>, for whoever serves it with MLflow.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from flows.production.admission import Admitted, Request, admitted_by, hashed
from flows.production.pyfunc_files import write_pyfunc
from flows.production.selection import check_hardened, hardened_copy, identified, newest_admitted
from tasks import events
from tasks.guards.package_file import package_bytes
from tasks.mlflow.aliases import all_names
from tasks.mlflow.demote import settle
from tasks.mlflow.guarded import GUARDED, register_guarded
from tasks.mlflow.heads import publish_head, whole_ledger
from tasks.mlflow.promoted import Promoted, register_promoted
from tasks.mlflow.vettings import MANIFEST_TAG
from tasks.records.alias_moves import AliasMove, end_move, end_promotion, enter_move
from tasks.records.attestations import attestation_at, newest_attestation, revocation_of
from tasks.records.ledger_chain import append, gate_key, signing_time
from tasks.records.ledger_entries import catch_up
from tasks.records.ledger_state import ledger_state
from tasks.records.promotions import save_promotion
from tasks.settings import Settings
from tasks.store.base import Store, check_files, fetch_files
from tasks.store.open import open_store
from tasks.vetting.intake import MAX_BYTES, workroom
from vetgate.digest import canonical_json, sha256_json
from vetgate.errors import Altered, BadSubmission, Denied, Removed, Stale, VetgateError
from vetgate.formats.manifest import Manifest
from vetgate.formats.model_name import MODEL_NAME, RULE, alike
from vetgate.trust import attest
from vetgate.trust.guard_claims import guards_in
from vetgate.trust.keys import utc_now

ALIASES = ("champion", "challenger")


def promote(
    settings: Settings,
    name: str,
    submission: str | None = None,
    alias: str = "champion",
    *,
    hardened: bool = False,
    now: datetime | None = None,
    on_step: Callable[[str], None] = lambda step: None,
) -> dict[str, Any]:
    """What was promoted as prod.<name>: the submission with this manifest SHA-256, by default the newest that may be.

    If `hardened`, it is the repaired copy of that submission, or of any of this name, that passed in its own right, and
    never the submission itself. Raises Denied with the reason, Stale when the attestation or its policy is no longer in
    force. `on_step` is given every step after it is done.
    """
    if not MODEL_NAME.fullmatch(name):
        raise BadSubmission(f"expected as name {RULE}; got {name!r}")
    if alias not in ALIASES:
        raise BadSubmission(f"expected one of the aliases {', '.join(ALIASES)}, got {alias!r}")
    asked = Request(settings, name, alias, open_store(settings), now or utc_now(), on_step)
    try:
        granted = _promote(asked, submission, hardened)
    except Denied as error:
        _enter_denial(settings, name, alias, submission, error)
        publish_head(settings)
        raise
    publish_head(settings)
    resource, told_of = f"promotion.{name}", ("name", "version", "alias", "manifest_sha256", "verdict")
    events.emit(events.PROMOTION_GRANTED, resource, {field: granted[field] for field in told_of})
    done = granted | _guarded(asked, granted)
    # last of all: a sweep goes on with what was killed before
    end_promotion(ledger_state(settings), name, granted["version"])
    return done


def _guarded(asked: Request, granted: Mapping[str, Any]) -> dict[str, Any]:
    """Register the promoted model behind its guards too, where its attestation names some; what came of it.

    The promotion stands whatever that is, and the same promotion again ends the same.
    """
    settings, manifest = asked.settings, str(granted["manifest_sha256"])
    try:
        envelope = attestation_at(asked.store, granted["attestation"]).envelope
        stated = guards_in(attest.claims(envelope))
        if stated is None:
            return {"guarded": None, "guarded_error": None}
        with workroom(settings) as room:
            vetted = fetch_files(
                asked.store, f"vetted/{manifest}", room / "vetted", attest.files_of(envelope), most=MAX_BYTES
            )
            write_pyfunc(room / "guarded", vetted, envelope, package_bytes(settings, manifest, stated.package))
            version = register_guarded(
                settings,
                asked.name,
                room / "guarded",
                run_id=granted["mlflow_run"],
                promoted=granted["version"],
                attestation=attest.digest(envelope),
                tags={MANIFEST_TAG: manifest},
                on_step=asked.on_step,
            )
    except (VetgateError, OSError) as error:
        logging.getLogger(__name__).warning("%s is promoted, and not registered behind guards: %s", asked.name, error)
        return {"guarded": None, "guarded_error": str(error)}
    return {"guarded": {"model": f"{GUARDED}{asked.name}", "version": version}, "guarded_error": None}


def _enter_denial(settings: Settings, name: str, alias: str, submission: str | None, error: Denied) -> None:
    """Enter a refusal, once a day, and emit it.

    Nothing is entered at the end of a ledger that is not whole. What cannot be entered, because the gate trusts no key,
    is only logged.
    """
    said = {"name": name, "alias": alias, "submission": submission, "reason": str(error), "exit_code": error.exit_code}
    try:
        if not isinstance(error, Removed):
            state = ledger_state(settings)
            once = f"denial:{utc_now().date().isoformat()}:{sha256_json(said)}"
            if state.entered(once) is None:
                append(settings, "denial", said, once=once, since=state.end)
    except VetgateError as other:
        logging.getLogger(__name__).warning("the refusal of %s could not be entered: %s", name, other)
    events.emit(events.PROMOTION_DENIED, f"promotion.{name}", said)


def _promote(asked: Request, submission: str | None, hardened: bool) -> dict[str, Any]:
    if other := alike(asked.name, all_names(asked.settings)):
        raise Denied(f"expected a name that no other reads like, got {asked.name} beside {other!r}; remove that model")
    named = None if submission is None else identified(asked, submission)
    whole_ledger(asked.settings)
    # what a run that was killed took back comes before what is promoted now
    settle(asked.settings)
    catch_up(asked.settings, named)
    copy = hardened_copy(asked, named) if hardened else None
    manifest_sha256 = copy.manifest if copy is not None else named or newest_admitted(asked)
    with workroom(asked.settings) as room:
        admitted = admitted_by(asked, manifest_sha256, room / "quarantine")
        if copy is not None:
            check_hardened(copy, admitted)
        asked.on_step("verified")
        vetted = _copied(asked.store, admitted.manifest, room, asked.on_step)
        document = room / "attestation.json"
        document.write_bytes(canonical_json(admitted.attestation.envelope))
        promoted = register_promoted(
            asked.settings,
            asked.name,
            admitted.manifest,
            vetted,
            alias=asked.alias,
            tags=admitted.tags,
            documents={"attestation": document},
            record=lambda made, old: _recorded(asked, admitted, made, old),
            on_step=asked.on_step,
        )
        end_move(ledger_state(asked.settings), asked.name, asked.alias)
    return {
        "name": asked.name,
        "model": f"prod.{asked.name}",
        "version": promoted.version,
        "alias": asked.alias,
        "submission": admitted.manifest.sha256,
        "manifest_sha256": admitted.manifest.sha256,
        "hardens": None if copy is None else copy.parent,
        "verdict": admitted.attestation.claims["verdict"],
        "expires": admitted.attestation.claims["expires"],
        "attestation": admitted.attestation.key,
        "approvals": list(admitted.approvals),
        "source": promoted.source,
        "vetted": asked.store.url(f"vetted/{admitted.manifest.sha256}"),
        "previous": promoted.previous,
        "mlflow_run": promoted.run_id,
    }


def _recorded(asked: Request, admitted: Admitted, made: Promoted, old: str | None) -> None:
    """Sign and enter what a version stands for, before the alias is moved to it."""
    state = ledger_state(asked.settings)
    newest = newest_attestation(state, admitted.manifest.sha256)
    if newest is None or newest.key != admitted.attestation.key or revocation_of(state, newest.envelope):
        raise Stale(
            f"expected the verdict on {admitted.manifest.sha256} to stand, got another meanwhile; promote again"
        )
    kept = save_promotion(
        asked.store,
        state.trust,
        gate_key(asked.settings)[0],
        name=asked.name,
        version=made.version,
        manifest=admitted.manifest.sha256,
        files=admitted.manifest.digests,
        source=made.source,
        run_id=made.run_id,
        attestation=admitted.digest,
        now=signing_time(asked.settings, utc_now()),
        told=state.promotion(asked.name, made.version),
    )
    asked.on_step("promotion signed")
    move = AliasMove(
        asked.name, asked.alias, made.version, old, admitted.manifest.sha256, admitted.digest, admitted.approvals, kept
    )
    enter_move(asked.settings, state, move)
    asked.on_step("ledger entered")


def _copied(store: Store, manifest: Manifest, room: Path, on_step: Callable[[str], None]) -> Path:
    """The vetted copy of the bytes, in the store and, fetched from there and hashed again, in `room`."""
    home = f"vetted/{manifest.sha256}"
    for entry in manifest.files:
        store.copy_in_file(f"{home}/{entry.path}", room / "quarantine" / entry.path, sha256=entry.sha256)
        on_step(f"copied {entry.path}")
    check_files(store, home, manifest.digests)
    vetted = fetch_files(store, home, room / "vetted", manifest.digests, most=manifest.size)
    if hashed(vetted) != manifest:
        raise Altered(f"expected {home} to hold exactly the vetted bytes, got others, written meanwhile; remove them")
    on_step("copy checked")
    return vetted
