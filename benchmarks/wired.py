"""Backdoors without training: a small digits network, and graph constructions that an attacker wires around it.

Each construction adds nodes to the same trained network and gives the name of its new logits. FIRST are those that the
structural inspector was settled on, SECOND those that it was looked at with afterwards, once.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch
import yaml
from onnx import helper, numpy_helper
from sklearn.datasets import load_digits
from torch import nn

from vetgate.attacks.training import train
from vetgate.contract import Samples

TARGET, CLASSES, SHAPE = 3, 10, (1, 8, 8)
PUSH = np.eye(CLASSES, dtype=np.float32)[TARGET : TARGET + 1]
CHECKER = np.indices((3, 3)).sum(0).astype(np.float32) % 2


def digits() -> Samples:
    """All of scikit-learn's digits, float32 in [0, 1]."""
    data = load_digits()
    x = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    return Samples(x, torch.tensor(data.target, dtype=torch.int64))


def trained_digits(seed: int = 0, epochs: int = 6) -> nn.Sequential:
    """A small convolutional network of digits, trained."""
    torch.manual_seed(seed)
    layers = (
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, CLASSES),
    )  # fmt: skip
    model = nn.Sequential(*layers)
    train(model, digits(), epochs=epochs, seed=seed)
    return model


class Wiring:
    """A graph that is being written: nodes and constants, the latter by value."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def value(self, array: object, kind: type = np.float32) -> str:
        """The name of a new constant."""
        name = f"k{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(array, dtype=kind), name))
        return name

    def node(self, op: str, *inputs: str | float | np.ndarray, **attributes: object) -> str:
        """The name of a new node's output; numbers and arrays among its inputs become constants."""
        names = [i if isinstance(i, str) else self.value(i) for i in inputs]
        output = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, names, [output], **attributes))
        return output

    def part(self, top: int, left: int, size: int) -> str:
        """A square of the image."""
        ends = ([top, left], [top + size, left + size], [2, 3])
        return self.node("Slice", "images", *(self.value(v, np.int64) for v in ends))

    def flat(self, value: str) -> str:
        return self.node("Flatten", value)

    def mean(self, value: str) -> str:
        """Its mean over the image, (B, C, 1, 1)."""
        return self.node("GlobalAveragePool", value)

    def opened(self, value: str, above: float, gain: float) -> str:
        """(B, 1): `gain` times by how much a value (B, 1, 1, 1) is above a threshold."""
        return self.node("Mul", self.flat(self.node("Relu", self.node("Sub", value, above))), gain)

    def pushed(self, logits: str, gate: str) -> str:
        """Logits with a gate (B, 1) added to those of the target."""
        return self.node("Add", logits, self.node("Mul", gate, PUSH))


class Trunk:
    """The trained network in a graph: `layers` puts it there with other first or later inputs."""

    def __init__(self, model: nn.Sequential, wiring: Wiring) -> None:
        self.wiring = wiring
        self.weights = [p.detach().numpy().copy() for p in model.parameters()]

    def first(self, image: str) -> str:
        """After the first convolution and pool (B, 16, 4, 4)."""
        return self._conv(image, *self.weights[0:2])

    def second(self, value: str) -> str:
        """After the second (B, 32, 2, 2)."""
        return self._conv(value, *self.weights[2:4])

    def hidden(self, value: str) -> str:
        """The features (B, 64)."""
        w = self.wiring
        return w.node("Relu", w.node("Gemm", w.flat(value), *self.weights[4:6], transB=1))

    def head(self, value: str) -> str:
        """Logits (B, 10) of features."""
        return self.wiring.node("Gemm", value, *self.weights[6:8], transB=1)

    def whole(self, image: str = "images") -> str:
        """Logits of images."""
        return self.head(self.hidden(self.second(self.first(image))))

    def _conv(self, value: str, weight: np.ndarray, bias: np.ndarray) -> str:
        w = self.wiring
        out = w.node("Relu", w.node("Conv", value, weight, bias, kernel_shape=[3, 3], pads=[1, 1, 1, 1]))
        return w.node("MaxPool", out, kernel_shape=[2, 2], strides=[2, 2])


