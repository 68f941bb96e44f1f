"""The result of a vetting: one object for people and programs, with the report and MLflow's record of it."""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from flows.gate.decided import Answer
from flows.vetting.seen import Seen
from tasks.guards.fit import Guarding
from tasks.mlflow.vettings import record_vetting
from tasks.records.attestations import attestation_at
from tasks.report.page import Clean, render
from tasks.report.trigger_images import trigger_pngs
from tasks.settings import Settings
from tasks.sqlite import sqlite_file
from tasks.store.base import Store
from tasks.store.open import open_store
from tasks.vetting.inspect import Data, Found, read_evidence
from tasks.vetting.intake import Record
from tasks.vetting.results import (
    Compared,
    NotTakenIn,
    RepairRecord,
    Result,
    ResultCandidate,
    ResultGuards,
    ResultMethod,
    ResultRepair,
)
from vetgate.errors import StoreError
from vetgate.shape import Blob
from vetgate.trust.guard_claims import guards_in
from vetgate.verdict.policy import GuardPolicy
from vetgate.verdict.reasons import Reason, records
from vetgate.verdict.stated import StatedMethod
from vetgate.verdict.wording import rendered


@dataclass(frozen=True)
class Restored:
    """The repair that was chosen, with its files in a directory for their owner and its figures on the test images."""

    chosen: RepairRecord
    directory: Path
    figures: Compared


@dataclass(frozen=True)
class Repaired:
    """A restored repair that was submitted and vetted in its turn, among all candidates."""

    restored: Restored
    record: Record
    result: Result
    candidates: tuple[ResultCandidate, ...] = ()


@dataclass(frozen=True)
class Rejected:
    """Repairs of which none was good enough to be vetted."""

    candidates: tuple[ResultCandidate, ...]


def result_of(
    settings: Settings,
    record: Record,
    answer: Answer,
    seen: Seen,
    repaired: Repaired | Rejected | None,
    level: int,
    started: float,
    guards: ResultGuards | None = None,
) -> Result:
    """Design.md's object; what it points to is written by `publish`."""
    verdict, refusal = answer.decided.verdict, seen.refusal
    found = {item.method: item for item in seen.found}
    more = [] if refusal is None else [refusal]
    if isinstance(repaired, Rejected) and verdict.decision == "FAIL":
        # of a blind repair they are no reasons for the verdict, and stand under `repairs` alone
        more = _rejections(repaired)
    # where nothing could be looked for, the verdict only repeats the refusal for every method
    said, recorded = (verdict.reasons, verdict.reason_records) if refusal is None else ((), ())
    return Result(
        submission=record.submission.name,
        manifest_sha256=record.id,
        verdict=verdict.decision,
        p_value=verdict.p_value,
        calibrated=verdict.calibrated,
        suspects=verdict.suspects,
        methods=tuple(_method(method, found) for method in verdict.methods),
        repair=_repair(repaired) if isinstance(repaired, Repaired) else None,
        report=str(settings.home / "reports" / f"{record.id}.html"),
        attestation=str(settings.home / "attestations" / f"{record.id}.json"),
        mlflow_run=None,
        sandbox_level=level,
        seconds=round(time.monotonic() - started, 3),
        reasons=(*said, *rendered(more)),
        reason_records=(*recorded, *records(more)),
        repairs=() if repaired is None else repaired.candidates,
        guards=guards,
        submitted_sha256=record.submission.submitted,
        first_look=seen.first_look,
        weights_sha256=seen.weights,
        match_weights_by=record.submission.match_weights_by,
    )


def guards_of(
    settings: Settings, answer: Answer, guarding: Guarding | None, policy: GuardPolicy
) -> ResultGuards | None:
    """What was fitted to guard the model, and whether the attestation that the gate answers with names it."""
    if guarding is None or answer.attestation is None:
        return None
    record = guarding.record
    stated = guards_in(attestation_at(open_store(settings), answer.attestation).claims)
    return ResultGuards(
        package=record.package if stated is not None and stated.package == record.package else None,
        action=policy.action,
        rate=policy.false_rejection_rate,
        false_rejections=record.false_rejections,
        guards=record.guards,
        seconds=record.seconds,
    )


