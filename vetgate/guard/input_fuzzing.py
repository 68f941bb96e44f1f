"""Input fuzzing: noisy replicas of an input vote on its label, so that a trigger too delicate for the noise is lost.

Noise families are tried on trusted images, each as strong as an accuracy budget for the vote allows, and the one that
changes pixels most is taken. A network that never met noise bears little of it, and a trigger at full strength bears
more; so what votes is a copy whose weights were tuned on noisy trusted images. What it votes for corrects the label;
the vote is split where too few replicas agree. The score is the share that does not see what the network itself sees in
the input as it is.

Source    Sarkar et al., "Backdoor Suppression in Neural Networks using Input Fuzzing and Majority Voting", IEEE Design
          & Test 2020.
Deviates  A copy tuned on noise votes; without steps it is the network itself. A split vote is told as such. The noise
          is drawn once, and is the same for every input, so that an answer does not depend on what else is asked; the
          seed is unknown to whoever sends inputs.
Blind to  Triggers that are larger than the noise.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from vetgate.contract import Samples, Subject
from vetgate.errors import DefenceError
from vetgate.guard.contract import Fitted, Vote, guard, probabilities, replicas
from vetgate.role import GuardRole
from vetgate.tuning import Change, Lessons, Tuning, tune

ROLE = GuardRole(
    uses=None,
    title="Input fuzzing",
    sentence="Lets noisy replicas of an input vote on its label.",
    votes=True,
)
# half the width, the standard deviation, the standard deviation as a share of a pixel, the share of pixels
LEVELS = {
    "uniform": (0.1, 0.2, 0.4, 0.6, 0.8),
    "gaussian": (0.05, 0.1, 0.2, 0.3, 0.4),
    "speckle": (0.1, 0.2, 0.4, 0.8, 1.2),
    "salt-and-pepper": (0.02, 0.05, 0.1, 0.2, 0.3),
}
# the share of the trusted images by which the noise is chosen, and so many of them at most
HELD, MOST_HELD = 0.2, 256
WEIGHT = "weight."


class Voter(nn.Module):
    """A network with other weights, which it does not copy."""

    def __init__(self, model: nn.Module, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.model, self.weights = model, weights

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K) of images (B, C, H, W) in [0, 1]."""
        out: Tensor = functional_call(self.model, self.weights, (x,))
        return out


def noisy(x: Tensor, family: str, level: float, drawn: Tensor) -> Tensor:
    """Images x (..., C, H, W) with noise of uniform numbers drawn (..., C, H, W), which are broadcast to each other.

    Noise is added to pixels, before any normalisation, and what leaves [0, 1] is clipped.
    """
    if family == "salt-and-pepper":
        # a grain covers all channels of a pixel, and is white as often as black
        grain = drawn[..., :1, :, :]
        return torch.where(grain < level, (grain < level / 2).to(x.dtype), x)
    if family == "uniform":
        change = level * (2 * drawn - 1)
    else:
        change = level * torch.special.ndtri(drawn.clamp(1e-6, 1 - 1e-6))
    return (x + change * (x if family == "speckle" else 1)).clamp(0, 1)


def _voted(model: nn.Module, x: Tensor, family: str, level: float, drawn: Tensor) -> Tensor:
    """The votes (M, K) that each class gets from the replicas, one for each of the drawn (R, C, H, W)."""
    found = []
    for part in replicas(x, len(drawn)):
        said = probabilities(model, noisy(part[:, None], family, level, drawn).flatten(0, 1))
        # what is no number votes for nothing
        votes = F.one_hot(said.argmax(1), said.shape[1]).float() * said.isfinite()
        found.append(votes.view(len(part), len(drawn), -1).sum(1))
    return torch.cat(found)


