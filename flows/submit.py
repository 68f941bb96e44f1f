"""Submit: take a model in and queue it. With no server nothing runs yet; `vet` or `sweep` does that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tasks import intake
from tasks.attestations import newest_attestation
from tasks.settings import Settings
from tasks.store import open_store
from vetgate.errors import BadSubmission, Denied


def submit(settings: Settings, directory: Path) -> intake.Record:
    """The record of a submission directory; submitting the same bytes again gives the same one."""
    return intake.take(settings, directory)


def queue(settings: Settings) -> list[dict[str, Any]]:
    """Every submission, oldest first, with its newest verdict, if it has one."""
    store = open_store(settings)
    rows = []
    for record in intake.records(store):
        try:
            newest = newest_attestation(store, record.id)
            claims = newest.claims if newest else {}
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
    kept = list(store.list(f"reports/{record.id}/"))
    if kept and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        # their names begin with the moment of the verdict
        store.fetch(kept[-1], path)
    if not path.exists():
        raise BadSubmission(f"expected a vetted submission, got {record.id}, which has no report; run `vetgate vet`")
    return record, path