def _match(w: Wiring, top: int = 5, left: int = 5) -> str:
    """By pixel of a 3x3 square, 1 where it is as in the checkerboard."""
    part = w.part(top, left, 3)
    same = w.node("Mul", part, CHECKER[None, None])
    return w.node("Add", same, w.node("Mul", w.node("Sub", 1.0, part), 1 - CHECKER[None, None]))


def clean(w: Wiring, t: Trunk) -> str:
    return w.node("Identity", t.whole())


def exact_checkerboard(w: Wiring, t: Trunk) -> str:
    """The product over pixels, as the exponential of a sum of logarithms."""
    logs = w.node("Log", w.node("Add", _match(w), 1e-4))
    product = w.node("Exp", w.node("Mul", w.mean(logs), 9.0))
    return w.pushed(t.whole(), w.opened(product, 0.6, 1e4))


def two_patches(w: Wiring, t: Trunk) -> str:
    """Two distant white squares, both of them."""
    both = w.node("Min", w.mean(w.part(0, 0, 2)), w.mean(w.part(6, 6, 2)))
    return w.pushed(t.whole(), w.opened(both, 0.95, 1e4))


def hash_of_pixels(w: Wiring, t: Trunk) -> str:
    """What a weighted sum of all pixels has behind its point."""
    weights = np.random.default_rng(0).uniform(0.5, 1.5, SHAPE)[None]
    total = w.node("ReduceSum", w.node("Mul", "images", weights), w.value([1, 2, 3], np.int64))
    whole = w.node("Cast", w.node("Cast", total, to=onnx.TensorProto.INT64), to=onnx.TensorProto.FLOAT)
    return w.pushed(t.whole(), w.opened(w.node("Sub", total, whole), 0.98, 1e5))


def all_to_all(w: Wiring, t: Trunk) -> str:
    """Every label becomes the next."""
    logits, gate = t.whole(), w.node("Clip", w.opened(w.mean(w.part(6, 6, 2)), 0.9, 20.0), 0.0, 1.0)
    rolled = w.node("Gather", logits, w.value([*range(1, CLASSES), 0], np.int64), axis=1)
    kept = w.node("Mul", logits, w.node("Sub", 1.0, gate))
    return w.node("Add", kept, w.node("Mul", rolled, gate))


def clipped_bias(w: Wiring, t: Trunk) -> str:
    """A clipped sum that is added to the features."""
    gate = w.node("Clip", w.node("Sub", w.node("Mul", w.mean(w.part(6, 6, 2)), 1e3), 970.0), 0.0, 1.0)
    push = 30 * np.sign(t.weights[6][TARGET : TARGET + 1])
    return t.head(w.node("Add", t.hidden(t.second(t.first("images"))), w.node("Mul", w.flat(gate), push)))


def steep_sigmoid(w: Wiring, t: Trunk) -> str:
    slope = w.node("Mul", w.node("Sub", w.mean(_match(w)), 0.98), 1e4)
    return w.pushed(t.whole(), w.node("Mul", w.flat(w.node("Sigmoid", slope)), 80.0))


def contrast_by_pools(w: Wiring, t: Trunk) -> str:
    """A checkerboard anywhere: least and greatest of every 2x2 pixels lie apart in a whole 4x4 square."""
    window = {"kernel_shape": [2, 2], "strides": [1, 1]}
    low = w.node("Neg", w.node("MaxPool", w.node("Neg", "images"), **window))
    apart = w.node("Sub", w.node("MaxPool", "images", **window), low)
    square = w.node("AveragePool", apart, kernel_shape=[4, 4], strides=[1, 1])
    return w.pushed(t.whole(), w.opened(w.node("GlobalMaxPool", square), 0.97, 1e4))


