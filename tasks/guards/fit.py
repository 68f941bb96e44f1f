"""Fit run-time guards to a submitted model in the sandbox, measure them, and keep what serving needs, signed once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.guards.package_file import keep
from tasks.progress import progress_of
from tasks.sandbox.answers import printable
from tasks.sandbox.host import SandboxError
from tasks.settings import Settings
from tasks.store.open import open_store
from tasks.vetting import signed_results
from tasks.vetting.basis import records_with
from tasks.vetting.evaluate import area
from tasks.vetting.inspect import Case, Found, bound, log_invocation
from tasks.vetting.results import GuardRecord, ResultGuard
from tasks.vetting.workplace import workplace_of
from vetgate.digest import code_digest, sha256_json
from vetgate.errors import DefenceError, NotUnderstood, StoreError
from vetgate.formats.manifest import hash_directory
from vetgate.packed import array_of
from vetgate.role import guard_roles, source_of
from vetgate.shape import Blob, Shaped
from vetgate.trust.statements import GUARDS
from vetgate.verdict.policy import GuardPolicy

# which figures a record holds; one that an earlier version wrote, with others, lies under another key
FIGURES = 1
WHAT = "guard"
# pixel values of the images of each purpose, in bounds of their number, so that they fit beside a large network
VALUES, FEWEST, MOST = 2**27, 128, 2048


@dataclass(frozen=True)
class Guarding(Shaped):
    """The guards of a model and the key of their signed record; None where nothing was signed."""

    record: GuardRecord
    key: str | None


def run_guards(
    settings: Settings, case: Case, wanted: Mapping[str, Blob], policy: GuardPolicy, found: Sequence[Found]
) -> Guarding:
    """The guards `wanted` (name -> parameters) for this model: from the store if there, else fitted, measured, saved.

    Where the sandbox could not, each says why, nothing is signed, and the next vetting tries again.
    """
    evidence, triggers = _basis(settings, case, wanted, found)
    about = {
        "manifest": case.manifest,
        "guards": pins(wanted),
        "rate": policy.false_rejection_rate,
        "max_slowdown": policy.max_slowdown,
        "evidence": [sha256_json(item) for item in evidence],
        "measured_by": sha256_json(triggers),
        "data": bound(case.data.source),
        "run": case.run,
        "seed_commitment": case.seed.commitment,
        "figures": FIGURES,
    }
    saved = signed_results.find(settings, GUARDS, about)
    if saved is not None:
        return Guarding(GuardRecord.from_json(saved.found), saved.key)
    log_invocation(open_store(settings), case.manifest, WHAT, sha256_json(about))
    out = workplace_of(case.manifest).made / f"{WHAT}-{sha256_json(about)}"
    payload = {
        **case.model,
        "wanted": wanted,
        "clean": case.data.files("repair"),
        "held": case.data.files("validate"),
        "samples": case.data.files("test"),
        "evidence": [{**item["evidence"], "seed": case.seed.number} for item in evidence],
        "triggers": triggers,
        "rows": max(FEWEST, min(MOST, VALUES // math.prod(case.submission["input_shape"]))),
        "rate": policy.false_rejection_rate,
        "max_slowdown": policy.max_slowdown,
        "seed": case.seed.number,
        "parent": case.manifest,
        "out": str(out),
    }
    try:
        sandbox = workplace_of(case.manifest).sandbox
        answer = sandbox.call(WHAT, payload, limits=case.limits.single, on_progress=progress_of(WHAT))
        record = _record(answer, wanted, policy, _package(out))
    except (SandboxError, DefenceError, NotUnderstood) as error:
        failed = tuple(ResultGuard(name, False, str(error)) for name in wanted)
        return Guarding(GuardRecord(failed, None, None, 0.0), None)
    if record.package is not None:
        keep(open_store(settings), case.manifest, _only_file(out), record.package)
    saved = signed_results.save(settings, GUARDS, about, record.to_json())
    return Guarding(record, saved.key)


def pins(wanted: Mapping[str, Blob]) -> dict[str, Blob]:
    """The code and the parameters of guards, by name."""
    return {name: {"code": code_digest("guard", name), "params": dict(params)} for name, params in wanted.items()}


def settings_digest(made_with: Mapping[str, Blob], policy: GuardPolicy) -> str:
    """The digest of all that a person can change of guards: their `pins`, and the policy."""
    return sha256_json({"guards": dict(made_with), "policy": policy.model_dump(mode="json", exclude={"methods"})})


def _basis(
    settings: Settings, case: Case, wanted: Mapping[str, Blob], found: Sequence[Found]
) -> tuple[list[Blob], list[Blob]]:
    """The records of evidence that the guards use, and the reversed triggers that they are measured by."""
    labels = range(case.n_classes)
    used = sorted({uses for name in wanted if (uses := guard_roles()[name].uses) is not None})
    by_key = {
        sha256_json(record): record for what in used for record in records_with(settings, case, found, what, labels)
    }
    source = source_of("triggers", {item.method: None for item in found if item.key is not None})
    reversed_ = [item for item in found if item.method == source]
    records = records_with(settings, case, reversed_, "triggers", labels)
    return list(by_key.values()), suspicious([record["evidence"] for record in records])


def suspicious(evidence: Sequence[Blob]) -> list[Blob]:
    """The triggers that lead to labels which their detector flags, or else the one with the smallest mask."""
    flagged: list[Blob] = []
    others: list[Blob] = []
    for item in evidence:
        try:
            scores, cutoff = array_of(item["scores"], most=None), item["cutoff"]
            for trigger in item["triggers"]:
                alarming = cutoff is not None and bool(scores[trigger["target"]] >= cutoff)
                (flagged if alarming else others).append(trigger)
        except (KeyError, IndexError, TypeError, ValueError):
            # it came out of the sandbox; what cannot be read is nothing to measure by
            continue
    return flagged or ([min(others, key=area)] if others else [])


def _package(out: Path) -> str | None:
    """SHA-256 of the one file in the directory that the sandbox wrote, None where it wrote none."""
    if not out.is_dir():
        return None
    manifest = hash_directory(out)
    if len(manifest.files) != 1:
        raise DefenceError(f"expected one file of guards from the sandbox, got {len(manifest.files)}; refuse the model")
    return manifest.files[0].sha256


def _only_file(out: Path) -> Path:
    return next(out.iterdir())


def _record(answer: Blob, wanted: Mapping[str, Blob], policy: GuardPolicy, package: str | None) -> GuardRecord:
    """What the sandbox said of the guards, in the order in which they are wanted; raises DefenceError for no answer."""
    try:
        unfitted = {str(name): printable(str(reason)) for name, reason in answer["unfitted"].items()}
        said = [ResultGuard.from_json(blob) for blob in answer["guards"]]
        guards = {one.name: one if one.chosen else _too_slow(one, policy) for one in said}
        guards |= {name: ResultGuard(name, False, reason) for name, reason in unfitted.items()}
        shares = [share for one in said for share in (one.false_rejections, one.detection) if share is not None]
        fits = guards.keys() == wanted.keys() and len(said) + len(unfitted) == len(wanted)
        rates = [one.rate or 0.0 for one in said if one.chosen]
        if not fits or not all(0 <= share <= 1 for share in shares) or bool(rates) != (package is not None):
            raise ValueError(f"guards {', '.join(guards)} and {len(rates)} chosen")
        if any(rate <= 0 for rate in rates) or sum(rates) > policy.false_rejection_rate * (1 + 1e-9):
            raise ValueError(f"rates {rates}")
        ordered = tuple(guards[name] for name in wanted)
        blob: dict[str, Any] = {
            "guards": [one.to_json() for one in ordered],
            "package": package,
            "false_rejections": answer["false_rejections"],
            "seconds": answer["seconds"],
        }
        return GuardRecord.from_json(blob)
    except (KeyError, TypeError, ValueError, AttributeError, StoreError) as error:
        raise DefenceError(f"expected the figures of guards from the sandbox, got {error!s:.300}; refuse it") from error


def _too_slow(one: ResultGuard, policy: GuardPolicy) -> ResultGuard:
    if one.batch is None:
        raise ValueError(f"no cost of {one.name}")
    times, most = one.batch.slowdown, policy.max_slowdown
    reason = f"takes {times:.0f} times as long as the network alone, more than max_slowdown {most:g} of the policy"
    return ResultGuard(one.name, False, reason, alone=one.alone, batch=one.batch)