def _fit(
    subject: Subject, *, votes: int = 16, budget: float = 0.02, steps: int = 200, lr: float = 1e-3, images: int = 4096
) -> Fitted:
    """Tune a copy for `steps` minibatches under each noise family, and the chosen one as long at its level.

    A vote may lose at most `budget` of the accuracy that the network itself has on trusted images, or one image.
    """
    assert subject.clean is not None
    clean = subject.clean[torch.randperm(len(subject.clean))[:images]]
    lessons = Lessons.of(subject.model, clean, HELD)
    lessons = replace(lessons, held=lessons.held[:MOST_HELD])
    drawn = torch.rand(votes, *clean.x.shape[1:])
    least = _right(probabilities(subject.model, lessons.held.x), lessons.held) - max(budget, 1 / len(lessons.held))
    plan = Tuning(steps=max(1, steps), batch=64, lr=lr, distilled=0.5)
    found: list[_Choice] = []
    for number, (family, levels) in enumerate(LEVELS.items()):
        voter = copy.deepcopy(subject.model)
        if steps:
            tune(voter, lessons, plan, change=_noise(family, levels), share=(number / 5, (number + 1) / 5))
        found += _strongest(voter, lessons.held, least, family, drawn)
    if not found:
        raise DefenceError(
            f"expected a noise that costs a vote at most {budget:.1%} of accuracy, got none; allow more, or take "
            "another guard"
        )
    best = max(found, key=lambda each: each.change)
    if not steps:
        return Fitted({"drawn": drawn}, {"family": best.family, "level": best.level})
    voter = copy.deepcopy(best.voter)
    tune(voter, lessons, plan, change=_noise(best.family, (best.level,)), share=(0.8, 1.0))
    if _right(_voted(voter, lessons.held.x, best.family, best.level, drawn), lessons.held) < least:
        # of few images it has learned the noise by heart
        voter = best.voter
    weights = {f"{WEIGHT}{name}": p.detach().float().cpu().clone() for name, p in voter.named_parameters()}
    return Fitted({"drawn": drawn, **weights}, {"family": best.family, "level": best.level})


@dataclass(frozen=True, eq=False)
class _Choice:
    """A noise, how much it changes pixels (root mean square), and what votes under it."""

    change: float
    family: str
    level: float
    voter: nn.Module


def _noise(family: str, levels: Sequence[float]) -> Change:
    """Noise of one family, at a level of these for each minibatch."""
    return lambda x, _y: noisy(x, family, levels[int(torch.randint(len(levels), ()))], torch.rand_like(x))


def _right(said: Tensor, samples: Samples) -> float:
    return float((said.argmax(1) == samples.y).float().mean())


def _strongest(voter: nn.Module, held: Samples, least: float, family: str, drawn: Tensor) -> list[_Choice]:
    """The strongest level of a family, weaker ones passing too, at which votes are right often enough, if any is."""
    passed: list[_Choice] = []
    for level in LEVELS[family]:
        if _right(_voted(voter, held.x, family, level, drawn), held) < least:
            break
        x = held.x[:64, None]
        change = (noisy(x, family, level, drawn) - x).square().mean().sqrt()
        passed.append(_Choice(float(change), family, level, voter))
    return passed[-1:]


def _vote(fitted: Fitted, model: nn.Module, x: Tensor) -> Vote:
    """What the replicas of each image are taken for."""
    weights = {n.removeprefix(WEIGHT): t.to(x.device) for n, t in fitted.tensors.items() if n.startswith(WEIGHT)}
    family, level = str(fitted.numbers["family"]), float(fitted.numbers["level"])
    drawn = fitted.tensors["drawn"].to(x.device)
    shares = _voted(Voter(model, weights), x, family, level, drawn) / len(drawn)
    share, label = shares.max(1)
    said = probabilities(model, x)
    agreeing = shares.gather(1, said.argmax(1, keepdim=True))[:, 0]
    # what the network says nothing of is as suspicious as can be
    return Vote(label, share, 1 - torch.where(said.isfinite().all(1), agreeing, torch.nan))


@guard(
    role=ROLE,
    fit=_fit,
    vote=_vote,
    needs={"clean"},
    paper="https://ieeexplore.ieee.org/document/8963957",
)
def input_fuzzing(fitted: Fitted, model: nn.Module, x: Tensor) -> Tensor:
    """The share (M,) of replicas that are not taken for what the network takes the image itself for."""
    return _vote(fitted, model, x).scores
