"""Repair a copy of a submitted model in the sandbox, measure it, and keep what is fit to be vetted in turn."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

from tasks.progress import progress_of
from tasks.sandbox.host import SandboxError
from tasks.settings import Settings
from tasks.store.base import Store
from tasks.store.open import open_store
from tasks.vetting.evaluate import Measured, evaluate, natural_success, reinvert
from tasks.vetting.inspect import Case, log_invocation, provenance
from tasks.vetting.workplace import workplace_of
from vetgate.digest import canonical_json, sha256_json
from vetgate.errors import DefenceError, StoreError
from vetgate.formats.manifest import Manifest, hash_directory
from vetgate.shape import Blob
from vetgate.verdict.policy import RepairPolicy


def run_repair(
    settings: Settings,
    case: Case,
    method: str,
    params: Blob,
    evidence: list[Blob],
    suspects: list[int],
    inversion: Blob,
) -> Blob:
    """The record of one repair that goes by records of evidence: from the store if there, else run, measured, saved.

    Holds `key`, `files` and, on the images for choosing, `validate` as {before, after, natural}; or `failure`.
    """
    store = open_store(settings)
    every = [trigger for item in evidence for trigger in item["evidence"]["triggers"]]
    triggers = [trigger for trigger in every if trigger["target"] in suspects]
    goes_by = {"evidence": [sha256_json(item) for item in evidence], "suspects": suspects, "inversion": inversion}
    about = {**provenance(case, "repair", method, params), **goes_by}
    key = sha256_json(about)
    path = f"repairs/{case.manifest}/{method}/{key}.json"
    try:
        saved: Blob = json.loads(store.read(path))
    except KeyError:
        pass
    else:
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
        measured["natural"] = natural_success(case, triggers, [t for t in every if t not in triggers])
    except (SandboxError, DefenceError) as error:
        return {"method": method, "failure": str(error)}
    manifest = _keep(store, case, method, key, Path(repaired.directory))
    record = {
        "about": about,
        "key": key,
        "method": method,
        "changed": answer["changed"],
        "seconds": answer["seconds"],
        "files": manifest.to_json(),
        "triggers": {"before": triggers, "after": after},
        "validate": measured,
        "failure": None,
    }
    store.create(path, canonical_json(record))
    return record


def choose(candidates: list[Blob], policy: RepairPolicy) -> Blob | None:
    """The acceptable repair with the lowest remaining attack success, then the highest accuracy, on `validate`.

    What triggers of the same size do for labels that are not suspected is not held against a repair: on small images
    they mislead clean models too.
    """

    def acceptable(record: Blob) -> bool:
        if record["failure"] is not None:
            return False
        before, after = record["validate"]["before"], record["validate"]["after"]
        lost = before["clean_accuracy"] - after["clean_accuracy"]
        excess = after["attack_success"] - record["validate"]["natural"]
        return bool(lost <= policy.max_accuracy_loss and excess <= policy.max_attack_success)

    def rank(record: Blob) -> tuple[float, float]:
        after = record["validate"]["after"]
        return after["attack_success"], -after["clean_accuracy"]

    return min(filter(acceptable, candidates), key=rank, default=None)


def restore(settings: Settings, case: Case, record: Blob, destination: Path) -> None:
    """Write the repaired submission of a record into a new directory for its owner."""
    store = open_store(settings)
    manifest = Manifest.from_json(record["files"])
    shutil.rmtree(destination, ignore_errors=True)
    destination.mkdir(parents=True)
    for entry in manifest.files:
        store.fetch(_file(case, record["method"], record["key"], entry.path), destination / entry.path)
    if hash_directory(destination).sha256 != manifest.sha256:
        raise StoreError(f"the repaired bytes of {case.manifest} are not those written; the store was tampered with")


def report_figures(case: Case, record: Blob, directory: Path) -> Blob:
    """Before and after the chosen repair on the test images, which served no choice."""
    repaired = adopt(case, directory)
    return _compare(case, repaired, record["triggers"]["before"], record["triggers"]["after"], "test")


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


def _compare(case: Case, repaired: Case, before: list[Blob], after: list[Blob], purpose: str) -> Blob:
    first: Measured = evaluate(case, case.model, before, purpose)
    second: Measured = evaluate(case, repaired.model, after, purpose)
    return {"before": first.to_json(), "after": second.to_json()}


def _keep(store: Store, case: Case, method: str, key: str, directory: Path) -> Manifest:
    manifest = hash_directory(directory)
    for entry in manifest.files:
        store.copy_in_file(_file(case, method, key, entry.path), directory / entry.path, sha256=entry.sha256)
    return manifest


def _file(case: Case, method: str, key: str, path: str) -> str:
    return f"repairs/{case.manifest}/{method}/{key}/{path}"
