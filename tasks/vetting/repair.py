"""Repair a copy of a submitted model in the sandbox, measure it, and keep what can be vetted in turn."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tasks.progress import progress_of
from tasks.sandbox.host import SandboxError
from tasks.settings import Settings
from tasks.store.base import Store, fetch_files
from tasks.store.open import open_store
from tasks.vetting import signed_results
from tasks.vetting.evaluate import Evaluated, area, cut, evaluate, lost, natural_success, reinvert, smallest
from tasks.vetting.inspect import Case, log_invocation, provenance
from tasks.vetting.results import Compared, RepairFailed, RepairRecord, RepairTriggers, TriggerSize, Validated
from tasks.vetting.workplace import workplace_of
from vetgate.digest import sha256_json
from vetgate.errors import DefenceError, NotUnderstood, StoreError
from vetgate.formats.manifest import Manifest, hash_directory
from vetgate.packed import array_of
from vetgate.shape import Blob
from vetgate.trust.statements import REPAIR

Triggers = Sequence[Mapping[str, Any]]
# which figures a record holds; one that an earlier version wrote, with others, lies under another key
FIGURES = 3


@dataclass(frozen=True)
class Yardstick:
    """What every repair of one vetting is measured by, whatever it goes by itself.

    `records` of evidence give triggers for all labels, of which those that lead to `suspects` are the attack;
    `inversion` are the parameters by which triggers are reversed anew.
    """

    records: list[Blob]
    suspects: list[int]
    inversion: Blob

    @property
    def found(self) -> list[Blob]:
        """The triggers of all the records that lead to suspects."""
        return [trigger for trigger in self._triggers if trigger["target"] in self.suspects]

    @property
    def others(self) -> list[Blob]:
        """Those that lead to other labels."""
        return [trigger for trigger in self._triggers if trigger["target"] not in self.suspects]

    @property
    def _triggers(self) -> list[Blob]:
        return [trigger for item in self.records for trigger in item["evidence"]["triggers"]]


def run_repair(
    settings: Settings, case: Case, method: str, params: Blob, evidence: list[Blob], by: Yardstick
) -> RepairRecord | RepairFailed:
    """The record of one repair that goes by records of evidence: from the store if there, else run, measured, saved."""
    store = open_store(settings)
    about = {
        **provenance(case, "repair", method, params),
        "evidence": [sha256_json(item) for item in evidence],
        "measured_by": [sha256_json(item) for item in by.records],
        "suspects": by.suspects,
        "inversion": by.inversion,
        "figures": FIGURES,
    }
    key = sha256_json(about)
    if (saved := signed_results.find(settings, REPAIR, about)) is not None:
        return RepairRecord.from_json(saved.found)
    log_invocation(store, case.manifest, method, key)
    out = workplace_of(case.manifest).made / key
    payload = {
        **case.model,
        "method": method,
        "params": params,
        "seed": case.seed.number,
        "clean": case.data.files("repair"),
        "train": [case.data.training] if case.data.training else [],
        "evidence": [_about(item["evidence"], case, by.suspects) for item in evidence],
        "parent": case.manifest,
        "out": str(out),
    }
    try:
        # what cannot be measured as it was handed in need not be repaired
        was = evaluate(case, case.model, by.found, "validate")
        sandbox = workplace_of(case.manifest).sandbox
        answer = sandbox.call("repair", payload, limits=case.limits, on_progress=progress_of(f"repair {method}"))
        repaired = adopt(case, out)
        triggers, figures = _measured(case, repaired, by, was)
    except (SandboxError, DefenceError, NotUnderstood) as error:
        # a repair may also leave weights that no file may hold
        return RepairFailed(method, str(error))
    manifest = _keep(store, case, method, Path(repaired.directory))
    record = RepairRecord(
        about=about,
        key=key,
        method=method,
        changed=answer["changed"],
        seconds=answer["seconds"],
        files=manifest.to_json(),
        triggers=triggers,
        validate=figures,
    )
    signed_results.save(settings, REPAIR, about, record.to_json())
    return record


def _measured(case: Case, repaired: Case, by: Yardstick, was: Evaluated) -> tuple[RepairTriggers, Validated]:
    """The triggers that lead to suspects, also reversed anew, and what they and the images for choosing say of both."""
    found = by.found
    least = smallest(found)
    anew = reinvert(case, repaired.model, [*least], by.inversion)
    # some trigger is found for every label of every network; it is an attack only if it is as small as the first
    after = [*found, *(cut(trigger, least[trigger["target"]]) for trigger in anew)]
    sizes = tuple(TriggerSize(t["target"], least[t["target"]], area(t)) for t in anew)
    now = evaluate(case, repaired.model, after, "validate")
    success = now.attack_success
    figures = Validated(
        before=was.measured(),
        after=now.measured(),
        lost=lost(was, now),
        found=max(success[: len(found)], default=None),
        anew=max(success[len(found) :], default=None),
        natural=natural_success(case, found, by.others),
    )
    return RepairTriggers(tuple(found), tuple(after), sizes), figures


def restore(settings: Settings, case: Case, record: RepairRecord, destination: Path) -> None:
    """Write the repaired submission of a record into a new directory for its owner."""
    store = open_store(settings)
    manifest = Manifest.from_json(record.files)
    shutil.rmtree(destination, ignore_errors=True)
    fetch_files(store, _home(case, record.method, manifest), destination, manifest.digests, most=manifest.size)
    if hash_directory(destination).sha256 != manifest.sha256:
        raise StoreError(f"the repaired bytes of {case.manifest} are not those written; the store was tampered with")


def report_figures(case: Case, record: RepairRecord, directory: Path) -> Compared:
    """Before and after the chosen repair on the test images, which served no choice.

    Raises DefenceError or NotUnderstood where they cannot be measured, and leaves no directory then.
    """
    try:
        was = evaluate(case, case.model, record.triggers.before, "test")
        now = evaluate(case, adopt(case, directory).model, record.triggers.after, "test")
    except (DefenceError, NotUnderstood):
        shutil.rmtree(directory, ignore_errors=True)
        raise
    return Compared(was.measured(), now.measured())


def adopt(case: Case, directory: Path) -> Case:
    """The same case with a repaired model: its submission is ours with the parent set, whatever the sandbox wrote."""
    given = workplace_of(case.manifest).given / f"repaired-{directory.name}"
    shutil.rmtree(given, ignore_errors=True)
    shutil.copytree(directory, given, symlinks=True)
    hash_directory(given)
    changes = {"parent": case.manifest, "training_data": None, "submitted": None}
    return replace(case, directory=str(given), submission={**case.submission, **changes})


def _about(evidence: Blob, case: Case, suspects: list[int]) -> Blob:
    """The evidence as its detector gave it, but only those of its triggers that lead to suspects, all of them flagged.

    The verdict says what is suspected, and may by another detector than the one that reversed the trigger.
    """
    triggers = [t for t in evidence["triggers"] if t["target"] in suspects]
    about = {**evidence, "seed": case.seed.number, "triggers": triggers}
    if triggers:
        about["cutoff"] = float(array_of(evidence["scores"], most=None).min())
    return about


def _keep(store: Store, case: Case, method: str, directory: Path) -> Manifest:
    manifest = hash_directory(directory)
    for entry in manifest.files:
        key = f"{_home(case, method, manifest)}/{entry.path}"
        store.copy_in_file(key, directory / entry.path, sha256=entry.sha256)
    return manifest


def _home(case: Case, method: str, repaired: Manifest) -> str:
    # nobody can lay other files here before it is known what comes out
    return f"repairs/{case.manifest}/{method}/{repaired.sha256}"
