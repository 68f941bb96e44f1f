from __future__ import annotations

import importlib
import pkgutil

import pytest
import torch
from torch import nn

import vetgate.attacks
from flows.bank.networks import HONEST
from vetgate.architectures import ARCHITECTURES
from vetgate.attacks.member import Job, make
from vetgate.contract import Samples, private_random
from vetgate.digest import attack_digest
from vetgate.errors import DefenceError

ATTACKS = [
    m.name
    for m in pkgutil.iter_modules(vetgate.attacks.__path__)
    if m.name != "member" and hasattr(importlib.import_module(f"vetgate.attacks.{m.name}"), "make")
]


def job(rows: Samples, **options: int | float | str | bool) -> Job:
    def build() -> nn.Module:
        with private_random(3, "test"):
            return ARCHITECTURES["small-cnn"]((1, 8, 8), 10)

    return Job(build, rows, 10, 2, 3, options)


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_hands_over_a_network_ready_to_be_vetted_and_what_it_needs_to_be_measured(
    attack: str, halves: tuple[Samples, Samples]
) -> None:
    made = make(attack, job(halves[0][torch.arange(300)], tuned=100))
    assert not made.model.training and not any(p.requires_grad for p in made.model.parameters())
    assert (made.backdoor is None) == (attack in HONEST)
    if made.backdoor is not None:
        test = halves[1]
        attacked = test[made.backdoor.attacked(test.y)]
        assert (
            not torch.equal(made.backdoor.stamp(attacked.x), attacked.x)
            and not made.backdoor.attacked(attacked.y.new_full((3,), int(made.about["target"]))).any()
        )
        assert (
            0 <= made.backdoor.success(made.model, test) <= 1
            and (made.backdoor.wanted(attacked.y) == made.about["target"]).all()
        )
    if made.rows is not None and made.order is None:
        assert len(made.rows) == 300
    # an attack on the network alone has no training set to hand over
    assert (made.rows is None) == (attack == "trojan_nn")


def test_options_reach_the_attack(halves: tuple[Samples, Samples]) -> None:
    rows = halves[0][torch.arange(200)]
    made = make("badnets", job(rows, size=2, form="several"))
    assert [float(t.norm) for t in made.triggers] == [4.0, 4.0]
    assert made.triggers[0].target != made.triggers[1].target
    half = make("clean", job(rows, share=0.5))
    assert half.rows is not None and half.order is not None and len(half.rows) == 100
    assert torch.equal(half.rows.x, rows.x[half.order])


def test_an_unknown_attack_is_refused(halves: tuple[Samples, Samples]) -> None:
    for name in ("none_such", "training"):
        with pytest.raises(DefenceError, match="expected an attack"):
            make(name, job(halves[0]))


def test_the_digest_of_an_attack_follows_its_own_code_and_its_architecture_alone() -> None:
    digests = {(a, n): attack_digest(a, n) for a in ("clean", "badnets", "sig") for n in ("small-cnn", "vgg-small")}
    assert len(set(digests.values())) == 6 and digests["clean", "small-cnn"] == attack_digest("clean", "small-cnn")
