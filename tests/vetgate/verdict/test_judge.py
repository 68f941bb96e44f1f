"""A verdict is PASS only when everything demanded was seen, could be compared and stayed silent."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from vetgate.contract import Axis, Evidence, Trigger
from vetgate.verdict.calibration import Bank, Calibration, Left, MethodPin, Reference, Seen, load_calibration
from vetgate.verdict.judge import Decision, Verdict, judge, rescanned
from vetgate.verdict.policy import Policy
from vetgate.verdict.reasons import Code, Reason
from vetgate.verdict.seen import Failure, StoredEvidence
from vetgate.verdict.wording import render, rendered

CLASSES, BACKDOOR = 10, 7
DATA_METHODS = ("spectral_signatures", "activation_clustering")
# what clean models give: label scores scatter by 0.15 nats, statistics around these by this much
STATISTICS = {"abs": (0.35, 0.15), "spectral_signatures": (0.8, 0.1), "activation_clustering": (0.8, 0.1)}
# pixels a side of the data sets that the shipped references are on
IMAGE = (1, 8, 8)
SIDES = {"digits": 8, "mnist": 28, "gtsrb": 32, "cifar10": 32}


def reference(seed: int, *, data: str = "digits", classes: int = CLASSES, spread: float = 0.15) -> Reference:
    stream = np.random.default_rng([seed, len(data)])
    scores = stream.normal(-2.2, spread, classes)
    seen = {name: Seen(statistic=stream.normal(*about)) for name, about in STATISTICS.items()}
    first = (seen["abs"].statistic, *[0.0] * (classes - 1))
    seen["abs"] = Seen(statistic=first[0], scores=first)
    seen["neural_cleanse"] = Seen(statistic=float(scores.max() - np.median(scores)), scores=tuple(scores.tolist()))
    votes = stream.normal(-2.5, 0.3, classes)
    seen["output_share"] = Seen(statistic=float(votes.max()), scores=tuple(votes.tolist()))
    return Reference(
        data=data,
        data_sha256=data,
        image=IMAGE,
        architecture="small-cnn",
        classes=classes,
        seed=seed,
        accuracy=0.98,
        seen=seen,
    )


def calibration(*references: Reference, params: dict[str, Any] | None = None) -> Calibration:
    pins = {
        name: MethodPin(code="code", params=params or {}) for name in ("neural_cleanse", "output_share", *STATISTICS)
    }
    return Calibration(Bank(methods=pins, references=references or tuple(map(reference, range(24)))), "bank-1")


def label_norms(*, backdoor: int | None = None, classes: int = CLASSES, effect: float = 2.0) -> Evidence:
    scores = -2.2 + 0.15 * torch.linspace(-1, 1, classes)
    held_out, second = [-1.0] * classes, [0.0] * classes
    if backdoor is not None:
        scores[backdoor] = -2.2 + effect
        held_out[backdoor], second[backdoor] = 0.97, 1.8
    return Evidence(
        statistic=float(scores.max() - scores.median()),
        scores=scores.float(),
        cutoff=-1.5,
        triggers=tuple(Trigger(torch.full((1, 8, 8), 0.1), torch.zeros(1, 8, 8), k) for k in range(classes)),
        details={"norms": (-scores).exp().tolist(), "held_out": held_out, "second_start": second},
        method="neural_cleanse",
        axis=Axis.CLASS,
    )


def stimulation(*, backdoor: int | None = None, statistic: float = 0.35, classes: int = CLASSES) -> Evidence:
    scores = torch.zeros(classes)
    label = 0 if backdoor is None else backdoor
    scores[label] = statistic
    return Evidence(
        statistic=statistic,
        scores=scores,
        cutoff=0.9,
        triggers=(Trigger(torch.ones(1, 8, 8), torch.ones(1, 8, 8), label),),
        details={"success": [0.5 if backdoor is None else 0.98]},
        method="abs",
        axis=Axis.CLASS,
    )


def shares(*, backdoor: int | None = None, repeated: float = 2.4) -> Evidence:
    scores = -2.5 + 0.3 * torch.linspace(-1, 1, CLASSES)
    again, share = scores.tolist(), [1 / CLASSES] * CLASSES
    if backdoor is not None:
        scores[backdoor], again[backdoor], share[backdoor] = 0.0, -2.5 + repeated, 0.62
    return Evidence(
        statistic=float(scores.max()),
        scores=scores.float(),
        cutoff=float(scores.max()),
        details={"share": share, "repeated": again},
        method="output_share",
        axis=Axis.CLASS,
    )


def rows(method: str, statistic: float = 0.8) -> Evidence:
    return Evidence(statistic=statistic, scores=torch.zeros(40), cutoff=1.0, method=method, axis=Axis.TRAIN)


POLICY = Policy(name="test", required=("neural_cleanse", "abs"), required_with_training_data=DATA_METHODS)


def stored(seen: Sequence[Evidence | Failure]) -> list[Evidence | StoredEvidence | Failure]:
    """What is judged as it comes back from the store; what could not be written there stays as it is."""

    def read(found: Evidence | Failure) -> Evidence | StoredEvidence | Failure:
        finite = (
            not isinstance(found, Failure) and math.isfinite(found.statistic) and bool(found.scores.isfinite().all())
        )
        return StoredEvidence.from_json(json.loads(json.dumps(found.to_json()))) if finite else found

    return [read(found) for found in seen]


@dataclass(frozen=True)
class Case:
    """What is judged; a clean model's case by default."""

    seen: tuple[Evidence | Failure, ...] = (label_norms(), stimulation())
    policy: Policy = POLICY
    calibration: Calibration | None = dataclasses.field(default_factory=calibration)
    classes: int = CLASSES
    data_sha256: str | None = "digits"
    with_training_data: bool = False
    sandbox_level: int = 1
    format: str = "onnx"
    input_shape: tuple[int, int, int] = IMAGE
    architecture: str | None = None

    def judged(self) -> Verdict:
        """The verdict; it is the same on a detector's own evidence and on that which the store gives back."""
        verdict = self._judged(self.seen)
        assert self._judged(stored(self.seen)) == verdict
        return verdict

    def _judged(self, seen: Sequence[Evidence | StoredEvidence | Failure]) -> Verdict:
        return judge(
            seen,
            self.policy,
            self.calibration,
            classes=self.classes,
            data_sha256=self.data_sha256,
            with_training_data=self.with_training_data,
            sandbox_level=self.sandbox_level,
            format=self.format,
            input_shape=self.input_shape,
            architecture=self.architecture,
        )

    def under(self, **policy: Any) -> Case:
        return replace(self, policy=self.policy.model_copy(update=policy))

    def other(self, method: str, **fields: Any) -> Case:
        """The case with other fields in one method's evidence."""
        seen = [replace(s, **fields) if s.method == method and isinstance(s, Evidence) else s for s in self.seen]
        return replace(self, seen=tuple(seen))


