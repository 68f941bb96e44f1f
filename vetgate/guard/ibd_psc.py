"""IBD-PSC: a triggered input keeps its label when the last normalisations are amplified, a clean one does not.

What the last batch normalisations give is multiplied, from the last one backwards, until most trusted images lose their
label; that network and a few with one more normalisation amplified each are asked. The score is how sure they are, on
average, of the label of the untouched network.

Source    Hou et al., "IBD-PSC: Input-level Backdoor Detection via Parameter-oriented Scaling Consistency", ICML 2024.
Deviates  Outputs are multiplied as they pass, which is the same as multiplying scale and shift, so that no network is
          copied; they are multiplied by more where the paper's 1.5 spoils too little. Logs of what is left to other
          labels are averaged instead of probabilities: amplified networks are so sure that many clean inputs get a
          probability of exactly 1, and no cut lies above that.
Blind to  Networks without batch normalisation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from vetgate.contract import Subject
from vetgate.errors import DefenceError
from vetgate.guard.contract import Fitted, guard, log_probability_of_others, probabilities
from vetgate.probe import module_at
from vetgate.role import GuardRole

ROLE = GuardRole(
    uses=None,
    title="IBD-PSC",
    sentence="Amplifies the network's last normalisations, and rejects an input whose label does not mind.",
    normalisation=True,
)


def _fit(
    subject: Subject,
    *,
    factor: float = 1.5,
    most: float = 12.0,
    spoiled: float = 0.6,
    networks: int = 5,
    images: int = 512,
) -> Fitted:
    """Amplify as many normalisations as it takes for the share `spoiled` of trusted images to lose their label.

    Where all of them by `factor` do not suffice, that is doubled, up to `most`; then what spoils most is taken, if it
    spoils half of that share.
    """
    assert subject.clean is not None
    x = subject.clean.x[torch.randperm(len(subject.clean))[:images]]
    names = _normalisations(subject.model, x)
    if not names:
        raise DefenceError("expected a network with batch normalisation, got one without; take another guard")
    own = probabilities(subject.model, x).argmax(1)
    found = (0.0, factor, 0)
    while factor <= most and found[0] <= spoiled:
        for first in range(1, len(names) + 1):
            with amplified(subject.model, names[-first:], factor):
                lost = float((probabilities(subject.model, x).argmax(1) != own).float().mean())
            found = max(found, (lost, factor, first), key=lambda each: each[0])
            if lost > spoiled:
                break
        factor *= 2
    lost, factor, first = found
    if lost <= spoiled / 2:
        raise DefenceError(
            f"expected amplified normalisations to change the label of more than {spoiled / 2:.0%} of trusted images, "
            f"got {lost:.0%} at most; take another guard"
        )
    deepest = min(len(names), first + networks - 1)
    return Fitted(
        {"depths": torch.arange(first, deepest + 1)}, {"factor": factor, "names": "\n".join(names[-deepest:])}
    )


@torch.no_grad()
def _normalisations(model: nn.Module, x: Tensor) -> list[str]:
    """The batch normalisations in the order in which they run."""
    ran: list[str] = []
    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                handle = module.register_forward_hook(lambda *_, name=name: ran.append(name))
                hooks.callback(handle.remove)
        model(x[:1])
    return list(dict.fromkeys(ran))


@contextmanager
def amplified(model: nn.Module, names: Sequence[str], factor: float) -> Iterator[None]:
    """Multiply what these modules give while the context lasts."""
    with ExitStack() as hooks:
        for name in names:
            handle = module_at(model, name).register_forward_hook(lambda _m, _i, out: out * factor)
            hooks.callback(handle.remove)
        yield


@guard(role=ROLE, fit=_fit, needs={"clean"}, paper="https://arxiv.org/abs/2405.09786")
def ibd_psc(fitted: Fitted, model: nn.Module, x: Tensor) -> Tensor:
    """Minus the mean log probability (M,) in nats of all labels but each image's own, over the amplified networks."""
    names = str(fitted.numbers["names"]).split("\n")
    own = probabilities(model, x).argmax(1)
    depths = fitted.tensors["depths"].tolist()
    total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for depth in depths:
        with amplified(model, names[-int(depth) :], float(fitted.numbers["factor"])):
            total -= log_probability_of_others(model, x, own)
    return total / len(depths)
