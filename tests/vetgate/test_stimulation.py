from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from vetgate.architectures import ARCHITECTURES
from vetgate.stimulation import afforded, elevations, raised_labels, stimulable, stimulate, weighted_layers

X = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return ARCHITECTURES[name]((3, 16, 16), 5).eval()


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_stimulation_equals_overwriting_the_channel_with_a_hook(name: str) -> None:
    model = network(name)
    layers = weighted_layers(model, X)
    for layer in stimulable(layers)[::2]:
        count = layer.output.shape[1]
        values = torch.rand(count, 2, generator=torch.Generator().manual_seed(1))
        out = stimulate(model, X, layers, layer, values, rows=30)  # (C, V, N, K)

        def overwrite(_m: nn.Module, _i: object, given: Tensor, value: Tensor = values[-1, 1]) -> Tensor:
            given = given.clone()
            given[:, -1] = value
            return given

        handle = model.get_submodule(layer.name).register_forward_hook(overwrite)
        with torch.no_grad():
            expected = model(X)
        handle.remove()
        assert out.shape == (count, 2, 6, 5)
        assert torch.allclose(out[-1, 1], expected, atol=1e-5)


def test_the_logits_are_never_stimulated() -> None:
    for name in ARCHITECTURES:
        model = network(name)
        assert "head" not in [layer.name for layer in stimulable(weighted_layers(model, X))]


def test_a_normalisation_stands_for_the_convolution_before_it() -> None:
    names = [layer.name for layer in stimulable(weighted_layers(network("preact-resnet"), X))]
    assert "blocks.0.bn2" in names and "blocks.0.conv1" not in names


def test_an_activation_in_place_does_not_spoil_the_recorded_outputs() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(768, 8), nn.ReLU(inplace=True), nn.Linear(8, 5)).eval()
    assert weighted_layers(model, X)[0].output.min() < 0


def test_an_elevation_is_the_lead_over_the_next_label_on_images_of_others() -> None:
    out = torch.zeros(2, 2, 3, 3)  # two channels, two values, three images, three labels
    out[0, 1, :, 2] = torch.tensor([4.0, 3.0, 9.0])
    out[0, 1, :, 1] = 1.0
    label, elevation = elevations(out, torch.tensor([0, 1, 2]), quantile=0.0)
    assert label[0] == 2
    assert elevation.tolist() == [2.0, 0.0]
    # an image of the label has no way to rise
    out[0, 1, 2, 2] = 0.0
    assert elevations(out, torch.tensor([0, 1, 2]), quantile=0.0)[1].tolist() == [2.0, 0.0]


def test_a_channel_that_sleeps_on_clean_images_is_driven_as_hard_as_others() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(768, 3), nn.ReLU(), nn.Linear(3, 5)).eval()
    with torch.no_grad():
        model[1].bias[1] = -1e3  # type: ignore[index]
        model[3].weight[:, 1] = torch.tensor([0.0, 0.0, 0.0, 9.0, 0.0])  # type: ignore[index]
    y = torch.tensor([0, 1, 2, 3, 4, 0])
    ranked, share = raised_labels(model, X, y, scale=1.0, reach=4.0, levels=3, quantile=0.25)
    assert (ranked[0].channel, ranked[0].label) == (1, 3) and share == 1
    assert [c.elevation for c in ranked] == sorted((c.elevation for c in ranked), reverse=True)


def test_in_bounded_memory_the_same_channels_raise_the_same_labels(monkeypatch) -> None:
    model, y = network("preact-resnet"), torch.arange(6) % 5
    given = {"scale": 1.0, "reach": 4.0, "levels": 3, "quantile": 0.25}
    whole, _ = raised_labels(model, X, y, **given)
    # two channels in one go, one image size in a pass
    monkeypatch.setattr("vetgate.stimulation.NUMBERS", 2 * 3 * 6 * 5)
    monkeypatch.setattr("vetgate.stimulation.PIXELS", 6 * 16 * 16)
    bounded, _ = raised_labels(model, X, y, **given)
    assert [(c.layer, c.channel) for c in bounded[:5]] == [(c.layer, c.channel) for c in whole[:5]]
    assert [c.elevation for c in bounded] == pytest.approx([c.elevation for c in whole], abs=1e-4)


def test_of_a_large_network_the_last_layers_are_driven_and_the_share_is_said(monkeypatch) -> None:
    model, y = network("vgg-small"), torch.arange(6) % 5
    layers = weighted_layers(model, X)
    every = stimulable(layers)
    assert afforded(layers, every, 18) == every
    # what the last layer takes, whose channels the head alone comes after, and a bit
    last = 18 * every[-1].output.shape[1] * 5 + 1
    monkeypatch.setattr("vetgate.stimulation.BUDGET", last)
    assert len(afforded(layers, every, 18)) > 1, "what a part may take is as much as IN_PART says"
    monkeypatch.setattr("vetgate.stimulation.IN_PART", last)
    assert afforded(layers, every, 18) == every[-1:]
    ranked, share = raised_labels(model, X, y, scale=1.0, reach=4.0, levels=3, quantile=0.25)
    assert {c.layer for c in ranked} == {every[-1].name}
    assert share == pytest.approx(every[-1].output.shape[1] / sum(layer.output.shape[1] for layer in every))
    monkeypatch.setattr("vetgate.stimulation.IN_PART", 0)
    assert afforded(layers, every, 18) == every[-1:], "something is driven whatever it takes"


PEAK = """
import os, torch
from torch import nn
from vetgate.stimulation import stimulable, stimulate, weighted_layers
torch.set_num_threads(1)
def resident(): return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
for width, side in ((640, 10), (960, 7), (200, 20)):
    model = nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.Hardtanh(0, 6), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 9)
    ).eval()
    x = torch.rand(8, 1, side, side)
    layers = weighted_layers(model, x)
    (driven,) = stimulable(layers)
    seen = [resident()]
    model[3].register_forward_hook(lambda *_: seen.append(resident()))
    stimulate(model, x, layers, driven, torch.rand(width, 2)[:150], rows=8)
    print((max(seen) - seen[0]) >> 20)
"""


def test_passes_leave_no_memory_behind() -> None:
    # in a process of its own, whose heap has no holes; 300 passes, each of which overwrites an output of 1 to 3 MiB
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    assert max(map(int, done.stdout.split())) < 60