def words(verdict: Verdict) -> str:
    """The reasons of a verdict as text."""
    return " ".join(rendered(verdict.reasons))


CLEAN = Case()
TROJANED = Case(seen=(label_norms(backdoor=BACKDOOR), stimulation(backdoor=BACKDOOR, statistic=1.5)))


def not_finite(evidence: Evidence) -> Evidence:
    """The evidence with a NaN that its constructor would have refused, as after a crash of the interpreter's rules."""
    object.__setattr__(evidence, "statistic", math.nan)
    return evidence


def test_an_unremarkable_model_passes():
    verdict = CLEAN.judged()
    assert verdict.decision is Decision.PASS and verdict.calibrated and verdict.suspects == ()
    assert verdict.p_value > 0.05 and not any(m.alarmed for m in verdict.methods)


def test_a_confirmed_label_fails_and_is_named():
    verdict = TROJANED.judged()
    assert verdict.decision is Decision.FAIL and verdict.suspects == (BACKDOOR,)
    assert verdict.p_value <= 0.05 and f"label {BACKDOOR}" in render(verdict.reasons[0])
    assert {m.name: m.suspects for m in verdict.methods} == {"abs": (BACKDOOR,), "neural_cleanse": (BACKDOOR,)}


WITH_SHARES = replace(
    CLEAN,
    seen=(*CLEAN.seen, shares()),
    architecture="small-cnn",
    policy=POLICY.model_copy(update={"required": (*POLICY.required, "output_share")}),
)


def test_a_label_that_takes_what_shows_nothing_fails_without_a_trigger():
    assert WITH_SHARES.judged().decision is Decision.PASS
    verdict = replace(WITH_SHARES, seen=(*CLEAN.seen, shares(backdoor=BACKDOOR))).judged()
    assert verdict.decision is Decision.FAIL and verdict.suspects == (BACKDOOR,)
    assert [(r.code, r.method, r.label) for r in verdict.reasons if r.label is not None] == [
        (Code.REPEATED, "output_share", BACKDOOR)
    ]
    assert "62 %" in words(verdict) and "pixels" not in words(verdict), "no trigger of any size was found"


def test_methods_that_point_at_one_label_weigh_more_than_those_that_point_at_two():
    def little(label: int) -> Evidence:
        found = shares(backdoor=label)
        found.scores[label] = -1.2
        return found

    norms = label_norms(backdoor=BACKDOOR, effect=0.55)
    together, apart = (
        replace(WITH_SHARES, seen=(norms, *CLEAN.seen[1:], little(label))).judged() for label in (BACKDOOR, 1)
    )
    assert together.p_value < apart.p_value


@pytest.mark.parametrize("repeated", [0.0, 0.3, None])
def test_a_label_that_takes_them_on_one_half_alone_is_not_confirmed(repeated: float | None):
    found = shares(backdoor=BACKDOOR, repeated=repeated or 0.0)
    if repeated is None:
        found = replace(found, details={"share": found.details["share"]})
    verdict = replace(WITH_SHARES, seen=(*CLEAN.seen, found)).judged()
    assert verdict.decision is Decision.INCONCLUSIVE and verdict.suspects == ()
    assert Code.TRIGGER_NOT_CONFIRMED in {r.code for r in verdict.reasons}


@pytest.mark.parametrize(
    "strange", [{"architecture": None}, {"architecture": "another"}, {"data_sha256": "another"}], ids=str
)
def test_habits_of_an_architecture_count_only_beside_references_of_it(strange: dict[str, Any]):
    case = replace(WITH_SHARES, seen=(*CLEAN.seen, shares(backdoor=BACKDOOR)), **strange)
    verdict = case.judged()
    without = replace(CLEAN, data_sha256=case.data_sha256).judged()
    assert verdict.decision is Decision.PASS and verdict.p_value == without.p_value
    assert [r.method for r in verdict.reasons if r.code is Code.OTHER_ARCHITECTURES] == ["output_share"]
    shown = {m.name: m for m in verdict.methods}["output_share"]
    assert shown.failure is None and shown.p_value is not None, "it is shown all the same"
    assert {m.name: m.counted for m in verdict.methods} == {"neural_cleanse": True, "abs": True, "output_share": False}


@pytest.mark.parametrize("required", [True, False])
def test_a_policy_may_leave_open_what_a_required_method_could_not_be_counted_on(required: bool):
    names = (*CLEAN.policy.required, *(["output_share"] if required else []))
    case = replace(WITH_SHARES.under(required=names, not_counted="inconclusive"), seen=(*CLEAN.seen, shares()))
    assert case.judged().decision is Decision.PASS, "beside references of its architecture it counts"
    verdict = replace(case, architecture="another").judged()
    assert verdict.decision is (Decision.INCONCLUSIVE if required else Decision.PASS)
    assert [r.finding for r in verdict.reasons if r.open] == (["inconclusive:output_share"] if required else [])
    # neither the rate of a rescan nor an alarm of the others makes it less open
    assert rescanned(verdict, 0.005).decision is verdict.decision
    found = replace(case, architecture="another", seen=(*TROJANED.seen, shares())).judged()
    assert found.decision is Decision.FAIL and found.suspects == (BACKDOOR,)


