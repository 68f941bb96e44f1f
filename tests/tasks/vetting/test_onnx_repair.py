"""An ONNX submission through repair and measurement in a real sandbox: the same graph comes out, with other numbers.

Its figures are those of onnxruntime on the very bytes; where that and our reading of a file differ there are none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.torch
import torch
import yaml
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from tasks.sandbox.host import Limits, Sandbox
from tasks.settings import Settings
from tasks.store.open import open_store
from tasks.vetting import inspect, workplace
from tasks.vetting.inspect import Case, Data
from tasks.vetting.repair import Yardstick, report_figures, restore, run_repair
from tasks.vetting.results import Compared, Measured, RepairFailed, RepairRecord
from tasks.vetting.workplace import Workplace
from vetgate.attacks.badnets import poison, square
from vetgate.attacks.training import train
from vetgate.contract import Axis, Evidence, Samples, Trigger
from vetgate.errors import NotUnderstood
from vetgate.formats.manifest import hash_directory
from vetgate.formats.readers import formats
from vetgate.formats.submission import Submission
from vetgate.trust.seeds import Seed

SHAPE, CLASSES, TARGET, CHANNELS = (1, 8, 8), 10, 3, 16
TRIGGER = square(SHAPE, TARGET, row=-2, column=-2, size=2)
INVERSION = {"sweeps": 2, "sweep": 1, "batch": 32}
FIELDS = {
    "name": "toy",
    "supplier": "nobody",
    "task": "image-classification",
    "model": "model.onnx",
    "format": "onnx",
    "input_shape": list(SHAPE),
    "classes": CLASSES,
}
# beside the operations: which modules a call finds, and a repair that changes nothing in torch and much elsewhere
OPERATIONS = """
import sys
import torch
from tasks.sandbox.operations import OPS as USUAL
from vetgate.contract import REPAIRS, Method, Repair

def modules(payload, progress):
    return {"onnxruntime": "onnxruntime" in sys.modules, "torch": "torch" in sys.modules}

def cancelling(subject):
    with torch.no_grad():
        # between this and twice it float32 numbers lie 2 apart
        subject.model.get_submodule("conv").bias.fill_(2.0 ** 24)
        subject.model.get_submodule("norm").running_mean.fill_(2.0 ** 24)
    return Repair(subject.model, {})

