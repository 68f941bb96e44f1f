"""The gate's own process: it holds the signing key, parses no model, and judges what it reads from the store itself.

`python -m flows.decide` answers one JSON request a line. On one machine it runs as the same user as everything else:
duties are then not separated, and the attestation says so.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from datetime import UTC, datetime, timedelta
from typing import IO, Any

from tasks.attestations import newest_attestation, save_attestation
from tasks.inspect import read_evidence
from tasks.intake import Record, read_record
from tasks.settings import Settings, load_settings
from tasks.store import Store, open_store
from vetgate import attest
from vetgate.digest import canonical_json, code_digest, sha256_json
from vetgate.errors import Denied, StoreError, VetgateError
from vetgate.keys import load_or_create_key, utc_now
from vetgate.policy import Policy, load_policy

Blob = dict[str, Any]


def main() -> None:
    """Answer requests until standard input ends."""
    answers: IO[str] = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import vetgate.judge  # noqa: F401 - imports torch while nobody waits for an answer yet

    settings = load_settings()
    for line in sys.stdin:
        try:
            answer = decide(settings, json.loads(line))
        except VetgateError as error:
            answer = {"error": str(error), "kind": type(error).__name__}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"the gate met {type(error).__name__}: {error}; see its log", "kind": "StoreError"}
        print(json.dumps(answer, allow_nan=False), file=answers, flush=True)


def decide(settings: Settings, request: Blob) -> Blob:
    """Judge the evidence that a request names, keep and sign the verdict; its record, with its attestation's key."""
    from vetgate.calibration import load_calibration
    from vetgate.contract import Evidence, Failure
    from vetgate.judge import judge

    store = open_store(settings)
    policy = load_policy(settings.policy)
    record = read_record(store, request["manifest"])
    found = {
        method: _needed(read_evidence(store, record.id, method, key), method, key)
        for method, key in request["evidence"].items()
    }
    for method, item in found.items():
        _bound(record, request, method, item)
    calibration = load_calibration(settings.calibration)
    seen: list[Evidence | Failure] = [Evidence.from_json(item["evidence"]) for item in found.values()]
    seen += [Failure(method, reason) for method, reason in request["failures"].items()]
    level = min([request["sandbox_level"], *(item["sandbox_level"] for item in found.values())])
    verdict = judge(
        seen,
        policy,
        calibration,
        classes=record.submission.n_classes,
        data_sha256=(request["reference_data"] or {}).get("sha256"),
        with_training_data=record.submission.training_data is not None,
        sandbox_level=level,
        format=record.submission.format,
    ).to_json()
    about = {
        "manifest": record.id,
        "name": record.submission.name,
        "verdict": verdict,
        "evidence": request["evidence"],
        "failures": request["failures"],
        "policy": {"name": policy.name, "sha256": policy.digest},
        "reference_data": request["reference_data"],
        "sandbox_level": level,
    }
    key = sha256_json(about)
    _keep_verdict(store, record, key, about)
    return {**about, "key": key, "attestation": _attest(settings, store, record, policy, about, found)}


def _needed(found: Blob | None, method: str, key: str) -> Blob:
    if found is None:
        raise StoreError(f"expected evidence {method}/{key} in the store, got none; vet again")
    return found


def _bound(record: Record, request: Blob, method: str, item: Blob) -> None:
    """Raise StoreError when evidence was not made for this submission by this code, on this data, from its seed."""
    about, evidence = item["about"], item["evidence"]
    data = {k: v for k, v in (request["reference_data"] or {}).items() if k in ("splits", "training")}
    expected = {"method": method, "code": code_digest("detect", method), "seed": record.seed, "data": data}
    given = {name: about.get(name) for name in expected}
    if given != expected or (evidence["method"], evidence["seed"]) != (method, record.seed):
        raise StoreError(f"expected evidence of {method} made with {expected}, got {given}; vet it again")


def _keep_verdict(store: Store, record: Record, key: str, about: Blob) -> None:
    kept = {**about, "key": key, "decided_at": datetime.now(UTC).isoformat(timespec="microseconds")}
    store.create(f"verdicts/{record.id}/{key}.json", canonical_json(kept))


def _attest(
    settings: Settings, store: Store, record: Record, policy: Policy, about: Blob, found: dict[str, Blob]
) -> str:
    """Sign the verdict; the key of its attestation."""
    now = utc_now()
    try:
        newest = newest_attestation(store, record.id)
    except Denied:
        # somebody altered an earlier one: promotion will refuse these bytes, and this statement cannot name it
        newest = None
    signing = load_or_create_key(settings.gate_key, settings.trust_root, now=now)
    methods = [
        {k: v for k, v in result.items() if k != "null"}
        | {k: found[result["name"]]["about"][k] for k in ("params", "seed", "code") if result["name"] in found}
        for result in about["verdict"]["methods"]
    ]
    predicate = attest.verdict_predicate(
        name=record.submission.name,
        verdict=about["verdict"]["decision"],
        issued=now,
        valid=timedelta(days=policy.valid_days),
        policy=about["policy"],
        methods=methods,
        reference_data=about["reference_data"],
        calibration=about["verdict"].get("calibration"),
        sandbox_level=about["sandbox_level"],
        reasons=about["verdict"]["reasons"],
        previous=attest.digest(newest.envelope) if newest else None,
        duties_separated=False,
        supplier=record.submission.supplier,
        parent=record.submission.parent,
    )
    envelope = attest.sign(attest.statement(record.manifest.digests, record.id, predicate), signing)
    return save_attestation(store, record.id, envelope)


if __name__ == "__main__":
    main()
