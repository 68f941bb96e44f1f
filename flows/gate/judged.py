"""Read evidence and judge it: one run of the detectors, signed by a vetter for its submission, code, data and seed.

What no trusted vetter signed is not believed: its method counts as failed. What was signed for anything else than what
is judged is an error.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from flows.gate.decided import Confirmation, Decided, PolicyPin
from flows.gate.issue import SigningContext
from flows.gate.question import Question
from tasks.vetting.conversion import is_canonical
from tasks.vetting.inspect import bound, read_evidence
from tasks.vetting.intake import Record, seed_of
from vetgate.digest import code_digest
from vetgate.errors import Denied, StoreError
from vetgate.shape import Blob
from vetgate.trust.seeds import Seed
from vetgate.verdict.calibration import load_calibration
from vetgate.verdict.judge import Verdict, judge
from vetgate.verdict.reasons import Code
from vetgate.verdict.seen import Failure, StoredEvidence
from vetgate.verdict.stated import StatedVerdict

# the kind of failure of a method whose evidence is not believed, or is about bytes that vetgate did not write
NOT_SIGNED = "evidence-not-signed"
NOT_CANONICAL = Code.NOT_CANONICAL.value


@dataclass(frozen=True)
class Judged:
    """One run of the detectors, judged: the verdict, the evidence by method, and the question that named it."""

    verdict: Verdict
    found: dict[str, Blob]
    question: Question
    sandbox_level: int

    @property
    def run(self) -> str:
        """The name of the run, whose seed the evidence carries."""
        return self.question.run


def judged_of(context: SigningContext, question: Question) -> Judged:
    """The verdict on one run's evidence, read from the store and bound to this submission and run."""
    record = context.record
    found, question = _believed(context, question)
    seed = seed_of(context.settings, record, question.run)
    for method, item in found.items():
        _bound(seed, record, question, method, item)
    codes = question.failure_codes or {}
    seen: list[StoredEvidence | Failure] = [
        StoredEvidence.from_json({**item["evidence"], "seed": seed.number}) for item in found.values()
    ]
    seen += [Failure(method, reason, codes.get(method, "failed")) for method, reason in question.failures.items()]
    level = min([question.sandbox_level, *(item["sandbox_level"] for item in found.values())])
    verdict = judge(
        seen,
        context.policy,
        load_calibration(context.settings.calibration),
        classes=record.submission.n_classes,
        data_sha256=(question.reference_data or {}).get("sha256"),
        with_training_data=record.submission.training_data is not None,
        sandbox_level=level,
        format=record.submission.format,
        input_shape=record.submission.input_shape,
        data_name=(question.reference_data or {}).get("name"),
        architecture=record.submission.compared_as,
    )
    return Judged(verdict, found, question, level)


def second_of(context: SigningContext, first: Question, second: Question) -> Judged:
    if second.run == first.run:
        raise StoreError("expected a second run with a seed of its own, got the first again; examine under another run")
    return judged_of(context, replace(second, manifest=context.record.id))


def _believed(context: SigningContext, question: Question) -> tuple[dict[str, Blob], Question]:
    """The evidence by method that a trusted vetter signed, and the question without the rest, which has failed."""
    found: dict[str, Blob] = {}
    doubted: dict[str, str] = {}
    if not is_canonical(context.store, context.trust, context.record):
        said = f"expected bytes that a vetter signed to be written by vetgate, got {context.record.id}; vet it"
        return found, _failed(question, found, dict.fromkeys(question.evidence, said), NOT_CANONICAL)
    for method, key in question.evidence.items():
        try:
            item = read_evidence(context.settings, context.record.id, method, key)
        except Denied as error:
            doubted[method] = str(error)
            continue
        if item is None:
            raise StoreError(f"expected evidence {method}/{key} in the store, got none; vet again")
        found[method] = item
    return found, _failed(question, found, doubted, NOT_SIGNED) if doubted else question


def _failed(question: Question, found: dict[str, Blob], doubted: dict[str, str], code: str) -> Question:
    return replace(
        question,
        evidence={method: key for method, key in question.evidence.items() if method in found},
        failures={**question.failures, **doubted},
        failure_codes={**(question.failure_codes or {}), **dict.fromkeys(doubted, code)},
    )


def _bound(seed: Seed, record: Record, question: Question, method: str, item: Blob) -> None:
    """Raise StoreError when evidence was not made for this submission by this code, on its data, from its seed."""
    data = question.reference_data or {}
    expected = {
        "manifest": record.id,
        "method": method,
        "code": code_digest("detect", method),
        "data": bound(data),
        "run": question.run,
        "seed_commitment": seed.commitment,
    }
    given = {name: item["about"].get(name) for name in expected}
    if given != expected or item["evidence"].get("method") != method:
        raise StoreError(
            f"expected evidence of {method} made with {expected}, got {given}; vet it again, and where only the "
            "commitments differ give gate and workers the same VETGATE_SEED_SECRET"
        )
    named = record.submission.reference_data
    if data.get("name") != named:
        raise StoreError(f"expected evidence on the submission's reference data {named}, got {data.get('name')}")


def decided_of(context: SigningContext, judged: Judged, purpose: str, second: Judged | None = None) -> Decided:
    """The record of a decision."""
    question = judged.question
    return Decided(
        manifest=context.record.id,
        name=context.record.submission.name,
        verdict=StatedVerdict.from_json(judged.verdict.to_json()),
        evidence=question.evidence,
        failures=question.failures,
        policy=PolicyPin(context.policy.name, context.policy.digest),
        reference_data=question.reference_data,
        sandbox_level=judged.sandbox_level,
        purpose=purpose,
        run=judged.run,
        refused=question.refused,
        second=None if second is None else _confirmation(second),
    )


def _confirmation(second: Judged) -> Confirmation:
    verdict, question = second.verdict, second.question
    return Confirmation(
        second.run,
        verdict.decision.value,
        verdict.p_value,
        verdict.suspects,
        question.evidence,
        question.failures,
    )


def methods_of(judged: Judged, decided: Decided) -> list[Blob]:
    made = {name: {**item["about"], "vetter": item["vetter"]} for name, item in judged.found.items()}
    return [
        {k: v for k, v in method.items() if k != "null"}
        | {
            k: made[method["name"]][k]
            for k in ("params", "seed_commitment", "code", "vetter")
            if method["name"] in made
        }
        for method in decided.verdict.to_json()["methods"]
    ]