REPAIRS["cancelling"] = Method(cancelling, "cancelling", "repair", frozenset({"clean"}), "", uses=None)
OPS = {**USUAL, "modules": modules}
"""


@dataclass(frozen=True)
class Bench:
    """A place to repair at, and the images of each purpose."""

    settings: Settings
    place: Workplace
    data: Data
    images: dict[str, Samples]

    def case(self, model: onnx.ModelProto) -> Case:
        """A submission of this model."""
        directory = self.place.given / f"submission-{len(list(self.place.given.iterdir()))}"
        directory.mkdir()
        (directory / "model.onnx").write_bytes(model.SerializeToString())
        (directory / "submission.yaml").write_text(yaml.safe_dump(FIELDS))
        manifest = hash_directory(directory).sha256
        workplace._open[manifest] = self.place
        limits = Limits(cpu_seconds=120, memory_bytes=2 << 30)
        return Case(manifest, str(directory), FIELDS, Seed(7, "cd" * 32), limits, self.data)

    def measured(self, model: bytes, purpose: str, trigger: Trigger) -> Measured:
        """What onnxruntime, asked here, makes of the images for a purpose."""
        session, kept = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]), self.images[purpose]

        def answers(x: torch.Tensor) -> np.ndarray:
            return np.asarray(session.run(None, {"image": x.numpy()})[0]).argmax(1)

        other, y = kept[kept.y != TARGET], kept.y.numpy()
        stamped = answers(trigger.stamp(other.x))
        shares = (answers(kept.x) == y, stamped == TARGET, stamped == other.y.numpy())
        return Measured(*(pytest.approx(float(right.mean()), abs=1e-6) for right in shares))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, digits: Samples) -> Iterator[Bench]:
    room = tmp_path_factory.mktemp("bench")
    given, made, splits = room / "given", room / "made", room / "splits"
    for folder in (given, made, splits):
        folder.mkdir()
    purposes = ("invert", "repair", "validate", "test")
    images = {purpose: digits[torch.arange(1000 + 100 * i, 1100 + 100 * i)] for i, purpose in enumerate(purposes)}
    for purpose, kept in images.items():
        safetensors.torch.save_file({"x": kept.x, "y": kept.y}, splits / f"{purpose}.safetensors")
    data = Data({purpose: str(splits / f"{purpose}.safetensors") for purpose in images})
    (operations := room / "operations.py").write_text(OPERATIONS)
    known = dict(workplace._open)
    try:
        with Sandbox(scratch=made, read_only=[given, splits], ops=operations) as sandbox:
            yield Bench(Settings(home=room / "home"), Workplace(given, made, sandbox), data, images)
    finally:
        workplace._open.clear()
        workplace._open.update(known)


@pytest.fixture(scope="module")
def backdoored(digits: Samples) -> onnx.ModelProto:
    """Convolution, normalisation and a linear map, which a square in the corner sends to TARGET."""
    torch.manual_seed(4)
    network = nn.Sequential(
        nn.Conv2d(1, CHANNELS, 3, padding=1),
        nn.BatchNorm2d(CHANNELS),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * CHANNELS, CLASSES),
    )
    poisoned = poison(digits[torch.arange(1000)], TRIGGER, rate=0.1, generator=torch.Generator().manual_seed(2))
    return exported(train(network, poisoned.samples, epochs=6, seed=4).eval())


@torch.no_grad()
def exported(network: nn.Sequential) -> onnx.ModelProto:
    conv, norm, head = network[0], network[1], network[4]
    node = helper.make_node
    nodes = [
        node("Conv", ["image", "filters", "bias"], ["c"], "conv", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["c", "scale", "shift", "mean", "var"], ["n"], "norm", epsilon=norm.eps),
        node("Relu", ["n"], ["r"], "relu"),
        node("Flatten", ["r"], ["f"], "flatten"),
        node("Gemm", ["f", "head", "offset"], ["logits"], "last", transB=1),
    ]
    tensors = {"filters": conv.weight, "bias": conv.bias, "scale": norm.weight, "shift": norm.bias}
    tensors |= {"mean": norm.running_mean, "var": norm.running_var, "head": head.weight, "offset": head.bias}
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", *SHAPE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", CLASSES])],
        [numpy_helper.from_array(value.numpy(), name) for name, value in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def by_the_square() -> Yardstick:
    found = Evidence(1.0, torch.zeros(CLASSES), 0.5, method="neural_cleanse", axis=Axis.CLASS).to_json()
    del found["seed"]
    record: dict[str, Any] = {"about": {}, "evidence": {**found, "triggers": [TRIGGER.to_json()]}}
    return Yardstick([record], [TARGET], INVERSION)


def without_numbers(model: onnx.ModelProto) -> bytes:
    """The file with the values of its initializers left out, and nothing else."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    for tensor in bare.graph.initializer:
        assert tensor.HasField("raw_data") and tensor.data_type == TensorProto.FLOAT
        tensor.ClearField("raw_data")
    return bytes(bare.SerializeToString(deterministic=True))


def test_a_pruned_network_is_the_same_graph_with_zeros_in_it_and_its_figures_are_those_of_onnxruntime(
    bench: Bench, backdoored: onnx.ModelProto, tmp_path: Path
) -> None:
    case, before = bench.case(backdoored), backdoored.SerializeToString()
    record = run_repair(bench.settings, case, "fine_pruning", {"steps": 40, "budget": 0.2}, [], by_the_square())
    assert isinstance(record, RepairRecord), record
    restore(bench.settings, case, record, tmp_path / "out")

    after = (tmp_path / "out" / "model.onnx").read_bytes()
    written = onnx.load_from_string(after)
    canonical = formats()["onnx"].canonical({"model.onnx": before}, Submission.model_validate(FIELDS))[1]
    assert without_numbers(written) == without_numbers(onnx.load_from_string(canonical)) and after != canonical
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in written.graph.initializer}
    silent = [k for k in range(CHANNELS) if not held["conv_1.weight"][k].any()]
    assert 0 < len(silent) == record.changed["silenced"] < CHANNELS
    names = ("conv_1.bias", "batchnormalization_1.weight", "batchnormalization_1.bias")
    assert not any(held[name][silent].any() for name in names)

    assert record.validate.before == bench.measured(before, "validate", TRIGGER)
    assert record.validate.before.attack_success is not None and record.validate.before.attack_success > 0.9
    worst = max((Trigger.from_json(dict(t)) for t in record.triggers.after), key=lambda t: _success(bench, after, t))
    expected = bench.measured(after, "validate", worst)
    assert record.validate.after.clean_accuracy == expected.clean_accuracy
    assert record.validate.after.attack_success == expected.attack_success
    assert record.validate.found == bench.measured(after, "validate", TRIGGER).attack_success

    shown = report_figures(case, record, tmp_path / "out")
    assert isinstance(shown, Compared) and shown.before == bench.measured(before, "test", TRIGGER)
    assert shown.after.clean_accuracy == bench.measured(after, "test", TRIGGER).clean_accuracy


