"""The contract of a run-time guard: fitted once on trusted images, it scores single inputs while a model serves.

A guard is one file with two functions: one that learns from a Subject and returns data only, and the registered one,
which scores images. Higher is more suspicious. Which scores are too high is set afterwards, on other trusted images,
for a stated rate of false rejections; no guard chooses its own cut.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from vetgate.contract import Evidence, Need, Param, Progress, Subject, audited, private_random, reporting_to
from vetgate.errors import DefenceError, MissingInput, NotFinite, UnknownParameter
from vetgate.role import GuardRole

# images of one pass through the network, replicas included: as many as hold so many pixels, and in these bounds. What
# passes between layers then stays in the cache: with four times as many an image takes two to three times as long
PIXELS_AT_ONCE, FEWEST_AT_ONCE, MOST_AT_ONCE = 2**16, 8, 512
Number = int | float | str | bool


@dataclass(frozen=True, eq=False)
class Fitted:
    """What a guard learned, by name: tensors (float32 or int64, on cpu) and plain numbers or texts, never code.

    An input is rejected when its score lies above `cut`, which rejects at most the share `rate` of clean images; of a
    guard that votes, the label stands where at least `share` of the votes agree. These were set on `cut_on` trusted
    images. All four are None until they are set.
    """

    tensors: Mapping[str, Tensor]
    numbers: Mapping[str, Number] = field(default_factory=dict)
    guard: str = ""
    params: Mapping[str, Param] = field(default_factory=dict)
    seed: int = 0
    cut: float | None = None
    rate: float | None = None
    share: float | None = None
    cut_on: int | None = None

    def __post_init__(self) -> None:
        for name, tensor in self.tensors.items():
            if tensor.dtype not in (torch.float32, torch.int64) or tensor.device.type != "cpu":
                raise DefenceError(f"expected {name} as float32 or int64 on cpu, got {tensor.dtype} {tensor.device}")
            if not bool(torch.isfinite(tensor).all()):
                raise NotFinite(f"expected finite numbers in {name}, got others; the model may hold NaN")
        for name, number in self.numbers.items():
            if isinstance(number, float) and not math.isfinite(number):
                raise NotFinite(f"expected a finite {name}, got {number}; the model may hold NaN")


@dataclass(frozen=True, eq=False)
class Vote:
    """What replicas of inputs are taken for: labels (M,) int64, the share of the votes that each got, and scores (M,).

    The scores are those that the guard gives the inputs: they come of the same replicas.
    """

    labels: Tensor
    shares: Tensor
    scores: Tensor


Fit = Callable[..., Fitted]
Score = Callable[[Fitted, nn.Module, Tensor], Tensor]
Voting = Callable[[Fitted, nn.Module, Tensor], Vote]


@dataclass(frozen=True, eq=False)
class Guard:
    """A registered guard; what no author has to do again is done here."""

    function: Score
    fitting: Fit
    name: str
    role: GuardRole
    needs: frozenset[str]
    paper: str
    voting: Voting | None = None
    waived: Mapping[str, str] = field(default_factory=dict)

    @property
    def defaults(self) -> dict[str, Param]:
        """The hyper-parameters of fitting, and their default values."""
        signature = inspect.signature(self.fitting)
        return {p.name: p.default for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY}

    @property
    def doc(self) -> str:
        """The docstring of the module that holds the guard."""
        module = inspect.getmodule(self.function)
        return inspect.cleandoc((module.__doc__ if module else None) or "")

    def fit(
        self, subject: Subject, *evidence: Evidence, seed: int = 0, progress: Progress | None = None, **params: Param
    ) -> Fitted:
        """What the guard learns of a subject, without a cut yet; the model is left as it was.

        Raises MissingInput, UnknownParameter, or whatever DefenceError the guard raises.
        """
        for need in sorted(self.needs):
            if getattr(subject, need) is None:
                raise MissingInput(f"{self.name} needs subject.{need}, got None; give it or drop {self.name}")
        defaults = self.defaults
        unknown = sorted(set(params) - set(defaults))
        if unknown:
            raise UnknownParameter(f"{self.name} has no {', '.join(unknown)}; it takes {', '.join(sorted(defaults))}")
        if self.role.uses is not None and not evidence:
            raise MissingInput(f"{self.name} needs evidence with {self.role.uses}; run a detector that gives it first")
        given = evidence if self.role.uses is not None else ()
        settled = {**defaults, **params}
        with reporting_to(progress), private_random(seed, self.name), audited(subject.model):
            learned = self.fitting(subject, *given, **settled)
        return replace(learned, guard=self.name, params=settled, seed=seed)

    @torch.no_grad()
    def score(self, fitted: Fitted, model: nn.Module, x: Tensor) -> Tensor:
        """How suspicious each of the images x (M, C, H, W) in [0, 1] is: (M,) float32.

        What is no number is as suspicious as can be. The same images get the same scores, in whatever batch they come.
        """
        with private_random(fitted.seed, self.name):
            scores = self.function(fitted, model, x)
        return self._checked(scores, x)

    @torch.no_grad()
    def vote(self, fitted: Fitted, model: nn.Module, x: Tensor) -> Vote:
        """What a guard that votes takes images x (M, C, H, W) for; raises DefenceError for one that does not vote."""
        if self.voting is None:
            raise DefenceError(f"expected a guard that votes, got {self.name}; take one of {', '.join(voters())}")
        with private_random(fitted.seed, self.name):
            vote = self.voting(fitted, model, x)
        return replace(vote, scores=self._checked(vote.scores, x))

    def _checked(self, scores: Tensor, x: Tensor) -> Tensor:
        if scores.shape != x.shape[:1]:
            raise DefenceError(f"expected a score an image from {self.name}, got {tuple(scores.shape)} for {len(x)}")
        return scores.float().nan_to_num(nan=math.inf, posinf=math.inf, neginf=math.inf)

    def with_cut(self, fitted: Fitted, model: nn.Module, x: Tensor, *, rate: float) -> Fitted:
        """The same with its cut, so that at most the share `rate` of clean images is rejected.

        x (N, C, H, W) are trusted images that it was not fitted on. Raises MissingInput where they are too few to tell,
        DefenceError where scores do not tell them apart.
        """
        vote = None if self.voting is None else self.vote(fitted, model, x)
        scores = self.score(fitted, model, x) if vote is None else vote.scores
        cut = cut_for(scores, rate)
        # votes may agree on every trusted image, and what they then split over lies above
        if vote is None and bool((scores == scores[0]).all()):
            raise DefenceError(
                f"expected scores of {self.name} that tell trusted images apart, got {cut:.4g} for all {len(x)}, a cut "
                "above which nothing may lie; take another guard"
            )
        share = None if vote is None else -cut_for(-vote.shares, rate)
        return replace(fitted, cut=cut, rate=rate, share=share, cut_on=len(x))


def cut_for(scores: Tensor, rate: float) -> float:
    """The score above which at most the share `rate` of images like these (N,) lies, the next image counted in.

    A conformal quantile: for exchangeable images the rate is kept whatever the scores look like. Raises MissingInput
    where N images cannot tell so small a rate, NotFinite where scores are no numbers.
    """
    rank = rank_of_cut(len(scores), rate)
    if not 0 < rate < 1 or rank > len(scores):
        least = fewest_to_cut(rate) if 0 < rate < 1 else 0
        raise MissingInput(
            f"expected at least {least} trusted images for a false-rejection rate of {rate}, got {len(scores)}; "
            "give more, or state a higher rate between 0 and 1"
        )
    cut = float(scores.double().sort().values[rank - 1])
    if not math.isfinite(cut):
        raise NotFinite("expected finite scores of trusted images, got others; the model may hold NaN")
    return cut


def rank_of_cut(count: int, rate: float) -> int:
    """Which of so many sorted scores, from 1, is the cut for this rate; beyond `count` where they are too few."""
    return math.ceil((count + 1) * (1 - rate) - 1e-9)


def fewest_to_cut(rate: float) -> int:
    """How many trusted images a cut for this rate takes at least."""
    return math.ceil(1 / rate - 1e-9) - 1


def replicas(x: Tensor, count: int) -> Iterator[Tensor]:
    """Images x (M, C, H, W) in parts, such that `count` replicas of each fit into one pass through the network."""
    fitting = max(FEWEST_AT_ONCE, min(MOST_AT_ONCE, PIXELS_AT_ONCE // max(1, x[0, 0].numel())))
    at_once = max(1, fitting // max(1, count))
    for start in range(0, len(x), at_once):
        yield x[start : start + at_once]


@torch.no_grad()
def probabilities(model: nn.Module, x: Tensor) -> Tensor:
    """Softmax (M, K) of the logits of images x (M, C, H, W), in passes that fit; NaN where the model gives NaN."""
    return torch.cat([model(part).softmax(1) for part in replicas(x, 1)])


@torch.no_grad()
def log_probability_of_others(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """The log of the probability (M,) in nats that images x (M, C, H, W) are not of these labels (M,).

    It still tells inputs apart where the probability of a label itself is rounded to 1.
    """
    found: list[Tensor] = []
    for part in replicas(x, 1):
        said = model(part).double()
        own = labels[sum(map(len, found)) :][: len(part), None]
        found.append(said.scatter(1, own, -math.inf).logsumexp(1) - said.logsumexp(1))
    return torch.cat(found)


GUARDS: dict[str, Guard] = {}


def guard(
    *,
    role: GuardRole,
    fit: Fit,
    needs: set[Need],
    vote: Voting | None = None,
    paper: str = "",
    waived: Mapping[str, str] | None = None,
) -> Callable[[Score], Score]:
    """Register a function (fitted, model, x) -> scores (M,) under its own name.

    `fit` is (subject, [evidence,] *, hyper=...) -> Fitted; `vote`, of a guard that can correct labels, what replicas of
    the images are taken for. `paper` is the https address of the paper that it comes from, where there is one.
    """

    def register(function: Score) -> Score:
        name = function.__name__
        GUARDS[name] = Guard(function, fit, name, role, frozenset(needs), paper, voting=vote, waived=waived or {})
        return function

    return register


def voters() -> list[str]:
    """The guards that can correct labels."""
    return sorted(name for name, each in GUARDS.items() if each.voting is not None)
