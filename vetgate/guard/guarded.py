"""A network behind its guards: one call that says what an input is, or that it is not to be relied on, and why."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn

from vetgate.contract import Evidence, Samples, Subject
from vetgate.errors import BadInput, DefenceError, VetgateError
from vetgate.guard.contract import GUARDS, Fitted, Vote, probabilities
from vetgate.guard.package import Package
from vetgate.role import Uses


class Action(StrEnum):
    """What becomes of an input on which a guard alarms.

    REJECT: it gets no label. LOG_ONLY: it keeps its label, and the alarm is told. VOTE: the label is what most noisy
    replicas of it are taken for, none where the vote is split; what other guards alarm on is rejected.
    """

    REJECT = "reject"
    LOG_ONLY = "log-only"
    VOTE = "vote"


class Outcome(StrEnum):
    """Whether a label may be relied on."""

    ACCEPT = "accept"
    REJECT = "reject"
    ABSTAIN = "abstain"


@dataclass(frozen=True)
class Answer:
    """What is said of one input: its label, None unless it is accepted, and the probability of what it was taken for.

    `alarms` names the guards whose score lies above their cut; `scores` has those of all. `said` is the label that the
    network itself gives, whatever became of it; None where it gives no numbers.
    """

    label: int | None
    score: float
    outcome: Outcome
    alarms: tuple[str, ...]
    scores: Mapping[str, float]
    said: int | None = None


class Guarded:
    """A network (B, C, H, W) in [0, 1] -> logits (B, K) and its fitted guards; answers do not depend on the batch.

    Calls from several threads wait for each other. Raises DefenceError where the action wants a vote and no guard
    votes.
    """

    def __init__(
        self, model: nn.Module, package: Package, shape: tuple[int, int, int], *, action: Action = Action.REJECT
    ) -> None:
        self.model, self.package, self.shape, self.action = model.eval().requires_grad_(False), package, shape, action
        self._voter = next((f for f in package.guards if GUARDS[f.guard].voting is not None), None)
        if action is Action.VOTE and self._voter is None:
            raise DefenceError("expected a guard that votes, got none; take another action, or fit one that votes")
        # guards hook into the network, and draw from torch's one random stream
        self._alone = threading.Lock()

    def predict(self, x: Tensor) -> list[Answer]:
        """One answer an image of x (M, C, H, W) float32 in [0, 1]; raises BadInput for any other, before it is run."""
        check_images(x, self.shape)
        with self._alone, torch.no_grad():
            said = probabilities(self.model, x)
            vote, scores = None, dict[str, Tensor]()
            if self.action is Action.VOTE and self._voter is not None:
                vote = GUARDS[self._voter.guard].vote(self._voter, self.model, x)
                scores[self._voter.guard] = vote.scores
            for fitted in self.package.guards:
                if fitted.guard not in scores:
                    scores[fitted.guard] = GUARDS[fitted.guard].score(fitted, self.model, x)
        return [self._answer(row, said, scores, vote) for row in range(len(x))]

    def _answer(self, row: int, said: Tensor, scores: Mapping[str, Tensor], vote: Vote | None) -> Answer:
        mine = {f.guard: float(scores[f.guard][row]) for f in self.package.guards}
        alarms = tuple(f.guard for f in self.package.guards if f.cut is None or not mine[f.guard] <= f.cut)
        taken_for = int(said[row].argmax())
        label: int | None = taken_for
        score, outcome, barring = float(said[row].max()), Outcome.ACCEPT, set(alarms)
        if not bool(torch.isfinite(said[row]).all()):
            # the network itself says nothing of it
            return Answer(None, 0.0, Outcome.REJECT, alarms, mine)
        if vote is not None and self._voter is not None:
            label, score = int(vote.labels[row]), float(vote.shares[row])
            barring -= {self._voter.guard}
            if self._voter.share is None or not score >= self._voter.share:
                label, outcome = None, Outcome.ABSTAIN
        if barring and self.action is not Action.LOG_ONLY:
            label, outcome = None, Outcome.REJECT
        return Answer(label, score, outcome, alarms, mine, taken_for)


def check_images(x: Tensor, shape: tuple[int, int, int]) -> None:
    """Raise BadInput unless x holds images (M, C, H, W) float32 of this shape, M at least 1, every number in [0, 1]."""
    wanted = f"images (M, {shape[0]}, {shape[1]}, {shape[2]}) float32 with M of at least 1"
    if x.ndim != 4 or tuple(x.shape[1:]) != tuple(shape) or len(x) == 0 or x.dtype != torch.float32:
        raise BadInput(f"expected {wanted}, got {tuple(x.shape)} {x.dtype}; resize or rearrange them")
    if not bool(torch.isfinite(x).all()):
        raise BadInput("expected finite pixels, got NaN or infinity; check what the images were read from")
    low, high = float(x.min()), float(x.max())
    if low < 0 or high > 1:
        raise BadInput(f"expected pixels between 0 and 1, got {low:.4g} to {high:.4g}; divide bytes by 255")


@dataclass(frozen=True)
class Unfitted:
    """A guard that could not be fitted, and why."""

    guard: str
    reason: str


def fit_guards(
    subject: Subject,
    held: Samples,
    wanted: Mapping[str, Mapping[str, Any]],
    *evidence: Evidence,
    rate: float,
    seed: int,
    each: Callable[[str], None] | None = None,
) -> tuple[tuple[Fitted, ...], tuple[Unfitted, ...]]:
    """The wanted guards, fitted on the subject's trusted images, which together reject at most `rate` of clean inputs.

    Cuts are set on `held`, trusted images that no guard is fitted on, for an equal share of the rate each; a guard that
    cannot be fitted is told, and has no part in it. `each` is called with the name of a guard before it is fitted.
    """
    fitted: list[Fitted] = []
    failed: list[Unfitted] = []
    for name, params in wanted.items():
        if each is not None:
            each(name)
        if name not in GUARDS:
            raise DefenceError(f"expected a guard of this version, got {name!r}; there are {', '.join(sorted(GUARDS))}")
        uses = GUARDS[name].role.uses
        useful = [e for e in evidence if uses is not None and _holds(e, uses)]
        try:
            fitted.append(GUARDS[name].fit(subject, *useful, seed=seed, **params))
        except Exception as error:  # one that breaks on this network takes no other with it
            failed.append(_unfitted(name, error))
    cut: list[Fitted] = []
    for one in fitted:
        try:
            cut.append(GUARDS[one.guard].with_cut(one, subject.model, held.x, rate=rate / len(fitted)))
        except Exception as error:  # the same
            failed.append(_unfitted(one.guard, error))
    return tuple(cut), tuple(failed)


def _holds(evidence: Evidence, uses: Uses) -> bool:
    return bool(evidence.triggers) if uses == "triggers" else getattr(evidence, uses) is not None


def _unfitted(guard: str, error: Exception) -> Unfitted:
    return Unfitted(guard, str(error) if isinstance(error, VetgateError) else f"{type(error).__name__}: {error}")
