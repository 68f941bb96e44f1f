"""AUROC, intervals, probabilities, cross-entropy and what a repair is worth, against values made by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vetgate.verdict.metrics import Array, auroc, cross_entropy, defence_effectiveness, interval, probabilities, share

NONE = np.array([])


def values(*given: float) -> Array:
    return np.array(given, dtype=float)


def test_auroc_is_the_share_of_pairs_in_the_right_order():
    # of 6 pairs, only (3, 2) is in the wrong order
    assert auroc(values(0, 1, 3), values(2, 4)) == pytest.approx(5 / 6)


def test_ties_count_half():
    assert auroc(values(1, 1), values(1, 1, 1)) == 0.5
    assert auroc(values(0, 1), values(1, 2)) == pytest.approx(3.5 / 4)


def test_auroc_of_separate_groups_is_one_and_zero_the_other_way():
    assert auroc(values(0, 1), values(2, 3)) == 1
    assert auroc(values(2, 3), values(0, 1)) == 0


@pytest.mark.parametrize(("clean", "backdoored"), [(NONE, values(1)), (values(1), NONE), (NONE, NONE)])
def test_without_pairs_there_is_no_auroc(clean, backdoored):
    assert math.isnan(auroc(clean, backdoored))


def test_a_share_is_a_mean_and_none_of_nothing():
    assert share(values(1, 0, 0, 1)) == 0.5
    assert math.isnan(share(NONE))


class TestInterval:
    def test_it_holds_the_point_estimate(self):
        groups = [values(0, 1, 2, 3, 4, 5), values(3, 4, 5, 6, 7, 8)]
        low, high = interval(groups, auroc)
        assert low < auroc(*groups) < high

    def test_it_narrows_with_more_models(self):
        few, many = (interval([np.tile(values(0, 1), n)], share) for n in (5, 80))
        assert many[1] - many[0] < (few[1] - few[0]) / 2

    def test_it_has_the_width_that_a_binomial_share_has(self):
        low, high = interval([np.tile(values(0, 1), 200)], share)
        assert (low, high) == pytest.approx((0.5 - 1.96 * 0.025, 0.5 + 1.96 * 0.025), abs=0.008)

    def test_it_widens_with_the_level(self):
        group = [np.tile(values(0, 1), 20)]
        half, most = interval(group, share, level=0.5), interval(group, share, level=0.99)
        assert most[0] < half[0] < half[1] < most[1]

    def test_the_same_seed_gives_the_same_interval(self):
        group = [np.arange(10.0)]
        assert interval(group, np.mean, seed=1) == interval(group, np.mean, seed=1) != interval(group, np.mean, seed=2)

    def test_models_that_all_agree_give_no_width(self):
        assert interval([values(1, 1, 1)], share) == (1, 1)

    def test_an_empty_group_gives_none(self):
        assert all(map(math.isnan, interval([values(1, 2), NONE], auroc)))


class TestProbabilities:
    scores = np.arange(20.0)
    truth = (np.arange(20) >= 10).astype(float)
    folds = np.arange(20) % 5

    def test_within_a_fold_they_do_not_fall_as_the_score_rises(self):
        p = probabilities(self.scores, self.truth, self.folds)
        assert all((np.diff(p[self.folds == fold]) >= 0).all() for fold in range(5))
        assert p[0] < 0.1 and p[-1] > 0.9

    def test_a_fold_s_own_labels_do_not_matter_for_it(self):
        held_out = self.folds == 2
        turned = np.where(held_out, 1 - self.truth, self.truth)
        before, after = (probabilities(self.scores, truth, self.folds) for truth in (self.truth, turned))
        assert (before[held_out] == after[held_out]).all()
        assert (before[~held_out] != after[~held_out]).all()

    def test_they_are_clipped(self):
        p = probabilities(10 * self.scores, self.truth, self.folds)
        assert (p.min(), p.max()) == (0.01, 0.99)

    def test_both_kinds_count_the_same_in_a_fit(self):
        # the same clean scores ten times over move nothing
        scores, truth = np.concatenate([np.tile([0.0, 1.0], 10), [2.0, 3.0]]), np.repeat([0.0, 1.0], [20, 2])
        middle = probabilities(np.append(scores, 1.5), np.append(truth, 1.0), np.append(np.zeros(22), 1.0))[-1]
        assert middle == pytest.approx(0.5, abs=1e-3)

    def test_where_the_others_are_of_one_kind_nothing_is_known(self):
        p = probabilities(values(1, 2, 3, 4), values(0, 0, 1, 1), values(0, 0, 1, 1))
        assert (p == 0.5).all()

    def test_nothing_in_nothing_out(self):
        assert len(probabilities(NONE, NONE, NONE)) == 0


class TestCrossEntropy:
    def test_it_is_ln_2_where_nothing_is_known(self):
        assert cross_entropy(values(0.5, 0.5, 0.5), values(0, 1, 1)) == pytest.approx(math.log(2))

    def test_both_kinds_weigh_the_same(self):
        # three clean models at 0.2, one backdoored one at 0.4
        expected = (-math.log(0.8) - math.log(0.4)) / 2
        assert cross_entropy(values(0.2, 0.2, 0.2, 0.4), values(0, 0, 0, 1)) == pytest.approx(expected)

    @pytest.mark.parametrize("kind", [0, 1])
    def test_one_kind_alone_has_none(self, kind):
        assert math.isnan(cross_entropy(values(0.5, 0.5), values(kind, kind)))


class TestDefenceEffectiveness:
    @pytest.mark.parametrize(
        ("accuracy", "success", "expected"),
        [
            ((0.9, 0.9), (1.0, 0.0), 1.0),
            ((0.9, 0.9), (1.0, 1.0), 0.5),
            ((1.0, 0.0), (1.0, 1.0), 0.0),
            ((1.0, 0.0), (1.0, 0.0), 0.5),
            ((0.9, 0.8), (0.95, 0.15), 0.85),
        ],
    )
    def test_success_gone_counts_for_it_and_accuracy_lost_against_it(self, accuracy, success, expected):
        assert defence_effectiveness(accuracy, success) == pytest.approx(expected)

    def test_neither_accuracy_gained_nor_success_gained_counts(self):
        assert defence_effectiveness((0.8, 0.9), (0.5, 0.7)) == 0.5
