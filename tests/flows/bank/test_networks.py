"""The bank is what it says: its sizes, what is held back, and stages for every part of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml

from flows.bank import stage
from flows.bank.networks import HONEST, MEMBERS, PARAMS, members, plan
from flows.bank.own import recipe, references
from flows.params import load_params
from vetgate.architectures import ARCHITECTURES
from vetgate.errors import BadPolicy
from vetgate.role import roles, weight_of
from vetgate.shipped import ROOT

PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
FIRST_CLEAN = {("clean", "digits"): 40, ("clean", "mnist"): 30, ("clean", "gtsrb"): 15, ("clean", "cifar10"): 15}
SETS = ("digits", "mnist", "gtsrb", "cifar10")
LEAST = {"badnets": 24, "trojan_nn": 24, "source_specific": 12}
OTHERS = (
    "trojan_nn_poisoning",
    "blended",
    "sig",
    "label_consistent",
    "wanet",
    "input_aware",
    "adaptive",
    "adversarial_patch",
)


def test_it_holds_the_clean_members_that_a_rate_of_one_in_a_hundred_needs() -> None:
    clean = Counter(m.data for m in members().values() if m.clean)
    assert clean == {"digits": 53, "mnist": 44, "gtsrb": 43, "cifar10": 43}
    assert sum(m.clean and plan().group(m.name) == "open" for m in members().values()) >= 99


@pytest.mark.parametrize("attack", [*LEAST, *OTHERS])
def test_it_holds_enough_of_each_attack_a_sixth_of_them_on_each_of_the_larger_sets(attack: str) -> None:
    found = Counter(m.data for m in members().values() if m.attack == attack)
    least = LEAST.get(attack, 6 if attack == "adversarial_patch" else 8)
    assert found.total() >= least
    assert all(found[data] >= least / 6 for data in ("gtsrb", "cifar10"))


def test_clean_members_differ_in_what_honest_suppliers_differ_in() -> None:
    for data in SETS:
        clean = [m for m in members().values() if m.clean and m.data == data]
        assert {m.architecture for m in clean} == set(ARCHITECTURES)
        varied = {key for m in clean for key in m.options}
        assert {"shift", "weight_decay", "share", "adversarial", "times", "tuned", "patched", "wrong"} <= varied


def test_no_two_members_of_a_data_set_share_a_seed() -> None:
    seeds = Counter((m.data, m.seed) for m in members().values())
    assert max(seeds.values()) == 1


def test_a_third_of_each_kind_is_held_back() -> None:
    listed, sealed, second = members(), plan().sealed, plan().second
    assert sealed | second <= set(listed) and not sealed & second

    def kinds(names: Iterable[str]) -> Counter[tuple[str, str]]:
        return Counter((listed[n].attack, listed[n].data if listed[n].clean else "") for n in names)

    held_back, every = kinds(sealed | second), kinds(listed)
    assert all(held_back[kind] >= count // 3 for kind, count in every.items())
    # of the first wave, exactly: all that attacks but those of the second, and so many clean ones
    first = {kind: n for kind, n in kinds(set(listed) - second).items() if kind[0] not in HONEST} | FIRST_CLEAN
    assert kinds(sealed) == {kind: round(count / 3) for kind, count in first.items()}


def test_the_second_wave_holds_every_attack_on_every_data_set() -> None:
    listed = members()
    found = {(listed[n].attack, listed[n].data) for n in plan().second}
    attacks = {*LEAST, *OTHERS, *HONEST} - {"adversarial_patch"}
    assert found == {(attack, data) for attack in attacks for data in SETS}


def test_the_pipeline_has_a_stage_for_every_method_and_data_set() -> None:
    evidence, repairs = PIPELINE["evidence"]["matrix"], PIPELINE["repairs"]["matrix"]
    assert (evidence["method"], repairs["repair"]) == ("${bank.detectors}", "${bank.repairs}")
    # what is advisory need not run on the bank
    counted = tuple(name for name in load_params().detect if weight_of(name) > 0)
    assert tuple(n for n in plan().detectors if n in counted) == counted and set(plan().detectors) <= set(roles())
    assert plan().repairs == tuple(load_params().repair)
    assert set(evidence["data"]) == set(repairs["data"]) == set(plan().sets) == set(SETS)
    assert PIPELINE["member"]["foreach"] == "${members}"


def test_a_look_leaves_what_stages_read_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VETGATE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(stage, "AT_HAND", tmp_path / "at-hand")
    stage.look()
    ran = yaml.safe_load((ROOT / "dvc.lock").read_text())["stages"].values()
    read = {Path(dep["path"]) for one in ran for dep in one.get("deps", ())}
    assert {f.name for f in (tmp_path / "at-hand").iterdir()} == {f.name for f in read if f.parent.name == "at-hand"}


def test_a_file_that_lists_no_members_is_refused(tmp_path: Path) -> None:
    (tmp_path / "members.yaml").write_text("members: {a: {data: digits}}\n")
    with pytest.raises(BadPolicy, match="expected the bank's members"):
        members(tmp_path / "members.yaml")
    with pytest.raises(BadPolicy, match="expected a section bank"):
        plan(tmp_path / "params.yaml")
    assert members(MEMBERS) and plan(PARAMS).sets


def test_references_of_ones_own_are_as_varied_and_see_as_many_images() -> None:
    assert recipe(60_000).images == 6_000 and recipe(60_000).epochs == 7
    assert recipe(1_400).epochs == 29 and recipe(100).epochs == 30
    wanted = references("signs", 20)
    assert len({m.seed for m in wanted}) == 20 and {m.architecture for m in wanted} == set(ARCHITECTURES)
    assert all(m.clean and m.data == "signs" for m in wanted) and {m.attack for m in wanted} == set(HONEST)
    few = [m.options["tuned"] for m in references("signs", 20, images=100) if m.attack == "fine_tuned"]
    assert few and max(few) <= 20