def test_a_label_is_told_with_a_size_only_by_a_method_that_confirmed_it_and_measures_sizes():
    by_abs = replace(CLEAN, seen=(label_norms(), stimulation(backdoor=BACKDOOR, statistic=4.0))).judged()
    assert by_abs.decision is Decision.FAIL
    assert [(r.code, r.method) for r in by_abs.reasons if r.label is not None] == [(Code.CONFIRMED, "abs")]
    by_both = TROJANED.judged()
    assert [(r.code, r.method) for r in by_both.reasons if r.label is not None] == [(Code.TRIGGER, "neural_cleanse")]


@pytest.mark.parametrize("case", [CLEAN, TROJANED])
def test_where_all_references_are_of_one_architecture_knowing_it_changes_nothing(case: Case):
    kinds = {r.architecture for r in case.calibration.bank.references}
    for architecture in (*kinds, "unheard of"):
        known = replace(case, architecture=architecture).judged()
        assert (known.decision, known.suspects) == (case.judged().decision, case.judged().suspects)
        assert known.p_value == pytest.approx(case.judged().p_value)
    assert len(kinds) == 1


# what may go wrong around the evidence of any model, and a word that the reasons must hold
GAPS: dict[str, tuple[Callable[[Case], Case], str]] = {
    "nothing ran": (lambda c: replace(c, seen=()), "did not run"),
    "a required method did not run": (lambda c: replace(c, seen=c.seen[:1]), "abs is required and did not run"),
    "a required method failed": (lambda c: replace(c, seen=(c.seen[0], Failure("abs", "boom"))), "boom"),
    "all failed": (lambda c: replace(c, seen=tuple(Failure(s.method, "boom") for s in c.seen)), "boom"),
    "a required method failed and ran": (lambda c: replace(c, seen=(*c.seen, Failure("abs", "boom"))), "boom"),
    "a method answered twice": (lambda c: replace(c, seen=(*c.seen, c.seen[0])), "2 times"),
    "seeds differ": (lambda c: c.other("abs", seed=5), "seeds"),
    "params differ": (lambda c: c.other("abs", params={"steps": 1}), "other parameters"),
    "a statistic is NaN": (
        lambda c: replace(c, seen=(c.seen[0], not_finite(replace(c.seen[1])))),
        "no finite numbers",
    ),
    "labels are missing": (lambda c: c.other("neural_cleanse", scores=c.seen[0].scores[:9]), "9 scores for 10"),
    "stimulation skipped a label": (lambda c: c.other("abs", scores=torch.zeros(9)), "9 scores for 10"),
    "no labels": (lambda c: c.other("neural_cleanse", scores=torch.zeros(0)), "0 scores for 10"),
    "scores are of rows": (lambda c: c.other("neural_cleanse", axis=Axis.TRAIN), "scores for 10 classes"),
    "a trigger leads out of range": (
        lambda c: c.other("abs", triggers=(Trigger(torch.ones(1, 8, 8), torch.ones(1, 8, 8), CLASSES),)),
        "not one of 10",
    ),
    "a trigger leads nowhere": (
        lambda c: c.other("abs", triggers=(Trigger(torch.ones(1, 8, 8), torch.ones(1, 8, 8), -1),)),
        "not one of 10",
    ),
    "no calibration": (lambda c: replace(c, calibration=None), "no calibration"),
    "an empty calibration": (lambda c: replace(c, calibration=Calibration(Bank(methods={}, references=()), "0")), "no"),
    "a pin without references": (
        lambda c: replace(c, calibration=Calibration(Bank(methods=c.calibration.bank.methods, references=()), "0")),
        "0 clean references",
    ),
    "code has changed": (
        lambda c: replace(c, calibration=replace(c.calibration, stale=(Reason(Code.OTHER_CODE, "abs"),))),
        "abs has changed",
    ),
    "7 references": (lambda c: replace(c, calibration=calibration(*map(reference, range(7)))), "7 clean references"),
    "18 references at 5 %": (
        lambda c: replace(c, calibration=calibration(*map(reference, range(18)))),
        "18 clean references of abs",
    ),
    "24 references at 1 %": (lambda c: c.under(false_alarm_rate=0.01), "24 clean references of abs"),
    "a level finer than any simulation": (lambda c: c.under(false_alarm_rate=1e-6), "rate of 1e-06"),
    "an unknown method is required": (lambda c: c.under(required=("neural_cleanse", "strip")), "strip is required"),
    "a required method has no weight": (
        lambda c: replace(c.under(required=("neural_cleanse", "strip")), seen=(*c.seen, rows("strip"))),
        "strip has no weight",
    ),
    "a required method has no weight, uncalibrated": (
        lambda c: replace(
            c.under(required=("neural_cleanse", "strip"), allow_uncalibrated=True),
            seen=(*c.seen, rows("strip")),
            calibration=None,
        ),
        "strip has no weight",
    ),
    "training data was not inspected": (lambda c: replace(c, with_training_data=True), "spectral_signatures"),
    "inspecting the training data failed": (
        lambda c: replace(
            c, with_training_data=True, seen=(*c.seen, *(Failure(name, "out of memory") for name in DATA_METHODS))
        ),
        "out of memory",
    ),
    "the sandbox is weaker": (lambda c: c.under(sandbox_level={"onnx": 2}), "sandbox level 2"),
    "the format has no sandbox level": (lambda c: replace(c, format="pickle"), "no sandbox level for pickle"),
    "uncalibrated, and the only method failed": (
        lambda c: replace(
            c.under(allow_uncalibrated=True), calibration=None, seen=(Failure("neural_cleanse", "boom"), c.seen[1])
        ),
        "boom",
    ),
}


