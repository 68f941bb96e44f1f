"""What is chosen on one half is confirmed on the other, and no member has a say in its own null."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.halves import Network, half_of, of_the_architecture, of_the_label, of_the_model, score, statistics


def bank(clean: int = 20, backdoored: int = 10) -> list[Network]:
    kinds = [("clean", "clean", None)] * clean + [("badnets", "backdoored", 2)] * backdoored
    return [
        Network(f"digits-{attack}-{i:02}", "digits", "cnn", attack, kind, target)
        for i, (attack, kind, target) in enumerate(kinds)
    ]


def column(members: list[Network], effect: float) -> dict[str, np.ndarray]:
    """Ten labels a member, the last of which is large by nature; the target of a backdoored one by `effect`."""
    stream = np.random.default_rng(0)
    found = {}
    for member in members:
        scores = stream.normal(0, 0.1, 10)
        scores[9] += 3
        if member.target is not None:
            scores[member.target] += effect
        found[member.name] = scores
    return found


def test_each_half_has_every_other_member_of_an_attack() -> None:
    members = bank()
    chosen = half_of(members)
    assert half_of(members[::-1]) == chosen
    for attack, count in (("clean", 20), ("badnets", 10)):
        assert sum(chosen[m.name] for m in members if m.attack == attack) == count / 2


def test_what_is_usual_for_a_label_comes_from_the_other_clean_members() -> None:
    members = bank(clean=3, backdoored=0)
    scores = {m.name: np.array(row) for m, row in zip(members, ([0.0, 1, 5], [0.0, 1, 7], [0.0, 1, 9]), strict=True)}
    others = [m for m in members if m.name != members[0].name]
    # medians are 1, so the others' last labels stand 6 and 8 above: 7 is usual
    assert of_the_label(scores, members[0], others).tolist() == [0.0, 0.0, 4.0 - 7.0]
    found = statistics(scores, members, of_the_label)
    assert found[members[2].name][1] == 2 and found[members[0].name][1] != 2


def test_a_label_that_is_large_by_nature_hides_a_backdoor_from_one_null_and_not_from_the_other() -> None:
    members = bank()
    scores = column(members, effect=1.5)
    by_model, by_label = (score(scores, members, null) for null in (of_the_model, of_the_label))
    for half in ("choose", "confirm"):
        assert by_label[half]["auroc"] == 1 and by_label[half]["detected"] == 1
        assert by_label[half]["right_label"] == [5, 5]
        assert by_model[half]["auroc"] < 0.9


def test_a_score_that_is_not_finite_is_an_error_and_not_clean() -> None:
    members = bank()
    scores = column(members, effect=1.5)
    scores[members[3].name][0] = np.nan
    with pytest.raises(ValueError, match=members[3].name):
        score(scores, members, of_the_model)


def test_the_null_of_an_architecture_lies_between_its_own_and_the_data_set_s() -> None:
    members = bank(clean=6, backdoored=0)
    others = [Network(f"other-{i}", "digits", "vgg", "clean", "clean", None) for i in range(6)]
    scores = {m.name: np.array([0.0, 0, 0, 3 if m.architecture == "vgg" else 0]) for m in [*members, *others]}
    by_data, by_kind = (
        null(scores, others[0], [*members, *others[1:]])[3] for null in (of_the_label, of_the_architecture)
    )
    # of eleven the median is 0; five of its own draw it 5 / 7 of the way to 3
    assert by_data == 3 and by_kind == pytest.approx(3 - 3 * 5 / 7)


def test_nothing_to_find_is_not_found() -> None:
    members = bank(clean=40, backdoored=40)
    found = score(column(members, effect=0.0), members, of_the_label)
    for half in ("choose", "confirm"):
        assert found[half]["auroc"] == pytest.approx(0.5, abs=0.2) and found[half]["detected"] <= 0.2
        low, high = found[half]["auroc_interval"]
        assert low <= found[half]["auroc"] <= high
