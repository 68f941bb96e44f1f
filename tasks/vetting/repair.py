"""Repair a copy of a submitted model in the sandbox, measure it, and keep what is fit to be vetted in turn."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tasks.progress import progress_of
from tasks.sandbox.host import SandboxError
from tasks.settings import Settings
from tasks.store.base import Store
from tasks.store.open import open_store
from tasks.vetting.evaluate import evaluate, natural_success, reinvert
from tasks.vetting.inspect import Case, log_invocation, provenance
from tasks.vetting.results import Compared, RepairFailed, RepairRecord, RepairTriggers, Validated
from tasks.vetting.workplace import workplace_of
from vetgate.digest import canonical_json, sha256_json
from vetgate.errors import DefenceError, StoreError
from vetgate.formats.manifest import Manifest, hash_directory
from vetgate.shape import Blob
from vetgate.verdict.policy import RepairPolicy

Triggers = Sequence[Mapping[str, Any]]


def run_repair(
    settings: Settings,
    case: Case,
    method: str,
    params: Blob,
    evidence: list[Blob],
    suspects: list[int],
    inversion: Blob,
) -> RepairRecord | RepairFailed:
    """The record of one repair that goes by records of evidence: from the store if there, else run, measured, saved."""
    store = open_store(settings)
    every = [trigger for item in evidence for trigger in item["evidence"]["triggers"]]
    triggers = [trigger for trigger in every if trigger["target"] in suspects]
    goes_by = {"evidence": [sha256_json(item) for item in evidence], "suspects": suspects, "inversion": inversion}
    about = {**provenance(case, "repair", method, params), **goes_by}
    key = sha256_json(about)
    path = f"repairs/{case.manifest}/{method}/{key}.json"
    if (saved := _read(store, path)) is not None:
        return saved
    log_invocation(store, case.manifest, method, key)
    out = workplace_of(case.manifest).made / key
    payload = {
        **case.model,
        "method": method,
        "params": params,
        "seed": case.seed,
        "clean": case.data.files("repair"),
        "train": [case.data.training] if case.data.training else [],
        "evidence": [_about(item["evidence"], suspects) for item in evidence],
        "parent": case.manifest,
        "out": str(out),
    }
    try:
        sandbox = workplace_of(case.manifest).sandbox
        answer = sandbox.call("repair", payload, limits=case.limits, on_progress=progress_of(f"repair {method}"))
        repaired = adopt(case, out)
        after = [*triggers, *reinvert(case, repaired.model, triggers, inversion)]
        measured = _compare(case, repaired, triggers, after, "validate")
        natural = natural_success(case, triggers, [t for t in every if t not in triggers])
    except (SandboxError, DefenceError) as error:
        return RepairFailed(method, str(error))
    manifest = _keep(store, case, method, key, Path(repaired.directory))
    record = RepairRecord(
        about=about,
        key=key,
        method=method,
        changed=answer["changed"],
        seconds=answer["seconds"],
        files=manifest.to_json(),
        triggers=RepairTriggers(tuple(triggers), tuple(after)),
        validate=Validated(measured.before, measured.after, natural),
    )
    store.create(path, canonical_json(record.to_json()))
    return record


def choose(tried: Sequence[RepairRecord | RepairFailed], policy: RepairPolicy) -> RepairRecord | None:
    """The acceptable repair with the lowest remaining attack success, then the highest accuracy, on `validate`.

    What triggers of the same size do for labels that are not suspected is not held against a repair: on small images
    they mislead clean models too.
    """

    def acceptable(figures: Validated) -> bool:
        lost = figures.before.clean_accuracy - figures.after.clean_accuracy
        excess = figures.after.attack_success - figures.natural
        return lost <= policy.max_accuracy_loss and excess <= policy.max_attack_success

    def rank(record: RepairRecord) -> tuple[float, float]:
        after = record.validate.after
        return after.attack_success, -after.clean_accuracy

    ran = [record for record in tried if isinstance(record, RepairRecord)]
    return min((record for record in ran if acceptable(record.validate)), key=rank, default=None)


def restore(settings: Settings, case: Case, record: RepairRecord, destination: Path) -> None:
    """Write the repaired submission of a record into a new directory for its owner."""
    store = open_store(settings)
    manifest = Manifest.from_json(record.files)
    shutil.rmtree(destination, ignore_errors=True)
    destination.mkdir(parents=True)
    for entry in manifest.files:
        store.fetch(_file(case, record.method, record.key, entry.path), destination / entry.path)
    if hash_directory(destination).sha256 != manifest.sha256:
        raise StoreError(f"the repaired bytes of {case.manifest} are not those written; the store was tampered with")


def report_figures(case: Case, record: RepairRecord, directory: Path) -> Compared:
    """Before and after the chosen repair on the test images, which served no choice."""
    repaired = adopt(case, directory)
    return _compare(case, repaired, record.triggers.before, record.triggers.after, "test")


def adopt(case: Case, directory: Path) -> Case:
    """The same case with a repaired model: its submission is ours with the parent set, whatever the sandbox wrote."""
    given = workplace_of(case.manifest).given / f"repaired-{directory.name}"
    shutil.rmtree(given, ignore_errors=True)
    shutil.copytree(directory, given, symlinks=True)
    hash_directory(given)
    return replace(case, directory=str(given), submission={**case.submission, "parent": case.manifest})


def _about(evidence: Blob, suspects: list[int]) -> Blob:
    """The evidence with only those of its triggers that lead to suspects."""
    return {**evidence, "triggers": [t for t in evidence["triggers"] if t["target"] in suspects]}


def _compare(case: Case, repaired: Case, before: Triggers, after: Triggers, purpose: str) -> Compared:
    return Compared(evaluate(case, case.model, before, purpose), evaluate(case, repaired.model, after, purpose))


def _read(store: Store, path: str) -> RepairRecord | None:
    try:
        return RepairRecord.from_json(json.loads(store.read(path)))
    except KeyError:
        return None
    except ValueError as error:
        raise StoreError(f"the repair at {path} is no JSON; the store was tampered with") from error


def _keep(store: Store, case: Case, method: str, key: str, directory: Path) -> Manifest:
    manifest = hash_directory(directory)
    for entry in manifest.files:
        store.copy_in_file(_file(case, method, key, entry.path), directory / entry.path, sha256=entry.sha256)
    return manifest


def _file(case: Case, method: str, key: str, path: str) -> str:
    return f"repairs/{case.manifest}/{method}/{key}/{path}"
