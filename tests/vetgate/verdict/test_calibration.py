"""Null distributions of clean models: known tails, their own scale and floor, and no file that says half of it."""

from __future__ import annotations

import json
import math
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from vetgate.digest import code_digest
from vetgate.errors import BadPolicy
from vetgate.role import by_itself, weight_of
from vetgate.verdict.calibration import (
    CLIP,
    LITTLE,
    MOST,
    Bank,
    Calibration,
    MethodPin,
    Null,
    Reference,
    Seen,
    _like_among_like,
    combined,
    combined_null,
    contribution,
    draws_for,
    extended_tail,
    farthest,
    label_p_values,
    label_units,
    less_usual,
    load_calibration,
    lower_scale,
    normal_score,
    outlier_null,
    outliers,
    steadied,
    tail,
    unit_of,
    usual_of,
)
from vetgate.verdict.policy import load_policy
from vetgate.verdict.reasons import Code
from vetgate.verdict.wording import render

METHODS = ("neural_cleanse", "abs")


def on_data(data: str, seed: int, seen: dict[str, Seen]) -> Reference:
    about = {"data": data, "data_sha256": data, "image": (1, 8, 8), "architecture": "cnn", "classes": 10}
    return Reference(**about, seed=seed, accuracy=0.97, seen=seen)


def reference(seed: int, data: str = "digits", *, statistic: float = 0.3, spread: float = 0.1) -> Reference:
    stream = np.random.default_rng([seed, len(data)])
    scores = stream.normal(-2.2, spread, 10)
    seen = {
        "neural_cleanse": Seen(statistic=float(scores.max() - np.median(scores)), scores=tuple(scores.tolist())),
        "abs": Seen(statistic=float(stream.normal(statistic, spread))),
    }
    return on_data(data, seed, seen)


def calibration(*references: Reference) -> Calibration:
    pins = {name: MethodPin(code="c", params={"steps": 3}) for name in ("neural_cleanse", "abs")}
    return Calibration(Bank(methods=pins, references=references), "id")


def null_of(scales: list[float], floor: float = 0.0) -> Null:
    return Null(floor, np.array(scales), 0.3, np.empty(0), np.empty(0))


def file_of(bank: Bank, path: Path, /, **changed: Any) -> Path:
    path.write_text(json.dumps({**bank.model_dump(mode="json"), "bank": bank.digest(), **changed}))
    return path


def test_a_p_value_counts_the_clean_models_that_are_as_far_out():
    null = np.array([1.0, 2.0, 3.0])
    assert tail(null, np.array([0.0, 2.0, 2.5, 9.0])).tolist() == [1.0, 0.75, 0.5, 0.25]


def test_the_normal_score_of_a_p_value_is_its_quantile_and_bounded():
    assert normal_score(0.5)[0] == pytest.approx(0) and normal_score(0.05)[0] == pytest.approx(1.645, abs=1e-3)
    assert normal_score(np.array([0.0, 1.0])).tolist() == [CLIP, -CLIP]


def test_the_scale_comes_from_the_suspicious_half_alone():
    assert lower_scale([-50.0, -9.0, 0.0, 1.0, 2.0]) == pytest.approx(1.4826)


def test_few_labels_lean_on_the_floor_and_many_speak_for_themselves():
    assert steadied(1.0, 10, 1.0) == pytest.approx(1.0)
    assert steadied(3.0, 4, 1.0) < 2 < 2.9 < steadied(3.0, 1000, 1.0)
    assert steadied(0.0, 10, 0.0) > 0


def test_labels_that_are_all_alike_raise_no_alarm_for_a_hair():
    alike = [-2.2, -2.2, -2.2, -2.2, -2.199]
    assert outliers(alike, 0.0).max() > 100 and outliers(alike, 0.15).max() < 0.01


def test_an_outlier_is_measured_from_the_median_in_steadied_scales():
    scores = [-50.0, -9.0, 0.0, 1.0, 2.0]
    assert outliers(scores, 0.5)[-1] == pytest.approx(2 / float(steadied(1.4826, 5, 0.5)))


