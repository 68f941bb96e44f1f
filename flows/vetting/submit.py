"""Submit: take a model in and queue it. Where a Prefect server is named this wakes a vetting; else `vet` or `sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tasks import events
from tasks.records.attestations import newest_attestation
from tasks.records.ledger_state import ledger_state
from tasks.records.submitters import save_submitter, sign_submission
from tasks.settings import Settings
from tasks.store.open import open_store
from tasks.vetting import intake
from vetgate.errors import BadSubmission, Denied, Removed
from vetgate.trust.keys import load_key


def submit(settings: Settings, directory: Path, key: Path | None = None) -> intake.Record:
    """The record of a submission directory; submitting the same bytes again gives the same and starts nothing twice.

    Signed with the submitter's `key`, or the settings' one: only then can a finding on it ever be waived.
    """
    key = key or settings.submitter_key
    signing = load_key(key) if key is not None else None
    record = intake.take(settings, directory)
    if signing is not None:
        save_submitter(open_store(settings), record.id, sign_submission(record.id, record.submission.name, signing))
    # a hint only: if it is lost, the sweep finds the record
    events.emit(events.SUBMISSION_ACCEPTED, f"submission.{record.id}", {"manifest_sha256": record.id}, once="accepted")
    return record


def queue(settings: Settings) -> list[dict[str, Any]]:
    """Every submission, oldest first, with its newest verdict, if it has one."""
    state = ledger_state(settings)
    rows = []
    for record in intake.records(state.store):
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
                "verdict": claims.get("verdict"),
                "issued": claims.get("issued"),
                "expires": claims.get("expires"),
            }
        )
    return rows


def local_report(settings: Settings, submission: str) -> tuple[intake.Record, Path]:
    """The HTML report of a submission's newest vetting as a file here; raises BadSubmission when there is none."""
    store = open_store(settings)
    record = intake.find_record(store, submission)
    path = settings.home / "reports" / f"{record.id}.html"
    reports = list(store.list(f"reports/{record.id}/"))
    if reports and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        # their names begin with the moment of the verdict
        store.fetch(reports[-1], path)
    if not path.exists():
        raise BadSubmission(f"expected a vetted submission, got {record.id}, which has no report; run `vetgate vet`")
    return record, path
