"""The operations of the sandbox: the only code that opens submitted files and runs submitted models.

Each takes a JSON payload written by the host and gives a JSON object back. `directory` and `submission` name a taken-in
copy; images come as lists of safetensors files with x (N, C, H, W) float32 in [0, 1] and y (N,) int64, one after the
other, of which `rows` caps each.
"""

from __future__ import annotations

import inspect as signatures
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

import vetgate.detect
import vetgate.repair  # noqa: F401 - importing the two registers every method
from tasks.sandbox.device import CPU, place
from tasks.sandbox.surrogate import surrogates
from vetgate.contract import DETECTORS, REPAIRS, Evidence, Method, Samples, Subject, Trigger, pack, private_random
from vetgate.effort import PIXELS
from vetgate.errors import DefenceError, MissingInput, NotUnderstood, StoreError
from vetgate.formats.canonical import canonical
from vetgate.formats.inspect import inspect_bytes
from vetgate.formats.load import Loaded, load_model, load_served, write_repaired
from vetgate.formats.submission import Submission
from vetgate.formats.weights import weights_sha256
from vetgate.guard.contract import fewest_to_cut
from vetgate.guard.measure import Cost, Measured, choose_guards
from vetgate.guard.package import Package, to_bytes
from vetgate.inversion import attack_success, invert
from vetgate.probe import accuracy, logits
from vetgate.replay import Computed, Missing, Replay, replaying
from vetgate.verdict.first_look import first_look
from vetgate.verdict.seen import SURROGATES

Payload = Mapping[str, Any]
Progress = Callable[[float], None]
GUARDS_FILE = "guards.safetensors"


def inspect(payload: Payload, progress: Progress) -> dict[str, Any]:
    """Read every submitted file to its last byte; raises NotUnderstood.

    With `out`, a new file: unless they are of the canonical form, that is written there, and the answer's `changes` are
    what its description says otherwise.
    """
    submission = _submission(payload)
    members = inspect_bytes(Path(payload["directory"]), submission)
    written = canonical(members, submission) if "out" in payload else None
    if written is None:
        return {}
    Path(payload["out"]).write_bytes(written.data)
    return {"changes": dict(written.changes)}


def describe(payload: Payload, progress: Progress) -> dict[str, Any]:
    """Load the model and tell what it is and how fast, with its accuracy on `samples` if there are any."""
    loaded = _load(payload)
    samples = _read(payload, "samples", loaded)
    return {
        "layer": loaded.layer,
        "classes": loaded.classes,
        "softmax_stripped": loaded.softmax_stripped,
        "parameters": sum(p.numel() for p in loaded.model.parameters()),
        "weights_sha256": weights_sha256(loaded.model),
        "clean_accuracy": None if samples is None else accuracy(loaded.model, samples.x, samples.y),
        "image_seconds": image_seconds(loaded.model, _submission(payload).input_shape),
    }


def look_first(payload: Payload, progress: Progress) -> dict[str, Any]:
    """What the file, as it is served, does on the trusted `samples`, and would do if they were meant otherwise."""
    loaded = load_served(Path(payload["directory"]), _submission(payload))
    return first_look(loaded.model, _needed(payload, "samples", loaded), loaded.classes).to_json()


