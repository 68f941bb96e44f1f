from __future__ import annotations

import torch

from tests.vetgate.repair.test_neural_cleanse_unlearning import evidence, halves, trigger
from vetgate.channels import layers_of
from vetgate.contract import REPAIRS
from vetgate.inversion import attack_success
from vetgate.probe import accuracy
from vetgate.repair.neuron_pruning import gap


def test_the_neuron_that_the_trigger_drives_is_silenced_and_no_other() -> None:
    subject = halves()
    clean = subject.clean
    assert clean is not None
    found = REPAIRS["neuron_pruning"](subject, evidence([5.0, 0.0], 2.0, 0, 1))
    assert found.changed["silenced"] == 1 and found.changed["neurons"] == 3
    assert not found.model.hidden.weight[2].any() and not found.model.norm.bias[2]
    assert torch.equal(found.model.hidden.weight[:2], subject.model.hidden.weight[:2])
    assert attack_success(found.model, clean.x, clean.y, trigger(0)) < 0.05
    assert accuracy(found.model, clean.x, clean.y) == 1
    assert found.changed["reversed_success_after"] < 0.05 < found.changed["reversed_success_before"]


def test_the_gap_is_that_of_the_same_images_under_the_trigger() -> None:
    subject = halves()
    assert subject.clean is not None
    layer = layers_of(subject.model, subject.clean.x)[-1]
    found = gap(subject.model, layer, subject.clean, [trigger(0)])
    # the trigger lies in the right half, whose neuron rises as well, but less
    assert int(found.argmax()) == 2 and found[2] > 2 * found[1] > 0 and abs(float(found[0])) < 1e-6


def test_where_a_neuron_cannot_be_spared_nothing_is_silenced() -> None:
    subject = halves()
    # what no image needs is not what this trigger drives
    found = REPAIRS["neuron_pruning"](subject, evidence([0.0, 5.0], 2.0, 1), budget=-1.0)
    assert found.changed["silenced"] == 0
    assert torch.equal(found.model.hidden.weight, subject.model.hidden.weight)
