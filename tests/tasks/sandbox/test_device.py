"""The network on another device: torch's lazy one, which every build has and which takes no tensor of the processor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tasks.sandbox.device import CPU, place
from tasks.sandbox.host import Limits, OutOfMemory, Sandbox
from tasks.sandbox.levels import command
from tests.tasks.sandbox.test_host import ROGUE
from vetgate.architectures import ARCHITECTURES, default_layer
from vetgate.contract import DETECTORS, Evidence, Samples, Subject
from vetgate.errors import DefenceError
from vetgate.probe import accuracy
from vetgate.role import roles

SHAPE, CLASSES = (1, 8, 8), 4
QUICK = {
    "neural_cleanse": {"sweeps": 6, "starts": 1},
    "abs": {"steps": 10, "candidates": 4},
    "output_share": {"images": 32},
    "tail_inversion": {"images": 16, "steps": 4},
}


@pytest.fixture(scope="module")
def lazy() -> str:
    from torch._lazy import ts_backend

    ts_backend.init()
    with pytest.raises(RuntimeError, match="not a lazy tensor"):
        torch.zeros(2, device="lazy") + torch.zeros(2)
    return "lazy"


def network(architecture: str) -> nn.Module:
    torch.manual_seed(0)
    return ARCHITECTURES[architecture](SHAPE, CLASSES).eval().requires_grad_(False)


def samples(count: int = 120) -> Samples:
    random = torch.Generator().manual_seed(1)
    return Samples(torch.rand(count, *SHAPE, generator=random), torch.arange(count) % CLASSES)


def found(method: str, architecture: str, device: str) -> Evidence:
    model = network(architecture)
    # what the network says is what images are, so that there are rightly classified ones to go by
    x = samples().x
    said = model(x).argmax(1)
    subject = Subject(model=place(model, device), layer=default_layer(model), classes=CLASSES, clean=Samples(x, said))
    evidence: Evidence = DETECTORS[method](subject, seed=3, **QUICK[method])
    return evidence


@pytest.mark.parametrize("architecture", ["small-cnn", "preact-resnet"])
@pytest.mark.parametrize("method", sorted(QUICK))
def test_a_detector_finds_there_what_it_finds_on_the_processor(method: str, architecture: str, lazy: str) -> None:
    on_processor, elsewhere = (found(method, architecture, device) for device in (CPU, lazy))
    assert elsewhere.scores.device.type == "cpu"
    torch.testing.assert_close(elsewhere.scores, on_processor.scores, rtol=1e-3, atol=1e-3)
    assert elsewhere.statistic == pytest.approx(on_processor.statistic, rel=1e-3, abs=1e-3)
    assert [t.target for t in elsewhere.triggers] == [t.target for t in on_processor.triggers]


def test_every_detector_that_may_is_tried_there() -> None:
    assert {name for name, role in roles().items() if role.on_device} == set(QUICK)


def test_weights_lie_there_and_logits_come_back(lazy: str) -> None:
    model, given = network("small-cnn"), samples()
    before = accuracy(model, given.x, given.y)
    placed = place(model, lazy)
    assert {p.device.type for p in placed.parameters()} == {"lazy"}
    x = given.x.requires_grad_(True)
    (gradient,) = torch.autograd.grad(placed(x).sum(), x)
    assert gradient.device.type == "cpu" and placed(x).device.type == "cpu"
    assert accuracy(placed, given.x.detach(), given.y) == before


def test_the_processor_needs_nothing() -> None:
    model = network("small-cnn")
    assert place(model, CPU) is model and not model._forward_hooks and not model._forward_pre_hooks


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has what is to be missing")
def test_a_device_that_is_not_there_is_refused_with_what_to_do() -> None:
    with pytest.raises(DefenceError, match=r"expected a device that torch .* computes on, got cuda.*VETGATE_DEVICE"):
        place(network("small-cnn"), "cuda")


def test_addresses_are_limited_only_on_the_processor_and_memory_everywhere(tmp_path: Path) -> None:
    small = Limits(memory_bytes=400 << 20)
    with Sandbox(level=0, scratch=tmp_path, ops=ROGUE) as sandbox:
        with pytest.raises(OutOfMemory):
            sandbox.call("map", {"bytes": 2 << 30}, limits=small)
        elsewhere = Limits(memory_bytes=small.memory_bytes, device="cuda")
        assert sandbox.call("map", {"bytes": 2 << 30}, limits=elsewhere) == {"mapped": 2 << 30}
        with pytest.raises(OutOfMemory):
            sandbox.call("hold", {"bytes": 900 << 20}, limits=elsewhere)


def test_bubblewrap_lets_the_files_of_the_driver_through_only_where_they_are_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [Path("/dev/nvidia0"), Path("/dev/nvidiactl")]
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter(files if str(self) == "/dev" else []))
    lines = {
        device: command(2, ops=ROGUE, environment={}, read_only=[], scratch=tmp_path, device=device)
        for device in (CPU, "cuda:1")
    }
    bound = {
        device: [line[i + 1] for i, word in enumerate(line) if word == "--dev-bind"] for device, line in lines.items()
    }
    assert bound == {CPU: [], "cuda:1": list(map(str, files))}
