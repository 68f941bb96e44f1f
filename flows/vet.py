"""Vet one submission: what happens in which order, from the quarantined bytes to a signed verdict and a repair."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from flows.gate import gate
from flows.params import Params, load_params, needs, uses
from flows.result import publish, result_of
from tasks import inspect, intake, repair
from tasks.bench import Bench, open_bench, warm
from tasks.inspect import Case, Data, Found
from tasks.intake import Record
from tasks.prepare import prepare
from tasks.progress import tell
from tasks.sandbox import Limits, SandboxError
from tasks.settings import Settings, load_settings
from tasks.store import open_store
from vetgate.errors import NotUnderstood, StoreError
from vetgate.policy import Policy, load_policy

Blob = dict[str, Any]


@dataclass(frozen=True)
class Vetting:
    """What one vetting goes by; `case` is what its methods run on."""

    settings: Settings
    record: Record
    policy: Policy
    params: Params
    case: Case


@dataclass(frozen=True)
class Seen:
    """What the detectors found, or why nothing could be looked for."""

    found: tuple[Found, ...] = ()
    refusal: str | None = None


def step(function: Callable[..., Any], name: str) -> Any:
    """One piece of work as a Prefect task; what outlives a run is kept by the work itself, under its own key."""

    def told(*given: Any) -> Any:
        tell(name, 0)
        try:
            return function(*given)
        finally:
            tell(name, 1)

    made = task(name=name, task_run_name=name, persist_result=True, result_serializer="json", cache_policy=NO_CACHE)
    return made(told)


@flow(name="vet", flow_run_name="vet-{manifest_sha256}", persist_result=True, result_serializer="json")
def vet(manifest_sha256: str) -> Blob:
    """The result of vetting a submission: design.md's object, its verdict signed and kept in the store.

    What an earlier run of the same submission finished is not done again.
    """
    started = time.monotonic()
    settings = load_settings()
    policy, params = load_policy(settings.policy), load_params(settings.params)
    for method in policy.repair.methods:
        # a name that does not exist is said before hours of work, not after
        uses(method)
    record = intake.read_record(open_store(settings), manifest_sha256)
    gate(settings)
    with open_bench(settings, record.id) as bench:
        case = Case(
            manifest=record.id,
            directory=str(bench.given / "submission"),
            submission=record.submission.model_dump(mode="json"),
            seed=record.seed,
            limits=Limits(wall_seconds=policy.timeout_seconds, memory_bytes=policy.memory_bytes),
        )
        vetting, seen = _examine(Vetting(settings, record, policy, params, case), bench)
        ruling = step(_decide, "decide")(vetting, seen, bench.sandbox.level)
        mended = _repair(vetting, seen, ruling)
    if mended is not None:
        mended = _vet_again(vetting, mended)
    found = {item.method: item for item in seen.found}
    result = result_of(settings, record, ruling, found, mended, seen.refusal, bench.sandbox.level, started)
    published: Blob = step(publish, "report and register")(settings, record, vetting.case, ruling, result, mended)
    return published


def _examine(vetting: Vetting, bench: Bench) -> tuple[Vetting, Seen]:
    """The case with its data, and what was seen of it; a submission that is not understood is refused, not an error."""
    wanted = vetting.policy.sandbox_level.get(vetting.record.submission.format, 1)
    if bench.sandbox.level < wanted:
        return vetting, Seen(
            refusal=f"the policy demands sandbox level {wanted}, this host gives {bench.sandbox.level}"
        )
    step(_fetch, "take in")(vetting)
    pending = step(prepare, "reference data").submit(vetting.settings, vetting.record.submission, vetting.params.data)
    try:
        step(inspect.look, "inspect and load")(vetting.case)
        data: Data = Data(**pending.result())
    except (NotUnderstood, SandboxError) as error:
        return vetting, Seen(refusal=str(error))
    vetting = replace(vetting, case=replace(vetting.case, data=data))
    found = []
    for method, params in vetting.params.detect.items():
        if "train" in needs("detect", method) and data.training is None:
            continue
        detect = step(inspect.detect, f"detect {method}")
        try:
            found.append(Found(**detect(vetting.settings, vetting.case, method, params)))
        except NotUnderstood as error:
            return vetting, Seen(tuple(found), str(error))
    return vetting, Seen(tuple(found))


def _fetch(vetting: Vetting) -> None:
    intake.fetch(open_store(vetting.settings), vetting.record, Path(vetting.case.directory))


def _decide(vetting: Vetting, seen: Seen, level: int) -> Blob:
    policy, submission = vetting.policy, vetting.record.submission
    failures = {item.method: item.failure for item in seen.found if item.failure is not None}
    if seen.refusal is not None:
        required = policy.required + (policy.required_with_training_data if submission.training_data else ())
        failures = dict.fromkeys(required, seen.refusal) | failures
    return gate(vetting.settings).decide(
        {
            "manifest": vetting.record.id,
            "evidence": {item.method: item.key for item in seen.found if item.key is not None},
            "failures": failures,
            "reference_data": vetting.case.data.source or None,
            "sandbox_level": level,
        }
    )


def _repair(vetting: Vetting, seen: Seen, ruling: Blob) -> Blob | None:
    """The chosen repair, restored under <home>/repaired and measured on the test images; None if none is allowed."""
    policy, verdict, settings, case = vetting.policy.repair, ruling["verdict"], vetting.settings, vetting.case
    wanted = policy.enabled and (verdict["decision"] == "FAIL" or (policy.blind and verdict["decision"] == "PASS"))
    # what came from a repair is not repaired again: a supplier could otherwise keep this machine busy for ever
    if not wanted or vetting.record.submission.parent is not None or not case.data.splits:
        return None
    warm(settings)
    candidates = []
    for method in policy.methods:
        evidence = _evidence_for(vetting, seen, method, verdict["suspects"])
        params, inversion = vetting.params.repair.get(method, {}), vetting.params.detect.get("neural_cleanse", {})
        mend = step(repair.repair, f"repair {method}")
        candidates.append(mend(settings, case, method, params, evidence, verdict["suspects"], inversion))
    chosen = repair.choose(candidates, policy)
    if chosen is None:
        return {"rejected": candidates}
    directory = settings.home / "repaired" / case.manifest
    repair.restore(settings, case, chosen, directory)
    figures = step(repair.report_figures, "re-evaluate")(case, chosen, directory)
    return {"chosen": chosen, "directory": str(directory), "test": figures}


def _evidence_for(vetting: Vetting, seen: Seen, method: str, suspects: list[int]) -> list[Blob]:
    """The records of evidence that hold what a repair uses: rows, neurons, or a trigger that leads to a suspect."""
    wanted = uses(method)
    store = open_store(vetting.settings)
    holding = []
    for item in seen.found:
        record = item.key and inspect.read_evidence(store, vetting.record.id, item.method, item.key)
        if not record:
            continue
        evidence = record["evidence"]
        led = [trigger for trigger in evidence["triggers"] if trigger["target"] in suspects]
        holds = {
            "triggers": bool(led),
            "neurons": evidence["neurons"] is not None,
            "flagged": evidence["axis"] == "train",
        }
        if wanted is not None and holds[wanted]:
            holding.append(record)
    return holding


def _vet_again(vetting: Vetting, mended: Blob) -> Blob:
    """The repaired model as a submission of its own, vetted from the first step by the same rules."""
    if "chosen" not in mended:
        return mended
    record = intake.take(vetting.settings, Path(mended["directory"]))
    submission = record.submission
    if submission.parent != vetting.record.id or submission.name != vetting.record.submission.name:
        raise StoreError(f"expected a repair of {vetting.record.id}, got one of {submission.parent}; it is refused")
    return {**mended, "record": record.to_json(), "result": vet(record.id)}
