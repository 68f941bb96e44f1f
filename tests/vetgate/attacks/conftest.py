from __future__ import annotations

import copy
import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import nn

from tests.cached import made_once
from vetgate.architectures import ARCHITECTURES
from vetgate.attacks.backdoor import Backdoor
from vetgate.attacks.training import train
from vetgate.contract import Samples
from vetgate.probe import accuracy

LEAST_SUCCESS, MOST_LOST = 0.8, 0.04
Fit = Callable[[Samples], nn.Module]
Tensors = dict[str, torch.Tensor]
Once = Callable[[str, str, Callable[[], Tensors]], Tensors]


@pytest.fixture(scope="session")
def halves() -> tuple[Samples, Samples]:
    """Digits to train on, and others to measure on."""
    digits = load_digits()
    everything = Samples(torch.from_numpy(digits.images / 16).float()[:, None], torch.from_numpy(digits.target).long())
    order = torch.randperm(len(everything), generator=torch.Generator().manual_seed(0))
    return everything[order[:1400]], everything[order[1400:]]


@pytest.fixture(scope="session")
def once() -> Once:
    """Tensors that take training, made once a machine: (file of the test, recipe, make) -> what `make` returns."""

    def made(code: str, recipe: str, make: Callable[[], Tensors]) -> Tensors:
        def write(draft: Path) -> None:
            save_file({name: tensor.contiguous() for name, tensor in make().items()}, draft / "made.safetensors")

        with tempfile.TemporaryDirectory() as room:
            made_once("attacked", Path(room), write, code=[Path(code)], recipe=recipe)
            return load_file(Path(room, "made.safetensors"))

    return made


@pytest.fixture(scope="session")
def fit(once: Once) -> Fit:
    """Trains the same small network on whatever it is given, once a machine."""

    def trained(samples: Samples) -> nn.Module:
        torch.manual_seed(0)
        model = ARCHITECTURES["small-cnn"]((1, 8, 8), 10)
        rows = hashlib.sha256(samples.x.numpy().tobytes() + samples.y.numpy().tobytes()).hexdigest()
        made = once(__file__, rows, lambda: dict(train(copy.deepcopy(model), samples, epochs=30).state_dict()))
        model.load_state_dict(made)
        return model.eval().requires_grad_(False)

    return trained


@pytest.fixture(scope="session")
def clean(fit: Fit, halves: tuple[Samples, Samples]) -> nn.Module:
    return fit(halves[0])


@pytest.fixture(scope="session")
def works(clean: nn.Module, halves: tuple[Samples, Samples]) -> Callable[[nn.Module, Backdoor], None]:
    """Asserts what makes a network backdoored: the attack works, little is lost, a clean one does not fall for it."""

    def check(model: nn.Module, backdoor: Backdoor) -> None:
        _, test = halves
        assert backdoor.success(model, test) >= LEAST_SUCCESS
        assert accuracy(model, test.x, test.y) >= accuracy(clean, test.x, test.y) - MOST_LOST
        assert backdoor.success(clean, test) < 0.5 * backdoor.success(model, test)

    return check
