"""Submit: take a model in and queue it. Where a Prefect server is named this wakes a vetting; else `vet` or `sweep`."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tasks import events
from tasks.mlflow.reader import read_names
from tasks.records.attestations import Attestation, newest_attestation
from tasks.records.ledger_state import ledger_state
from tasks.records.submitters import save_submitter, sign_submission
from tasks.settings import Settings
from tasks.store.open import open_store
from tasks.vetting import intake
from tasks.vetting.conversion import find_vetted, is_canonical
from vetgate.digest import canonical_json
from vetgate.errors import Altered, BadSubmission, Denied, Removed, StoreError
from vetgate.formats.model_name import alike
from vetgate.trust.keys import load_key

# the moment of a verdict and the digest of its attestation
PAGE = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{64}\.html")


def submit(settings: Settings, directory: Path, key: Path | None = None) -> intake.Record:
    """The record of a submission directory; submitting the same bytes again gives the same and starts nothing twice.

    Signed with the submitter's `key`, or the settings' one: only then can a finding on it ever be waived.
    """
    key = key or settings.submitter_key
    signing = load_key(key) if key is not None else None
    record = intake.take(settings, directory, check_name=partial(refuse_alike, settings))
    if signing is not None:
        save_submitter(open_store(settings), record.id, sign_submission(record.id, record.submission.name, signing))
    # a hint only: if it is lost, the sweep finds the record
    events.emit(events.SUBMISSION_ACCEPTED, f"submission.{record.id}", {"manifest_sha256": record.id}, once="accepted")
    return record


def refuse_alike(settings: Settings, name: str) -> None:
    """Raise BadSubmission where a registered model of another name reads like this one's."""
    try:
        other = alike(name, read_names(settings))
    except StoreError:
        # nothing is decided here, and models are handed in while the registry is away: promotion asks it again
        return
    if other is not None:
        raise BadSubmission(f"expected a name that no other reads like, got {name} beside {other!r}; take another")


def queue(settings: Settings, wrong: Callable[[str], object]) -> list[dict[str, Any]]:
    """Every submission, oldest first, with its newest verdict, if it has one; `wrong` as `intake.records` has it."""
    state = ledger_state(settings)
    rows = []
    found = intake.records(state.store, intake.submitted(state.store), wrong)
    rewritten = [record for record in found if record.submission.submitted is not None]
    written = {record.submission.submitted for record in rewritten if is_canonical(state.store, state.trust, record)}
    for record in found:
        if record.id in written:
            # it stands in the name of what vetgate wrote in its place
            continue
        try:
            newest = newest_attestation(state, record.id)
            claims = newest.claims if newest else {}
        except Removed:
            claims = {"verdict": "REMOVED"}
        except Denied:
            claims = {"verdict": "ALTERED"}
        rows.append(
            {
                "submission": record.submission.name,
                "manifest_sha256": record.id,
                "supplier": record.submission.supplier,
                "submitted_at": record.submitted_at,
                "parent": record.submission.parent,
                "submitted": record.submission.submitted,
                "verdict": claims.get("verdict"),
                "issued": claims.get("issued"),
                "expires": claims.get("expires"),
            }
        )
    return rows


@dataclass(frozen=True)
class Report:
    """The HTML report of a submission as a file here, and what to say of it, if anything."""

    record: intake.Record
    path: Path
    warnings: tuple[str, ...] = ()


def local_report(settings: Settings, submission: str) -> Report:
    """The report that was made here, or else the store's of the newest vetting that the ledger tells of.

    One that was made here of an earlier verdict than the ledger's newest comes with a warning.
    Raises BadSubmission when there is none, Altered for a page that vetgate does not write.
    """
    from tasks.report.page import is_page

    store = open_store(settings)
    record = find_vetted(settings, submission)
    path = settings.home / "reports" / f"{record.id}.html"
    if path.exists():
        newest = newest_attestation(ledger_state(settings), record.id)
        if newest is None or _is_of(settings, record, newest):
            return Report(record, path)
        verdict = newest.claims["verdict"]
        warning = f"{path} is of an earlier vetting; the newest verdict is {verdict}, vet it again"
        return Report(record, path, (warning,))
    names = [key.removeprefix(f"reports/{record.id}/") for key in store.list(f"reports/{record.id}/")]
    stems = [name.removesuffix(".html") for name in names if PAGE.fullmatch(name)]
    state = ledger_state(settings) if stems else None
    told = [
        (sequence, stem)
        for stem in stems
        if state is not None and (sequence := state.entered(f"attestations/{record.id}/{stem}.json")) is not None
    ]
    if state is None or not told:
        raise BadSubmission(f"expected a vetted submission, got {record.id}, which has no report; run `vetgate vet`")
    key = f"reports/{record.id}/{max(told)[1]}.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".report-", dir=path.parent) as made:
        fetched = Path(made, "report.html")
        store.fetch(key, fetched)
        if not is_page(fetched.read_bytes()):
            raise Altered(f"expected a report in {key}, got another page; remove it, and run `vetgate vet` here")
        # not in the place of one that is made here: what is on it is not signed
        path = path.with_name(f"{record.id}.store.html")
        os.replace(fetched, path)
    newest = newest_attestation(state, record.id)
    verdict = "no verdict" if newest is None else str(newest.claims["verdict"])
    warning = f"{key} comes from the store and is not signed; what counts is the ledger's newest verdict, {verdict}"
    return Report(record, path, (warning,))


def _is_of(settings: Settings, record: intake.Record, newest: Attestation) -> bool:
    """Whether what was made here last was made of this verdict."""
    try:
        made_of = (settings.home / "attestations" / f"{record.id}.json").read_bytes()
    except OSError:
        return False
    return made_of == canonical_json(newest.envelope)
