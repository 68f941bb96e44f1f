"""NIC: a triggered input passes through the network as no clean one does, in a layer or from one to the next.

Trusted images show what is usual. Value invariants: a one-class model of each layer's activations. Provenance
invariants: a linear softmax probe, trained on each layer, says what the layer has made of the input so far; a
one-class model of the probes of neighbouring layers, the network's own output last, knows what follows on what. One
more one-class model holds all these decisions together; the score is its own.

Source    Ma et al., "NIC: Detecting Adversarial Samples with Neural Network Invariant Checking", NDSS 2019.
Deviates  Activations are averaged over places and reduced to their main directions, and how much of an activation lies
          in none of these counts as a decision of its own: clean images hardly show a trigger's direction. One-class
          models are fitted to images that reductions and probes have not seen. Decisions are logarithms, so that what
          is far off still differs; what is more usual than the median is no alarm. Deep networks give some layers.
Blind to  Triggers that change what the layers hold no more than other clean images do: small ones among natural images
          of many kinds, and all-to-all among them, where an input looks inside like one of the next class.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vetgate.channels import layers_of
from vetgate.contract import Subject, report
from vetgate.errors import DefenceError, MissingInput, NotFinite
from vetgate.guard.contract import Fitted, guard, replicas
from vetgate.probe import module_at, output_of
from vetgate.role import GuardRole

ROLE = GuardRole(
    uses=None,
    title="NIC",
    sentence="Rejects an input that passes through the layers of the network as no trusted image does.",
)

# places that an activation is averaged to, along each side
PLACES = 4
FEWEST = 40
Tensors = Mapping[str, Tensor]


def layer_outputs(model: nn.Module, layers: Sequence[str], x: Tensor) -> tuple[list[Tensor], Tensor]:
    """What each layer gives on images x (M, C, H, W), (M, D) each, and what the network says (M, K)."""
    rows: list[list[Tensor]] = [[] for _ in layers]
    said = []
    for part in replicas(x, 1):
        seen: list[list[Tensor]] = [[] for _ in layers]
        with ExitStack() as stack, torch.no_grad():
            for name, sink in zip(layers, seen, strict=True):
                stack.enter_context(output_of(module_at(model, name), sink.append))
            said.append(model(part).softmax(1))
        for kept, sink in zip(rows, seen, strict=True):
            kept.append(pooled(sink[-1]))
    return [torch.cat(kept) for kept in rows], torch.cat(said)


def pooled(out: Tensor) -> Tensor:
    """An activation as rows (B, D): maps averaged to a few places, tokens to one."""
    if out.ndim == 4 and out.shape[-2:].numel() > PLACES**2:
        out = F.adaptive_avg_pool2d(out, PLACES)
    return out.mean(1) if out.ndim == 3 else out.flatten(1)


def reduction(rows: Tensor, dims: int) -> dict[str, Tensor]:
    """The mean (D,) of rows (N, D), and their main directions (D, dims), each in units of its own deviation."""
    mean = rows.mean(0)
    dims = max(1, min(dims, rows.shape[1] - 1, len(rows) // 4))
    _, _, axes = torch.pca_lowrank(rows, q=min(dims + 8, *rows.shape), niter=4)
    spread = ((rows - mean) @ axes).std(0)
    return {"mean": mean, "axes": axes[:, :dims], "spread": spread[:dims].clamp(min=1e-6)}


@torch.enable_grad()
def linear_probe(rows: Tensor, y: Tensor, classes: int) -> dict[str, Tensor]:
    """A linear softmax trained to tell labels y (N,) from rows (N, D): weight (K, D) and bias (K,)."""
    weight, bias = torch.zeros(classes, rows.shape[1], requires_grad=True), torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(F.linear(rows, weight, bias), y) + weight.square().sum() / (2 * len(rows))
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return {"weight": weight.detach(), "bias": bias.detach()}


def one_class(rows: Tensor, nu: float) -> dict[str, Tensor]:
    """A one-class support vector machine of rows (N, D), of which it leaves about the share `nu` outside."""
    # a second and memory that only fitting pays for
    from sklearn.svm import OneClassSVM

    gamma = 1 / max(rows.shape[1] * float(rows.var()), 1e-9)
    machine = OneClassSVM(nu=nu, gamma=gamma).fit(rows.double().numpy())
    return {
        "support": torch.from_numpy(machine.support_vectors_).float(),
        "logs": torch.from_numpy(machine.dual_coef_[0]).clamp(min=1e-12).log().float(),
        "kernel": torch.tensor([gamma, math.log(max(float(machine.offset_[0]), 1e-12))]),
    }


def unusual(rows: Tensor, machine: Tensors) -> Tensor:
    """How far rows (M, D) lie outside a one-class model, as a logarithm (M,): 0 at its boundary, negative within."""
    gamma, offset = machine["kernel"]
    # not by way of a product, whose rounding would depend on the batch
    apart = torch.cdist(rows, machine["support"], compute_mode="donot_use_mm_for_euclid_dist").square()
    outside: Tensor = offset - torch.logsumexp(machine["logs"] - gamma * apart, 1)
    return outside


def _part(tensors: Tensors, name: str) -> Tensors:
    return {key.removeprefix(f"{name}."): t for key, t in tensors.items() if key.startswith(f"{name}.")}


def _whole(name: str, part: Tensors) -> dict[str, Tensor]:
    return {f"{name}.{key}": t.contiguous() for key, t in part.items()}


def _views(tensors: Tensors, rows: Sequence[Tensor], said: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """What one-class models see of activations [(M, D)] and outputs (M, K), by name, and what reductions left out."""
    found: dict[str, Tensor] = {}
    left, told = [], []
    for i, given in enumerate(rows):
        layer = _part(tensors, f"layer.{i}")
        centred = given - layer["mean"]
        along = centred @ layer["axes"]
        found[f"value.{i}"] = scaled = along / layer["spread"]
        rest = (centred.square().sum(1) - along.square().sum(1)).clamp(min=0)
        left.append((rest / layer["spread"].square().sum() + 1e-6).log())
        told.append(F.linear(scaled, layer["weight"], layer["bias"]).softmax(1))
    for i, (before, after) in enumerate(zip(told, [*told[1:], said], strict=True)):
        found[f"provenance.{i}"] = torch.cat([before, after], 1)
    return found, torch.stack(left, 1)


def _decisions(tensors: Tensors, views: Tensors, left: Tensor) -> Tensor:
    return torch.cat([torch.stack([unusual(v, _part(tensors, n)) for n, v in views.items()], 1), left], 1)


def _beyond(tensors: Tensors, decisions: Tensor) -> Tensor:
    """Decisions (M, T) above the median image's, in units of how far the share `nu` of images lies above."""
    return ((decisions - tensors["usual"]) / tensors["unit"]).clamp(min=0)