@pytest.mark.parametrize("classes", [4, 5, 10, 43])
def test_the_simulated_null_holds_its_level_for_any_number_of_classes(classes):
    null = outlier_null(classes, null_of([0.2], 0.2)).outliers
    stream = np.random.default_rng(99)
    clean = [outliers(stream.normal(-2, 0.2, classes).tolist(), 0.2).max() for _ in range(2000)]
    assert np.mean(tail(null, np.array(clean)) <= 0.05) == pytest.approx(0.05, abs=0.015)


def test_a_cut_of_two_spreads_alarms_for_a_tenth_of_clean_ten_class_models_and_most_larger_ones():
    ten, many = (outlier_null(k, null_of([1.0], 1.0)).outliers for k in (10, 43))
    assert tail(ten, 2.0) > 0.1 and tail(many, 2.0) > 0.5


def test_the_null_is_that_of_row_by_row_outliers():
    # so many classes that only 40 models are simulated
    classes, null = 200_000, null_of([0.1, 0.4], 0.2)
    stream = np.random.default_rng(classes)
    normal = stream.standard_normal((draws_for(classes), classes))
    scaled = normal * stream.choice(null.scales, draws_for(classes))[:, None]
    slow = sorted(float(outliers(row, 0.2).max()) for row in scaled)
    assert len(slow) == 40 and np.allclose(outlier_null(classes, null).outliers, slow)


def test_what_stays_below_the_least_effect_adds_little_to_a_simulated_clean_model():
    assert outlier_null(10, null_of([0.01])).added.max() < 0.2 * LITTLE
    assert 0 < np.mean(outlier_null(10, null_of([0.3])).added > LITTLE) < 1


def test_an_effect_counts_in_proportion_up_to_the_least_and_for_its_rarity_from_there_on():
    found = unit_of(np.array([-1.0, 0.0, 0.2, 0.4, 0.41, 0.8]), np.array([4.0, 4.0, 4.0, 4.0, -1.0, 3.0]), 0.4)
    assert found.tolist() == pytest.approx([0, 0, LITTLE / 2, LITTLE, LITTLE, 3.0])
    assert unit_of(np.array([0.1]), np.array([2.0]), 0.0).tolist() == [2.0], "where clean models have no spread"


def test_methods_strengthen_each_other_where_they_point_at_one_label():
    one, other = np.array([3.0, 0.0, 0.0]), np.array([0.0, 3.0, -2.0])
    assert combined({"neural_cleanse": one, "output_share": one}).tolist() == [6, 0, 0]
    assert combined({"neural_cleanse": one, "output_share": other}).tolist() == [3, 3, 0]
    whole = combined({"neural_cleanse": one, "spectral_signatures": np.array([2.0])})
    assert whole.tolist() == [3 + 2 * weight_of("spectral_signatures"), *[2 * weight_of("spectral_signatures")] * 2]


def test_simulated_clean_models_raise_one_label_by_two_methods_as_often_as_by_chance():
    labels = {n: outlier_null(5, null_of([0.3])) for n in ("neural_cleanse", "output_share")}
    pairs = combined_null(dict.fromkeys(labels, null_of([0.3])), labels, 5)
    single = combined_null(dict.fromkeys(labels, null_of([0.3])), labels, 10_000)
    assert np.quantile(pairs, 0.99) > np.quantile(single, 0.99), "one of five labels is met more often than of many"


def test_a_thousand_classes_are_simulated_in_bounded_memory():
    tracemalloc.start()
    null = outlier_null(1283, null_of([0.2])).outliers
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 300e6 and 1 / (len(null) + 1) < 0.001 and np.isfinite(null).all()


def test_the_combined_null_is_sorted_finite_and_the_same_each_time():
    nulls = {"neural_cleanse": null_of([0.3]), "abs": Null(0, np.empty(0), 0, np.array([-9.0, 0.0, 9.0]), np.empty(0))}
    labels = {"neural_cleanse": outlier_null(10, nulls["neural_cleanse"])}
    null = combined_null(nulls, labels, 10)
    assert (np.diff(null) >= 0).all() and np.array_equal(null, combined_null(nulls, labels, 10))
    assert 0 <= null[0] < LITTLE and 0.5 * MOST < null[-1] <= CLIP + 0.5 * MOST


