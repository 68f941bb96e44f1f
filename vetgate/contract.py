"""The contract of a method: what it is given, what it returns, and everything no author should have to do again.

A detector sees everything and changes nothing; it returns numbers with a direction, never a verdict. A repair gets its
own copy of the model and returns it. Each is one function in one file, registered under its own name.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from vetgate.errors import DefenceError, MissingInput, NotFinite, UnknownParameter
from vetgate.role import Axis as Axis
from vetgate.role import RepairRole, Role, Uses

Need = Literal["clean", "train", "inputs"]
Param = int | float | str | bool | None
Progress = Callable[[float], None]


@dataclass(frozen=True, eq=False)
class Samples:
    """Labelled images: x (N, C, H, W) float32 in [0, 1], y (N,) int64."""

    x: Tensor
    y: Tensor

    def __post_init__(self) -> None:
        if self.x.ndim != 4 or self.x.dtype != torch.float32:
            raise DefenceError(f"expected images (N, C, H, W) float32, got {tuple(self.x.shape)} {self.x.dtype}")
        if self.y.shape != self.x.shape[:1] or self.y.dtype != torch.int64:
            raise DefenceError(f"expected labels ({len(self.x)},) int64, got {tuple(self.y.shape)} {self.y.dtype}")

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: Tensor | slice) -> Samples:
        """The rows at `index` (a tensor of positions, a boolean mask or a slice), as Samples."""
        return Samples(self.x[index], self.y[index])


@dataclass(frozen=True, eq=False, kw_only=True)
class Subject:
    """The submitted model and every datum we hold on it.

    `model` maps (B, C, H, W) in [0, 1] to logits (B, K), its normalisation inside. `layer` names the module whose
    flattened output is "the features"; by default what enters the last linear map.
    """

    model: nn.Module
    layer: str
    classes: int
    clean: Samples | None = None
    train: Samples | None = None
    inputs: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Trigger:
    """A reversed trigger: mask (1, H, W) and pattern (C, H, W), both in [0, 1], and the label it leads to."""

    mask: Tensor
    pattern: Tensor
    target: int

    def stamp(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) with the trigger blended in."""
        return (1 - self.mask) * x + self.mask * self.pattern

    @property
    def norm(self) -> float:
        """L1 norm of the mask, in pixels."""
        return float(self.mask.sum())

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` reads back bit for bit."""
        return {"mask": pack(self.mask), "pattern": pack(self.pattern), "target": self.target}

    @classmethod
    def from_json(cls, blob: Mapping[str, Any]) -> Trigger:
        """The Trigger that `to_json` wrote."""
        return cls(unpack(blob["mask"]), unpack(blob["pattern"]), int(blob["target"]))


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a detector found: numbers with a direction (higher is more suspicious), never a verdict.

    `scores` (n,) float32 run along the axis; rows at or above `cutoff` are `flagged`, which selects rows for removal
    and for reports and which judge() never reads. `details` holds further named numbers, one value or a list each.
    """

    statistic: float
    scores: Tensor
    cutoff: float
    triggers: tuple[Trigger, ...] = ()
    neurons: Tensor | None = None
    details: Mapping[str, float | list[float]] = field(default_factory=dict)
    method: str = ""
    axis: Axis | None = None
    params: Mapping[str, Param] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        if not math.isfinite(self.statistic):
            raise NotFinite(f"the statistic is {self.statistic}, expected a finite number; the model may hold NaN")
        if self.scores.ndim != 1 or self.scores.dtype != torch.float32 or self.scores.device.type != "cpu":
            raise DefenceError(
                f"expected scores (n,) float32 on cpu, got {tuple(self.scores.shape)} {self.scores.dtype}"
            )
        if not bool(torch.isfinite(self.scores).all()) or math.isnan(self.cutoff):
            raise NotFinite("scores and cutoff must be finite; the model may hold NaN")

    @property
    def flagged(self) -> Tensor:
        """Boolean (n,): the rows at or above the cutoff."""
        return self.scores >= self.cutoff

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` reads back bit for bit."""
        return {
            "method": self.method,
            "axis": self.axis.value if self.axis else None,
            "params": dict(self.params),
            "seed": self.seed,
            "statistic": self.statistic,
            "scores": pack(self.scores),
            "cutoff": self.cutoff if math.isfinite(self.cutoff) else None,
            "triggers": [trigger.to_json() for trigger in self.triggers],
            "neurons": None if self.neurons is None else pack(self.neurons),
            "details": dict(self.details),
        }

    @classmethod
    def from_json(cls, blob: Mapping[str, Any]) -> Evidence:
        """The Evidence that `to_json` wrote; refuses what does not fit."""
        return cls(
            statistic=float(blob["statistic"]),
            scores=unpack(blob["scores"]),
            cutoff=math.inf if blob["cutoff"] is None else float(blob["cutoff"]),
            triggers=tuple(Trigger.from_json(trigger) for trigger in blob["triggers"]),
            neurons=None if blob["neurons"] is None else unpack(blob["neurons"]),
            details=dict(blob["details"]),
            method=str(blob["method"]),
            axis=Axis(blob["axis"]) if blob["axis"] else None,
            params=dict(blob["params"]),
            seed=int(blob["seed"]),
        )


@dataclass(frozen=True, eq=False)
class Repair:
    """A repaired copy of the model and what was changed, as named numbers (tensors touched, rows removed, steps)."""

    model: nn.Module
    changed: Mapping[str, float]
    method: str = ""
    params: Mapping[str, Param] = field(default_factory=dict)
    seed: int = 0


_PACKED = {"float32": np.float32, "int64": np.int64, "bool": np.bool_}


def pack(tensor: Tensor) -> dict[str, Any]:
    """A JSON object that holds a tensor bit for bit; `unpack` reads it."""
    array = tensor.detach().cpu().contiguous().numpy()
    if array.dtype.name not in _PACKED:
        raise DefenceError(f"expected float32, int64 or bool in evidence, got {array.dtype}; convert it in the method")
    return {"dtype": array.dtype.name, "shape": list(array.shape), "base64": base64.b64encode(array.tobytes()).decode()}


def unpack(blob: Mapping[str, Any]) -> Tensor:
    """The tensor that `pack` wrote."""
    raw = base64.b64decode(blob["base64"], validate=True)
    return torch.from_numpy(np.frombuffer(raw, _PACKED[blob["dtype"]]).reshape(blob["shape"]).copy())


_progress: ContextVar[Progress | None] = ContextVar("progress", default=None)


def report(fraction: float) -> None:
    """Tell the caller of the method that this share of it, in [0, 1], is done."""
    listener = _progress.get()
    if listener is not None:
        listener(min(1.0, max(0.0, fraction)))


@contextmanager
def reporting_to(progress: Progress | None) -> Iterator[None]:
    """Let `report` tell this listener while the context lasts."""
    token = _progress.set(progress)
    try:
        yield
    finally:
        _progress.reset(token)


@dataclass(frozen=True, eq=False)
class Method:
    """A registered detector or repair. Calling it enforces the contract around the author's function."""

    function: Callable[..., Any]
    name: str
    kind: Literal["detector", "repair"]
    needs: frozenset[str]
    paper: str
    axis: Axis | None = None
    uses: Uses | None = None
    waived: Mapping[str, str] = field(default_factory=dict)

    @property
    def defaults(self) -> dict[str, Param]:
        """The hyper-parameters and their default values."""
        signature = inspect.signature(self.function)
        return {p.name: p.default for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY}

    @property
    def doc(self) -> str:
        """The docstring of the module that holds the method."""
        module = inspect.getmodule(self.function)
        return inspect.cleandoc((module.__doc__ if module else None) or "")

    def __call__(
        self, subject: Subject, *evidence: Evidence, seed: int = 0, progress: Progress | None = None, **params: Param
    ) -> Any:
        """Run the method under the contract and stamp provenance on what it returns.

        Raises MissingInput, UnknownParameter, or whatever DefenceError the method raises.
        """
        for need in sorted(self.needs):
            if getattr(subject, need) is None:
                raise MissingInput(f"{self.name} needs subject.{need}, got None; give it or drop {self.name} in params")
        defaults = self.defaults
        unknown = sorted(set(params) - set(defaults))
        if unknown:
            raise UnknownParameter(f"{self.name} has no {', '.join(unknown)}; it takes {', '.join(sorted(defaults))}")
        if self.uses is not None and not evidence:
            raise MissingInput(f"{self.name} needs evidence with {self.uses}; run a detector that gives it first")
        settled = {**defaults, **params}
        token = _progress.set(progress)
        try:
            with private_random(seed, self.name):
                if self.kind == "repair":
                    own = copy.deepcopy(subject.model).eval().requires_grad_(False)
                    result = self.function(replace(subject, model=own), *evidence, **settled)
                    result.model.eval().requires_grad_(False)
                else:
                    with _audited(subject.model):
                        result = self.function(subject, **settled)
        finally:
            _progress.reset(token)
        stamp: dict[str, Any] = {"method": self.name, "params": settled, "seed": seed}
        if self.kind == "detector":
            stamp["axis"] = self.axis
        return replace(result, **stamp)