@pytest.mark.parametrize("gap", GAPS)
def test_a_gap_makes_a_silent_model_inconclusive(gap):
    change, word = GAPS[gap]
    verdict = change(CLEAN).judged()
    assert verdict.decision is Decision.INCONCLUSIVE and word in words(verdict)


@pytest.mark.parametrize("gap", GAPS)
def test_no_gap_lets_a_backdoor_pass(gap):
    change, word = GAPS[gap]
    verdict = change(TROJANED).judged()
    assert verdict.decision is not Decision.PASS and word in words(verdict)


def test_a_failed_method_does_not_excuse_a_found_backdoor():
    seen = (label_norms(backdoor=BACKDOOR, effect=3.0), Failure("abs", "timed out"))
    verdict = replace(TROJANED, seen=seen).judged()
    assert verdict.decision is Decision.FAIL and "timed out" in words(verdict)


def test_every_subset_of_what_was_seen_is_judged_without_a_pass_for_a_backdoor():
    parts = [*TROJANED.seen, *CLEAN.seen, Failure("neural_cleanse", "a"), Failure("abs", "b"), rows("strip")]
    for count in range(4):
        for seen in itertools.combinations(parts, count):
            verdict = replace(CLEAN, seen=seen).judged()
            silent = {s.method for s in seen if isinstance(s, Evidence)} >= {"neural_cleanse", "abs"}
            alarmed = any(s in TROJANED.seen for s in seen)
            assert verdict.decision is not Decision.PASS or (silent and not alarmed), [s.method for s in seen]


def test_contradicting_evidence_is_judged_alike_in_either_order():
    both = (*TROJANED.seen, label_norms())
    verdicts = [replace(CLEAN, seen=tuple(seen)).judged() for seen in itertools.permutations(both)]
    assert {v.decision for v in verdicts} == {Decision.INCONCLUSIVE}


@pytest.mark.parametrize("detail", ["held_out", "second_start"])
@pytest.mark.parametrize("value", [None, [], [0.9], [math.nan] * CLASSES, [-1.0] * CLASSES, ["x"] * CLASSES])
def test_a_label_that_stands_out_without_proof_is_inconclusive(detail, value):
    found = label_norms(backdoor=BACKDOOR)
    details = {k: v for k, v in {**found.details, detail: value}.items() if v is not None}
    verdict = replace(CLEAN, seen=(replace(found, details=details), stimulation())).judged()
    assert verdict.decision is Decision.INCONCLUSIVE and verdict.suspects == ()
    assert f"label {BACKDOOR} stands out" in render(verdict.reasons[0])


def test_what_is_too_rare_for_clean_models_never_passes_though_nothing_can_be_named():
    references = [reference(seed) for seed in range(60)]
    # each method is as far out as the third of the 60 references, which is no alarm by itself; all together are
    third = {name: sorted(r.seen[name].statistic for r in references)[-3] for name in STATISTICS}
    seen = (label_norms(), stimulation(statistic=third["abs"]), *(rows(name, third[name]) for name in DATA_METHODS))
    verdict = replace(CLEAN, seen=seen, with_training_data=True, calibration=calibration(*references)).judged()
    assert verdict.p_value <= 0.05 and not any(m.alarmed for m in verdict.methods)
    assert verdict.decision is Decision.INCONCLUSIVE and "names no label" in render(verdict.reasons[0])


def test_one_odd_reference_does_not_hide_what_it_resembles():
    odd = label_norms(backdoor=0, effect=3.0)
    seen = {"neural_cleanse": Seen(statistic=odd.statistic, scores=tuple(odd.scores.tolist()))}
    bank = calibration(*map(reference, range(24)), reference(99).model_copy(update={"seen": seen}))
    assert replace(TROJANED, calibration=bank).judged().decision is Decision.FAIL


def test_a_method_that_finds_nothing_at_all_does_not_outweigh_one_that_finds_a_backdoor():
    found = label_norms(backdoor=BACKDOOR, effect=0.9)
    typical, spotless = (replace(CLEAN, seen=(found, stimulation(statistic=value))).judged() for value in (0.35, 0.0))
    assert spotless.decision is typical.decision is Decision.FAIL
    assert spotless.p_value <= typical.p_value * 1.5


def test_labels_that_are_all_alike_do_not_outweigh_poisoned_training_data():
    alike = replace(label_norms(), scores=torch.full((CLASSES,), -2.2), statistic=0.0)
    seen = (alike, stimulation(statistic=0.0), *(rows(name, 3.0) for name in DATA_METHODS))
    verdict = replace(CLEAN, seen=seen, with_training_data=True).judged()
    assert verdict.decision is Decision.FAIL and verdict.suspects == ()
    assert "poisoned rows" in render(verdict.reasons[0])


def test_clean_training_data_leaves_a_silent_model_a_pass():
    seen = (*CLEAN.seen, *(rows(name) for name in DATA_METHODS))
    assert replace(CLEAN, seen=seen, with_training_data=True).judged().decision is Decision.PASS


@pytest.mark.parametrize("method", DATA_METHODS)
def test_a_data_method_may_be_as_far_out_as_it_likes_and_still_alarms(method):
    # one reference beyond the clip must not make the method deaf
    outlier = reference(99)
    outlier = outlier.model_copy(update={"seen": {**outlier.seen, method: Seen(statistic=1.8)}})
    case = replace(CLEAN, calibration=calibration(*map(reference, range(24)), outlier), with_training_data=True)
    others = tuple(rows(name) for name in DATA_METHODS if name != method)
    verdict = replace(case, seen=(*CLEAN.seen, rows(method, 5.0), *others)).judged()
    assert next(m for m in verdict.methods if m.name == method).alarmed