def image_seconds(model: torch.nn.Module, shape: Sequence[int], batch: int = 16) -> float | None:
    """Seconds that an image takes through a model and back, in batches of random ones; None for one that breaks."""
    x = torch.rand(batch, *shape, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    try:
        for _ in range(2):
            # the first batch warms up
            started = time.monotonic()
            torch.autograd.grad(model(x).sum(), x)
        return (time.monotonic() - started) / batch
    except Exception:  # what a submitted file does is not ours to foresee, and this only tells how long it takes
        return None


def detect(payload: Payload, progress: Progress) -> dict[str, Any]:
    """Run the detector `method` with `params` and `seed` on `clean`, `train` and `inputs`: evidence, and seconds.

    Without files of `clean`, and with `surrogates`, it is run on images that show nothing, and its evidence says so.
    The network computes on `device`, by default the processor.

    With `replay` (fields of a Replay) its inversions are computed elsewhere: without `only`, the answer is the evidence
    or what is missing, `needs`, and the inversions `done` since; with it, that `block`.
    """
    started = time.monotonic()
    method = _named(DETECTORS, payload["method"])
    subject, settled = _subject(payload), {"seed": payload["seed"], "progress": progress, **payload["params"]}
    place(subject.model, payload.get("device", CPU))
    made_up = payload.get("surrogates", False) and subject.clean is None
    if made_up:
        subject = replace(subject, clean=surrogates(subject.model, _submission(payload).input_shape, payload["seed"]))

    def found() -> dict[str, Any]:
        evidence: Evidence = method(subject, **settled)
        if made_up:
            evidence = replace(evidence, details={**evidence.details, SURROGATES: len(subject.clean or ())})
        return evidence.to_json()

    answer: dict[str, Any]
    if "replay" not in payload:
        answer = {"evidence": found()}
    else:
        with replaying(Replay(**payload["replay"])) as replay:
            try:
                answer = {"evidence": found()}
            except Missing as missing:
                answer = {"needs": missing.needs, "done": replay.fresh}
            except Computed as computed:
                answer = {"block": computed.block}
    return {**answer, "seconds": time.monotonic() - started}


def repair(payload: Payload, progress: Progress) -> dict[str, Any]:
    """Run the repair `method` on `evidence`, `clean` and `train`, and write a submission to the new directory `out`."""
    started = time.monotonic()
    method = _named(REPAIRS, payload["method"])
    evidence = [Evidence.from_json(blob) for blob in payload["evidence"]]
    subject = _subject(payload)
    repaired = method(subject, *evidence, seed=payload["seed"], progress=progress, **payload["params"])
    if _same(subject.model.state_dict(), repaired.model.state_dict()):
        raise DefenceError(
            f"expected {payload['method']} to change the model, it found nothing to change; take another"
        )
    out = Path(payload["out"])
    write_repaired(
        Path(payload["directory"]),
        _submission(payload),
        repaired.model,
        out,
        parent=payload["parent"],
        name=payload.get("name"),
    )
    return {"changed": dict(repaired.changed), "directory": str(out), "seconds": time.monotonic() - started}


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def evaluate(payload: Payload, progress: Progress) -> dict[str, Any]:
    """Which of `samples` are `right`, and what each of `triggers` does to those of other classes.

    `attack_success` is the share of these that it sends to its target, `robust_accuracy` the share that is given its
    true class all the same. They are those of the file as it is served.
    """
    loaded = load_served(Path(payload["directory"]), _submission(payload))
    samples = _needed(payload, "samples", loaded)
    right = logits(loaded.model, samples.x).argmax(1) == samples.y
    triggers = [Trigger.from_json(blob) for blob in payload["triggers"]]
    success, robust = [], []
    for index, trigger in enumerate(triggers):
        sent, true = under(loaded.model, samples, trigger)
        success.append(sent)
        robust.append(true)
        progress((index + 1) / len(triggers))
    return {
        "clean_accuracy": _share(right),
        "attack_success": success,
        "robust_accuracy": robust,
        "right": pack(right),
    }


def under(model: torch.nn.Module, samples: Samples, trigger: Trigger) -> tuple[float, float]:
    """Shares of the samples of other classes that a trigger sends to its target, and that keep their true class."""
    other = samples[samples.y != trigger.target]
    if len(other) == 0:
        raise MissingInput(f"expected images of classes other than {trigger.target}, got none; add clean samples")
    said = logits(model, trigger.stamp(other.x)).argmax(1)
    return _share(said == trigger.target), _share(said == other.y)


def reinvert(payload: Payload, progress: Progress) -> dict[str, Any]:
    """Invert a trigger for each of `labels` on `samples`, and measure its success on `held_out` images.

    `params` are those of the detector that inverts; the ones that only it knows are left out.
    """
    started = time.monotonic()
    loaded = _load(payload)
    samples, held_out = _needed(payload, "samples", loaded), _needed(payload, "held_out", loaded)
    known = signatures.signature(invert).parameters
    params = {name: value for name, value in payload["params"].items() if name in known}
    with private_random(payload["seed"], "reinvert"):
        inverted = invert(loaded.model, samples.x, samples.y, payload["labels"], **params)
    return {
        "triggers": [trigger.to_json() for trigger in inverted.triggers],
        "norms": inverted.norms.tolist(),
        "fitted": inverted.success.tolist(),
        "attack_success": [attack_success(loaded.model, held_out.x, held_out.y, t) for t in inverted.triggers],
        "seconds": time.monotonic() - started,
    }


def guard(payload: Payload, progress: Progress) -> dict[str, Any]:
    """Fit the guards `wanted` (name -> parameters) on `clean`, cut them on `held`, and measure them on `samples`.

    Those that are chosen go into the one file of the new directory `out`, for the model with the manifest `parent`;
    without any there is no directory.
    """
    # each guard is fitted, and then measured
    started, done, steps = time.monotonic(), itertools.count(), 2 * len(payload["wanted"])
    loaded = _load(payload)
    chosen = choose_guards(
        _subject(payload, loaded),
        _needed(_enough_to_cut(payload), "held", loaded),
        _needed(payload, "samples", loaded),
        payload["wanted"],
        [Evidence.from_json(blob) for blob in payload["evidence"]],
        [Trigger.from_json(blob) for blob in payload["triggers"]],
        rate=payload["rate"],
        max_slowdown=payload["max_slowdown"],
        seed=payload["seed"],
        each=lambda _: progress(min(1.0, next(done) / steps)),
    )
    if chosen.guards:
        Path(payload["out"]).mkdir()
        Path(payload["out"], GUARDS_FILE).write_bytes(to_bytes(Package(payload["parent"], chosen.guards)))
    return {
        "guards": [_figures(one) for one in chosen.measured],
        "unfitted": {one.guard: one.reason for one in chosen.unfitted},
        "false_rejections": chosen.clean,
        "seconds": time.monotonic() - started,
    }


def _enough_to_cut(payload: Payload) -> Payload:
    """The same, with no fewer rows of a file than the guards need for their share of the rate."""
    rows = payload.get("rows")
    if rows is None or not payload["wanted"]:
        return payload
    return {**payload, "rows": max(rows, fewest_to_cut(payload["rate"] / len(payload["wanted"])))}


def _figures(one: Measured) -> dict[str, Any]:
    def cost(of: Cost) -> dict[str, float]:
        return {"bare": of.bare, "guarded": of.guarded, "slowdown": of.slowdown}

    return {
        "name": one.fitted.guard,
        "chosen": one.chosen,
        "rate": one.fitted.rate,
        "false_rejections": one.clean,
        "detection": one.triggered,
        "alone": cost(one.alone),
        "batch": cost(one.batch),
    }


def _share(which: torch.Tensor) -> float:
    return float(which.float().mean())


def _submission(payload: Payload) -> Submission:
    return Submission.model_validate(payload["submission"])


def _load(payload: Payload) -> Loaded:
    submission = _submission(payload)
    loaded = load_model(Path(payload["directory"]), submission)
    loaded.model.eval().requires_grad_(False)
    _, height, width = submission.input_shape
    if height * width > PIXELS:
        # with the channels last an image takes half the time; of small ones nothing is won
        loaded.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return loaded


def _subject(payload: Payload, loaded: Loaded | None = None) -> Subject:
    loaded = loaded or _load(payload)
    return Subject(
        model=loaded.model,
        layer=loaded.layer,
        classes=loaded.classes,
        clean=_read(payload, "clean", loaded),
        train=_read(payload, "train", loaded),
        inputs=_inputs(payload),
    )


def _needed(payload: Payload, name: str, loaded: Loaded) -> Samples:
    samples = _read(payload, name, loaded)
    if samples is None:
        raise MissingInput(f"expected files of images as {name}, got none; name a data set in submission.yaml")
    return samples


def _read(payload: Payload, name: str, loaded: Loaded) -> Samples | None:
    """The samples of all the files named, None where none is; no more rows are read than are used."""
    paths, rows = payload.get(name) or [], payload.get("rows")
    if not paths:
        return None
    parts = [_rows(path, rows) for path in paths]
    samples = Samples(torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts]))
    if len(samples) == 0:
        raise MissingInput(f"expected images in {name}, got none; give the data set more rows")
    _check_shape(payload, name, samples.x)
    least, most = int(samples.y.min()), int(samples.y.max())
    if least < 0 or most >= loaded.classes:
        raise NotUnderstood(
            f"expected labels 0 to {loaded.classes - 1} in {name}, got {least} to {most}; "
            "name the data set that the model was made for"
        )
    return samples


