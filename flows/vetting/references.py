"""References from networks of one's own: clean ones of the kind that suppliers hand in, inspected as a vetting would.

They are read, converted and looked at in the sandbox like submissions, and what the detectors find is kept in the store
like theirs: a run that was interrupted goes on where it was. That they are clean is for their owner to say; those that
stand out among the others are named.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from flows.bank.calibrate import joined, reference, write
from flows.bank.files import pins, verdict_beside
from flows.params import Params
from flows.vetting.local import start_all
from flows.vetting.submit import refuse_alike
from tasks.data.reference import DataRef
from tasks.importing import importing
from tasks.progress import announce
from tasks.settings import Settings
from tasks.store.open import open_store
from tasks.vetting import intake
from tasks.vetting.inspect import read_evidence
from tasks.vetting.workplace import cool
from vetgate.errors import BadSubmission, StoreError
from vetgate.formats.submission import FILE, read_submission
from vetgate.role import by_itself, weight_of
from vetgate.shape import Blob
from vetgate.verdict.calibration import Bank, Calibration, Reference
from vetgate.verdict.judge import Decision
from vetgate.verdict.policy import Policy, load_policy
from vetgate.verdict.seen import StoredEvidence
from vetgate.verdict.wording import render


@dataclass(frozen=True, eq=False)
class Inspected:
    """A network as a reference, and what was found of it; `weights` is the digest of what it has learned."""

    name: str
    weights: str | None
    reference: Reference
    evidence: tuple[StoredEvidence, ...]


def submissions(folder: Path, data: str) -> list[Path]:
    """The directories with a submission on this data set in `folder`, by name; raises BadSubmission for others."""
    found = sorted(path.parent for path in folder.glob(f"*/{FILE}"))
    if not found:
        raise BadSubmission(f"expected networks in directories of {folder}, each with a {FILE}, got none")
    for directory in found:
        named = read_submission(directory).reference_data
        if named != data:
            raise BadSubmission(f"expected reference_data {data} in {directory / FILE}, got {named}; correct it")
    return found


def inspected(settings: Settings, ref: DataRef, directory: Path) -> Inspected:
    """Inspect one network as a vetting would, up to the verdict; raises BadSubmission where a vetting had to stop."""
    from prefect import flow

    from flows.vetting.examine import inspect_submission, opened

    record = intake.take(settings, directory, check_name=partial(refuse_alike, settings))

    @flow(name="inspect-reference", flow_run_name=f"inspect-{record.id[:12]}", result_serializer="json")
    def looking(manifest: str) -> Blob:
        with opened(settings, manifest) as (vetting, workplace):
            # guards are for what is served
            unguarded = vetting.policy.guard.model_copy(update={"enabled": False})
            policy = vetting.policy.model_copy(update={"guard": unguarded})
            vetting, seen = inspect_submission(replace(vetting, policy=policy), workplace)
        if seen.written is not None:
            return {"written": seen.written}
        if seen.refusal is not None or seen.first_look is None:
            why = render(seen.refusal) if seen.refusal else f"no trusted images of {ref.name}"
            raise BadSubmission(f"expected a network that can be vetted in {directory}, got: {why}")
        failed = {one.method: one.failure for one in seen.found if one.failure is not None and weight_of(one.method)}
        if failed:
            first, why = next(iter(failed.items()))
            raise BadSubmission(f"expected {first} to run on {directory}, got: {why}; see to it, or leave it out")
        return {
            "accuracy": seen.first_look.accuracy,
            "weights": seen.weights,
            "evidence": {one.method: one.key for one in seen.found if one.key is not None},
        }

    found = looking(record.id)
    if "written" in found:
        record = intake.read_record(open_store(settings), found["written"])
        found = looking(record.id)
    return _inspected(settings, ref, record, found)


def _inspected(settings: Settings, ref: DataRef, record: intake.Record, found: Blob) -> Inspected:
    submission = record.submission
    if submission.compared_as is None:
        raise StoreError(f"expected the architecture of {submission.name} in what was written of it, got none")
    evidence = []
    for method, key in found["evidence"].items():
        item = read_evidence(settings, record.id, method, key)
        if item is None:
            raise StoreError(f"expected evidence {method}/{key} in the store, got none; run the command again")
        evidence.append(StoredEvidence.from_json({**item["evidence"], "seed": 0}))
    card = {
        "data": ref.name,
        "data_sha256": ref.sha256,
        "architecture": submission.compared_as,
        # of these bytes, so that each is one reference
        "seed": int(record.id[:12], 16),
        "accuracy": found["accuracy"],
    }
    seen = {
        one.method: {"statistic": one.statistic, "scores": one.scores.tolist()}
        for one in evidence
        if not by_itself(one.method)
    }
    made = reference(card, submission.input_shape, submission.n_classes, seen)
    return Inspected(submission.name, found["weights"], made, tuple(evidence))


def calibrated(
    settings: Settings,
    params: Params,
    ref: DataRef,
    directories: Sequence[Path],
    out: Path,
    on_progress: Callable[[float], None] = lambda share: None,
) -> tuple[list[Reference], list[str]]:
    """Add these networks to the calibration at `out`; what they became, and who of them fails beside the others.

    Raises BadSubmission for two that learned the same: a network counts once.
    """
    ready = start_all(settings)
    try:
        with importing():
            import flows.vetting.examine  # noqa: F401 - what is slow to import, while the rest starts

        ready()
        found: list[Inspected] = []
        for place, directory in enumerate(directories):
            announce(f"{directory.name}, {place + 1} of {len(directories)}")
            one = inspected(settings, ref, directory)
            if (twin := next((other for other in found if other.weights == one.weights), None)) is not None:
                raise BadSubmission(f"expected each network once, got {one.name} with the weights of {twin.name}")
            found.append(one)
            on_progress((place + 1) / len(directories))
    finally:
        cool()
    made = [one.reference for one in found]
    fresh = {r.identity for r in made}
    bank = joined(Bank(methods=pins(params), references=tuple(made)), out, lambda r: r.identity not in fresh)
    write(bank, out)
    policy = load_policy(settings.policy)
    return made, [one.name for one in found if _fails(one, bank, policy)]


def _fails(one: Inspected, bank: Bank, policy: Policy) -> bool:
    """Whether a reference would fail beside all others of the calibration."""
    about = one.reference
    others = tuple(r for r in bank.references if r.identity != about.identity)
    verdict = verdict_beside(
        one.evidence,
        Calibration(bank.model_copy(update={"references": others}), ""),
        policy,
        about.data_sha256,
        image=about.image,
        classes=about.classes,
        architecture=about.architecture,
    )
    return verdict.decision is Decision.FAIL