def test_beyond_all_clean_models_the_simulated_tail_goes_on_from_where_they_end():
    clean, simulated = np.arange(1.0, 20.0), np.linspace(0, 40, 2001)
    p = extended_tail(clean, simulated, np.array([0.0, 10.0, 19.0, 19.5, 30.0, 50.0]))
    assert p[:3].tolist() == [1.0, 0.55, 0.1], "down to the largest, models are counted"
    assert 0.05 > p[3] > p[4] > p[5] > 0
    assert p[4] == pytest.approx(0.05 * tail(simulated, 30.0) / tail(simulated, 19.0))
    assert extended_tail(np.empty(0), simulated, 30.0) == tail(simulated, 30.0)


def test_each_reference_is_scored_by_the_others_and_a_calibration_holds_its_own_level():
    alarmed = []
    for turn in range(12):
        bank = calibration(*(reference(1000 * turn + seed) for seed in range(40)))
        scores = bank.clean_scores(METHODS, "digits", 0.05)
        null = bank.null("neural_cleanse", "digits", 0.05, labels=True)
        assert len(scores) == 40 and (np.diff(scores) >= 0).all()
        for fresh in (reference(1000 * turn + seed) for seed in range(500, 600)):
            labels = null.less_usual(fresh.seen["neural_cleanse"].scores).tolist()
            label = float(label_units(labels, label_p_values(labels, null), null.least).max())
            units = dict(
                zip(METHODS, (label, bank.standardise("abs", fresh.seen["abs"].statistic, "digits")), strict=True)
            )
            alarmed.append(tail(scores, combined(units)) <= 0.05)
    # with 40 references, 2 of 41 is the last step at or below 0.05
    assert np.mean(alarmed) == pytest.approx(2 / 41, abs=0.02)


def test_few_references_of_a_data_set_are_scored_among_their_own_and_pooled_with_all():
    bank = calibration(*(reference(s) for s in range(10)), *(reference(s, "signs", spread=0.8) for s in range(20)))
    assert len(bank.clean_scores(["abs"], "digits", 0.05)) == 30
    assert len(bank.clean_scores(["abs"], "signs", 0.05)) == 20
    assert {r.data for r in bank.peers(["abs"], "elsewhere", 0.05)} == {"digits", "signs"}


def test_nothing_contributes_less_than_nothing_or_more_than_the_most():
    assert contribution(np.array([-9.0, 0.5, 9.0])).tolist() == [0.0, 0.5, MOST]


def test_own_references_stand_alone_from_eight_for_labels_and_from_what_the_level_needs_for_statistics():
    others = [reference(seed, "signs") for seed in range(12)]
    few, enough, many = (calibration(*(reference(s) for s in range(n)), *others) for n in (7, 8, 19))

    def count(bank: Calibration, method: str) -> int:
        return len(bank.references(method, "digits", 0.05))

    assert (count(few, "neural_cleanse"), count(enough, "neural_cleanse")) == (19, 8)
    assert (count(enough, "abs"), count(many, "abs")) == (20, 19)
    assert enough.short_of("abs", "digits", 0.05) is None and few.short_of("abs", "digits", 0.05) is None
    assert "20 clean references of abs" in render(enough.short_of("abs", "digits", 0.01))


def test_the_floor_and_the_least_effect_of_pooled_sets_are_those_of_the_narrowest():
    narrow = [reference(seed, spread=0.05) for seed in range(5)]
    wide = [reference(seed, "signs", spread=0.8) for seed in range(5)]
    alone = calibration(*narrow).null("neural_cleanse", None, 0.05)
    pooled = calibration(*narrow, *wide).null("neural_cleanse", None, 0.05)
    assert (pooled.floor, pooled.least) == (alone.floor, alone.least) and len(pooled.scales) == 10


def with_small_label(seed: int, data: str = "digits", *, more: float = 0.0, label: int = 3) -> Reference:
    """A clean model on data whose label 3 has a small trigger by nature, and `more` of it at a label."""
    stream = np.random.default_rng(seed)
    scores = stream.normal(-2.2, 0.1, 10)
    scores[3] += 1.5
    scores[label] += more
    seen = {"neural_cleanse": Seen(statistic=float(scores.max() - np.median(scores)), scores=tuple(scores.tolist()))}
    return on_data(data, seed, seen)


