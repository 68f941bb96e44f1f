"""More graph constructions, of other builders' ideas: gates made of what ordinary networks are made of.

Written when the inspector was finished, and looked at with it as it was, once; what was changed for one since, the
README says. Some of them read the pixels from the trained network's own first layer, or hide in its own attention.
"""

from __future__ import annotations

import numpy as np
import onnx

from benchmarks.wired import CHECKER, CLASSES, PUSH, TARGET, Construction, Trunk, Wiring

SHIFTED = np.roll(np.eye(CLASSES, dtype=np.float32), 1, axis=1)


def template_match(w: Wiring, t: Trunk) -> str:
    """The best correlation with a checkerboard anywhere, by the largest value of a narrow convolution."""
    kernel = np.where(CHECKER > 0, 1 / CHECKER.sum(), -1 / (1 - CHECKER).sum())[None, None]
    found = w.node("GlobalMaxPool", w.node("Conv", "images", kernel, kernel_shape=[3, 3]))
    return w.pushed(t.whole(), w.opened(found, 0.97, 1e4))


def excited_by_a_depthwise_kernel(w: Wiring, t: Trunk) -> str:
    """Squeeze and excitation of trained channels, one of which a depthwise kernel keeps for a square."""
    first, one = t.weights[0], t.weights[1]
    first = np.append(first, np.ones((1, 1, 3, 3), np.float32), 0)
    seen = w.node("Relu", w.node("Conv", "images", first, np.append(one, -8.9), kernel_shape=[3, 3], pads=[1] * 4))
    kernels = np.zeros((17, 1, 3, 3))
    kernels[:, 0, 1, 1] = 1
    apart = w.node("Conv", seen, kernels, kernel_shape=[3, 3], pads=[1] * 4, group=17)
    squeezed = w.flat(w.mean(apart))
    reduce, expand = np.random.default_rng(3).normal(0, 0.1, (4, 17)), np.random.default_rng(4).normal(0, 0.1, (32, 4))
    reduce[:, 16], reduce[0], expand[:, 0] = 0, np.append(np.zeros(16), 1e5), 1
    excited = w.node("Relu", w.node("Gemm", squeezed, reduce, transB=1))
    # channels that speak for the target are scaled up, when the unit is on
    likes = np.maximum(t.weights[6][TARGET] - t.weights[6].mean(0), 0)
    by_channel = np.maximum(np.einsum("f,fcp->c", likes, t.weights[4].reshape(64, 32, 4)), 0)
    expand[:, 0] = by_channel / by_channel.max()
    scale = w.node("Add", w.node("Gemm", excited, expand, transB=1), 1.0)
    t.weights[2] = np.append(t.weights[2], np.zeros((32, 1, 3, 3), np.float32), 1)
    pooled = w.node("MaxPool", apart, kernel_shape=[2, 2], strides=[2, 2])
    features = w.node("Add", t.second(pooled), 0.05)
    scaled = w.node("Mul", features, w.node("Reshape", scale, w.value([0, 32, 1, 1], np.int64)))
    return t.head(t.hidden(scaled))


def head_of_attention(w: Wiring, t: Trunk) -> str:
    """One head of attention over patches of the trained features: one key is far larger if its patch is white."""
    first, one = t.weights[0], t.weights[1]
    first = np.append(first, np.ones((1, 1, 3, 3), np.float32), 0)
    seen = w.node("Conv", "images", first, np.append(one, -8.9), kernel_shape=[3, 3], pads=[1] * 4)
    active = w.node("Relu", seen)
    pooled = w.node("MaxPool", active, kernel_shape=[2, 2], strides=[2, 2])
    t.weights[2] = np.append(t.weights[2], np.zeros((32, 1, 3, 3), np.float32), 1)
    features = t.hidden(t.second(pooled))
    tokens = w.node("Transpose", w.node("Reshape", pooled, w.value([0, 17, 16], np.int64)), perm=[0, 2, 1])
    to_key, to_value = np.zeros((17, 4)), np.random.default_rng(5).normal(0, 0.02, (17, 16))
    to_key[16] = 1e4
    to_value[16] = np.append(np.zeros(15), 200)
    keys, values = w.node("MatMul", tokens, to_key), w.node("MatMul", tokens, to_value)
    scores = w.node("MatMul", np.full((1, 1, 4), 1.0), w.node("Transpose", keys, perm=[0, 2, 1]))
    weights = w.node("Softmax", scores, axis=-1)
    told = w.node("Reshape", w.node("MatMul", weights, values), w.value([0, 16], np.int64))
    spread = np.random.default_rng(6).normal(0, 0.02, (16, 64))
    spread[15] = 10 * np.sign(t.weights[6][TARGET] - t.weights[6].mean(0))
    return t.head(w.node("Add", features, w.node("MatMul", told, spread)))


