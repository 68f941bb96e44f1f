"""How normalisations are written: by what was learned, and by the image alone."""

from __future__ import annotations

from vetgate.formats.onnx.nodes import SMALLEST, Value
from vetgate.formats.onnx.rewriting.walk import Rewrite


def batch_norm(r: Rewrite) -> str:
    """Normalisation by statistics that were learned."""
    if len(r.node.outputs) != 1:
        raise r.refuse("one output", f"{len(r.node.outputs)}, which only training has")
    if r.integer("training_mode", 0):
        raise r.refuse("inference mode", "training_mode 1")
    epsilon, variance = r.real("epsilon", 1e-5), r.constant(4)
    if variance is None or not variance.size or float(variance.min()) + epsilon < SMALLEST:
        raise r.refuse(f"a variance and epsilon of {SMALLEST:.0e} at least", "less, which is divided by")
    attributes: dict[str, Value] = {"epsilon": epsilon, "momentum": r.real("momentum", 0.9)}
    return r.write("BatchNormalization", [r.name(i) for i in range(5)], attributes, output=r.result)


def layer_norm(r: Rewrite) -> str:
    """Normalisation over the last axes."""
    if len(r.node.outputs) != 1:
        raise r.refuse("one output", f"{len(r.node.outputs)}, which only training has")
    return r.write("LayerNormalization", r.names(), {"axis": r.axis(-1), "epsilon": _epsilon(r)}, output=r.result)


def other_norm(r: Rewrite) -> str:
    """Normalisation of each channel, or of groups of them."""
    attributes: dict[str, Value] = {"epsilon": _epsilon(r)}
    if r.node.op == "GroupNormalization":
        attributes["num_groups"] = r.integer("num_groups", 0)
    return r.write(r.node.op, r.names(), attributes, output=r.result)


def _epsilon(r: Rewrite) -> float:
    # of an image of one colour nothing else is left to divide by
    epsilon = r.real("epsilon", 1e-5)
    if epsilon < SMALLEST:
        raise r.refuse(f"an epsilon of {SMALLEST:.0e} at least", f"{epsilon:.3g}")
    return epsilon


def lrn(r: Rewrite) -> str:
    """Normalisation over neighbouring channels."""
    factors = {name: r.real(name, default) for name, default in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0))}
    if any(value <= 0 for value in factors.values()):
        raise r.refuse("alpha, beta and bias above zero", str(factors))
    return r.write("LRN", [r.name(0)], {**factors, "size": r.integer("size", 0)}, output=r.result)
