"""Read evidence and judge it: one run of the detectors, bound to its submission, code, data and seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flows.gate.issue import SigningContext
from tasks.vetting.inspect import read_evidence
from vetgate.digest import code_digest, sha256_json
from vetgate.errors import StoreError

if TYPE_CHECKING:
    from vetgate.verdict.judge import Verdict

Blob = dict[str, Any]


@dataclass(frozen=True)
class Judged:
    """One run of the detectors, judged: the verdict, the evidence by method, and the request that named it."""

    verdict: Verdict
    found: dict[str, Blob]
    request: Blob
    sandbox_level: int

    @property
    def run(self) -> str:
        """The name of the run, whose seed the evidence carries."""
        return str(self.request.get("run", ""))


def judged_of(context: SigningContext, request: Blob) -> Judged:
    """The verdict on one run's evidence, read from the store and bound to this submission and run."""
    from vetgate.contract import Evidence, Failure
    from vetgate.verdict.calibration import load_calibration
    from vetgate.verdict.judge import judge

    record = context.record
    found = {
        method: _needed(read_evidence(context.store, record.id, method, key), method, key)
        for method, key in request["evidence"].items()
    }
    for method, item in found.items():
        _bound(context, request, method, item)
    codes = request.get("failure_codes") or {}
    seen: list[Evidence | Failure] = [Evidence.from_json(item["evidence"]) for item in found.values()]
    seen += [
        Failure(method, reason, str(codes.get(method, "failed"))) for method, reason in request["failures"].items()
    ]
    level = min([request["sandbox_level"], *(item["sandbox_level"] for item in found.values())])
    verdict = judge(
        seen,
        context.policy,
        load_calibration(context.settings.calibration),
        classes=record.submission.n_classes,
        data_sha256=(request["reference_data"] or {}).get("sha256"),
        with_training_data=record.submission.training_data is not None,
        sandbox_level=level,
        format=record.submission.format,
        data_name=(request["reference_data"] or {}).get("name"),
    )
    return Judged(verdict, found, request, level)


def second_of(context: SigningContext, request: Blob) -> Judged:
    second = {**request["second"], "manifest": context.record.id}
    if str(second.get("run", "")) == str(request.get("run", "")):
        raise StoreError("expected a second run with a seed of its own, got the first again; examine under another run")
    return judged_of(context, second)


def _needed(found: Blob | None, method: str, key: str) -> Blob:
    if found is None:
        raise StoreError(f"expected evidence {method}/{key} in the store, got none; vet again")
    return found


def _bound(context: SigningContext, request: Blob, method: str, item: Blob) -> None:
    """Raise StoreError when evidence was not made for this submission by this code, on this data, from its seed."""
    about, evidence, seed = item["about"], item["evidence"], context.record.seed_for(str(request.get("run", "")))
    data = {k: v for k, v in (request["reference_data"] or {}).items() if k in ("splits", "training")}
    expected = {"method": method, "code": code_digest("detect", method), "seed": seed, "data": data}
    given = {name: about.get(name) for name in expected}
    if given != expected or (evidence["method"], evidence["seed"]) != (method, seed):
        raise StoreError(f"expected evidence of {method} made with {expected}, got {given}; vet it again")


def about_of(context: SigningContext, judged: Judged, purpose: str, second: Judged | None = None) -> Blob:
    """The record of a decision and, as `key`, its digest."""
    request = judged.request
    about = {
        "manifest": context.record.id,
        "name": context.record.submission.name,
        "verdict": judged.verdict.to_json(),
        "evidence": request["evidence"],
        "failures": request["failures"],
        "policy": {"name": context.policy.name, "sha256": context.policy.digest},
        "reference_data": request["reference_data"],
        "sandbox_level": judged.sandbox_level,
        "purpose": purpose,
        "run": judged.run,
        "refused": bool(request.get("refused", False)),
        "second": None if second is None else _confirmation(second),
    }
    return {**about, "key": key_of(about)}


def _confirmation(second: Judged) -> Blob:
    inputs = {name: second.request[name] for name in ("evidence", "failures")}
    verdict = second.verdict
    said = {"decision": verdict.decision.value, "p_value": verdict.p_value, "suspects": list(verdict.suspects)}
    return {"run": second.run, **said, **inputs}


def key_of(about: Blob) -> str:
    """The digest of a decision: of what it rests on, not of the words for it."""
    verdict = {name: value for name, value in about["verdict"].items() if name != "reasons"}
    verdict["methods"] = [{**method, "failure": method["failure"] is not None} for method in verdict["methods"]]
    return sha256_json({**{name: value for name, value in about.items() if name != "key"}, "verdict": verdict})


def methods_of(judged: Judged, about: Blob) -> list[Blob]:
    made = {name: item["about"] for name, item in judged.found.items()}
    return [
        {k: v for k, v in method.items() if k != "null"}
        | {k: made[method["name"]][k] for k in ("params", "seed", "code") if method["name"] in made}
        for method in about["verdict"]["methods"]
    ]
