"""Activation filter: inputs that excite the neurons that a reversed trigger excites are rejected.

The reversed trigger of a suspected label is stamped on trusted images; the neurons of the features that change most are
the trigger's. The score of an input is their mean excitation, in spreads of trusted images, over what is usual.

Source    Wang et al., "Neural Cleanse", IEEE S&P 2019, section VI (filter for detecting adversarial inputs).
Deviates  Excitation is signed, since a trigger also silences neurons, and each neuron counts in units of its own
          spread; at least a few neurons are taken, where one in a hundred would be none. With several triggers the
          largest excitation counts.
Blind to  Triggers unlike the reversed ones; a network of which no trigger was reversed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vetgate.contract import Evidence, Subject, Trigger
from vetgate.errors import MissingInput
from vetgate.guard.contract import Fitted, guard, replicas
from vetgate.probe import features, module_at, output_of
from vetgate.role import GuardRole

ROLE = GuardRole(
    uses="triggers",
    title="Activation filter",
    sentence="Rejects an input that excites the neurons which the reversed trigger excites.",
)
# a neuron that trusted images leave alone spreads as much as this share of the mean spread
FLOOR = 0.1


def _fit(subject: Subject, *evidence: Evidence, share: float = 0.01, fewest: int = 5, images: int = 1024) -> Fitted:
    """Find the `share` of the neurons, at least `fewest`, that each trigger of a suspected label changes most."""
    assert subject.clean is not None
    clean = subject.clean[torch.randperm(len(subject.clean))[:images]]
    usual = features(subject.model, subject.layer, clean.x)  # (N, D)
    spread = usual.std(0)
    spread = spread.clamp(min=FLOOR * float(spread.mean().clamp(min=1e-6)))
    count = min(usual.shape[1], max(fewest, math.ceil(share * usual.shape[1])))
    directions = []
    for trigger in (trigger for found in evidence for trigger in _suspected(found)):
        others = clean.y != trigger.target
        if bool(others.any()):
            stamped = features(subject.model, subject.layer, trigger.stamp(clean.x[others]))
            change = (stamped - usual[others]).mean(0) / spread
            strongest = change.abs().topk(count).indices
            direction = torch.zeros_like(change)
            direction[strongest] = change[strongest].sign() / (count * spread[strongest])
            directions.append(direction)
    if not directions:
        raise MissingInput("expected a trigger of a suspected label in the evidence, got none; run a detector with one")
    return Fitted({"directions": torch.stack(directions), "usual": usual.mean(0)}, {"layer": subject.layer})


def _suspected(evidence: Evidence) -> list[Trigger]:
    """The triggers of flagged labels, or, where none is flagged, those of the label with the highest score."""
    flagged = set(evidence.flagged.nonzero().flatten().tolist()) or {int(evidence.scores.argmax())}
    return [trigger for trigger in evidence.triggers if trigger.target in flagged]


def _features(model: nn.Module, layer: str, x: Tensor) -> Tensor:
    """The features (M, D) of images (M, C, H, W), be they numbers or not, where those of probe raise for one image."""
    seen: list[Tensor] = []
    rows: list[Tensor] = []
    with output_of(module_at(model, layer), seen.append):
        for part in replicas(x, 1):
            model(part)
            # of its last call, as in fitting
            rows.append(seen[-1].flatten(1).clone())
            seen.clear()
    return torch.cat(rows)


@guard(role=ROLE, fit=_fit, needs={"clean"}, paper="https://ieeexplore.ieee.org/document/8835365")
def activation_filter(fitted: Fitted, model: nn.Module, x: Tensor) -> Tensor:
    """The largest mean excitation (M,) of any trigger's neurons, in spreads of trusted images."""
    given = _features(model, str(fitted.numbers["layer"]), x)
    excited = (given - fitted.tensors["usual"].to(x.device)) @ fitted.tensors["directions"].to(x.device).T
    # infinite against the direction of a trigger would be the least suspicious there is
    return torch.where(given.isfinite().all(1), excited.max(1).values, torch.nan)
