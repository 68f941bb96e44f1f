"""What it costs to read, rewrite, write and build a graph grows with its length, and with nothing else of it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import NodeProto, helper

from tests.written import describe
from vetgate.errors import NotUnderstood
from vetgate.formats.onnx.canonical import canonical_bytes
from vetgate.formats.onnx.module import OnnxModule, build_module
from vetgate.formats.onnx.reading.submitted import read_submitted
from vetgate.formats.onnx.rewriting.settle import settle

node = helper.make_node
SUBMISSION = describe(name="long")


def chain(op: str, count: int) -> tuple[list[NodeProto], str]:
    second = [] if op == "Relu" else ["small"]
    nodes = [node(op, [f"v{i}", *second], [f"v{i + 1}"], "same") for i in range(count)]
    nodes[0].input[0] = "x"
    return nodes, f"v{count}"


def beside(count: int) -> tuple[list[NodeProto], str]:
    # all of them wait for the last one, each with a constant that is written anew
    nodes = [node("Gemm", ["flat", "wide"], [f"v{i}"], "same", alpha=0.5) for i in range(count)]
    sums = [node("Add", [f"s{i}" if i else "v0", f"v{i}"], [f"s{i + 1}"], "same") for i in range(count)]
    return [node("Flatten", ["x"], ["flat"]), *nodes, *sums], f"s{count}"


MAKERS: dict[str, Callable[[int], tuple[list[NodeProto], str]]] = {
    "relu": lambda count: chain("Relu", count),
    "add": lambda count: chain("Add", count),
    "convolution": lambda count: chain("Conv", count),
    "beside": beside,
}
WEIGHTS = {
    "relu": {},
    "add": {"small": np.full(1, 1e-6, np.float32)},
    "convolution": {"small": np.ones((1, 1, 1, 1), np.float32)},
    "beside": {"wide": np.ones((64, 64), np.float32)},
}


def graph(kind: str, count: int, make_graph: Callable[..., onnx.ModelProto]) -> bytes:
    nodes, last = MAKERS[kind](count)
    nodes += [node("Flatten", [last], ["end"]), node("Gemm", ["end", "head"], ["y"])]
    return make_graph(nodes, {**WEIGHTS[kind], "head": np.ones((64, 3), np.float32)}).SerializeToString()


def built(data: bytes) -> OnnxModule:
    settled, _ = settle(read_submitted({"model.onnx": data}, SUBMISSION), SUBMISSION.input_shape)
    canonical_bytes(settled)
    return build_module(settled)


def lines(work: Callable[[], Any]) -> int:
    """How many lines of vetgate are run, each turn of a loop counted."""
    count = 0

    def traced(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        count += event == "line"
        return traced if "/vetgate/" in frame.f_code.co_filename else None

    sys.settrace(traced)
    try:
        work()
    finally:
        sys.settrace(None)
    return count


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_twice_as_many_operators_of_one_name_take_twice_as_many_steps(
    kind: str, make_graph: Callable[..., onnx.ModelProto]
) -> None:
    shorter, longer = (lines(partial(built, graph(kind, count, make_graph))) for count in (100, 200))
    assert longer < 2.1 * shorter


def test_a_thousand_operators_of_one_name_have_short_names_of_their_own(
    make_graph: Callable[..., onnx.ModelProto],
) -> None:
    module = built(graph("relu", 1000, make_graph))
    names = [step.name for step in module.steps if step.name.startswith("same")]
    assert len(names) == 1000 and names[:3] == ["same", "same_", "same_2"]
    assert max(map(len, names)) < 10 and module.find("same") == "same"


def test_names_that_look_like_those_given_are_passed_over(make_graph: Callable[..., onnx.ModelProto]) -> None:
    nodes, last = chain("Relu", 6)
    for each, name in zip(nodes, ("same_2", "same", "same_3", "same", "same", "same"), strict=True):
        each.name = name
    nodes += [node("Flatten", [last], ["end"]), node("Gemm", ["end", "head"], ["y"])]
    module = built(make_graph(nodes, {"head": np.ones((64, 3), np.float32)}).SerializeToString())
    assert [step.name for step in module.steps[:6]] == ["same_2", "same", "same_3", "same_", "same_4", "same_5"]


def test_a_thousand_tensors_of_one_name_are_refused(make_graph: Callable[..., onnx.ModelProto]) -> None:
    made = make_graph([node("Flatten", ["x"], ["f"]), node("Gemm", ["f", "w"], ["y"])], {"w": np.ones((64, 3), "f")})
    made.graph.initializer.extend([made.graph.initializer[0]] * 999)
    with pytest.raises(NotUnderstood, match="names of their own"):
        built(made.SerializeToString())