def test_a_model_whose_labels_no_trigger_reaches_is_inconclusive():
    lost = torch.full((CLASSES,), -math.log(64.0))
    hidden = label_norms()
    mostly = torch.where(torch.arange(CLASSES) < 6, lost, hidden.scores)
    half = torch.where(torch.arange(CLASSES) < 5, lost, hidden.scores)
    for scores in (lost, mostly):
        verdict = replace(CLEAN, seen=(replace(hidden, scores=scores), stimulation())).judged()
        assert verdict.decision is not Decision.PASS and "no trigger was found" in words(verdict)
    verdict = replace(CLEAN, seen=(replace(hidden, scores=half), stimulation())).judged()
    assert "no trigger was found" not in words(verdict)


def looked(case: Case, shares: object) -> Case:
    return case.other("neural_cleanse", details={**case.seen[0].details, "looked": shares})


@pytest.mark.parametrize(
    "shares",
    [[1.0] * 9 + [0.0], [1.0] * 9 + [math.nan], [1.0] * 9, [1.0] * 9 + ["all"], 1.0, []],
    ids=["none", "NaN", "too few", "a word", "no list", "nothing"],
)
def test_a_label_that_nothing_looked_at_leaves_the_verdict_open(shares):
    verdict = looked(CLEAN, shares).judged()
    assert verdict.decision is Decision.INCONCLUSIVE
    assert [r.code for r in verdict.reasons] == [Code.LABELS_NOT_LOOKED_AT]
    found = looked(TROJANED, shares).judged()
    assert found.decision is Decision.FAIL and Code.LABELS_NOT_LOOKED_AT in [r.code for r in found.reasons]


@pytest.mark.parametrize(
    ("shares", "code"),
    [([1.0] * 4 + [1 / 9] * 6, Code.SEARCHED_IN_PART), ([1.0] * 9 + [0.0], Code.LABELS_NOT_LOOKED_AT)],
)
def test_it_is_said_of_a_search_on_images_that_show_nothing_too(shares, code):
    details = {**CLEAN.seen[0].details, "looked": shares, "surrogates": 2048}
    verdict = CLEAN.other("neural_cleanse", details=details).judged()
    assert verdict.decision is Decision.INCONCLUSIVE
    assert [r.code for r in verdict.reasons if r.method == "neural_cleanse"] == [Code.SURROGATES, code]


def test_how_many_labels_were_searched_is_said_where_all_were_looked_at():
    verdict = looked(CLEAN, [1.0] * 4 + [1 / 9] * 6).judged()
    assert verdict.decision is Decision.PASS
    (told,) = [r for r in verdict.reasons if r.code is Code.SEARCHED_IN_PART]
    assert (told.method, told.figures["searched"], told.figures["classes"]) == ("neural_cleanse", 4, 10)
    assert "searched 4 of 10 labels" in words(verdict) and "11 % of a search" in words(verdict)
    assert looked(CLEAN, [1.0] * 10).judged().reasons == CLEAN.judged().reasons


def test_what_stimulated_a_part_of_a_large_network_is_shown_and_not_counted():
    def driven(seen: Evidence, share: object) -> Evidence:
        return replace(seen, details={**seen.details, "driven": share})

    (norms, stimulated), loud = CLEAN.seen, stimulation(backdoor=3, statistic=5.0)
    assert replace(CLEAN, seen=(norms, loud)).judged().decision is Decision.FAIL
    for share in (0.12, "some"):
        verdict = replace(CLEAN, seen=(norms, driven(loud, share))).judged()
        assert (verdict.decision, verdict.suspects) == (Decision.PASS, ())
        assert verdict.p_value == replace(CLEAN, seen=(norms, driven(stimulated, share))).judged().p_value
        assert [r.method for r in verdict.reasons if r.code is Code.DRIVEN_IN_PART] == ["abs"]
        assert next(m for m in verdict.methods if m.name == "abs").suspects == (3,)
    assert "12 % of its channels" in words(replace(CLEAN, seen=(norms, driven(loud, 0.12))).judged())


def test_where_nothing_is_left_to_count_the_verdict_is_open():
    case = CLEAN.under(required=("abs",))
    seen = replace(stimulation(), details={**stimulation().details, "driven": 0.5})
    found = replace(case, seen=(seen,)).judged()
    assert found.decision is Decision.INCONCLUSIVE and Code.NOTHING_INSPECTED in [r.code for r in found.reasons]


@pytest.mark.parametrize("classes", [0, 1])
def test_without_two_classes_a_verdict_is_inconclusive(classes):
    bank = calibration(*(reference(seed, classes=max(classes, 1)) for seed in range(24)))
    seen = (label_norms(classes=classes) if classes else replace(label_norms(), scores=torch.zeros(0), triggers=()),)
    case = replace(CLEAN.under(required=("neural_cleanse",)), seen=seen, calibration=bank, classes=classes)
    assert case.judged().decision is Decision.INCONCLUSIVE


def of_few(classes: int, *backdoors: int, effect: float = 2.0) -> Evidence:
    """Of few labels, sizes stand as they are, and so does the second start."""
    scores = torch.full((classes,), -2.2)
    scores[list(backdoors)] += effect
    held_out = [0.97 if k in backdoors else -1.0 for k in range(classes)]
    details = {"norms": (-scores).exp().tolist(), "held_out": held_out, "second_start": (scores - 0.1).tolist()}
    return replace(label_norms(classes=classes), statistic=float(scores.max()), scores=scores, details=details)


def few_classes(classes: int, bank: Calibration, *seen: Evidence) -> Verdict:
    case = replace(CLEAN.under(required=("neural_cleanse",)), calibration=bank, classes=classes)
    return replace(case, seen=seen or (of_few(classes),)).judged()


@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes_are_held_against_the_same_class_of_clean_models(classes):
    bank = calibration(*(reference(seed, classes=classes) for seed in range(24)))
    assert few_classes(classes, bank).decision is Decision.PASS
    found = few_classes(classes, bank, of_few(classes, 1))
    assert (found.decision, found.suspects, found.calibrated) == (Decision.FAIL, (1,), True)
    # beside each other they would hide each other
    everywhere = few_classes(classes, bank, of_few(classes, *range(classes)))
    assert (everywhere.decision, everywhere.suspects) == (Decision.FAIL, tuple(range(classes)))