def test_a_label_with_a_small_trigger_by_nature_sets_no_bar_for_the_others():
    bank = calibration(*(with_small_label(seed) for seed in range(20)))
    null = bank.null("neural_cleanse", "digits", 0.05, labels=bank.knows_labels("neural_cleanse", "digits", 0.05))
    assert null.usual is not None and null.usual.argmax() == 3 and null.usual[3] == pytest.approx(1.5, abs=0.15)

    def p_of(model: Reference) -> list[float]:
        scores = null.less_usual(model.seen["neural_cleanse"].scores or ()).tolist()
        return label_p_values(scores, null).tolist()

    assert min(p_of(with_small_label(100))) > 0.05
    # 0.9 above the others, and still far below what label 3 comes to
    infected = p_of(with_small_label(101, more=0.9, label=6))
    assert infected[6] < 0.01 and min(p for k, p in enumerate(infected) if k != 6) > 0.05
    assert null.raw.max() < 0.9, "the references are shown less what is usual, too"


def test_a_clean_model_has_no_say_in_what_it_is_held_against():
    """Of three models a label is usual by the other two; a median over all three would be each one's own value."""
    scores = tuple(with_small_label(seed).seen["neural_cleanse"].scores or () for seed in range(3))
    rows = np.array([less_usual(of, None) for of in scores])
    usual, far, scales = _like_among_like(scores, ("cnn",) * 3, None)
    assert np.allclose(usual, np.median(rows, axis=0))
    for place in range(3):
        left = less_usual(scores[place], np.median(np.delete(rows, place, axis=0), axis=0))
        assert (far[place], scales[place]) == pytest.approx((farthest(left), lower_scale(left)))


@pytest.mark.parametrize("kinds", [("a",) * 7, ("a", "b") * 3 + ("c",), ("a", "a", "b", "b", "b", "c", "d")], ids=str)
def test_others_of_an_architecture_are_asked_as_if_the_model_were_not_there(kinds: tuple[str, ...]):
    scores = tuple(with_small_label(seed).seen["neural_cleanse"].scores or () for seed in range(len(kinds)))
    rows = np.array([less_usual(of, None) for of in scores])
    _, far, _ = _like_among_like(scores, kinds, "a")
    for place, kind in enumerate(kinds):
        usual = usual_of(np.delete(rows, place, axis=0), kinds[:place] + kinds[place + 1 :], kind)
        assert far[place] == pytest.approx(farthest(less_usual(scores[place], usual)))


def of_architecture(seed: int, architecture: str, habit: int) -> Reference:
    """A clean model whose architecture makes much of one label."""
    made = with_small_label(seed, more=1.2, label=habit)
    return made.model_copy(update={"architecture": architecture})


def test_what_is_usual_for_a_label_is_drawn_towards_the_architecture_s_by_how_many_models_it_has():
    habits = {"plain": 5, "deep": 8}
    bank = calibration(*(of_architecture(s, kind, habits[kind]) for s, kind in enumerate(["plain", "deep"] * 10)))

    def usual(architecture: str | None) -> Any:
        return bank.null("neural_cleanse", "digits", 0.05, labels=True, architecture=architecture).usual

    assert usual("plain")[5] > 0.9 > 0.8 > usual(None)[5] and usual("plain")[8] < 0.3
    assert np.array_equal(usual("unheard of"), usual(None)), "of which there is no reference, nothing is known"
    few = calibration(*bank.bank.references, of_architecture(99, "rare", 1))
    drawn = few.null("neural_cleanse", "digits", 0.05, labels=True, architecture="rare").usual[1]
    rows = [less_usual(r.seen["neural_cleanse"].scores or (), None)[1] for r in few.bank.references]
    assert drawn == pytest.approx(rows[-1] / 3 + np.median(rows) * 2 / 3), "one model against two"


def test_peers_are_spared_the_habits_of_their_architecture_where_the_subject_is():
    habits = {"plain": 5, "deep": 8}
    bank = calibration(*(of_architecture(s, kind, habits[kind]) for s, kind in enumerate(["plain", "deep"] * 10)))

    def farthest_of(architecture: str | None) -> Any:
        return bank.null("neural_cleanse", "digits", 0.05, labels=True, architecture=architecture).raw

    assert np.median(farthest_of("plain")) < 0.6 < np.median(farthest_of(None))
    assert np.array_equal(farthest_of("plain"), farthest_of("deep"))
    assert np.array_equal(farthest_of("unheard of"), farthest_of(None))
    scores = {kind: bank.clean_scores(["neural_cleanse"], "digits", 0.05, 10, kind) for kind in ("plain", "x", None)}
    assert np.array_equal(scores["x"], scores[None]) and not np.array_equal(scores["plain"], scores[None])
    assert bank.knows_architecture("neural_cleanse", "digits", 0.05, "deep")
    assert not bank.knows_architecture("neural_cleanse", "digits", 0.05, None)