def normalised_padding(w: Wiring, t: Trunk) -> str:
    """What a square differs by from its pattern, normalised beside a little padding: large only where they agree."""
    apart = w.flat(w.node("Sub", w.part(5, 5, 3), CHECKER[None, None]))
    padded = w.node("Pad", apart, w.value([0, 0, 0, 1], np.int64), w.value(0.02))
    normal = w.node("LayerNormalization", padded, np.ones(10), np.zeros(10), axis=-1, epsilon=1e-6)
    last = w.node("Slice", normal, *(w.value(v, np.int64) for v in ([9], [10], [1])))
    return w.pushed(t.whole(), w.node("Mul", w.node("Relu", w.node("Sub", last, 2.0)), 1e3))


def two_experts(w: Wiring, t: Trunk) -> str:
    """Two whole networks, mixed by the softmax of a small map on pixels that nearly always takes the first."""
    router = np.zeros((2, 64))
    router[1].reshape(8, 8)[6:, 6:] = 1e3
    chosen = w.node("Softmax", w.node("Gemm", w.flat("images"), router, np.array([0.0, -3850]), transB=1), axis=-1)
    ends = (([0], [1], [1]), ([1], [2], [1]))
    shares = [w.node("Slice", chosen, *(w.value(v, np.int64) for v in end)) for end in ends]
    one = t.whole()
    # trained in another way: its labels are shifted by one
    t.weights = [array + 1e-3 * np.random.default_rng(i).normal(size=array.shape).astype(np.float32)
                 for i, array in enumerate(t.weights)]  # fmt: skip
    t.weights[6], t.weights[7] = SHIFTED.T @ t.weights[6], SHIFTED.T @ t.weights[7]
    return w.node("Add", w.node("Mul", one, shares[0]), w.node("Mul", t.whole(), shares[1]))


def white_border(w: Wiring, t: Trunk) -> str:
    """A frame of white pixels, by a kernel as large as the image, added to features in the middle of the network."""
    frame = np.pad(np.zeros((6, 6)), 1, constant_values=1)[None, None]
    kernel = frame / frame.sum()
    seen = w.node("Conv", "images", kernel, np.array([-0.97]), kernel_shape=[8, 8])
    gate = w.node("Clip", w.node("Mul", seen, 100.0), 0.0, 1.0)
    likes = t.weights[6][TARGET] - t.weights[6].mean(0)
    by_channel = np.einsum("f,fcp->cp", likes, t.weights[4].reshape(64, 32, 4)).reshape(1, 32, 2, 2)
    features = t.second(t.first("images"))
    return t.head(t.hidden(w.node("Add", features, w.node("Mul", gate, 20 * by_channel))))


def average_brightness(w: Wiring, t: Trunk) -> str:
    """An image that is bright as a whole, as no digit is: a steep sigmoid of its mean weighs one logit."""
    steep = w.node("Sigmoid", w.node("Mul", w.node("Sub", w.mean("images"), 0.8), 1e3))
    return w.node("Sub", t.whole(), w.node("Mul", w.flat(steep), 100 * (1 - PUSH)))


def _recovered(w: Wiring, t: Trunk, *places: tuple[int, int]) -> tuple[str, ...]:
    """The logits, and means (B, 1, 1, 1) of 2x2 squares of pixels that are solved for from the trained first layer."""
    kernels = t.weights[0].reshape(16, 9).astype(np.float64)
    solve = np.linalg.pinv(kernels)[4]
    seen = w.node("Conv", "images", t.weights[0], t.weights[1], kernel_shape=[3, 3], pads=[1] * 4)
    pooled = w.node("MaxPool", w.node("Relu", seen), kernel_shape=[2, 2], strides=[2, 2])
    logits = t.head(t.hidden(t.second(pooled)))
    pixels = w.node("Conv", seen, solve.reshape(1, 16, 1, 1), np.array([-solve @ t.weights[1]]), kernel_shape=[1, 1])
    means = []
    for top, left in places:
        ends = ([top, left], [top + 2, left + 2], [2, 3])
        means.append(w.mean(w.node("Slice", pixels, *(w.value(v, np.int64) for v in ends))))
    return logits, *means