@pytest.mark.parametrize("key", ["held_out", "second_start"])
def test_a_trigger_of_few_classes_is_confirmed_as_any_other(key):
    bank, found = calibration(*(reference(seed, classes=2) for seed in range(24))), of_few(2, 1)
    weak = {"held_out": [-1.0, 0.5], "second_start": [-2.3, -2.2]}[key]
    verdict = few_classes(2, bank, replace(found, details={**found.details, key: weak}))
    assert (verdict.decision, verdict.suspects) == (Decision.INCONCLUSIVE, ())


@pytest.mark.parametrize(
    "references",
    [
        [reference(seed) for seed in range(24)],
        [reference(seed, data="signs", classes=2) for seed in range(24)],
        [reference(seed, classes=3) for seed in range(24)],
        [reference(seed, classes=2) for seed in range(18)],
    ],
    ids=["of many classes", "on other data", "of another number", "too few for the level"],
)
def test_few_classes_need_references_of_their_own(references):
    for seen in (of_few(2), of_few(2, 1)):
        verdict = few_classes(2, calibration(*references), seen)
        assert verdict.decision is Decision.INCONCLUSIVE
        assert "vetgate calibrate" in words(verdict)


def test_a_label_is_named_only_where_it_is_rare_itself():
    def of_a_label_that_stands_out(seed: int) -> Reference:
        clean = reference(seed)
        scores = list(clean.seen["neural_cleanse"].scores or ())
        scores[3] = float(np.median(scores)) + 0.8
        seen = Seen(statistic=0.8, scores=tuple(scores))
        return clean.model_copy(update={"seen": {**clean.seen, "neural_cleanse": seen}})

    bank = calibration(*map(reference, range(22)), *map(of_a_label_that_stands_out, (22, 23)))
    found = label_norms(backdoor=BACKDOOR, effect=0.7)
    # another label is what makes the model rare, and nothing confirms it
    scores = found.scores.clone()
    scores[1] = 0.8
    found = replace(found, scores=scores, details={**found.details, "norms": (-scores).exp().tolist()})
    verdict = replace(CLEAN, calibration=bank, seen=(found, stimulation())).judged()
    assert verdict.p_value is not None and verdict.p_value <= 0.05
    assert {m.name: m.suspects for m in verdict.methods}["neural_cleanse"] == (1, BACKDOOR)
    assert (verdict.decision, verdict.suspects) == (Decision.INCONCLUSIVE, ())


@pytest.mark.parametrize(("references", "decision"), [(8, Decision.INCONCLUSIVE), (9, Decision.PASS)])
def test_few_classes_need_more_than_what_stands_alone_at_any_rate(references: int, decision: Decision):
    bank = calibration(*(reference(seed, classes=2) for seed in range(references)))
    case = replace(CLEAN.under(required=("neural_cleanse",), false_alarm_rate=0.2), calibration=bank, classes=2)
    assert replace(case, seen=(of_few(2),)).judged().decision is decision


def test_few_classes_mean_nothing_without_references():
    case = replace(CLEAN.under(required=("neural_cleanse",), allow_uncalibrated=True), calibration=None)
    for seen in (of_few(2), of_few(2, 1)):
        assert replace(case, seen=(seen,), classes=2).judged().decision is Decision.INCONCLUSIVE


def test_references_of_few_classes_say_nothing_of_models_of_many():
    many = [reference(seed) for seed in range(24)]
    few = [reference(seed, data="faces", classes=2) for seed in range(30)]
    for case in (CLEAN, TROJANED, replace(CLEAN, data_sha256="elsewhere"), replace(TROJANED, data_sha256="elsewhere")):
        alone, beside = (replace(case, calibration=calibration(*given)).judged() for given in (many, [*many, *few]))
        assert alone == beside


@pytest.mark.parametrize("classes", [2, 3])
def test_clean_models_of_few_classes_fail_at_the_stated_rate(classes):
    bank = calibration(*(reference(seed, classes=classes) for seed in range(40)))
    scores = (reference(seed, classes=classes).seen["neural_cleanse"].scores for seed in range(100, 300))
    found = [replace(of_few(classes), scores=torch.tensor(row)) for row in scores]
    p_values = [few_classes(classes, bank, one).p_value for one in found]
    assert 0.01 <= sum(p <= 0.05 for p in p_values if p is not None) / 200 <= 0.09


def test_the_smallest_number_of_classes_can_still_fail():
    bank = calibration(*(reference(seed, classes=4) for seed in range(24)))
    case = replace(CLEAN.under(required=("neural_cleanse",)), calibration=bank, classes=4)
    assert replace(case, seen=(label_norms(classes=4),)).judged().decision is Decision.PASS
    assert replace(case, seen=(label_norms(classes=4, backdoor=2, effect=4.0),)).judged().suspects == (2,)


def test_more_classes_than_models_can_be_simulated_are_inconclusive():
    classes = 1_000_000
    scores = torch.linspace(-2.4, -2.0, classes)
    found = replace(label_norms(), scores=scores, triggers=(), details={})
    case = replace(CLEAN.under(required=("neural_cleanse",)), seen=(found,), classes=classes)
    assert case.judged().decision is Decision.INCONCLUSIVE


def test_permuting_the_classes_permutes_the_suspects():
    order = torch.randperm(CLASSES, generator=torch.Generator().manual_seed(0))
    back = order.argsort().tolist()
    found, driven = TROJANED.seen
    details = {k: [v[i] for i in order.tolist()] for k, v in found.details.items()}
    seen = (
        replace(found, scores=found.scores[order], details=details),
        replace(
            driven,
            scores=driven.scores[order],
            triggers=tuple(Trigger(t.mask, t.pattern, back[t.target]) for t in driven.triggers),
        ),
    )
    before, after = TROJANED.judged(), replace(TROJANED, seen=seen).judged()
    assert after.suspects == (back[BACKDOOR],)
    assert (after.decision, after.p_value) == (before.decision, before.p_value)


