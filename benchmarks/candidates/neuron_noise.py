"""What a model says when its neurons are disturbed as badly as can be: a backdoored one falls to its target.

Source    Xu et al., "BAN: Detecting Backdoors Activated by Adversarial Neuron Noise", NeurIPS 2024, arXiv:2405.19928.
Deviates  Noise multiplies the output of every convolution's channels, whatever follows it; no feature mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vetgate.contract import Subject
from vetgate.inversion import logit_scale

IMAGES, STEPS = 256, 20
BUDGETS = (0.2, 0.4, 0.8)


def measure(subject: Subject) -> dict[str, Tensor]:
    """Per label, the log of its mean softmax on clean images under untargeted noise of each budget; the loss there."""
    assert subject.clean is not None
    clean = subject.clean[:IMAGES]
    unit = logit_scale(subject.model, clean.x)
    layers = [m for m in subject.model.modules() if isinstance(m, nn.Conv2d)]
    found: dict[str, Tensor] = {}
    for budget in BUDGETS:
        noises = [torch.zeros(2, m.out_channels, 1, 1, requires_grad=True) for m in layers]
        with _disturbed(layers, noises):
            for _ in range(STEPS):
                loss = F.cross_entropy(subject.model(clean.x) / unit, clean.y)
                gradients = torch.autograd.grad(loss, noises)
                with torch.no_grad():
                    for noise, gradient in zip(noises, gradients, strict=True):
                        noise += 2.5 * budget / STEPS * gradient.sign()
                        noise.clamp_(-budget, budget)
            with torch.no_grad():
                out = subject.model(clean.x) / unit
        wrong = torch.stack([out.softmax(1)[clean.y != k, k].mean() for k in range(subject.classes)])
        found[f"share {budget}"] = wrong.clamp(min=1e-6).log()
        found[f"loss {budget}"] = F.cross_entropy(out, clean.y)[None]
    return found


@contextmanager
def _disturbed(layers: list[nn.Conv2d], noises: list[Tensor]) -> Iterator[None]:
    def hook(noise: Tensor):  # type: ignore[no-untyped-def]
        def disturb(_module: nn.Module, _given: object, out: Tensor) -> Tensor:
            return out * (1 + noise[0]) + noise[1] * out.detach().std((0, 2, 3), keepdim=True)[0]

        return disturb

    handles = [layer.register_forward_hook(hook(noise)) for layer, noise in zip(layers, noises, strict=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
