"""A state dict becomes the canonical form of the network it is for: nothing is unpickled, and nothing is lost."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from vetgate.architectures import ARCHITECTURES
from vetgate.errors import BadSubmission, NotUnderstood
from vetgate.formats.canonical import canonical
from vetgate.formats.inspect import inspect_bytes
from vetgate.formats.load import load_members
from vetgate.formats.networks.timm_network import load_timm
from vetgate.formats.submission import Submission, dump_submission, parse_submission, rewritten
from vetgate.formats.template import look, template, unknown

FIELDS: dict[str, Any] = {
    "name": "weights",
    "supplier": "nobody",
    "task": "image-classification",
    "model": "weights.pth",
    "format": "state_dict",
    "architecture": "small-cnn",
    "input_shape": (1, 8, 8),
    "classes": 3,
}
GIVEN = Submission.model_validate(FIELDS)


def network(submission: Submission = GIVEN) -> nn.Module:
    torch.manual_seed(3)
    return ARCHITECTURES[submission.architecture or ""](submission.input_shape, submission.n_classes).eval()


def saved(value: object, **how: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **how)
    return file.getvalue()


@pytest.mark.parametrize("how", [{}, {"_use_new_zipfile_serialization": False}])
@pytest.mark.parametrize("within", [None, "state_dict", "module."])
def test_weights_for_an_architecture_of_ours_become_safetensors(how: dict[str, Any], within: str | None) -> None:
    state = network().state_dict()
    if within == "module.":
        state = {f"module.{name}": value for name, value in state.items()}
    elif within is not None:
        state = {within: state, "epoch": 3}
    written = canonical({GIVEN.model: saved(state, **how)}, GIVEN)
    assert written is not None and written.changes == {"format": "safetensors", "model": "model.safetensors"}
    assert written.data == safetensors.torch.save(network().state_dict())
    described = rewritten(GIVEN, written.changes, "a" * 64)
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(load_members({described.model: written.data}, described).model(x), network()(x))


def test_half_precision_is_computed_in_single(tmp_path: Path) -> None:
    state = {k: v.half() if v.is_floating_point() else v for k, v in network().state_dict().items()}
    written = canonical({GIVEN.model: saved(state)}, GIVEN)
    assert written is not None
    kept = safetensors.torch.load(written.data)
    assert all(
        torch.equal(kept[name], value.float() if value.is_floating_point() else value) for name, value in state.items()
    )


def timm_or_skip() -> Any:
    try:
        return load_timm()
    except NotUnderstood:
        pytest.skip("timm is not installed; it is an optional extra")


def test_it_says_for_which_architecture_of_ours_it_is() -> None:
    state = network().state_dict()
    for weights in (state, {f"module.{name}": value for name, value in state.items()}):
        assert look({"w.pt": saved(weights)}, "w.pt") == {"format": "state_dict", "architecture": "small-cnn"}
    assert look({"w.pt": saved({"w": torch.zeros(2)})}, "w.pt")["architecture"] is None


class Runs:
    """What touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_code_is_refused_and_never_run(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    for value in ({**network().state_dict(), "more": Runs(marker)}, network()):
        (tmp_path / "given").mkdir(exist_ok=True)
        (tmp_path / "given" / GIVEN.model).write_bytes(saved(value))
        (tmp_path / "given" / "submission.yaml").write_text(dump_submission(GIVEN))
        with pytest.raises(NotUnderstood):
            inspect_bytes(tmp_path / "given", GIVEN)
        with pytest.raises(NotUnderstood):
            canonical({GIVEN.model: saved(value)}, GIVEN)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: {k: v for k, v in s.items() if "bias" not in k}, "missing"),
        (lambda s: s | {"more.weight": torch.zeros(1)}, "extra"),
        (lambda s: s | {next(iter(s)): torch.zeros(2, 2)}, "expected .* of shape"),
        (lambda s: {k: v * float("nan") if v.is_floating_point() else v for k, v in s.items()}, "finite"),
    ],
)
def test_other_weights_than_the_architecture_has_are_refused(change: Any, said: str) -> None:
    with pytest.raises(NotUnderstood, match=said):
        canonical({GIVEN.model: saved(change(network().state_dict()))}, GIVEN)


def test_an_architecture_is_one_of_ours_or_of_timm_and_of_timm_for_state_dicts_only() -> None:
    text = dump_submission(GIVEN)
    assert parse_submission(text.replace("small-cnn", "timm:resnet18")).architecture == "timm:resnet18"
    for wrong in ("resnet18", "timm:" + "x" * 100):
        with pytest.raises(BadSubmission, match="architecture must be one of"):
            parse_submission(text.replace("small-cnn", wrong))
    with pytest.raises(BadSubmission, match="architecture must be one of"):
        parse_submission(text.replace("small-cnn", "timm:resnet18").replace("state_dict", "safetensors"))


