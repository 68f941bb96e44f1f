"""The result of a vetting: one object for people and programs, with the report and MLflow's record of it."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

from tasks.mlflow.client import SQLITE
from tasks.mlflow.vettings import record_vetting
from tasks.report.page import Clean, render
from tasks.report.trigger_images import trigger_pngs
from tasks.settings import Settings
from tasks.store.base import Store
from tasks.store.open import open_store
from tasks.vetting.inspect import Case, Found, read_evidence
from tasks.vetting.intake import Record
from vetgate.errors import StoreError
from vetgate.verdict.reasons import Code, Reason, records
from vetgate.verdict.wording import rendered

Blob = dict[str, Any]


def result_of(
    settings: Settings,
    record: Record,
    ruling: Blob,
    found: dict[str, Found],
    repaired: Blob | None,
    refusal: Reason | None,
    level: int,
    started: float,
) -> Blob:
    """Design.md's object; what it points to is written by `publish`."""
    verdict = ruling["verdict"]
    more = [refusal] if refusal is not None else _rejections(repaired)
    shown = [verdict[name] if refusal is None else [] for name in ("reasons", "reason_records")]
    return {
        "submission": record.submission.name,
        "manifest_sha256": record.id,
        "verdict": verdict["decision"],
        "p_value": verdict["p_value"],
        "calibrated": verdict["calibrated"],
        "suspects": verdict["suspects"],
        "methods": [_method(method, found) for method in verdict["methods"]],
        "repair": _repair(repaired),
        "report": str(settings.home / "reports" / f"{record.id}.html"),
        "attestation": str(settings.home / "attestations" / f"{record.id}.json"),
        "mlflow_run": None,
        "sandbox_level": level,
        "seconds": round(time.monotonic() - started, 3),
        "reasons": [*shown[0], *rendered(more)],
        "reason_records": [*shown[1], *records(more)],
    }


def publish(settings: Settings, record: Record, case: Case, ruling: Blob, result: Blob, repaired: Blob | None) -> Blob:
    """Put the attestation and the report where people find them, tell MLflow, and return the result with its run."""
    store = open_store(settings)
    attestation, page = Path(result["attestation"]), Path(result["report"])
    try:
        for path in (attestation, page):
            path.parent.mkdir(parents=True, exist_ok=True)
        attestation.unlink(missing_ok=True)
        store.fetch(ruling["attestation"], attestation)
        stem = Path(ruling["attestation"]).stem
        if (run := _published(settings, store, record, stem, result)) is not None:
            page.unlink(missing_ok=True)
            store.fetch(f"reports/{record.id}/{stem}.html", page)
            return {**result, "mlflow_run": run}
        stored = [read_evidence(store, record.id, method, key) for method, key in ruling["evidence"].items()]
        evidence = [item for item in stored if item is not None]
        clean = Clean.first_of(Path(case.data.splits["test"])) if case.data.splits else None
        with tempfile.TemporaryDirectory() as room:
            files = {"attestation.json": attestation, "report.html": Path(room, "report.html")}
            files["report.html"].write_text(_page(record, result, ruling, evidence, repaired, clean, case))
            for name, content in trigger_pngs([item["evidence"] for item in evidence]).items():
                files[f"triggers/{name}"] = Path(room, name.replace("/", "-"))
                files[f"triggers/{name}"].write_bytes(content)
            run = record_vetting(settings, record.submission, record.id, result, files, vetting=stem)
        result = {**result, "mlflow_run": run}
        page.write_text(_page(record, result, ruling, evidence, repaired, clean, case))
        store.create(f"reports/{record.id}/{stem}.html", page.read_bytes())
        store.create(f"results/{record.id}/{stem}.json", json.dumps(result).encode())
    except OSError as error:
        raise StoreError(
            f"expected to write the report of {record.id}, got {error}; free space and vet again"
        ) from error
    return result


def _published(settings: Settings, store: Store, record: Record, stem: str, result: Blob) -> str | None:
    """The run in MLflow of this very result, if it was published whole before; None if any of it is to be done.

    It is written last, so MLflow and the report had all of it; asking MLflow again would take seconds.
    """
    database = settings.tracking_uri.removeprefix(SQLITE)
    if database != settings.tracking_uri and not Path(database).exists():
        return None
    try:
        before: Blob = json.loads(store.read(f"results/{record.id}/{stem}.json"))
    except (KeyError, ValueError):
        return None
    run = before.get("mlflow_run")
    same = {**before, "mlflow_run": None, "seconds": result["seconds"]} == json.loads(json.dumps(result))
    return run if same and isinstance(run, str) and store.exists(f"reports/{record.id}/{stem}.html") else None


def _page(
    record: Record,
    result: Blob,
    ruling: Blob,
    evidence: list[Blob],
    repaired: Blob | None,
    clean: Clean | None,
    case: Case,
) -> str:
    chosen = (repaired or {}).get("chosen")
    return render(
        result,
        evidence=evidence,
        verdict=ruling["verdict"],
        repaired=None if chosen is None else {**chosen, "result": (repaired or {}).get("result")},
        calibration=ruling["verdict"].get("calibration"),
        submission=record.submission.model_dump(mode="json"),
        provenance={
            "Submitted": record.submitted_at,
            "Supplier": record.submission.supplier,
            "Repairs": record.submission.parent,
            "Policy": f"{ruling['policy']['name']}, SHA-256 {ruling['policy']['sha256']}",
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


def _method(method: Blob, found: dict[str, Found]) -> Blob:
    ran = found.get(method["name"])
    fields = {key: method[key] for key in ("name", "statistic", "alarmed", "suspects", "failure")}
    return {**fields, "seconds": None if ran is None else ran.seconds}


def _repair(repaired: Blob | None) -> Blob | None:
    if repaired is None or "chosen" not in repaired:
        return None
    before, after = repaired["test"]["before"], repaired["test"]["after"]
    child = repaired["result"]
    return {
        "method": repaired["chosen"]["method"],
        "artifact": str(Path(repaired["directory"]) / repaired["record"]["submission"]["model"]),
        "submission": child["manifest_sha256"],
        "verdict": child["verdict"],
        "p_value": child["p_value"],
        "clean_accuracy": [before["clean_accuracy"], after["clean_accuracy"]],
        "attack_success": [before["attack_success"], after["attack_success"]],
    }


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