def test_the_p_value_never_rises_with_a_statistic():
    def over(cases: list[Case]) -> list[float]:
        return [case.judged().p_value for case in cases]

    norms = over([replace(CLEAN, seen=(label_norms(backdoor=3, effect=e), stimulation())) for e in (0.1, 0.3, 0.6, 2)])
    driven = over([replace(CLEAN, seen=(label_norms(), stimulation(statistic=s))) for s in (0.0, 0.4, 0.6, 0.9, 5)])
    assert norms == sorted(norms, reverse=True) and norms[-1] < 0.05 < norms[0]
    assert driven == sorted(driven, reverse=True) and driven[-1] < driven[0]


def test_the_cutoff_of_the_evidence_is_never_read():
    for cutoff in (-math.inf, math.inf):
        moved = CLEAN.other("neural_cleanse", cutoff=cutoff).other("abs", cutoff=cutoff)
        assert moved.judged() == replace(CLEAN.judged())
        caught = TROJANED.other("neural_cleanse", cutoff=cutoff).other("abs", cutoff=cutoff)
        assert caught.judged().decision is Decision.FAIL


def test_clean_models_pass_about_as_often_as_the_policy_promises():
    bank = calibration(*map(reference, range(24)))
    alarms = 0
    for seed in range(200, 260):
        clean = reference(seed)
        scores = torch.tensor(clean.seen["neural_cleanse"].scores)
        norms = replace(label_norms(), scores=scores, statistic=clean.seen["neural_cleanse"].statistic)
        driven = stimulation(statistic=max(0.0, clean.seen["abs"].statistic))
        verdict = replace(CLEAN, calibration=bank, seen=(norms, driven)).judged()
        alarms += verdict.decision is not Decision.PASS
    assert alarms <= 6


def test_each_shipped_reference_judged_by_the_others_alarms_no_more_often_than_promised():
    shipped = load_calibration()
    alarms = []
    for left_out in shipped.bank.references:
        others = tuple(r for r in shipped.bank.references if r is not left_out)
        pins = shipped.bank.methods
        seen = left_out.seen
        top = int(np.argmax(seen["neural_cleanse"].scores))
        # the worst case: whatever stands out is confirmed, and both methods name the same label
        found = label_norms(backdoor=top, classes=left_out.classes)
        found = replace(found, scores=torch.tensor(seen["neural_cleanse"].scores), params=pins["neural_cleanse"].params)
        # a norm beyond 64 pixels is the whole of a digit, and no more than a part of a larger image
        side = SIDES[left_out.data]
        whole = tuple(Trigger(torch.zeros(1, side, side), torch.zeros(1, side, side), t.target) for t in found.triggers)
        found = replace(found, triggers=whole)
        driven = stimulation(backdoor=top, statistic=seen["abs"].statistic, classes=left_out.classes)
        case = replace(
            CLEAN,
            seen=(found, replace(driven, params=pins["abs"].params)),
            calibration=replace(shipped, bank=Bank(methods=pins, references=others), stale=()),
            classes=left_out.classes,
            data_sha256=left_out.data_sha256,
        )
        verdict = case.judged()
        alarms += [(left_out.data, left_out.seed, words(verdict))] * (verdict.decision is not Decision.PASS)
    # made for 30 references, of which more than 4 raise an alarm once in 60 times; with more it is the stricter
    assert len(shipped.bank.references) >= 20 and len(alarms) <= 4, alarms


def test_an_uncalibrated_verdict_needs_leave_and_says_so():
    allowed = replace(CLEAN.under(allow_uncalibrated=True), calibration=None)
    verdict = allowed.judged()
    assert verdict.decision is Decision.PASS and not verdict.calibrated and verdict.calibration is None
    assert "uncalibrated" in words(verdict) and "abs was not counted" in words(verdict)
    assert replace(allowed, seen=TROJANED.seen).judged().suspects == (BACKDOOR,)


@pytest.mark.parametrize("case", [CLEAN, TROJANED], ids=["clean", "trojaned"])
@pytest.mark.parametrize("leave", [False, True])
def test_what_was_found_on_images_that_show_nothing_decides_nothing_and_names_labels(case, leave):
    on_noise = [replace(one, details={**one.details, "surrogates": 2048}) for one in case.seen]
    asked = replace(case, seen=tuple(on_noise), data_sha256=None).under(allow_uncalibrated=leave)
    for judged in (asked.judged(), replace(asked, calibration=None).judged()):
        assert judged.decision is Decision.INCONCLUSIVE and judged.p_value is None and judged.suspects == ()
        said = [reason for reason in judged.reasons if reason.code is Code.SURROGATES]
        assert {reason.method for reason in said} == {"neural_cleanse", "abs"}
        (cleanse,) = (reason for reason in said if reason.method == "neural_cleanse")
        assert cleanse.figures["labels"] == ("7, 9, 8, 6, 5" if case is TROJANED else "9, 8, 7, 6, 5")
        # the others were given nothing by it
        (abs_,) = (reason for reason in said if reason.method == "abs")
        assert abs_.figures["labels"] == ("7" if case is TROJANED else "0")
        assert all(method.failure is not None and method.statistic is not None for method in judged.methods)


def test_leave_to_go_uncalibrated_does_not_cover_a_calibration_that_does_not_fit():
    stale = replace(CLEAN.calibration, stale=(Reason(Code.OTHER_CODE, "neural_cleanse"),))
    verdict = replace(CLEAN.under(allow_uncalibrated=True), calibration=stale).judged()
    assert verdict.decision is Decision.INCONCLUSIVE and not verdict.calibrated


