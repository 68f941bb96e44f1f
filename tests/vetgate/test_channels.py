from __future__ import annotations

import pytest
import torch
from torch import nn

from vetgate.architectures import ARCHITECTURES
from vetgate.channels import FilterLayer, activity, filters, layers_of, silence
from vetgate.errors import DefenceError
from vetgate.formats.onnx.operators.norms import InstanceNorm
from vetgate.probe import module_at, output_of

X = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = ARCHITECTURES[name]((3, 16, 16), 5).eval().requires_grad_(False)
    # a shift that a zero filter alone would leave standing
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.bias.fill_(0.5)
    return model


def given_by(model: nn.Module, layer: FilterLayer) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    with output_of(module_at(model, layer.last), lambda out: seen.append(out.clone())):
        model(X)
    return seen[0]


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_a_silent_channel_gives_nothing_and_the_others_what_they_gave(name: str) -> None:
    for layer in layers_of(built(name), X):
        model = built(name)
        before = given_by(model, layer)
        silence(model, layer, [1, 2])
        after = given_by(model, layer)
        assert not after[:, 1:3].any(), layer
        rest = [c for c in range(before.shape[1]) if c not in (1, 2)]
        assert torch.equal(after[:, rest], before[:, rest]), layer
        assert not filters(model, layer)[1:3].any()


class Normalised(nn.Module):
    """A convolution behind which channels are normalised, by itself or together, and another."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), norm, nn.Linear(4, 5)
        for tensor in (norm.weight, norm.bias):
            if isinstance(tensor, torch.Tensor):
                nn.init.constant_(tensor, 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.norm(self.conv(x)).relu().mean((2, 3)))
        return out


def graph_instance_norm() -> nn.Module:
    """What an ONNX graph is given."""
    return InstanceNorm(1e-5, nn.Parameter(torch.ones(4)), nn.Parameter(torch.zeros(4)))


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d(4),
        nn.GroupNorm(2, 4),
        nn.GroupNorm(1, 4),
        nn.InstanceNorm2d(4, affine=True),
        graph_instance_norm(),
    ],
)
def test_a_channel_is_silent_behind_any_normalisation_and_the_others_stay(norm: nn.Module) -> None:
    model = Normalised(norm).eval().requires_grad_(False)
    (layer,) = layers_of(model, X)
    assert layer == FilterLayer("conv", "norm")
    before = given_by(model, layer)
    silence(model, layer, [1, 2])
    after = given_by(model, layer)
    assert not after[:, 1:3].any() and torch.equal(after[:, [0, 3]], before[:, [0, 3]])


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(4, affine=False), nn.GroupNorm(2, 4, affine=False)])
def test_a_normalisation_without_a_scale_leaves_nothing_to_silence(norm: nn.Module) -> None:
    with pytest.raises(DefenceError, match="nothing to silence"):
        layers_of(Normalised(norm).eval(), X)


def test_a_normalisation_that_takes_a_sum_is_no_layers_own() -> None:
    model = built("preact-resnet")
    own = {layer.matrix: layer.norm for layer in layers_of(model, X)}
    assert own["blocks.0.conv1"] == "blocks.0.bn2" and own["stem"] == "blocks.0.bn1"
    # it is added to the shortcut, and the sum is what the next block normalises
    assert own["blocks.0.conv2"] is None


def test_the_layer_that_gives_the_logits_is_not_among_them() -> None:
    assert "head" not in {layer.matrix for layer in layers_of(built("small-cnn"), X)}
    with pytest.raises(DefenceError, match="nothing to silence"):
        layers_of(nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 5)), X)


def test_activity_is_the_mean_of_what_is_above_zero_whatever_the_batch() -> None:
    model = built("vgg-small")
    layer = layers_of(model, X)[0]
    expected = given_by(model, layer).clamp(min=0).mean((0, 2, 3))
    assert torch.allclose(activity(model, layer, X).float(), expected, atol=1e-5)
    assert not any(module._forward_hooks for module in model.modules())


def test_what_runs_twice_is_left_out() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.again, self.head = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.again(self.again(self.first(x))).mean((2, 3)))

    assert [layer.matrix for layer in layers_of(Twice(), X)] == ["first"]