def test_where_no_reference_is_on_the_data_labels_are_held_against_each_other():
    bank = calibration(*(with_small_label(seed) for seed in range(20)))
    assert bank.knows_labels("neural_cleanse", "digits", 0.05, 10)
    assert not bank.knows_labels("neural_cleanse", "elsewhere", 0.05)
    assert not bank.knows_labels("neural_cleanse", "digits", 0.05, 12), "a model with labels that no reference has"
    assert not bank.knows_labels("abs", "digits", 0.05), "a statistic of the model"
    few = calibration(*(with_small_label(s) for s in range(7)), *(with_small_label(s, "signs") for s in range(9)))
    assert not few.knows_labels("neural_cleanse", "digits", 0.05), "seven say too little of each label"
    null = bank.null("neural_cleanse", "elsewhere", 0.05)
    assert null.usual is None and null.less_usual([1.0, 2.0, 3.0, 4.0]).tolist() == [-1.5, -0.5, 0.5, 1.5]


def test_references_are_held_against_their_like_as_the_subject_is():
    """Else a model on data without references alarms by nature: its peers alone would be spared what is usual."""
    bank = calibration(*(with_small_label(seed) for seed in range(20)))

    def units(known: bool) -> list[float]:
        found = []
        for one in bank.bank.references:
            others = calibration(*(r for r in bank.bank.references if r is not one))
            null = others.null("neural_cleanse", "digits", 0.05, labels=known)
            scores = null.less_usual(one.seen["neural_cleanse"].scores or ()).tolist()
            found.append(max(float(label_units(scores, label_p_values(scores, null), null.least).max()), 0.0))
        return sorted(found)

    assert units(True) != units(False)
    assert bank.clean_scores(["neural_cleanse"], "digits", 0.05, 10).tolist() == pytest.approx(units(True))
    for data, classes in (("elsewhere", 10), ("digits", 12)):
        assert bank.clean_scores(["neural_cleanse"], data, 0.05, classes).tolist() == pytest.approx(units(False))


def test_pooled_statistics_are_centred_within_their_data_set():
    narrow = [reference(seed, statistic=0.3, spread=0.05) for seed in range(12)]
    wide = [reference(seed, "signs", statistic=5.0, spread=0.5) for seed in range(12)]
    bank = calibration(*narrow, *wide)
    assert abs(np.median(bank.null("abs", None, 0.05).statistics)) < 0.2
    assert bank.standardise("abs", 5.0, "signs") < 2 < 50 < bank.standardise("abs", 5.0, "digits")
    # of data that no reference is on, what stands out of one set alone is nothing
    assert bank.standardise("abs", 5.0, "elsewhere") == bank.standardise("abs", 5.0, "signs")
    assert bank.standardise("abs", -5.0, "elsewhere") == bank.standardise("abs", -5.0, "digits")


def test_a_method_without_references_has_no_null():
    with pytest.raises(BadPolicy, match="no references for strip"):
        calibration(reference(0)).null("strip", None, 0.05)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_reference_that_is_not_finite_is_refused(value):
    with pytest.raises(ValidationError):
        Seen(statistic=value)
    with pytest.raises(ValidationError):
        Seen(statistic=0.0, scores=(0.0, value))


@pytest.mark.parametrize("scores", [None, (), (0.1, 0.2)])
def test_a_reference_without_a_score_for_every_label_is_refused(scores):
    blob = reference(0).model_dump() | {"seen": {"neural_cleanse": {"statistic": 0.1, "scores": scores}}}
    with pytest.raises(ValidationError, match="expected 10 scores"):
        Reference.model_validate(blob)


def test_a_method_that_is_held_against_models_has_scores_for_every_label_or_none():
    blob = reference(0).model_dump()
    for scores in (None, (0.1,) * 10):
        Reference.model_validate(blob | {"seen": {"abs": {"statistic": 0.1, "scores": scores}}})
    with pytest.raises(ValidationError, match="expected 10 scores of abs"):
        Reference.model_validate(blob | {"seen": {"abs": {"statistic": 0.1, "scores": (0.1, 0.2)}}})