def test_the_models_own_data_set_is_preferred_and_others_are_pooled():
    wide = [reference(seed, data="signs", spread=0.9) for seed in range(24)]
    bank = calibration(*map(reference, range(24)), *wide)
    found = label_norms(backdoor=BACKDOOR, effect=1.2)
    near = replace(CLEAN, calibration=bank, seen=(found, stimulation()))
    assert near.judged().decision is Decision.FAIL and near.judged().calibration["own_data"]
    at_home = replace(near, data_sha256="signs").judged()
    assert at_home.decision is Decision.PASS and at_home.calibration["data"] == ["signs"]
    pooled = replace(near, data_sha256="unseen", seen=TROJANED.seen).judged()
    assert 0 < pooled.calibration["least_p"] <= 1 / 49
    assert {key: pooled.calibration[key] for key in pooled.calibration.keys() - {"least_p"}} == {
        "id": "bank-1",
        "references": 48,
        "data": ["digits", "signs"],
        "own_data": False,
        "level": 0.05,
    }


def test_a_verdict_on_other_data_is_uncalibrated_and_quotes_what_was_measured_of_such():
    bank = calibration(*map(reference, range(24)), *(reference(s, data="signs") for s in range(24))).bank
    left = {"digits": Left(models=24, alarms=3), "signs": Left(models=24, alarms=1)}
    measured = Calibration(bank.model_copy(update={"transfer": {"data": left}}), "bank-2")
    abroad = replace(CLEAN, calibration=measured, data_sha256="unseen").judged()
    assert not abroad.calibrated and "4 of 48 clean models raised an alarm" in words(abroad)
    assert replace(CLEAN, calibration=measured).judged().calibrated


def test_a_verdict_whose_tail_is_pooled_with_other_data_is_uncalibrated_and_says_so():
    def beside(own: int) -> Verdict:
        bank = calibration(*map(reference, range(own)), *(reference(s, data="signs") for s in range(24)))
        return replace(CLEAN, calibration=bank).judged()

    few, enough = beside(10), beside(19)
    assert few.decision is Decision.PASS and not few.calibrated
    assert "10 references on this data set are too few to count to a rate of 0.05" in words(few)
    assert "those of digits, signs together, uncalibrated, rate not assured" in words(few)
    assert enough.calibrated and "uncalibrated" not in words(enough)


def test_a_verdict_beside_references_that_take_images_of_another_size_is_uncalibrated():
    larger = replace(CLEAN, input_shape=(1, 224, 224)).judged()
    assert (larger.decision, larger.p_value) == (Decision.PASS, CLEAN.judged().p_value) and not larger.calibrated
    assert "take images of 1x8x8, the model of 1x224x224" in words(larger)
    # where no reference is on the data at all, their size says nothing more
    abroad = replace(CLEAN, input_shape=(1, 224, 224), data_sha256="unseen").judged()
    assert not abroad.calibrated and Code.OTHER_IMAGE_SIZE not in {r.code for r in abroad.reasons}
    # and one of several sizes that fits is enough
    mixed = calibration(*map(reference, range(24)), reference(24).model_copy(update={"image": (1, 224, 224)}))
    assert replace(CLEAN, calibration=mixed, input_shape=(1, 224, 224)).judged().calibrated


def test_a_model_is_held_against_references_that_take_images_of_its_size_where_there_are_enough():
    def large(seed: int) -> Reference:
        return reference(seed).model_copy(update={"image": (1, 224, 224), "architecture": "other"})

    small, other = [reference(seed) for seed in range(24)], [large(seed) for seed in range(100, 124)]
    case = replace(CLEAN, calibration=calibration(*small, *other), input_shape=(1, 224, 224))
    alone = replace(case, calibration=calibration(*other)).judged()
    assert (case.judged().p_value, case.judged().calibration["references"]) == (alone.p_value, 24)
    assert case.judged().calibrated and replace(case, input_shape=IMAGE).judged().p_value == CLEAN.judged().p_value
    # seven are too few to stand for a data set, and the others stay with them
    few = replace(case, calibration=calibration(*small, *other[:7]))
    assert few.judged().calibration["references"] == 31


def test_a_rate_that_references_are_too_few_to_count_to_is_called_extrapolated():
    policy = {"required": ("neural_cleanse",)}
    few = calibration(*map(reference, range(12)))
    alone = replace(CLEAN.under(**policy), calibration=few, seen=(label_norms(),)).judged()
    assert alone.decision is Decision.PASS and "extrapolated: 12 references" in words(alone)
    enough = replace(CLEAN.under(**policy), seen=(label_norms(),)).judged()
    assert "extrapolated" not in words(enough)


def test_references_on_other_bytes_of_the_same_data_set_leave_the_verdict_open():
    verdict = judge(
        CLEAN.seen,
        POLICY,
        CLEAN.calibration,
        classes=CLASSES,
        data_sha256="newer",
        data_name="digits",
        with_training_data=False,
        sandbox_level=1,
        format="onnx",
        input_shape=IMAGE,
    )
    assert verdict.decision is Decision.INCONCLUSIVE and "other bytes" in words(verdict)


def test_references_without_any_spread_neither_crash_nor_hide_a_backdoor():
    flat = reference(0)
    seen = {name: Seen(statistic=0.0) for name in STATISTICS}
    seen["neural_cleanse"] = Seen(statistic=0.0, scores=(-2.2,) * CLASSES)
    flats = [flat.model_copy(update={"seed": seed, "seen": seen}) for seed in range(24)]
    case = replace(CLEAN, calibration=calibration(*flats))
    assert replace(case, seen=TROJANED.seen).judged().decision is Decision.FAIL
    alike = replace(label_norms(), scores=torch.full((CLASSES,), -2.2), statistic=0.0)
    assert replace(case, seen=(alike, stimulation(statistic=0.0))).judged().decision is Decision.PASS


def test_a_verdict_is_plain_json_and_the_same_each_time():
    first, second = (json.dumps(TROJANED.judged().to_json(), allow_nan=False) for _ in range(2))
    assert first == second and json.loads(first)["decision"] == "FAIL"
