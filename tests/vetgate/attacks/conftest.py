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


@pytest.fixture(scope="session")
def halves() -> tuple[Samples, Samples]:
    """Digits to train on, and others to measure on."""
    digits = load_digits()
    everything = Samples(torch.from_numpy(digits.images / 16).float()[:, None], torch.from_numpy(digits.target).long())
    order = torch.randperm(len(everything), generator=torch.Generator().manual_seed(0))
    return everything[order[:1400]], everything[order[1400:]]


@pytest.fixture(scope="session")
def fit() -> Fit:
    """Trains the same small network on whatever it is given, once a machine."""

    def trained(samples: Samples) -> nn.Module:
        torch.manual_seed(0)
        model = ARCHITECTURES["small-cnn"]((1, 8, 8), 10)

        def make(draft: Path) -> None:
            fitted = train(copy.deepcopy(model), samples, epochs=30)
            save_file({k: v.contiguous() for k, v in fitted.state_dict().items()}, draft / "model.safetensors")

        rows = hashlib.sha256(samples.x.numpy().tobytes() + samples.y.numpy().tobytes()).hexdigest()
        with tempfile.TemporaryDirectory() as room:
            made_once("attacked", Path(room), make, code=[Path(__file__)], recipe=rows)
            model.load_state_dict(load_file(Path(room, "model.safetensors")))
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
