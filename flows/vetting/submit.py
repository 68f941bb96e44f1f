"""Submit: take a model in and queue it. Where a Prefect server is named this wakes a vetting; else `vet` or `sweep`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tasks import events
from tasks.mlflow.reader import read_names
from tasks.records.attestations import newest_attestation
from tasks.records.ledger_state import ledger_state
from tasks.records.submitters import save_submitter, sign_submission
from tasks.settings import Settings
from tasks.store.open import open_store
from tasks.vetting import intake
from vetgate.errors import BadSubmission, Denied, Removed, StoreError
from vetgate.formats.model_name import alike
from vetgate.trust.keys import load_key


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
    for record in intake.records(state.store, intake.submitted(state.store), wrong):
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
