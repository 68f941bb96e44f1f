"""The operations of the sandbox on small networks whose answers are known."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml

import vetgate.guard.measure as measure
from tasks.sandbox.host import Limits, Sandbox
from tasks.sandbox.operations import OPS, image_seconds
from tests import models
from vetgate.architectures import ARCHITECTURES
from vetgate.contract import DETECTORS, REPAIRS, Axis, Evidence, Method, Repair, Samples, Subject, Trigger, unpack
from vetgate.errors import DefenceError, MissingInput, NotUnderstood, StoreError, UnknownParameter
from vetgate.formats.load import load_model
from vetgate.formats.submission import Submission, read_submission
from vetgate.guard.package import from_bytes

SHAPE, CLASSES, ALWAYS = (1, 8, 8), 4, 2
FIELDS = models.FIELDS | {"classes": CLASSES, "reference_data": None}


def nothing(_fraction: float) -> None:
    pass


def run(name, payload, progress=nothing):
    return OPS[name](payload, progress)


def hand_in(directory, model, **fields):
    directory.mkdir()
    safetensors.torch.save_file(model.state_dict(), directory / "model.safetensors")
    (directory / "submission.yaml").write_text(yaml.safe_dump(FIELDS | fields))
    return {"directory": str(directory), "submission": read_submission(directory).model_dump(mode="json")}


@pytest.fixture
def constant(tmp_path):
    """A submission that calls every image class 2."""
    model = ARCHITECTURES["small-cnn"](SHAPE, CLASSES)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.head.bias[ALWAYS] = 1.0
    return hand_in(tmp_path / "constant", model)


@pytest.fixture
def random(tmp_path):
    """A submission with random weights."""
    torch.manual_seed(0)
    return hand_in(tmp_path / "random", ARCHITECTURES["small-cnn"](SHAPE, CLASSES))


@pytest.fixture
def images(tmp_path):
    """40 images of the classes 0, 1, 2, 3 in turn, in two files."""
    x, y = torch.rand(40, *SHAPE, generator=torch.Generator().manual_seed(1)), torch.arange(40) % CLASSES
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for path, rows in zip(paths, (slice(0, 24), slice(24, 40)), strict=True):
        safetensors.torch.save_file({"x": x[rows].contiguous(), "y": y[rows].contiguous()}, path)
    return Samples(x, y), [str(path) for path in paths]


def corner(target: int) -> Trigger:
    mask = torch.zeros(1, 8, 8)
    mask[:, 6:, 6:] = 1
    return Trigger(mask, torch.ones(SHAPE), target)


def test_inspect_accepts_a_sound_submission_and_refuses_a_renamed_pickle(constant, tmp_path):
    assert run("inspect", constant) == {}
    (tmp_path / "constant" / "model.safetensors").write_bytes(pickle.dumps({"weights": [1.0]}))
    with pytest.raises(NotUnderstood):
        run("inspect", constant)


def test_describe_tells_layer_classes_and_accuracy(constant, images):
    _, paths = images
    seen = run("describe", constant | {"samples": paths})
    assert seen["layer"] == "relu"
    assert seen["classes"] == CLASSES
    assert seen["softmax_stripped"] is False
    assert seen["clean_accuracy"] == pytest.approx(0.25)
    assert run("describe", constant)["clean_accuracy"] is None
    assert 0 < seen["image_seconds"] < 1


def test_a_model_that_breaks_on_a_random_image_is_described_without_a_time():
    class Breaks(torch.nn.Module):
        def forward(self, x):
            raise ValueError("not this one")

    assert image_seconds(Breaks(), SHAPE) is None


def test_evaluate_counts_hits_among_images_of_other_classes(constant, images):
    _, paths = images
    heard: list[float] = []
    triggers = [corner(ALWAYS).to_json(), corner(0).to_json()]
    seen = run("evaluate", constant | {"samples": paths, "triggers": triggers}, heard.append)
    assert seen["clean_accuracy"] == pytest.approx(0.25) and seen["attack_success"] == [1.0, 0.0]
    # of the images of other classes than 2 none is given its own; of those of other classes than 0 a third are of 2
    assert seen["robust_accuracy"] == [0.0, pytest.approx(1 / 3)]
    assert unpack(seen["right"]).tolist() == [k == ALWAYS for k in range(CLASSES)] * 10
    assert heard == [0.5, 1.0]


def test_a_trigger_for_the_only_class_there_is_cannot_be_measured(constant, tmp_path):
    images = {"x": torch.rand(4, *SHAPE), "y": torch.full((4,), ALWAYS)}
    safetensors.torch.save_file(images, tmp_path / "one.safetensors")
    payload = constant | {"samples": [str(tmp_path / "one.safetensors")], "triggers": [corner(ALWAYS).to_json()]}
    with pytest.raises(MissingInput, match="images of classes other than 2"):
        run("evaluate", payload)
    assert run("evaluate", payload | {"triggers": []})["robust_accuracy"] == []


def test_rows_caps_what_is_read_from_each_file(constant, images):
    _, paths = images
    # the first three rows of each file are of the classes 0, 1, 2
    seen = run("evaluate", constant | {"samples": paths, "triggers": [], "rows": 3})
    assert seen["clean_accuracy"] == pytest.approx(1 / 3)


def test_reinvert_finds_the_label_that_is_always_given_and_no_other(constant, images):
    _, paths = images
    payload = {"samples": paths[:1], "held_out": paths[1:], "labels": [0, ALWAYS], "seed": 3}
    params = {"sweeps": 4, "sweep": 2, "batch": 8, "known_to_the_detector_only": 1}
    seen = run("reinvert", constant | payload | {"params": params})
    assert seen["attack_success"] == [0.0, 1.0]
    assert [Trigger.from_json(t).target for t in seen["triggers"]] == [0, ALWAYS]
    assert run("reinvert", constant | payload | {"params": params})["triggers"] == seen["triggers"]


def test_detect_gives_what_the_method_gives_on_the_rows_of_all_files(random, images):
    samples, paths = images
    payload = random | {"method": "spectral_signatures", "params": {"excess": 0.5}, "seed": 7, "train": paths}
    seen = run("detect", payload)
    evidence = Evidence.from_json(seen["evidence"])
    loaded = load_model(*_opened(random))
    subject = Subject(model=loaded.model, layer=loaded.layer, classes=CLASSES, train=samples)
    expected = DETECTORS["spectral_signatures"](subject, seed=7, excess=0.5)
    assert torch.equal(evidence.scores, expected.scores)
    assert evidence.params == expected.params
    assert evidence.seed == 7
    assert seen["seconds"] > 0


def seen_by(subject: Subject) -> Evidence:
    scores = subject.inputs.flatten(1).mean(1)
    return Evidence(float(scores.max()), scores, 0.5)


def test_inputs_to_be_screened_reach_the_subject_and_need_no_labels(constant, tmp_path, monkeypatch):
    method = Method(seen_by, "seen_by", "detector", frozenset({"inputs"}), "", axis=Axis.INPUT)
    monkeypatch.setitem(DETECTORS, "seen_by", method)
    given = torch.rand(5, *SHAPE)
    safetensors.torch.save_file({"x": given}, tmp_path / "inputs.safetensors")
    asked = {**constant, "method": "seen_by", "params": {}, "seed": 1}
    found = run("detect", asked | {"inputs": [str(tmp_path / "inputs.safetensors")] * 2})
    scores = Evidence.from_json(found["evidence"]).scores
    assert torch.equal(scores, given.flatten(1).mean(1).repeat(2))
    with pytest.raises(MissingInput, match=r"subject\.inputs"):
        run("detect", asked)
    safetensors.torch.save_file({"x": torch.rand(2, 3, 4, 4)}, tmp_path / "other.safetensors")
    with pytest.raises(NotUnderstood, match="inputs images"):
        run("detect", asked | {"inputs": [str(tmp_path / "other.safetensors")]})


def halve_the_head(subject: Subject, evidence: Evidence, *, factor: float = 0.5) -> Repair:
    """A repair whose answer is known."""
    with torch.no_grad():
        subject.model.head.weight.mul_(factor)
    return Repair(subject.model, {"label": evidence.triggers[0].target, "rows": len(subject.clean)})


def test_repair_writes_a_submission_that_names_its_parent(random, images, tmp_path, monkeypatch):
    _, paths = images
    method = Method(halve_the_head, "halve_the_head", "repair", frozenset({"clean"}), "", uses="triggers")
    monkeypatch.setitem(REPAIRS, "halve_the_head", method)
    evidence = Evidence(1.0, torch.tensor([0.0, 1.0, 0.0, 0.0]), 0.5, triggers=(corner(1),), method="neural_cleanse")
    payload = {
        "method": "halve_the_head",
        "params": {"factor": 0.25},
        "seed": 1,
        "clean": paths,
        "evidence": [evidence.to_json()],
        "out": str(tmp_path / "repaired"),
        "parent": "0" * 64,
    }
    seen = run("repair", random | payload)
    written = read_submission(tmp_path / "repaired")
    assert seen["directory"] == str(tmp_path / "repaired")
    assert seen["changed"] == {"label": 1, "rows": 40}
    assert (written.parent, written.name) == ("0" * 64, "toy")
    before, after = load_model(*_opened(random)).model, load_model(tmp_path / "repaired", written).model
    assert torch.equal(after.head.weight, 0.25 * before.head.weight)
    assert torch.equal(after.hidden.weight, before.hidden.weight)
    same = payload | {"params": {"factor": 1.0}, "out": str(tmp_path / "same")}
    with pytest.raises(DefenceError, match="halve_the_head to change the model, it found nothing to change"):
        run("repair", random | same)
    assert not (tmp_path / "same").exists()


def _opened(handed_in):
    return Path(handed_in["directory"]), Submission.model_validate(handed_in["submission"])


def test_guard_writes_one_file_for_the_model_that_it_names(random, images, tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "SECONDS", 0.01)
    _, paths = images
    out, heard = tmp_path / "out", []
    payload = random | dict.fromkeys(("clean", "held", "samples"), paths)
    payload |= {"wanted": {"strip": {"overlays": 8}}, "evidence": [], "triggers": [corner(1).to_json()]}
    payload |= {"rate": 0.1, "max_slowdown": 1e6, "seed": 7, "parent": "ab" * 32, "out": str(out)}
    said = run("guard", payload, heard.append)
    (file,) = out.iterdir()
    (fitted,) = from_bytes(file.read_bytes(), manifest="ab" * 32).guards
    (one,) = said["guards"]
    assert said["unfitted"] == {} and (one["name"], one["chosen"], one["rate"]) == ("strip", True, 0.1)
    assert fitted.params["overlays"] == 8 and fitted.seed == 7 and one["false_rejections"] == said["false_rejections"]
    assert 0 <= one["detection"] <= 1 and 0 < one["alone"]["bare"] < one["alone"]["guarded"]
    assert heard == sorted(heard) and all(0 <= share <= 1 for share in heard) and len(heard) >= 2

    none = run("guard", payload | {"rate": 0.001, "out": str(tmp_path / "none")})
    assert none["guards"] == [] and "trusted images" in none["unfitted"]["strip"] and none["false_rejections"] is None
    assert not (tmp_path / "none").exists()
    with pytest.raises(MissingInput, match="images as held"):
        run("guard", payload | {"held": []})


def test_guards_are_cut_on_as_many_rows_as_their_rate_needs_where_fewer_are_read_of_the_rest(
    random, images, tmp_path, monkeypatch
):
    monkeypatch.setattr(measure, "SECONDS", 0.01)
    _, paths = images
    payload = random | dict.fromkeys(("clean", "held", "samples"), paths)
    payload |= {"wanted": {"strip": {"overlays": 8}, "scale_up": {}}, "evidence": [], "triggers": [], "rows": 5}
    payload |= {"max_slowdown": 1e6, "seed": 7, "parent": "ab" * 32, "out": str(tmp_path / "out"), "rate": 0.06}
    said = run("guard", payload)
    assert [one["rate"] for one in said["guards"]] == [0.03, 0.03], said["unfitted"]


def test_without_trusted_images_a_detector_is_run_on_such_as_show_nothing_and_says_so(random, images):
    _, paths = images
    asked = random | {"method": "output_share", "params": {}, "seed": 5, "train": [], "clean": []}
    with pytest.raises(MissingInput):
        run("detect", asked)
    seen = run("detect", asked | {"surrogates": True})["evidence"]
    assert seen["details"]["surrogates"] == 2048 and seen == run("detect", asked | {"surrogates": True})["evidence"]
    assert "surrogates" not in run("detect", asked | {"clean": paths, "surrogates": True})["evidence"]["details"]


@pytest.mark.parametrize("change", ["labels", "shape", "missing file", "no file", "method", "parameter"])
def test_what_does_not_fit_is_refused(constant, images, tmp_path, change):
    _, paths = images
    base = constant | {"method": "spectral_signatures", "params": {}, "seed": 0, "train": paths}
    x, y = torch.rand(8, *SHAPE), torch.arange(8) % CLASSES
    if change == "labels":
        safetensors.torch.save_file({"x": x, "y": y + 1}, paths[0])
    if change == "shape":
        safetensors.torch.save_file({"x": torch.rand(8, 3, 8, 8), "y": y}, paths[1])
        safetensors.torch.save_file({"x": torch.rand(8, 3, 8, 8), "y": y}, paths[0])
    kinds = {
        "labels": ({}, NotUnderstood, "expected labels 0 to 3"),
        "shape": ({}, NotUnderstood, "correct input_shape"),
        "missing file": ({"train": [str(tmp_path / "nowhere")]}, StoreError, "nowhere"),
        "no file": ({"train": []}, MissingInput, "needs subject.train"),
        "method": ({"method": "crystal_ball"}, MissingInput, "crystal_ball"),
        "parameter": ({"params": {"crystals": 1}}, UnknownParameter, "crystals"),
    }
    fields, kind, words = kinds[change]
    with pytest.raises(kind, match=words):
        run("detect", base | fields)


def test_in_the_sandbox_answers_and_errors_are_the_same(constant, images, tmp_path):
    _, paths = images
    (tmp_path / "scratch").mkdir()
    limits = Limits(cpu_seconds=60, memory_bytes=3 << 30)
    # the data lie beside the submission, so their common directory is what may be read
    with Sandbox(read_only=[tmp_path], scratch=tmp_path / "scratch", limits=limits) as sandbox:
        assert sandbox.call("inspect", constant) == {}
        payload = constant | {"samples": paths, "triggers": [corner(ALWAYS).to_json()]}
        assert sandbox.call("evaluate", payload) == run("evaluate", payload)
        weights = safetensors.torch.load_file(tmp_path / "constant" / "model.safetensors")
        weights["head.bias"][0] = float("nan")
        safetensors.torch.save_file(weights, tmp_path / "constant" / "model.safetensors")
        with pytest.raises(NotUnderstood, match="NaN") as caught:
            sandbox.call("describe", constant)
        assert caught.value.exit_code == 3
