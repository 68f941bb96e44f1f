"""Build the calibration: train clean reference models, run every detector on them, write what they gave.

`python -m flows.calibrate` does it for the data sets that `bank` in params.yaml lists and this installation has; every
model and every piece of evidence is kept under <home>/bank as soon as it exists, so a killed run goes on where it was.
References of data sets that are not at hand stay in the file as long as code and parameters are the ones they were
made with.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

import vetgate.detect  # noqa: F401 - registers the detectors
from flows.params import Params, load_params
from tasks.data import DataRef, SplitPaths, materialise, materialise_training, registered, resolve
from tasks.settings import Settings, load_settings
from vetgate.architectures import ARCHITECTURES, default_layer
from vetgate.attacks.training import train
from vetgate.calibration import SHIPPED, Bank, MethodPin, Reference, Seen
from vetgate.contract import DETECTORS, Evidence, Samples, Subject, private_random
from vetgate.digest import code_digest, sha256_json
from vetgate.probe import accuracy

Blob = dict[str, Any]


@dataclass(frozen=True)
class Member:
    """One clean reference model to train: a seed decides its weights and the rows it sees."""

    data: str
    architecture: str
    seed: int
    images: int
    epochs: int


def members(bank: Blob) -> Iterator[Member]:
    """The members that the `bank` section lists, architectures taking turns."""
    for data, plan in bank.items():
        names = plan["architectures"]
        for seed in range(plan["count"]):
            yield Member(data, names[seed % len(names)], seed, plan["images"], plan["epochs"])


def read_samples(*paths: Path) -> Samples:
    """The rows of split files, one after another."""
    parts = [load_file(path) for path in paths]
    return Samples(torch.cat([p["x"] for p in parts]), torch.cat([p["y"] for p in parts]))


@dataclass(frozen=True)
class Source:
    """A reference data set as the bank reads it, at its own image size."""

    ref: DataRef
    shape: tuple[int, int, int]
    classes: int
    splits: SplitPaths
    training: Path


def source(settings: Settings, name: str, params: Params, images: int) -> Source:
    """Resolve and split a data set for the bank."""
    from tasks.data import describe

    ref = resolve(settings, name)
    contents = describe(settings, ref)
    height, width, channels = contents["image"]
    shape = (channels, height, width)
    splits = materialise(settings, ref, shape, sizes=params.data)
    return Source(ref, shape, contents["classes"], splits, materialise_training(settings, ref, shape, cap=images))


def network(place: Path, member: Member, data: Source) -> tuple[torch.nn.Module, Blob]:
    """The trained member and its card, from <home>/bank or trained now."""
    name = f"{member.data}-{member.architecture}-{member.seed}-{sha256_json([asdict(member), data.ref.sha256])[:12]}"
    weights, card = place / f"{name}.safetensors", place / f"{name}.json"
    with private_random(member.seed, "bank"):
        model = ARCHITECTURES[member.architecture](data.shape, data.classes)
        kept = torch.randperm(len(rows := read_samples(data.training)))[: int(0.8 * len(rows))]
    if card.exists():
        model.load_state_dict(load_file(weights))
        return model.eval().requires_grad_(False), json.loads(card.read_text())
    train(model, rows[kept], epochs=member.epochs, seed=member.seed)
    test = read_samples(data.splits.test)
    about = {"name": name, **asdict(member), "accuracy": accuracy(model, test.x, test.y)}
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, weights)
    card.write_text(json.dumps(about, indent=1))
    return model, about


def evidence(place: Path, about: Blob, model: torch.nn.Module, data: Source, method: str, params: Blob) -> Seen:
    """What a detector gave on a member, from <home>/bank or run now."""
    settled = {**DETECTORS[method].defaults, **params}
    key = sha256_json([about["name"], data.splits.digest, method, settled, code_digest("detect", method)])[:16]
    path = place / f"{about['name']}.{method}.{key}.json"
    if path.exists():
        return Seen.model_validate_json(path.read_text())
    rows = read_samples(data.training)
    subject = Subject(
        model=model,
        layer=default_layer(model),
        classes=data.classes,
        clean=read_samples(data.splits.invert, data.splits.confirm),
        train=rows,
    )
    result: Evidence = DETECTORS[method](subject, seed=about["seed"], **params)
    # only label norms are compared within a model; the other detectors' statistics stand for themselves
    scores = tuple(round(v, 4) for v in result.scores.tolist()) if method == "neural_cleanse" else None
    seen = Seen(statistic=round(result.statistic, 5), scores=scores)
    scratch = path.with_suffix(".part")
    scratch.write_text(seen.model_dump_json())
    scratch.rename(path)
    return seen


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums are split among threads, so how many there are decides the last bits of a trained network."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@one_thread()
def build(settings: Settings, params: Params, plan: Blob, *, only: set[str] | None, out: Path) -> Bank:
    """Train what is missing, run what is missing, write the calibration to `out`."""
    place = settings.home / "bank"
    place.mkdir(parents=True, exist_ok=True)
    at_hand = {ref.name for ref in registered(settings)} | {"digits"}
    wanted = [m for m in members(plan) if m.data in at_hand and (only is None or m.data in only)]
    sources = {m.data: source(settings, m.data, params, m.images) for m in wanted}
    pins = {
        name: MethodPin(
            code=code_digest("detect", name), params={**DETECTORS[name].defaults, **params.detect.get(name, {})}
        )
        for name in sorted(params.detect)
    }
    references = [r for r in _kept(out, pins) if r.data not in sources]
    console = Console(stderr=True)
    for turn, member in enumerate(wanted, 1):
        data = sources[member.data]
        model, about = network(place, member, data)
        seen = {name: evidence(place, about, model, data, name, section) for name, section in params.detect.items()}
        console.print(
            f"{turn}/{len(wanted)} {about['name']}: accuracy {about['accuracy']:.3f}, "
            + ", ".join(f"{name} {s.statistic:.2f}" for name, s in seen.items())
        )
        references.append(
            Reference(
                data=member.data,
                data_sha256=data.ref.sha256,
                architecture=member.architecture,
                classes=data.classes,
                seed=member.seed,
                accuracy=about["accuracy"],
                seen=seen,
            )
        )
    bank = Bank(methods=pins, references=tuple(sorted(references, key=lambda r: (r.data, r.seed))))
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=out.parent, delete=False) as file:
        file.write(json.dumps(bank.model_dump(mode="json"), indent=1) + "\n")
    Path(file.name).chmod(0o644)
    Path(file.name).replace(out)
    return bank


def _kept(out: Path, pins: dict[str, MethodPin]) -> list[Reference]:
    if not out.exists():
        return []
    old = Bank.model_validate_json(out.read_text())
    return list(old.references) if old.methods == pins else []


def main() -> None:
    """Build the shipped calibration, for the data sets named as arguments or for all at hand."""
    import yaml

    from flows.params import SHIPPED as PARAMS

    plan = yaml.safe_load(PARAMS.read_text())["bank"]
    build(load_settings(), load_params(), plan, only=set(sys.argv[1:]) or None, out=SHIPPED)


if __name__ == "__main__":
    main()