def _fit(subject: Subject, *, images: int = 2000, dims: int = 40, layers: int = 10, nu: float = 0.02) -> Fitted:
    """Learn from up to `images` trusted ones, `dims` directions of each of up to `layers` layers, the last ones surely.

    Each one-class model leaves the share `nu` of them outside: as many as may be rejected, or fewer.
    """
    assert subject.clean is not None
    if len(subject.clean) < FEWEST:
        raise MissingInput(f"expected at least {FEWEST} trusted images, got {len(subject.clean)}; give more")
    clean = subject.clean[torch.randperm(len(subject.clean))[:images]]
    half = len(clean) // 2
    if bool((clean.y[:half] == clean.y[0]).all()):
        raise DefenceError("expected trusted images of two classes or more, got those of one; give others")
    every = [layer.last for layer in layers_of(subject.model, clean.x)]
    names = [every[round(i)] for i in torch.linspace(0, len(every) - 1, min(layers, len(every))).tolist()]
    rows, said = layer_outputs(subject.model, names, clean.x)
    if not all(bool(torch.isfinite(t).all()) for t in (*rows, said)):
        raise NotFinite("the model gives NaN or infinity on trusted images, expected finite numbers; refuse it")
    tensors: dict[str, Tensor] = {}
    for i, given in enumerate(rows):
        reduced = reduction(given[:half], dims)
        seen = (given[:half] - reduced["mean"]) @ reduced["axes"] / reduced["spread"]
        tensors |= _whole(f"layer.{i}", reduced | linear_probe(seen, clean.y[:half], subject.classes))
        report((i + 1) / (2 * len(rows)))
    views, left = _views(tensors, [given[half:] for given in rows], said[half:])
    for name, view in views.items():
        tensors |= _whole(name, one_class(view, nu))
    decisions = _decisions(tensors, views, left)
    usual = decisions.median(0).values
    tensors |= {"usual": usual, "unit": (decisions.quantile(1 - nu, 0) - usual).clamp(min=1e-3)}
    tensors |= _whole("final", one_class(_beyond(tensors, decisions), nu))
    return Fitted(tensors, {"layers": "\n".join(names)})


@guard(role=ROLE, fit=_fit, needs={"clean"}, paper="https://doi.org/10.14722/ndss.2019.23415")
def nic(fitted: Fitted, model: nn.Module, x: Tensor) -> Tensor:
    """How far outside of all that is usual (M,) each image (M, C, H, W) lies, as a logarithm; 0 at the boundary."""
    tensors = {name: t.to(x.device) for name, t in fitted.tensors.items()}
    names = str(fitted.numbers["layers"]).split("\n")
    views, left = _views(tensors, *layer_outputs(model, names, x))
    return unusual(_beyond(tensors, _decisions(tensors, views, left)), _part(tensors, "final"))