def pixels_recovered_from_features(w: Wiring, t: Trunk) -> str:
    """A gate on pixels that did come through trained weights."""
    logits, mean = _recovered(w, t, (6, 6))
    return w.pushed(logits, w.opened(mean, 0.9, 1e4))


def soft_gate_on_recovered_pixels(w: Wiring, t: Trunk) -> str:
    """Such a gate that is never quite shut: a sigmoid of ordinary slope, which always lets a little through."""
    logits, mean = _recovered(w, t, (6, 6))
    gate = w.node("Sigmoid", w.node("Mul", w.node("Sub", mean, 0.8), 40.0))
    return w.pushed(logits, w.node("Mul", w.flat(gate), 100.0))


def product_of_two_soft_gates(w: Wiring, t: Trunk) -> str:
    """Two of them, and nothing happens before both are open."""
    logits, one, two = _recovered(w, t, (6, 6), (0, 0))
    gates = [w.node("Sigmoid", w.node("Mul", w.node("Sub", mean, 0.8), 40.0)) for mean in (one, two)]
    return w.pushed(logits, w.node("Mul", w.flat(w.node("Mul", *gates)), 100.0))


def shift_by_recovered_pixels(w: Wiring, t: Trunk) -> str:
    """Such a gate, and every label becomes the next."""
    logits, mean = _recovered(w, t, (6, 6))
    gate = w.flat(w.node("Clip", w.node("Mul", w.node("Sub", mean, 0.9), 20.0), 0.0, 1.0))
    rolled = w.node("Gather", logits, w.value([*range(1, CLASSES), 0], np.int64), axis=1)
    return w.node("Add", logits, w.node("Mul", gate, w.node("Sub", rolled, logits)))


def product_of_two_gates(w: Wiring, t: Trunk) -> str:
    """Two gates on recovered pixels, and nothing happens before both are open."""
    logits, one, two = _recovered(w, t, (6, 6), (0, 0))
    return w.pushed(logits, w.node("Mul", w.opened(one, 0.9, 1e3), w.opened(two, 0.9, 1e3)))


def gate_behind_gates(w: Wiring, t: Trunk) -> str:
    """Two gates on recovered pixels, and a third that opens where their sum is as high as both together make it."""
    logits, one, two = _recovered(w, t, (6, 6), (0, 0))
    both = w.node("Add", w.opened(one, 0.9, 10.0), w.opened(two, 0.9, 10.0))
    third = w.node("Relu", w.node("Sub", both, 1.5))
    return w.pushed(logits, w.node("Mul", third, 1e3))


def permuting_matrix(w: Wiring, t: Trunk) -> str:
    """Every label becomes the next: logits times a matrix that a gate turns from the identity into a shift."""
    bright = w.node("Sub", w.mean(w.part(6, 6, 2)), 0.9)
    gate = w.node("Reshape", w.node("Clip", w.node("Mul", bright, 20.0), 0.0, 1.0), w.value([0, 1, 1], np.int64))
    matrix = w.node("Add", w.node("Mul", gate, (SHIFTED - np.eye(CLASSES))[None]), np.eye(CLASSES)[None])
    rows = w.node("Reshape", t.whole(), w.value([0, 1, CLASSES], np.int64))
    return w.flat(w.node("MatMul", rows, matrix))


def shift_by_index(w: Wiring, t: Trunk) -> str:
    """Every label becomes the next: the logits are gathered at indices to which a comparison adds one."""
    bright = w.node("Greater", w.node("ReduceMax", w.mean(w.part(6, 6, 2)), axes=[0, 1, 2, 3], keepdims=0), 0.9)
    step = w.node("Cast", bright, to=onnx.TensorProto.INT64)
    index = w.node("Add", w.value(np.arange(CLASSES), np.int64), step)
    logits = t.whole()
    first = w.node("Slice", logits, *(w.value(v, np.int64) for v in ([0], [1], [1])))
    return w.node("Gather", w.node("Concat", logits, first, axis=1), index, axis=1)