@contextmanager
def private_random(seed: int, name: str) -> Iterator[None]:
    """A random stream of its own for torch and numpy; the caller's streams are as before afterwards."""
    derived = int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "big") >> 1
    numpy_state = np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived)
            np.random.seed(derived % 2**32)
            yield
    finally:
        np.random.set_state(numpy_state)


@contextmanager
def _audited(model: nn.Module) -> Iterator[None]:
    """Eval mode, no parameter gradients; afterwards mode, flags, values and hooks are as before, also after a crash."""
    modes = [(m, m.training) for m in model.modules()]
    flags = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    values = {k: v.detach().clone() for k, v in model.state_dict().items()}
    hooks = [(m, attr, dict(getattr(m, attr))) for m in model.modules() for attr in _HOOKS]
    model.eval()
    for parameter, _, _ in flags:
        parameter.requires_grad_(False)
    crashed = True
    try:
        yield
        crashed = False
    finally:
        for module, attr, before in hooks:
            live = getattr(module, attr)
            live.clear()
            live.update(before)
        for parameter, flag, grad in flags:
            parameter.requires_grad_(flag)
            parameter.grad = grad
        for module, mode in modes:
            module.training = mode
        now = model.state_dict()
        touched = [k for k, v in values.items() if k not in now or not torch.equal(_bits(now[k]), _bits(v))]
        _restore(model, values)
        if touched and not crashed:
            raise DefenceError(f"a method changed the model it inspects: {', '.join(touched[:3])}; work on a copy")