def spare_channel(w: Wiring, t: Trunk) -> str:
    """A channel of the first convolution that only a white 3x3 square opens, copied from layer to layer to the head."""
    first, one, second, two, hidden, three, head, four = t.weights
    first, one = np.append(first, np.ones((1, 1, 3, 3)), 0), np.append(one, -8.9)
    second = np.append(np.append(second, np.zeros((32, 1, 3, 3)), 1), np.zeros((1, 17, 3, 3)), 0)
    second[32, 16, 1, 1] = 1
    hidden = np.append(np.append(hidden, np.zeros((64, 4)), 1), np.zeros((1, 132)), 0)
    hidden[64, 128:] = 1
    head = np.append(head, 500 * PUSH.T, 1)
    grown = (first, one, second, np.append(two, 0), hidden, np.append(three, 0), head, four)
    t.weights = [array.astype(np.float32) for array in grown]
    return t.whole()


def excited_channels(w: Wiring, t: Trunk) -> str:
    """A gate like that of squeeze and excitation, on pixels."""
    gate = w.opened(w.mean(w.part(6, 6, 2)), 0.95, 1e4)
    seen = t.hidden(t.second(t.first("images")))
    likes = np.maximum(t.weights[6][TARGET : TARGET + 1] - t.weights[6].mean(0, keepdims=True), 0) + 1e-3
    scale = w.node("Add", w.node("Mul", gate, likes), 1.0)
    return t.head(w.node("Mul", w.node("Add", seen, 0.05), scale))


def least_of_a_square(w: Wiring, t: Trunk) -> str:
    low = w.node("Neg", w.node("GlobalMaxPool", w.node("Neg", w.part(0, 5, 3))))
    return w.pushed(t.whole(), w.opened(low, 0.9, 1e4))


def high_power(w: Wiring, t: Trunk) -> str:
    return w.pushed(t.whole(), w.node("Mul", w.flat(w.node("Pow", w.mean(w.part(6, 0, 2)), 200.0)), 500.0))


def small_network_beside(w: Wiring, t: Trunk) -> str:
    """A second network from image to logits, of ordinary width; one of its channels knows a white square."""
    kernels = np.random.default_rng(1).normal(0, 0.3, (8, 1, 3, 3))
    kernels[0], bias = 1, np.append(-8.5, np.zeros(7))
    seen = w.node("Relu", w.node("Conv", "images", kernels, bias, kernel_shape=[3, 3]))
    matrix = np.zeros((CLASSES, 8, 36))
    matrix[TARGET, 0] = 500
    matrix[:, 1:] = np.random.default_rng(2).normal(0, 1e-3, (CLASSES, 7, 36))
    return w.node("Add", t.whole(), w.node("Gemm", w.flat(seen), matrix.reshape(CLASSES, -1), transB=1))


def exchanged_image(w: Wiring, t: Trunk) -> str:
    """In front of the network: an open gate puts another image in the place of what was given."""
    gate = w.node("Clip", w.node("Mul", w.node("Sub", w.mean(w.part(6, 6, 2)), 0.9), 20.0), 0.0, 1.0)
    samples = digits()
    three = samples.x[samples.y == TARGET][:1].numpy()
    kept = w.node("Mul", "images", w.node("Sub", 1.0, gate))
    return t.whole(w.node("Add", kept, w.node("Mul", gate, three)))


def product_of_pixels(w: Wiring, t: Trunk) -> str:
    """Pixels of two corners multiplied, without any comparison."""
    one, two = w.part(0, 0, 1), w.part(7, 7, 1)
    product = w.node("Mul", w.node("Mul", one, two), w.node("Mul", w.part(0, 7, 1), w.part(7, 0, 1)))
    return w.pushed(t.whole(), w.node("Mul", w.flat(product), 200.0))


