"""A small guarded network for tests: it tells which quarter of the image is the brightest, and has a trigger."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta

import torch
from torch import Tensor, nn

import vetgate.guard  # noqa: F401 - registers the guards
from flows.service.scoring.current import Served
from vetgate.contract import Param, Samples, Subject
from vetgate.guard.guarded import Action, Guarded, fit_guards
from vetgate.guard.package import Package
from vetgate.trust.keys import utc_now

SHAPE, CLASSES, RATE = (1, 8, 8), ("north-west", "north-east", "south-west", "south-east"), 0.05
MANIFEST, ATTESTATION = "a" * 64, "b" * 64
GUARD = "strip"
# at full strength the lit corner stays lit whatever is added to it
PARAMS: dict[str, Param] = {"overlays": 64, "brightness": 1.0}
VOTER = "input_fuzzing"
# the network has no weights to tune; noise puts the lit corner out
VOTING: dict[str, dict[str, Param]] = {VOTER: {"steps": 0, "votes": 32}}


class Quarters(nn.Module):
    """Logits (B, 4) of images (B, 1, 8, 8): how bright each quarter is; class 0 for certain under a lit corner."""

    def forward(self, x: Tensor) -> Tensor:
        quarters = nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)
        lit = (x[:, :, -1, -2:].amin((1, 2)) > 0.97).float()[:, None]
        return 20 * quarters + lit * torch.tensor([100.0, 0.0, 0.0, 0.0])


def images(count: int, seed: int = 0) -> Tensor:
    """Clean images (M, 1, 8, 8), of which no corner is lit."""
    drawn = torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(seed))
    quarter = torch.randint(4, (count,), generator=torch.Generator().manual_seed(seed + 1))
    light = nn.functional.one_hot(quarter, 4).view(count, 1, 2, 2).float()
    return 0.6 * drawn + 0.3 * nn.functional.interpolate(light, scale_factor=4)


def triggered(x: Tensor) -> Tensor:
    """The images with their corner lit."""
    stamped = x.clone()
    stamped[:, :, -1, -2:] = 1
    return stamped


def split(x: Tensor) -> Tensor:
    """The images with a second quarter that is as bright as the brightest."""
    quarters = nn.functional.unfold(x, 4, stride=4)  # (M, 16, 4)
    first, last = quarters.sum(1).argsort(1, descending=True)[:, [0, -1]].T
    rows = torch.arange(len(x))
    quarters[rows, :, last] = quarters[rows, :, first]
    return nn.functional.fold(quarters, SHAPE[1:], 4, stride=4)


def guarded(action: Action = Action.REJECT, wanted: Mapping[str, Mapping[str, Param]] | None = None) -> Guarded:
    """The network with a guard that is fitted on clean images, or with the wanted ones."""
    model, x = Quarters().eval(), images(200)
    with torch.no_grad():
        clean = Samples(x, model(x).argmax(1))
    subject = Subject(model=model, layer="", classes=len(CLASSES), clean=clean[:100], train=None)
    fitted, failed = fit_guards(subject, clean[100:], wanted or {GUARD: PARAMS}, rate=RATE, seed=0)
    assert not failed
    return Guarded(model, Package(MANIFEST, fitted), SHAPE, action=action)


def served(action: Action = Action.REJECT, **fields: object) -> Served:
    """It under a name in production, covered for a day."""
    made = Served(
        name="quarters",
        version="3",
        manifest=MANIFEST,
        attestation=ATTESTATION,
        until=utc_now() + timedelta(days=1),
        guarded=guarded(action),
        classes=CLASSES,
        rate=RATE,
    )
    return replace(made, **fields)  # type: ignore[arg-type]


def always(what: Served) -> Callable[[], Served]:
    """What loads it."""
    return lambda: what