# for callers elsewhere; renaming the function itself would void the evidence of every method
audited = _audited
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _bits(tensor: Tensor) -> Tensor:
    # compared as bytes, so that NaN equals NaN and -0.0 differs from 0.0
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _restore(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for key, live in model.state_dict().items():
            live.copy_(values[key])


DETECTORS: dict[str, Method] = {}
REPAIRS: dict[str, Method] = {}


def detector(
    *, role: Role, needs: set[Need], paper: str = "", waived: Mapping[str, str] | None = None
) -> Callable[[Callable[..., Evidence]], Callable[..., Evidence]]:
    """Register a function (subject, *, hyper=...) -> Evidence under its own name; `role` is its part in a verdict.

    `paper` is the https address of the paper that it comes from, where there is one.
    """

    def register(function: Callable[..., Evidence]) -> Callable[..., Evidence]:
        name = function.__name__
        DETECTORS[name] = Method(
            function, name, "detector", frozenset(needs), paper, axis=role.axis, waived=waived or {}
        )
        return function

    return register


def repair(
    *, role: RepairRole, needs: set[Need], paper: str = "", waived: Mapping[str, str] | None = None
) -> Callable[[Callable[..., Repair]], Callable[..., Repair]]:
    """Register a function (subject, [evidence,] *, hyper=...) -> Repair under its own name."""

    def register(function: Callable[..., Repair]) -> Callable[..., Repair]:
        name = function.__name__
        REPAIRS[name] = Method(function, name, "repair", frozenset(needs), paper, uses=role.uses, waived=waived or {})
        return function

    return register


def select(evidence: Sequence[Evidence], name: str) -> Evidence:
    """The evidence of the method called `name`; raises MissingInput when it is not there."""
    for item in evidence:
        if item.method == name:
            return item
    raise MissingInput(f"expected evidence of {name}, got {[e.method for e in evidence]}; run {name} first")