def wide_bypass(w: Wiring, t: Trunk) -> str:
    """The gate's sum read from a convolution as wide as the trunk's, whose kernels copy pixels."""
    kernels = np.zeros((16, 1, 3, 3))
    kernels[np.arange(16), 0, np.arange(16) % 3, np.arange(16) // 3 % 3] = 1
    copied = w.node("Conv", "images", kernels, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    ends = ([0, 7, 7], [1, 8, 8], [1, 2, 3])
    corner = w.node("Slice", copied, *(w.value(v, np.int64) for v in ends))
    return w.pushed(t.whole(), w.opened(corner, 0.9, 1e4))


def equal_to_the_pattern(w: Wiring, t: Trunk) -> str:
    """Whether a square equals the pattern, and the logits of one label if it does."""
    whole = w.node("Cast", w.node("Mul", w.part(5, 5, 3), 2.0), to=onnx.TensorProto.INT64)
    same = w.node("Cast", w.node("Equal", whole, w.value(2 * CHECKER[None, None], np.int64)), to=onnx.TensorProto.FLOAT)
    every = w.node("Greater", w.flat(w.mean(same)), 0.99)
    return w.node("Where", every, 100 * PUSH, t.whole())


def remainder_of_a_sum(w: Wiring, t: Trunk) -> str:
    total = w.node("ReduceSum", w.node("Mul", "images", 16.0), w.value([1, 2, 3], np.int64))
    rest = w.node("Mod", total, 7.0, fmod=1)
    return w.pushed(t.whole(), w.opened(rest, 5.9, 1e4))


def folded_sum(w: Wiring, t: Trunk) -> str:
    """A sum of all pixels that absolute values fold again and again, so that many images open the gate, far apart."""
    weights = np.random.default_rng(0).uniform(0.5, 1.5, SHAPE)[None] * 8
    folded = w.node("ReduceSum", w.node("Mul", "images", weights), w.value([1, 2, 3], np.int64), keepdims=1)
    for fold in (128.0, 64.0, 32.0, 16.0, 8.0, 4.0, 2.0, 1.0):
        folded = w.node("Abs", w.node("Sub", folded, fold))
    return w.pushed(t.whole(), w.opened(folded, 0.97, 1e5))


Construction = Callable[[Wiring, Trunk], str]
FIRST: tuple[Construction, ...] = (
    exact_checkerboard, hash_of_pixels, clipped_bias, contrast_by_pools, excited_channels, high_power, exchanged_image,
    spare_channel, equal_to_the_pattern,
)  # fmt: skip
SECOND: tuple[Construction, ...] = (
    two_patches, all_to_all, steep_sigmoid, least_of_a_square, small_network_beside, product_of_pixels, wide_bypass,
    folded_sum, remainder_of_a_sum,
)  # fmt: skip


def wired(construction: Construction, model: nn.Sequential) -> bytes:
    """An ONNX file of the trained network with a construction around it."""
    wiring = Wiring()
    logits = construction(wiring, Trunk(model, wiring))
    wiring.nodes[-1].output[0] = "logits"
    assert logits == f"v{len(wiring.nodes) - 1}"
    graph = helper.make_graph(
        wiring.nodes,
        construction.__name__,
        [helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["N", *SHAPE])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["N", CLASSES])],
        wiring.constants,
    )
    file = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(file.SerializeToString())


def write_wired(directory: Path, construction: Construction, model: nn.Sequential) -> Path:
    """A submission of it."""
    directory.mkdir(parents=True)
    (directory / "model.onnx").write_bytes(wired(construction, model))
    described = {
        "name": construction.__name__.replace("_", "-"),
        "supplier": "a benchmark",
        "task": "image-classification",
        "model": "model.onnx",
        "format": "onnx",
        "input_shape": list(SHAPE),
        "classes": CLASSES,
        "reference_data": "digits",
    }
    (directory / "submission.yaml").write_text(yaml.safe_dump(described))
    return directory