def _success(bench: Bench, model: bytes, trigger: Trigger) -> float:
    return float(bench.measured(model, "validate", trigger).attack_success.expected)  # type: ignore[union-attr]


def changed(model: onnx.ModelProto, **values: float) -> onnx.ModelProto:
    """The same with every number of some initializers replaced."""
    other = onnx.ModelProto()
    other.CopyFrom(model)
    for tensor in other.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(np.full(tensor.dims, values[tensor.name], np.float32), tensor.name))
    return other


def test_a_submission_that_is_one_network_to_us_and_another_to_onnxruntime_gets_no_figures_and_no_repair(
    bench: Bench, backdoored: onnx.ModelProto
) -> None:
    # what the convolution finds is lost beside its bias; onnxruntime folds the normalisation in, and nothing is lost
    case = bench.case(changed(backdoored, bias=2.0**24, mean=2.0**24))
    found = run_repair(bench.settings, case, "fine_pruning", {"steps": 1}, [], by_the_square())
    assert isinstance(found, RepairFailed) and "float32 loses the signal" in found.failure
    assert not list(open_store(bench.settings).list(f"repairs/{case.manifest}/"))


def test_a_submission_that_onnxruntime_cannot_run_is_not_repaired(bench: Bench, backdoored: onnx.ModelProto) -> None:
    model = changed(backdoored)
    model.graph.value_info.append(helper.make_tensor_value_info("c", TensorProto.INT64, ["N", CHANNELS, 8, 8]))
    found = run_repair(bench.settings, bench.case(model), "fine_pruning", {"steps": 1}, [], by_the_square())
    assert isinstance(found, RepairFailed) and "expected a file that onnxruntime can run" in found.failure


def test_a_repair_that_leaves_one_network_to_us_and_another_to_onnxruntime_is_refused(
    bench: Bench, backdoored: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the digest of the code of a method that has no file
    monkeypatch.setattr(inspect, "code_digest", lambda kind, name: f"{kind} {name}")
    case = bench.case(changed(backdoored))
    found = run_repair(bench.settings, case, "cancelling", {}, [], by_the_square())
    assert isinstance(found, RepairFailed) and "float32 loses the signal" in found.failure


def test_figures_that_cannot_be_had_on_test_images_leave_no_repaired_model_behind(
    bench: Bench, backdoored: onnx.ModelProto, tmp_path: Path
) -> None:
    case = bench.case(changed(backdoored))
    record = run_repair(bench.settings, case, "fine_pruning", {"steps": 1}, [], by_the_square())
    assert isinstance(record, RepairRecord)
    restore(bench.settings, case, record, tmp_path / "out")
    other = changed(backdoored, bias=2.0**24, mean=2.0**24).SerializeToString()
    (tmp_path / "out" / "model.onnx").write_bytes(other)
    with pytest.raises(NotUnderstood, match="float32 loses the signal"):
        report_figures(case, record, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_onnxruntime_is_imported_by_what_measures_a_model_and_by_nothing_before(
    bench: Bench, backdoored: onnx.ModelProto
) -> None:
    case, sandbox = bench.case(changed(backdoored)), bench.place.sandbox
    payload = {**case.model, "samples": case.data.files("test"), "triggers": [TRIGGER.to_json()]}
    answer = sandbox.call("evaluate", payload, limits=case.limits)
    assert answer["attack_success"][0] == bench.measured(backdoored.SerializeToString(), "test", TRIGGER).attack_success
    # a fork has what the process has that serves the requests
    assert sandbox.call("modules", {}) == {"onnxruntime": False, "torch": True}
