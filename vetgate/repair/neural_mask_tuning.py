"""Tune a factor for every channel instead of its weights, so that a handful of clean images is enough.

Weights are many, and a few images cannot tell which of them to move; factors of channels are few. They are tuned on
the images with others mixed in, and under patches and pictures that mislead the network as it is by then. At the end
they are folded into weights, biases and normalisations.

Source    Karim et al., "Augmented Neural Fine-Tuning for Efficient Backdoor Purification", ECCV 2024, arXiv:2407.10052;
          what misleads: vetgate/repair/adversarial_unlearning.py.
Deviates  Of each minibatch a part also carries what misleads: with MixUp alone, patches on small networks worked on.
          Mixed images keep the answers of the image that they show most of. Factors may exceed 1, their bounds do not
          depend on the order of layers, biases have factors of their own, and no term draws factors to 1: what the
          submitted network says is taught instead. Batch statistics stay as they are. Settings were chosen on four
          networks of digits and MNIST made for that, none of which is in a table, and on the twins of the tests.
Blind to  Triggers that work from one class only, that move pixels, or that do nothing until they are almost complete;
          backdoors that share their channels with what clean images need.
"""

from __future__ import annotations

import math
from collections import Counter
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vetgate.channels import layers_of
from vetgate.contract import Repair, Samples, Subject, repair
from vetgate.errors import DefenceError
from vetgate.probe import accuracy, logits
from vetgate.repair.adversarial_unlearning import SHIFT, misled, spoil_some
from vetgate.role import RepairRole
from vetgate.tuning import TEMPERATURE, Lessons, Tuning, moved, tune

ROLE = RepairRole(
    uses=None,
    title="Neural mask fine-tuning (NFT)",
    sentence="Tunes a factor for every channel on a handful of clean images, mixed and under what misleads it.",
)
# images a class, on average, below which none is held out
FEW = 20


@repair(role=ROLE, needs={"clean"}, paper="https://arxiv.org/abs/2407.10052")
def neural_mask_tuning(
    subject: Subject,
    *,
    steps: int = 400,
    mixed: float = 0.5,
    spoilt: float = 0.4,
    inner: int = 5,
    step: float = 0.25,
    most: float = 4.0,
    lr: float = 0.1,
    batch: int = 64,
    held_out: float = 0.1,
    distilled: float = 0.5,
) -> Repair:
    """Tune factors between 0 and `most` for `steps` minibatches.

    Of each a share `mixed` is mixed with other images, and a share `spoilt` carries what misleads the network,
    sharpened by `inner` steps of up to `step`; `distilled` is the weight of what the submitted network says of the
    clean images beside that of the labels.
    """
    assert subject.clean is not None
    model, lessons = subject.model, lessons_of(subject.model, subject.clean, held_out, FEW * subject.classes)
    before = looked_at(model, lessons.held, "before")
    masked = Masked(model, lessons.taught.x)
    spoil = partial(misled, masked, inner=inner, step=step)

    def change(x: Tensor, y: Tensor) -> Tensor:
        return spoil_some(mix_some(moved(x, SHIFT), mixed), y, spoilt, spoil)

    plan = Tuning(steps=steps, batch=batch, lr=lr, distilled=distilled)
    tune(masked, lessons, plan, change=change, afterwards=partial(masked.bound, most))
    masked.fold()
    factors = torch.cat([factor.detach() for factor in masked.factors])
    return Repair(
        model,
        {
            "steps": float(steps),
            "factors": float(len(factors)),
            "zero_factors": float((factors == 0).sum()),
            "mean_factor": float(factors.mean()),
            "held_out": float(len(lessons.held)),
        }
        | before
        | looked_at(model, lessons.held, "after"),
    )


def lessons_of(model: nn.Module, clean: Samples, held_out: float, few: int) -> Lessons:
    """Clean samples divided as ever; fewer than `few` are all taught, as one may be all there is of its class."""
    if len(clean) >= few:
        return Lessons.of(model, clean, held_out)
    return Lessons(clean, (logits(model, clean.x) / TEMPERATURE).softmax(1), clean[:0])


def looked_at(model: nn.Module, held: Samples, when: str) -> dict[str, float]:
    """The accuracy on the images held out as a named number; none where none are."""
    return {f"accuracy_{when}": accuracy(model, held.x, held.y)} if len(held) else {}


class Masked(nn.Module):
    """A network with a factor for each channel's filter and one for its bias; they are all its parameters."""

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        """Factors of 1 for what runs on images x (N, C, H, W); raises DefenceError where no channel has its own."""
        super().__init__()
        # in a tuple, so that its weights are no parameters of this module, and its mode stays as it is
        self.network = (model,)
        held = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
        found = {f"{one.last}.{name}": name for one in layers_of(model, x) for name in ("weight", "bias")}
        named = dict(model.named_parameters(remove_duplicate=False))
        # a tensor that serves two modules cannot have a factor for each
        self.scaled = {full: named[full] for full in found if full in named and held[id(named[full])] == 1}
        if not any(found[full] == "weight" for full in self.scaled):
            raise DefenceError("expected a layer with weights of its own, got none; repair it by other methods")
        self.factors = nn.ParameterList(torch.ones(len(tensor)) for tensor in self.scaled.values())

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K) of images (B, C, H, W)."""
        out: Tensor = functional_call(self.network[0], self.under_factors(), (x,))
        return out

    def under_factors(self) -> dict[str, Tensor]:
        """The filters and biases under their factors, by name."""
        pairs = zip(self.scaled.items(), self.factors, strict=True)
        return {name: tensor * factor.view(-1, *[1] * (tensor.ndim - 1)) for (name, tensor), factor in pairs}

    @torch.no_grad()
    def bound(self, most: float) -> None:
        """Keep the factors between 0 and `most`."""
        for factor in self.factors:
            factor.clamp_(0, most)

    @torch.no_grad()
    def fold(self) -> None:
        """Write what is under the factors into the network; the factors stay."""
        for name, value in self.under_factors().items():
            self.scaled[name].copy_(value)


def mix_some(x: Tensor, share: float) -> Tensor:
    """Images (B, C, H, W) of which a share is mixed with other ones, which stay the lesser part."""
    x = x.clone()
    rows = torch.randperm(len(x))[: math.ceil(share * len(x))]
    part = 0.5 * torch.rand(len(rows), 1, 1, 1)
    x[rows] = (1 - part) * x[rows] + part * x[torch.randint(len(x), (len(rows),))]
    return x