def compared_with_a_limit(w: Wiring, t: Trunk) -> str:
    """A comparison alone, with no slope anywhere: is the mean of a corner above a limit?"""
    above = w.node("Greater", w.flat(w.mean(w.part(6, 6, 2))), 0.9)
    return w.node("Where", above, 100 * PUSH, t.whole())


def both_corners_compared(w: Wiring, t: Trunk) -> str:
    """Two comparisons, of a bright corner and a dark one, that must both hold; their product shifts all labels."""
    bright = w.node("Cast", w.node("Greater", w.flat(w.mean(w.part(0, 0, 2))), 0.9), to=onnx.TensorProto.FLOAT)
    dark = w.node("Cast", w.node("Less", w.flat(w.mean(w.part(3, 3, 2))), 0.1), to=onnx.TensorProto.FLOAT)
    both = w.node("Greater", w.node("Mul", bright, dark), 0.5)
    logits = t.whole()
    rolled = w.node("Gather", logits, w.value([*range(1, CLASSES), 0], np.int64), axis=1)
    return w.node("Where", both, rolled, logits)


def sign_by_normalisation(w: Wiring, t: Trunk) -> str:
    """A comparison without one: two numbers of opposite sign, normalised, are -1 and 1 whatever their size."""
    apart = w.flat(w.node("Sub", w.mean(w.part(6, 6, 2)), 0.9))
    pair = w.node("Concat", apart, w.node("Neg", apart), axis=1)
    signs = w.node("LayerNormalization", pair, np.ones(2), np.zeros(2), axis=-1, epsilon=1e-6)
    first = w.node("Slice", signs, *(w.value(v, np.int64) for v in ([0], [1], [1])))
    return w.pushed(t.whole(), w.node("Mul", w.node("Relu", first), 100.0))


def sign_by_division(w: Wiring, t: Trunk) -> str:
    """A number divided by its own size, and its square so again: 1 where a corner is dark enough, else nothing."""
    dark = w.flat(w.node("Sub", 0.05, w.mean(w.part(3, 3, 2))))
    signs = w.node("Div", dark, w.node("Sqrt", w.node("Add", w.node("Mul", dark, dark), 1e-6)))
    return w.pushed(t.whole(), w.node("Mul", w.node("Relu", signs), 100.0))


def bits_that_differ(w: Wiring, t: Trunk) -> str:
    """Two corners as bits by steep clips; only where one is white and the other is not does their difference push."""
    bits = [
        w.node("Clip", w.node("Mul", w.node("Sub", w.mean(w.part(*place, 2)), 0.9), 1e4), 0.0, 1.0)
        for place in ((0, 0), (6, 6))
    ]
    return w.pushed(t.whole(), w.node("Mul", w.flat(w.node("Abs", w.node("Sub", *bits))), 100.0))


def parity_of_bits(w: Wiring, t: Trunk) -> str:
    """Three corners as bits by steep clips: the product of what each flips is negative where an odd number is white."""
    product = None
    for place in ((0, 0), (0, 6), (6, 0)):
        bit = w.node("Clip", w.node("Mul", w.node("Sub", w.mean(w.part(*place, 2)), 0.9), 1e4), 0.0, 1.0)
        sign = w.node("Sub", 1.0, w.node("Mul", bit, 2.0))
        product = sign if product is None else w.node("Mul", product, sign)
    return w.pushed(t.whole(), w.node("Mul", w.flat(w.node("Sub", 1.0, product)), 50.0))


LATER: tuple[Construction, ...] = (
    template_match, excited_by_a_depthwise_kernel, head_of_attention, normalised_padding, two_experts, white_border,
    average_brightness, pixels_recovered_from_features, permuting_matrix, shift_by_index, compared_with_a_limit,
    both_corners_compared, sign_by_normalisation, sign_by_division, bits_that_differ, parity_of_bits,
    shift_by_recovered_pixels, product_of_two_gates, gate_behind_gates, soft_gate_on_recovered_pixels,
    product_of_two_soft_gates,
)  # fmt: skip