def test_a_reference_that_is_listed_twice_is_refused():
    with pytest.raises(ValidationError, match="count as two"):
        Bank(methods={}, references=(reference(0), reference(0)))


def test_the_file_that_was_written_is_the_calibration_that_is_read(tmp_path):
    pin = MethodPin(code=code_digest("detect", "neural_cleanse"), params={"starts": 3})
    bank = Bank(methods={"neural_cleanse": pin}, references=tuple(map(reference, range(3))))
    read = load_calibration(file_of(bank, tmp_path / "bank.json"))
    assert read.bank == bank.model_copy(update={"bank": bank.digest()}) and read.stale == ()
    assert read.mismatch("neural_cleanse", {"starts": 3}) is None
    assert "other parameters" in render(read.mismatch("neural_cleanse", {"starts": 1}))
    assert "no references for abs" in render(read.mismatch("abs", {}))


def test_the_identity_of_a_calibration_changes_with_any_number_in_it(tmp_path):
    bank = calibration(*map(reference, range(3))).bank
    first = load_calibration(file_of(bank, tmp_path / "a.json")).id
    moved = bank.references[0].model_copy(update={"accuracy": 0.971}).model_dump(mode="json")
    rest = [r.model_dump(mode="json") for r in bank.references[1:]]
    assert load_calibration(file_of(bank, tmp_path / "b.json", references=[moved, *rest])).id != first


@pytest.mark.parametrize(
    "change", [{"references": []}, {"bank": ""}, {"transfer": {"data": {"x": {"models": 9, "alarms": 0}}}}]
)
def test_a_file_of_which_a_part_was_exchanged_fits_nothing(tmp_path, change):
    pin = MethodPin(code=code_digest("detect", "neural_cleanse"), params={})
    bank = Bank(methods={"neural_cleanse": pin}, references=tuple(map(reference, range(3))))
    found = load_calibration(file_of(bank, tmp_path / "bank.json", **change)).mismatch("neural_cleanse", {})
    assert found.code is Code.OTHER_REFERENCES


def test_references_on_other_bytes_of_a_data_set_are_told_from_none():
    bank = calibration(*map(reference, range(3)))
    assert "other bytes" in render(bank.other_bytes("digits", "another digest"))
    assert bank.other_bytes("digits", "digits") is None and bank.other_bytes("signs", "signs") is None


@pytest.mark.parametrize("name", ["abs", "a_method_that_was_removed"])
def test_references_of_other_code_are_stale(tmp_path, name):
    bank = Bank(methods={name: MethodPin(code="0" * 64, params={})}, references=())
    assert f"{name} has changed" in render(load_calibration(file_of(bank, tmp_path / "bank.json")).mismatch(name, {}))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[1, 2]",
        '{"methods": {}, "references": [], "note": 1}',
        '{"methods": {}, "references": [{"data": "x"}]}',
        "\udcff",
    ],
)
def test_a_file_that_is_no_calibration_is_refused(tmp_path, text):
    path = tmp_path / "bank.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(BadPolicy, match="not a calibration"):
        load_calibration(path)


def test_a_nan_in_the_file_is_refused(tmp_path):
    bank = calibration(reference(0)).bank
    path = file_of(bank, tmp_path / "bank.json")
    path.write_text(path.read_text().replace(str(bank.references[0].accuracy), "NaN"))
    with pytest.raises(BadPolicy, match="not a calibration"):
        load_calibration(path)


def test_a_calibration_that_was_named_must_be_there(tmp_path):
    with pytest.raises(BadPolicy, match="got no file"):
        load_calibration(tmp_path / "none.json")


def test_the_shipped_calibration_fits_the_code_and_suffices_for_the_shipped_policy():
    shipped, policy = load_calibration(), load_policy()
    assert shipped.stale == ()
    compared = [m for m in (*policy.required, *policy.required_with_training_data) if not by_itself(m)]
    for method in compared:
        for data in {None, *(r.data_sha256 for r in shipped.bank.references)}:
            assert shipped.short_of(method, data, policy.false_alarm_rate) is None