def _inputs(payload: Payload) -> torch.Tensor | None:
    """The images (M, C, H, W) to be screened, of all the files named, whose labels are unknown; None where none is."""
    paths = payload.get("inputs") or []
    if not paths:
        return None
    images = torch.cat([_images(path, payload.get("rows")) for path in paths])
    if len(images) == 0 or images.dtype != torch.float32:
        raise MissingInput(f"expected float32 images in inputs, got {len(images)} {images.dtype}; give some")
    _check_shape(payload, "inputs", images)
    return images


def _check_shape(payload: Payload, name: str, images: torch.Tensor) -> None:
    expected, shape = _submission(payload).input_shape, tuple(images.shape[1:])
    if shape != tuple(expected):
        raise NotUnderstood(f"expected {name} images of {list(expected)}, got {list(shape)}; correct input_shape")


def _images(path: str, rows: int | None) -> torch.Tensor:
    try:
        with safe_open(path, "pt") as file:
            images: torch.Tensor = file.get_slice("x")[:rows]
            return images
    except (OSError, SafetensorError) as error:
        raise StoreError(f"expected images in {path}, got {error}; prepare the data again") from error


def _rows(path: str, rows: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    try:
        with safe_open(path, "pt") as file:
            return file.get_slice("x")[:rows], file.get_slice("y")[:rows]
    except (OSError, SafetensorError) as error:
        raise StoreError(f"expected images and labels in {path}, got {error}; prepare the data again") from error


def _named(methods: Mapping[str, Method], name: str) -> Method:
    if name not in methods:
        raise MissingInput(f"expected one of {', '.join(sorted(methods))}, got {name!r}; name it in the policy")
    return methods[name]


OPS = {op.__name__: op for op in (inspect, describe, look_first, detect, repair, evaluate, reinvert, guard)}
