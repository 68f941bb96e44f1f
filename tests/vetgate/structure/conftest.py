from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from benchmarks.wired import Construction, digits, trained_digits, wired
from vetgate.contract import Samples
from vetgate.formats.onnx.graph import parse_model, read_graph
from vetgate.formats.onnx.module import OnnxModule, Step, build_module
from vetgate.structure.network import Network


@pytest.fixture(scope="session")
def samples() -> Samples:
    return digits()


@pytest.fixture(scope="session")
def trained() -> nn.Sequential:
    torch.set_num_threads(1)
    return trained_digits(epochs=3)


@pytest.fixture
def network_of(trained: nn.Sequential) -> Callable[[Construction], Network]:
    """The network with a construction around it, as it is read from a file."""

    def read(construction: Construction) -> Network:
        graph = read_graph(parse_model(wired(construction, trained)))
        return Network(build_module(graph).requires_grad_(False))

    return read


class Into(nn.Module):
    """A function of tensors as a module."""

    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *given: torch.Tensor) -> torch.Tensor:
        return self.function(*given)


@pytest.fixture
def by_hand() -> Callable[..., Network]:
    """A network of steps (output, module or function, *inputs) on the value `images`, the last one its logits."""

    def make(*steps: tuple[object, ...]) -> Network:
        model = OnnxModule()
        for output, what, *inputs in steps:
            module = what if isinstance(what, nn.Module) else Into(what)  # type: ignore[arg-type]
            model.add_module(f"made_{output}", module)
            model.steps.append(Step(f"made_{output}", f"{output} node", tuple(map(str, inputs)), str(output), ()))
        model.finish("images", str(steps[-1][0]))
        return Network(model.eval().requires_grad_(False))

    return make
