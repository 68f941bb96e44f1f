"""Tables from made-up rows, against numbers counted by hand."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from flows.benchmark.tables import cost, detection, entropy, false_alarms, members, neural_cleanse, repaired, tables
from vetgate.shape import Blob
from vetgate.verdict import metrics


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "RESAMPLES", 50)


def ruled(p: float | None, decision: str, right: bool = False, references: int | None = 50, **methods: float) -> Blob:
    return {
        "decision": decision,
        "p_value": p,
        "suspects": [3] if right else [],
        "right": right,
        "references": references,
        "methods": methods,
    }


def row(name: str, kind: str, model: Blob, **changed: Any) -> Blob:
    data, attack, _ = name.split("-")
    return {
        "name": name,
        "data": data,
        "attack": attack,
        "architecture": "small-cnn",
        "accuracy": 0.98,
        "attack_success": None if kind == "clean" else 0.95,
        "target": None if kind == "clean" else 3,
        "kind": kind,
        "fold": int(name[-1]) % 5,
        "seconds": {"neural_cleanse": 10.0},
        "image_gradients": {"neural_cleanse": 1000},
        "index": 1.0,
        "model": model,
        **changed,
    }


CLEAN = [
    row("mnist-clean-0", "clean", ruled(0.5, "PASS", neural_cleanse=0.4)),
    row("mnist-clean-1", "clean", ruled(0.04, "INCONCLUSIVE", neural_cleanse=0.02), index=3.0),
    row("mnist-clean-2", "clean", ruled(0.005, "FAIL", neural_cleanse=0.01), index=2.5),
    row("mnist-clean-3", "clean", ruled(0.8, "PASS", neural_cleanse=0.9), index=None),
    row("gtsrb-clean-4", "clean", ruled(0.01, "FAIL", references=120)),
]
BADNETS = [
    row("mnist-badnets-0", "backdoored", ruled(0.001, "FAIL", True, neural_cleanse=0.001), index=4.0),
    row("mnist-badnets-1", "backdoored", ruled(0.03, "FAIL", False, neural_cleanse=0.5), index=1.5),
    row("mnist-badnets-2", "backdoored", ruled(0.2, "PASS", False, neural_cleanse=0.05), index=2.1),
]
OTHERS = [
    row("gtsrb-badnets-3", "backdoored", ruled(0.001, "FAIL"), attack="badnets, all to all", target=None),
    row("gtsrb-badnets-4", "backdoored", ruled(0.001, "FAIL", True), attack="badnets, several targets"),
    row("mnist-wanet-4", "failed attack", ruled(0.9, "PASS"), attack_success=0.3),
]
ROWS = [*CLEAN, *BADNETS, *OTHERS]


def named(rows: list[Blob], name: str) -> Blob:
    return next(r for r in rows if r["name"] == name)


def test_members_of_each_kind_are_counted():
    assert members(ROWS) == [
        {"name": "mnist", "clean": 4, "backdoored": 3, "failed": 1},
        {"name": "gtsrb", "clean": 1, "backdoored": 2, "failed": 0},
        {"name": "all", "clean": 5, "backdoored": 5, "failed": 1},
    ]


class TestFalseAlarms:
    def test_each_kind_of_alarm_is_counted_by_data_set(self):
        assert named(false_alarms(ROWS, "model"), "mnist") == {
            "name": "mnist",
            "n": 4,
            "fail": {"count": 1, "n": 4},
            "not_pass": {"count": 2, "n": 4},
            "strict": {"count": 1, "n": 4},
            "extrapolated": True,
            "references": [50, 50],
            "index": {"count": 2, "n": 3},
        }

    def test_all_come_last(self):
        last = false_alarms(ROWS, "model")[-1]
        assert (last["name"], last["n"], last["fail"]["count"], last["references"]) == ("all", 5, 2, [50, 120])

    def test_one_per_cent_is_extrapolated_below_99_references_and_at_it_not(self):
        def flag(references: int | None) -> bool:
            return false_alarms([row("mnist-clean-0", "clean", ruled(0.5, "PASS", references=references))], "model")[0][
                "extrapolated"
            ]

        assert [flag(98), flag(99), flag(None)] == [True, False, True]

    def test_a_member_without_a_p_value_did_not_pass(self):
        found = false_alarms([row("mnist-clean-0", "clean", ruled(None, "INCONCLUSIVE"))], "model")[-1]
        assert (found["not_pass"]["count"], found["strict"]["count"]) == (1, 0)

    def test_a_view_that_no_member_has_counts_none(self):
        assert [r["n"] for r in false_alarms(ROWS, "with_data")] == [0]


class TestDetection:
    def test_an_attack_is_held_against_the_clean_members_of_its_data_sets(self):
        found = named(detection(ROWS, "model"), "badnets")
        # 0.001 lies below all four clean p-values, 0.03 below three, 0.2 below two
        assert (found["n"], found["clean"], found["auroc"]["value"]) == (3, 4, 0.75)

    def test_shares(self):
        found = named(detection(ROWS, "model"), "badnets")
        values = {key: found[key]["value"] for key in ("level", "strict", "fail", "target", "index")}
        assert values == pytest.approx(
            {"level": 2 / 3, "strict": 1 / 3, "fail": 2 / 3, "target": 1 / 3, "index": 2 / 3}
        )

    def test_a_single_detector_is_scored_by_its_own_p_values(self):
        found = named(detection(ROWS, "model"), "badnets")["detectors"]
        # 0.001 lies below all four of 0.4, 0.02, 0.01, 0.9; 0.5 below one; 0.05 below two
        assert list(found) == ["neural_cleanse"]
        assert found["neural_cleanse"]["value"] == pytest.approx(7 / 12, abs=1e-6)

    def test_intervals_hold_the_estimates(self):
        found = named(detection(ROWS, "model"), "badnets")
        for key in ("auroc", "level", "fail", "index"):
            assert found[key]["low"] <= found[key]["value"] <= found[key]["high"]

    @pytest.mark.parametrize("attack", ["badnets, all to all", "badnets, several targets"])
    def test_without_a_single_target_there_is_no_right_label(self, attack):
        found = named(detection(ROWS, "model"), attack)
        assert found["target"] == {"n": 0, "value": None, "low": None, "high": None}

    def test_attacks_come_first_then_data_sets_then_all(self):
        by = [(r["by"], r["name"]) for r in detection(ROWS, "model")]
        attacks = ["badnets", "badnets, all to all", "badnets, several targets"]
        assert by == [*(("attack", a) for a in attacks), ("data", "mnist"), ("data", "gtsrb"), ("all", "all")]

    def test_over_all_each_pair_counts(self):
        found = detection(ROWS, "model")[-1]
        # of mnist's: 5, 3 and 2 of 5 pairs; of gtsrb's, 5 each; 0.03 lies above 0.01 and 0.2 too
        assert (found["n"], found["clean"]) == (5, 5)
        assert found["auroc"]["value"] == pytest.approx((5 + 3 + 2 + 5 + 5) / 25)

    def test_a_member_without_a_p_value_is_a_miss_and_not_ranked(self):
        lost = row("mnist-badnets-3", "backdoored", ruled(None, "INCONCLUSIVE"))
        found = named(detection([*ROWS, lost], "model"), "badnets")
        assert (found["n"], found["level"]["value"], found["auroc"]["value"]) == (4, 0.5, 0.75)

    def test_with_the_training_set_only_members_that_have_one_count(self):
        seen = {"with_data": ruled(0.02, "FAIL", spectral_signatures=0.03)}
        rows = [{**CLEAN[0], "with_data": ruled(0.3, "PASS", spectral_signatures=0.3)}, {**BADNETS[0], **seen}]
        found = detection([*rows, *BADNETS[1:]], "with_data")[-1]
        assert (found["n"], found["clean"], found["auroc"]["value"]) == (1, 1, 1)
        assert found["detectors"]["spectral_signatures"]["value"] == 1

    def test_with_nothing_backdoored_nothing_is_estimated(self):
        found = detection(CLEAN, "model")
        assert [r["name"] for r in found] == ["all"]
        assert (found[0]["n"], found[0]["auroc"]["value"], found[0]["fail"]["value"]) == (0, None, None)


class TestEntropy:
    def rows(self, first: int = 0) -> list[Blob]:
        """Clean members at p = 0.5 and backdoored ones at 0.001, of every fold one."""
        return [
            row(f"mnist-{kind}-{n}", kind, ruled(p, "PASS"), fold=n % 5)
            for kind, p in (("clean", 0.5), ("backdoored", 0.001))
            for n in range(first, first + 5)
        ]

    def test_scores_that_tell_the_kinds_apart_have_little(self):
        found = entropy(self.rows(), "model")
        assert found["n"] == 10 and found["low"] <= found["value"] <= found["high"] < 0.2

    def test_scores_that_tell_nothing_have_ln_2(self):
        rows = [{**r, "model": ruled(0.5, "PASS")} for r in self.rows()]
        assert entropy(rows, "model")["value"] == pytest.approx(math.log(2), abs=1e-4)

    def test_on_other_rows_a_member_s_own_label_does_not_matter(self):
        wrong = [{**r, "kind": "clean" if r["kind"] == "backdoored" else "backdoored"} for r in self.rows()]
        right, turned = (entropy(rows, "model", self.rows())["value"] for rows in (self.rows(), wrong))
        assert right < 0.2 and turned > 1.5

    def test_failed_attacks_and_members_without_a_p_value_do_not_count(self):
        more = [OTHERS[-1], row("mnist-clean-9", "clean", ruled(None, "INCONCLUSIVE"))]
        assert entropy([*self.rows(), *more], "model") == entropy(self.rows(), "model")

    def test_a_view_that_no_member_has_gives_none(self):
        assert entropy(ROWS, "with_data") == {"n": 0, "value": None, "low": None, "high": None}


def test_cost_is_a_median_a_detector_and_the_sum_a_member():
    spent = [{"neural_cleanse": 10.0, "abs": 1.0}, {"neural_cleanse": 20.0, "abs": 3.0}, {"neural_cleanse": 60.0}]
    rows = [
        row(f"mnist-clean-{n}", "clean", ruled(0.5, "PASS"), seconds=s, image_gradients={"neural_cleanse": 100 * n})
        for n, s in enumerate(spent)
    ]
    assert cost(rows)[0] == {
        "name": "mnist",
        "n": 3,
        "detectors": {
            "neural_cleanse": {"seconds": 20, "image_gradients": 100},
            "abs": {"seconds": 2, "image_gradients": None},
        },
        "total": {"median": 23, "max": 60},
    }


REPAIRED = {
    "mnist-badnets-0": {
        "accuracy": [0.9, 0.9],
        "attack_success": [1.0, 0.0],
        "robust_accuracy": [0.0, 0.8],
        "seconds": 5.0,
    },
    "mnist-badnets-1": {
        "accuracy": [0.9, 0.8],
        "attack_success": [0.9, 0.5],
        "robust_accuracy": [0.1, 0.4],
        "seconds": 7.0,
    },
    # neither backdoored, nor known
    "mnist-wanet-4": {
        "accuracy": [0.9, 0.1],
        "attack_success": [0.3, 0.3],
        "robust_accuracy": [0.1, 0.1],
        "seconds": 1.0,
    },
    "mnist-blended-9": {},
}


class TestRepairs:
    def test_means_before_and_after(self):
        found = repaired(ROWS, REPAIRED)
        assert [r["name"] for r in found] == ["badnets", "all"]
        assert found[0]["accuracy"] == pytest.approx([0.9, 0.85])
        assert found[0]["attack_success"] == pytest.approx([0.95, 0.25])
        assert found[0]["robust_accuracy"] == pytest.approx([0.05, 0.6])
        assert (found[0]["n"], found[0]["solved"], found[0]["seconds"]) == (2, {"count": 1, "n": 2}, 6)

    def test_the_rating_is_the_mean_of_its_members(self):
        # 1 and (0.4 - 0.1 + 1) / 2
        assert repaired(ROWS, REPAIRED)[-1]["der"] == pytest.approx({"value": 0.825, "low": 0.65, "high": 1.0})

    def test_without_results_there_are_no_means(self):
        assert repaired(ROWS, {})[-1]["accuracy"] == [None, None]


class TestNeuralCleanse:
    def test_clean_members_and_badnets_ones_with_one_target_are_listed(self):
        found = neural_cleanse(ROWS)["members"]
        assert [r["name"] for r in found if r["state"] == "infected"] == [r["name"] for r in BADNETS]
        # the fourth clean one has no index
        assert [r["name"] for r in found if r["state"] == "clean"] == [CLEAN[i]["name"] for i in (0, 1, 2, 4)]

    def test_medians(self):
        infected = next(r for r in neural_cleanse(ROWS)["medians"] if r["state"] == "infected")
        assert infected == {
            "data": "mnist",
            "state": "infected",
            "n": 3,
            "index": 2.1,
            "own": 0.05,
            "p_value": 0.03,
            "alarms": {"count": 2, "n": 3},
            "fail": {"count": 2, "n": 3},
        }


class TestTables:
    def test_failed_attacks_are_listed_with_their_success(self):
        found = tables(ROWS)
        failed = {"name": "mnist-wanet-4", "attack": "wanet", "accuracy": 0.98, "attack_success": 0.3}
        assert found["failed"] == [failed]
        assert "wanet" not in [r["name"] for r in found["detection"]["model"]]

    def test_they_are_strict_json_even_of_nothing(self):
        for rows in (ROWS, CLEAN[:1], []):
            assert json.loads(json.dumps(found := tables(rows, rule=(0.8, 0.04)), allow_nan=False)) == found

    def test_transfer_passes_through(self):
        left = {"data": {"mnist": {"alarms": 1, "models": 20}}, "architecture": {}}
        assert tables(ROWS, transfer=left)["transfer"] == left

    def test_the_same_rows_give_the_same_tables(self):
        assert tables(ROWS) == tables(ROWS)
