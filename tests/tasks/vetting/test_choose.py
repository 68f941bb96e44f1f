"""Which repair is good enough, which is clearly so, which is chosen: within both limits, and by known figures only."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from tasks.vetting.choose import candidates, choose, clearly_good, good_enough
from tasks.vetting.results import RepairFailed, Standing
from tests.tasks.vetting.records import repaired
from vetgate.role import repair_roles
from vetgate.verdict.accuracy_loss import AccuracyLoss
from vetgate.verdict.policy import RepairPolicy
from vetgate.verdict.reasons import Code, Reason

POLICY = RepairPolicy(methods=(), max_accuracy_loss=0.02, max_attack_success=0.05)
TELLING = sorted(name for name, role in repair_roles().items() if role.tells is not None)
SKIPPED = Reason(Code.REPAIR_SKIPPED, "prune", figures={"lacks": "neurons"})
NOT_TRIED = Reason(Code.REPAIR_NOT_TRIED, "retrain", figures={"good": "unlearn"})


def lost(loss: float, error: float = 0.0, images: int = 400) -> AccuracyLoss:
    return AccuracyLoss(loss, error, images)


@pytest.mark.parametrize(
    "loss, holds",
    [
        (lost(0.02), True),
        (lost(0.021), False),
        # 2 of 95 images: the estimate is above the limit, what is established is not
        (lost(2 / 95, math.sqrt(2 - 4 / 95) / 95, 95), True),
        (lost(0.05, 0.01), False),
        (lost(-0.01, 0.01), True),
        (lost(math.nan, 0.01), False),
        (lost(0.0, math.nan), False),
        (lost(0.3, math.inf), False),
        (lost(0.3, -1.0), False),
        (lost(0.0, 0.0, images=0), False),
    ],
)
def test_only_an_established_loss_beyond_the_limit_is_held_against_a_repair(loss: AccuracyLoss, holds: bool) -> None:
    assert good_enough(repaired(loss=loss), POLICY) is holds


@pytest.mark.parametrize(
    "figures, holds",
    [
        ({"success": 0.05}, True),
        ({"success": 0.06}, False),
        ({"success": 0.15, "natural": 0.1}, True),
        ({"success": 0.16, "natural": 0.1}, False),
        ({"success": 0.25, "natural": 0.98}, True),
        ({"success": 0.26, "natural": 0.98}, False),
        ({"success": 0.93, "natural": 0.97}, False),
        ({"success": None}, False),
        ({"success": math.nan}, False),
        ({"success": -0.1}, False),
        ({"natural": math.nan}, False),
        ({"natural": 5.0, "success": 1.0}, False),
        ({"accuracy": math.nan}, False),
        ({"accuracy": 1.2}, False),
    ],
)
def test_the_success_left_is_held_against_its_limit_and_no_missing_figure_is_good(figures: Any, holds: bool) -> None:
    assert good_enough(repaired(**figures), POLICY) is holds
    if not holds:
        assert choose([repaired(**figures)], POLICY) is None and not clearly_good(repaired(**figures), POLICY)


def test_the_least_success_is_chosen_then_the_highest_accuracy() -> None:
    tried = [
        RepairFailed("tune", "out of memory"),
        repaired("prune", success=0.03, accuracy=0.98),
        repaired("unlearn", success=0.01, accuracy=0.96),
        repaired("retrain", success=0.01, accuracy=0.97),
        repaired("break", success=0.0, loss=lost(0.5)),
        SKIPPED,
    ]
    assert choose(tried, POLICY) is tried[3]
    assert choose(tried[4:], POLICY) is None and choose([], POLICY) is None


@pytest.mark.parametrize(
    "one, clear",
    [
        (repaired(loss=lost(0.01, 0.001), success=0.025), True),
        (repaired(loss=lost(0.011, 0.01), success=0.0), False),
        (repaired(loss=lost(0.0), success=0.03), False),
        (repaired(loss=lost(0.0), success=0.12, natural=0.1), True),
        (repaired(loss=lost(0.0), success=1.0, natural=1.0), False),
        (repaired(loss=lost(0.0), triggers=False), True),
        (repaired(loss=lost(0.015, 0.001), triggers=False), False),
        (RepairFailed("tune", "out of memory"), False),
        (SKIPPED, False),
    ],
)
def test_clearly_good_is_within_half_of_each_limit(one: Any, clear: bool) -> None:
    assert clearly_good(one, POLICY) is clear


def test_what_is_good_enough_is_so_under_no_half_of_a_limit_that_is_nothing() -> None:
    strict = POLICY.model_copy(update={"max_accuracy_loss": 0.0, "max_attack_success": 0.0})
    assert clearly_good(repaired(loss=lost(0.0), success=0.0), strict)
    assert not good_enough(repaired(loss=lost(0.0), success=0.001), strict)


def test_without_a_trigger_accuracy_alone_counts_and_no_success_is_claimed() -> None:
    blind = repaired(triggers=False)
    assert good_enough(blind, POLICY) and choose([blind], POLICY) is blind
    assert not good_enough(repaired(triggers=False, loss=lost(0.1)), POLICY)
    # what changes next to nothing keeps more accuracy, and is no better for it
    idle = repaired("idle", triggers=False, accuracy=0.98, loss=lost(0.0))
    assert choose([blind, idle], POLICY) is blind and choose([idle, blind], POLICY) is idle
    (shown,) = candidates([blind], blind, POLICY)
    assert shown.figures is not None and shown.figures.attack_success == (None, None) and shown.figures.anew is None
    assert shown.figures.robust_accuracy == (None, None) and shown.figures.trigger_sizes == ()


@pytest.mark.parametrize("method", TELLING)
def test_without_a_trigger_what_was_retrained_tells_whether_anything_was_taken_out(method: str) -> None:
    told, honest, silent = (
        repaired(method, triggers=False, changed=changed) for changed in ({"lost": 0.5}, {"lost": 0.49}, {})
    )
    assert good_enough(told, POLICY) and not good_enough(honest, POLICY) and not good_enough(silent, POLICY)
    assert not good_enough(repaired(method, triggers=False, changed={"lost": math.nan}), POLICY)
    # a trigger tells more: poison with true labels keeps them
    assert good_enough(repaired(method, changed={"lost": 0.0}), POLICY)
    shown, dash = candidates([honest, silent], None, POLICY)
    assert shown.reason_record is not None and shown.reason_record["code"] == "repair-unconfirmed"
    assert "teach nothing, 49 % of the rows" in str(shown.reason) and "–" in str(dash.reason)


def test_every_candidate_is_shown_with_its_figures_and_why_it_was_refused() -> None:
    good = repaired("unlearn", success=0.01)
    costly = repaired("tune", success=0.3, natural=0.1, loss=lost(0.05, 0.01))
    tried = [costly, RepairFailed("crash", "out of memory"), SKIPPED, repaired("second"), good, NOT_TRIED]
    shown = candidates(tried, good, POLICY)
    assert [(one.method, one.standing) for one in shown] == [
        ("tune", Standing.NOT_GOOD_ENOUGH),
        ("crash", Standing.FAILED),
        ("prune", Standing.SKIPPED),
        ("second", Standing.GOOD_ENOUGH),
        ("unlearn", Standing.CHOSEN),
        ("retrain", Standing.NOT_TRIED),
    ]
    figures = shown[0].figures
    assert figures is not None
    assert (figures.clean_accuracy, figures.attack_success, figures.anew) == ((0.98, 0.97), (1.0, 0.01), 0.3)
    assert (figures.robust_accuracy, figures.natural, figures.lost) == ((0.0, 0.91), 0.1, costly.validate.lost)
    assert [(size.label, size.before, size.after) for size in figures.trigger_sizes] == [(3, 4.0, 11.0)]
    assert [one.figures is None for one in shown] == [False, True, True, False, False, True]
    assert [one.reason_record and one.reason_record["code"] for one in shown] == [
        "repair-not-good-enough",
        "repair-failed",
        "repair-skipped",
        None,
        None,
        "repair-not-tried",
    ]
    assert shown[0].reason == (
        "repair tune was not good enough: clean accuracy 0.980 to 0.970, a loss of 0.050 of which 0.016 may be chance "
        "on 400 images (0.02 allowed beyond that); attack success 1.000 to 0.300 (0.05 allowed beyond 0.100; triggers "
        "of this size do 0.100 by nature)"
    )
    assert shown[2].reason == "repair prune was skipped, with nothing to go by: it needs neurons that a detector names"
    assert shown[5].reason == "repair retrain was not tried, since the copy of unlearn had passed"


def test_a_candidate_whose_copy_was_vetted_says_what_became_of_it() -> None:
    best, passed, refused = repaired("unlearn", success=0.01), repaired("tune"), repaired("crop", loss=lost(0.5))
    copies: Any = {
        "unlearn": SimpleNamespace(manifest_sha256="11", verdict="INCONCLUSIVE"),
        "tune": SimpleNamespace(manifest_sha256="22", verdict="PASS"),
    }
    shown = candidates([best, passed, refused], passed, POLICY, copies)
    assert [(one.standing, one.submission, one.verdict) for one in shown] == [
        (Standing.NOT_PASSED, "11", "INCONCLUSIVE"),
        (Standing.CHOSEN, "22", "PASS"),
        (Standing.NOT_GOOD_ENOUGH, None, None),
    ]


def test_why_a_repair_was_refused_names_a_limit_and_no_missing_figure() -> None:
    (shown,) = candidates([repaired(triggers=False, loss=lost(0.3, 0.02))], None, POLICY)
    record = shown.reason_record
    assert record is not None and record["figures"]["loss_allowed"] == 0.02 and record["figures"]["images"] == 400
    assert "success_after" not in record["figures"] and "attack success – to –" in str(shown.reason)
    unknown = replace(repaired(), validate=replace(repaired().validate, lost=lost(math.nan)))
    (shown,) = candidates([unknown], None, POLICY)
    assert shown.reason is not None and "a loss of nan" in shown.reason