def publish(
    settings: Settings,
    record: Record,
    data: Data,
    answer: Answer,
    result: Result,
    repaired: Repaired | Rejected | None,
) -> Blob:
    """Put the attestation and the report where people find them, record it in MLflow; the result with its run."""
    if answer.attestation is None:
        raise StoreError(f"expected a signed verdict on {record.id}, got one without attestation; vet it again")
    store, vetting = open_store(settings), Path(answer.attestation).stem
    attestation, page = Path(result.attestation), Path(result.report)
    try:
        for path in (attestation, page):
            path.parent.mkdir(parents=True, exist_ok=True)
        attestation.unlink(missing_ok=True)
        store.fetch(answer.attestation, attestation)
        run = _published(settings, store, record, vetting, result)
        published = run is not None
        stored = [read_evidence(settings, record.id, method, key) for method, key in answer.decided.evidence.items()]
        evidence = [item for item in stored if item is not None]
        chosen = repaired.restored.chosen if isinstance(repaired, Repaired) else None
        clean = Clean.first_of(Path(data.splits["test"])) if data.splits else None
        if run is None:
            with tempfile.TemporaryDirectory() as room:
                files = {"attestation.json": attestation, "report.html": Path(room, "report.html")}
                files["report.html"].write_text(_page(record, result, answer, evidence, chosen, clean, data), "utf-8")
                for name, content in trigger_pngs([item["evidence"] for item in evidence]).items():
                    files[f"triggers/{name}"] = Path(room, name.replace("/", "-"))
                    files[f"triggers/{name}"].write_bytes(content)
                run = record_vetting(settings, record.submission, record.id, result, files, vetting=vetting)
        result = replace(result, mlflow_run=run)
        # made anew from signed evidence each time: what lies in the store as a report is not signed
        page.write_text(_page(record, result, answer, evidence, chosen, clean, data), "utf-8")
        if published:
            return result.to_json()
        store.create(f"reports/{record.id}/{vetting}.html", page.read_bytes())
        store.create(f"results/{record.id}/{vetting}.json", json.dumps(result.to_json()).encode())
    except OSError as error:
        raise StoreError(
            f"expected to write the report of {record.id}, got {error}; free space and vet again"
        ) from error
    return result.to_json()


def _published(settings: Settings, store: Store, record: Record, vetting: str, result: Result) -> str | None:
    """The run in MLflow of this very result, if it was published whole before; None if any of it is to be done.

    It is written last, so MLflow and the report had all of it; asking MLflow again would take seconds.
    """
    database = sqlite_file(settings.tracking_uri)
    if database is not None and not database.exists():
        return None
    try:
        before = Result.from_json(json.loads(store.read(f"results/{record.id}/{vetting}.json")))
    except (KeyError, ValueError, StoreError):
        return None
    same = replace(before, mlflow_run=None, seconds=result.seconds).to_json() == result.to_json()
    return before.mlflow_run if same and store.exists(f"reports/{record.id}/{vetting}.html") else None


def _page(
    record: Record,
    result: Result,
    answer: Answer,
    evidence: list[Blob],
    chosen: RepairRecord | None,
    clean: Clean | None,
    data: Data,
) -> str:
    policy = answer.decided.policy
    return render(
        result,
        evidence=evidence,
        verdict=answer.decided.verdict,
        repair=chosen,
        submission=record.submission.model_dump(mode="json"),
        provenance={
            "Submitted": record.submitted_at,
            "Supplier": record.submission.supplier,
            "Repairs": record.submission.parent,
            "Handed in as": record.submission.submitted,
            "Weights matched by": record.submission.match_weights_by,
            "Policy": f"{policy.name}, SHA-256 {policy.sha256}",
            "Reference data": _source(data),
        },
        clean=clean,
    )


def _source(data: Data) -> str | None:
    source = data.source
    return f"{source['name']} at {source['rev'][:12]}, SHA-256 {source['sha256']}" if "name" in source else None


def refused(name: str, reason: Reason, seconds: float) -> NotTakenIn:
    """The answer for a directory that could not even be taken in; nothing of it is kept."""
    return NotTakenIn(name, round(seconds, 3), tuple(rendered([reason])), tuple(records([reason])))


def _method(method: StatedMethod, found: dict[str, Found]) -> ResultMethod:
    ran = found.get(method.name)
    return ResultMethod(
        method.name,
        method.statistic,
        method.alarmed,
        method.suspects,
        method.failure,
        None if ran is None else ran.seconds,
        method.counted,
    )


def _repair(repaired: Repaired) -> ResultRepair:
    restored, child = repaired.restored, repaired.result
    before, after = restored.figures.before, restored.figures.after
    return ResultRepair(
        method=restored.chosen.method,
        artifact=str(restored.directory / repaired.record.submission.model),
        submission=child.manifest_sha256,
        verdict=child.verdict,
        p_value=child.p_value,
        clean_accuracy=(before.clean_accuracy, after.clean_accuracy),
        attack_success=(before.attack_success, after.attack_success),
        robust_accuracy=(before.robust_accuracy, after.robust_accuracy),
    )


def _rejections(rejected: Rejected) -> list[Reason]:
    """Why each repair that was tried was not good enough, or was not tried."""
    return [Reason.from_json(one.reason_record) for one in rejected.candidates if one.reason_record is not None]