def test_networks_of_ours_take_pixels_as_they_are() -> None:
    text = dump_submission(GIVEN)
    for more in ("color: RGB\nlayout: NCHW\n", ""):
        assert parse_submission(text + more).architecture == "small-cnn"
    for more in ("normalization: {mean: [0.5], std: [0.5]}\n", "layout: NHWC\n", "output: logits\n"):
        with pytest.raises(BadSubmission, match="takes pixels in"):
            parse_submission(text + more)


def test_a_network_of_timm_becomes_a_graph_that_computes_the_same() -> None:
    timm = timm_or_skip()
    given = Submission.model_validate(
        FIELDS | {"architecture": "timm:test_resnet", "input_shape": (3, 32, 32), "classes": 5}
    )
    torch.manual_seed(1)
    model = timm.create_model("test_resnet", num_classes=5).eval()
    written = canonical({given.model: saved(model.state_dict())}, given)
    assert written is not None
    described = rewritten(given, written.changes, "a" * 64)
    assert described.format == "onnx" and str(described.architecture).startswith("graph-")
    x = torch.rand(3, 3, 32, 32)
    ours = load_members({described.model: written.data}, described).model(x)
    torch.testing.assert_close(ours, model(x), rtol=1e-4, atol=1e-5)


def test_a_network_of_timm_takes_tensors_of_other_names_in_their_order() -> None:
    timm = timm_or_skip()
    named = Submission.model_validate(
        FIELDS | {"architecture": "timm:test_resnet", "input_shape": (3, 32, 32), "classes": 5}
    )
    ordered = named.model_copy(update={"match_weights_by": "order"})
    state = timm.create_model("test_resnet", num_classes=5).state_dict()
    given = {named.model: saved({f"_{name}": tensor for name, tensor in state.items()})}
    with pytest.raises(NotUnderstood, match="match_weights_by: order"):
        canonical(given, named)
    one, other = canonical({named.model: saved(state)}, named), canonical(given, ordered)
    assert one is not None and other is not None and one.data == other.data
    described = rewritten(ordered, other.changes, "a" * 64)
    # how its tensors were matched stays said of the written file
    assert parse_submission(dump_submission(described)).match_weights_by == "order"


def test_weights_of_ours_are_taken_in_their_order() -> None:
    ordered = GIVEN.model_copy(update={"match_weights_by": "order"})
    state = {f"_{name}": tensor for name, tensor in network().state_dict().items()}
    written = canonical({GIVEN.model: saved(state)}, ordered)
    assert written is not None and written.data == safetensors.torch.save(network().state_dict())


def test_only_state_dicts_are_matched_by_order() -> None:
    text = dump_submission(GIVEN) + "match_weights_by: order\n"
    assert parse_submission(text).match_weights_by == "order"
    with pytest.raises(BadSubmission, match="is for state dicts"):
        parse_submission(text.replace("state_dict", "safetensors"))


def test_it_says_which_networks_of_timm_fit_a_file_that_is_called_like_them() -> None:
    timm = timm_or_skip()
    state = timm.create_model("test_resnet", num_classes=5).state_dict()
    said = look({"test-resnet.pth": saved(state)}, "test-resnet.pth")
    assert (said["architecture"], said["classes"]) == ("timm:test_resnet", 5) and "match_weights_by" not in said
    renamed = {f"_{name}": tensor for name, tensor in state.items()}
    said = look({"test-resnet.pth": saved(renamed)}, "test-resnet.pth")
    assert (said["architecture"], said["match_weights_by"]) == ("timm:test_resnet", "order")
    assert "match_weights_by: order" in template("x", "test-resnet.pth", said)
    said = look({"other.pth": saved(renamed)}, "other.pth")
    assert said == {"format": "state_dict", "architecture": None}


def test_networks_that_no_shape_tells_apart_are_all_named() -> None:
    said = {"format": "state_dict", "architecture": None, "fitting": ["timm:one", "timm:two"]}
    assert "# fill in: the one that it was trained as of timm:one, timm:two" in template("x", "w.pth", said)
    assert unknown(said) == ["supplier", "input_shape", "classes", "reference_data", "architecture"]


def test_a_network_that_timm_does_not_know_is_refused() -> None:
    timm_or_skip()
    given = Submission.model_validate(FIELDS | {"architecture": "timm:hf_hub_thing"})
    with pytest.raises(NotUnderstood, match="expected a network of timm"):
        canonical({given.model: saved(network().state_dict())}, given)
