"""The result of a vetting: one object for people and programs, with the report and MLflow's record of it."""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from flows.gate.decided import Answer
from tasks.mlflow.client import SQLITE
from tasks.mlflow.vettings import record_vetting
from tasks.report.page import Clean, render
from tasks.report.trigger_images import trigger_pngs
from tasks.settings import Settings
from tasks.store.base import Store
from tasks.store.open import open_store
from tasks.vetting.inspect import Case, Found, read_evidence
from tasks.vetting.intake import Record
from tasks.vetting.results import Result, ResultMethod, ResultRepair
from vetgate.errors import StoreError
from vetgate.shape import Blob
from vetgate.verdict.reasons import Code, Reason, records
from vetgate.verdict.stated import StatedMethod
from vetgate.verdict.wording import rendered


def result_of(
    settings: Settings,
    record: Record,
    answer: Answer,
    found: dict[str, Found],
    repaired: Blob | None,
    refusal: Reason | None,
    level: int,
    started: float,
) -> Result:
    """Design.md's object; what it points to is written by `publish`."""
    verdict = answer.decided.verdict
    more = [refusal] if refusal is not None else _rejections(repaired)
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
        repair=_repair(repaired),
        report=str(settings.home / "reports" / f"{record.id}.html"),
        attestation=str(settings.home / "attestations" / f"{record.id}.json"),
        mlflow_run=None,
        sandbox_level=level,
        seconds=round(time.monotonic() - started, 3),
        reasons=(*said, *rendered(more)),
        reason_records=(*recorded, *records(more)),
    )


def publish(
    settings: Settings, record: Record, case: Case, answer: Answer, result: Result, repaired: Blob | None
) -> Blob:
    """Put the attestation and the report where people find them, tell MLflow; the result as JSON, with its run."""
    if answer.attestation is None:
        raise StoreError(f"expected a signed verdict on {record.id}, got one without attestation; vet it again")
    store, vetting = open_store(settings), Path(answer.attestation).stem
    attestation, page = Path(result.attestation), Path(result.report)
    try:
        for path in (attestation, page):
            path.parent.mkdir(parents=True, exist_ok=True)
        attestation.unlink(missing_ok=True)
        store.fetch(answer.attestation, attestation)
        if (run := _published(settings, store, record, vetting, result)) is not None:
            page.unlink(missing_ok=True)
            store.fetch(f"reports/{record.id}/{vetting}.html", page)
            return replace(result, mlflow_run=run).to_json()
        kept = [read_evidence(store, record.id, method, key) for method, key in answer.decided.evidence.items()]
        evidence = [item for item in kept if item is not None]
        clean = Clean.first_of(Path(case.data.splits["test"])) if case.data.splits else None
        with tempfile.TemporaryDirectory() as room:
            files = {"attestation.json": attestation, "report.html": Path(room, "report.html")}
            files["report.html"].write_text(_page(record, result, answer, evidence, repaired, clean, case))
            for name, content in trigger_pngs([item["evidence"] for item in evidence]).items():
                files[f"triggers/{name}"] = Path(room, name.replace("/", "-"))
                files[f"triggers/{name}"].write_bytes(content)
            run = record_vetting(settings, record.submission, record.id, result.to_json(), files, vetting=vetting)
        result = replace(result, mlflow_run=run)
        page.write_text(_page(record, result, answer, evidence, repaired, clean, case))
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
    database = settings.tracking_uri.removeprefix(SQLITE)
    if database != settings.tracking_uri and not Path(database).exists():
        return None
    try:
        before: Blob = json.loads(store.read(f"results/{record.id}/{vetting}.json"))
    except (KeyError, ValueError):
        return None
    run = before.get("mlflow_run")
    same = {**before, "mlflow_run": None, "seconds": result.seconds} == result.to_json()
    return run if same and isinstance(run, str) and store.exists(f"reports/{record.id}/{vetting}.html") else None


def _page(
    record: Record,
    result: Result,
    answer: Answer,
    evidence: list[Blob],
    repaired: Blob | None,
    clean: Clean | None,
    case: Case,
) -> str:
    chosen, policy, verdict = (repaired or {}).get("chosen"), answer.decided.policy, answer.decided.verdict.to_json()
    return render(
        result.to_json(),
        evidence=evidence,
        verdict=verdict,
        repaired=None if chosen is None else {**chosen, "result": (repaired or {}).get("result")},
        calibration=verdict["calibration"],
        submission=record.submission.model_dump(mode="json"),
        provenance={
            "Submitted": record.submitted_at,
            "Supplier": record.submission.supplier,
            "Repairs": record.submission.parent,
            "Policy": f"{policy.name}, SHA-256 {policy.sha256}",
            "Reference data": _source(case),
        },
        clean=clean,
    )


def _source(case: Case) -> str | None:
    source = case.data.source
    return f"{source['name']} at {source['rev'][:12]}, SHA-256 {source['sha256']}" if "name" in source else None


def refused(name: str, reason: Reason, seconds: float) -> Blob:
    """The object for a directory that could not even be taken in; nothing of it is kept."""
    empty: Blob = dict.fromkeys(("manifest_sha256", "p_value", "repair", "report", "attestation", "mlflow_run"))
    return {
        "submission": name,
        **empty,
        "verdict": "INCONCLUSIVE",
        "calibrated": False,
        "suspects": [],
        "methods": [],
        "sandbox_level": None,
        "seconds": round(seconds, 3),
        "reasons": rendered([reason]),
        "reason_records": records([reason]),
    }


def _method(method: StatedMethod, found: dict[str, Found]) -> ResultMethod:
    ran = found.get(method.name)
    return ResultMethod(
        method.name,
        method.statistic,
        method.alarmed,
        method.suspects,
        method.failure,
        None if ran is None else ran.seconds,
    )


def _repair(repaired: Blob | None) -> ResultRepair | None:
    if repaired is None or "chosen" not in repaired:
        return None
    before, after = repaired["test"]["before"], repaired["test"]["after"]
    child = repaired["result"]
    return ResultRepair(
        method=repaired["chosen"]["method"],
        artifact=str(Path(repaired["directory"]) / repaired["record"]["submission"]["model"]),
        submission=child["manifest_sha256"],
        verdict=child["verdict"],
        p_value=child["p_value"],
        clean_accuracy=(before["clean_accuracy"], after["clean_accuracy"]),
        attack_success=(before["attack_success"], after["attack_success"]),
    )


def _rejections(repaired: Blob | None) -> list[Reason]:
    """Why each repair that was tried was not good enough."""
    reasons = []
    for record in (repaired or {}).get("rejected", []):
        if record["failure"] is not None:
            reasons.append(Reason(Code.REPAIR_FAILED, record["method"], figures={"said": record["failure"]}))
        else:
            before, after = record["validate"]["before"], record["validate"]["after"]
            figures = {
                "accuracy_before": before["clean_accuracy"],
                "accuracy_after": after["clean_accuracy"],
                "success_before": before["attack_success"],
                "success_after": after["attack_success"],
                "natural": record["validate"]["natural"],
            }
            reasons.append(Reason(Code.REPAIR_NOT_GOOD_ENOUGH, record["method"], figures=figures))
    return reasons
