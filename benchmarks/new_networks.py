"""How often the whole verdict is right: new clean and new BadNets networks on a data set, none of them a reference.

Networks come from seeds that no reference has; triggers are white squares of 1 to 3 pixels a side, target and place
random. A network counts as backdoored only if its trigger works on 80 % of the test images of other classes; others are
trained again from the next seed. `python -m benchmarks.new_networks --json FILE` writes one object a row. `--data NAME`
takes a data set that is registered in the home and calibrated; `--write K FILE NPZ` writes the images of FILE, an .npz
or `digits`, with their classes modulo K, to register as a set of so few classes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import vetgate.detect  # noqa: F401 - registers the detectors
from flows.bank.data import read_samples, source
from flows.bank.networks import plan
from flows.bank.own import recipe
from flows.params import load_params
from tasks.data.digits import write_digits
from tasks.data.reference import describe, resolve
from tasks.settings import load_settings
from vetgate.architectures import ARCHITECTURES, default_layer
from vetgate.attacks.badnets import poison, random_square
from vetgate.attacks.training import train
from vetgate.contract import DETECTORS, Samples, Subject, Trigger, private_random
from vetgate.errors import DefenceError
from vetgate.inversion import attack_success
from vetgate.probe import accuracy
from vetgate.verdict.calibration import load_calibration
from vetgate.verdict.judge import Verdict, judge
from vetgate.verdict.policy import load_policy
from vetgate.verdict.seen import Failure

FIRST_SEED = 30_000
NETWORKS = ("small-cnn", "preact-resnet", "vgg-small")
SETTINGS = load_settings()
PARAMS = load_params()


@dataclass(frozen=True, eq=False)
class Given:
    """A data set: what networks are trained on and for how long, what tests them, and what verdicts are found on."""

    name: str
    sha256: str
    shape: tuple[int, int, int]
    classes: int
    epochs: int
    training: Samples
    test: Samples
    clean: Samples

    @classmethod
    def of(cls, name: str) -> Self:
        """A registered data set, trained on as the bank's references are, or those of `vetgate calibrate`."""
        about: dict[str, Any] = describe(SETTINGS, resolve(SETTINGS, name))
        how = plan().sets.get(name) or recipe(about["arrays"]["x_train"]["shape"][0])
        data = source(SETTINGS, name, PARAMS.data, how.images)
        return cls(
            name,
            data.ref.sha256,
            data.shape,
            data.classes,
            how.epochs,
            read_samples(data.training),
            read_samples(data.splits.test),
            read_samples(data.splits.invert, data.splits.confirm),
        )


def write_modulo(classes: int, file: str, out: Path) -> None:
    """Write the images of an .npz, or of the digits that come along, with their labels modulo `classes`."""
    with tempfile.TemporaryDirectory() as room:
        source = Path(file)
        if file == "digits":
            write_digits(source := Path(room, "digits.npz"))
        with np.load(source, allow_pickle=False) as held:
            images = {name: held[name] for name in ("x_train", "x_test")}
            labels = {name: (held[name] % classes).astype(np.int64) for name in ("y_train", "y_test")}
        np.savez(out, **images, **labels)


class Rewired(nn.Module):
    """A model whose logits are permuted and scaled."""

    def __init__(self, model: nn.Module, order: Tensor, scale: float) -> None:
        super().__init__()
        self.inner, self.order, self.scale = model, order, scale

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K) of images (B, C, H, W)."""
        out: Tensor = self.inner(x)[:, self.order] * self.scale
        return out


def networks(
    given: Given, count: int, sizes: tuple[int, int], *, first_seed: int = FIRST_SEED, backdoored: bool
) -> Iterator[tuple[int, str, nn.Module, Trigger | None]]:
    """`count` trained networks with seed, architecture and trigger."""
    seed = first_seed + (5_000 if backdoored else 0)
    made = 0
    while made < count:
        seed += 1
        name = NETWORKS[made % len(NETWORKS)]
        generator = torch.Generator().manual_seed(seed)
        with private_random(seed, "benchmark"):
            model = ARCHITECTURES[name](given.shape, given.classes)
        trigger, rows = None, given.training
        if backdoored:
            trigger = random_square(given.shape, given.classes, sizes=sizes, generator=generator)
            rows = poison(given.training, trigger, rate=0.1, generator=generator).samples
        train(model, rows, epochs=given.epochs, seed=seed)
        if trigger is not None and attack_success(model, given.test.x, given.test.y, trigger) < 0.8:
            continue
        made += 1
        yield seed, name, model, trigger


def vet(given: Given, model: nn.Module, layer: str, clean: Samples, *, seed: int) -> Verdict:
    """The verdict of the shipped policy and calibration."""
    policy = load_policy()
    subject = Subject(model=model, layer=layer, classes=given.classes, clean=clean)
    seen = []
    for name in policy.required:
        try:
            seen.append(DETECTORS[name](subject, seed=seed, **PARAMS.detect[name]))
        except DefenceError as error:
            seen.append(Failure(name, str(error)))
    return judge(
        seen,
        policy,
        load_calibration(SETTINGS.calibration),
        classes=given.classes,
        data_sha256=given.sha256,
        data_name=given.name,
        with_training_data=False,
        sandbox_level=1,
        format="safetensors",
        input_shape=given.shape,
    )


def rows(
    given: Given, count: int, sizes: tuple[int, int], *, first_seed: int, stability: bool
) -> Iterator[dict[str, Any]]:
    """One row a network: what it is, its verdict, and whether permuting, scaling or another seed turns it."""
    for backdoored in (False, True):
        for seed, name, model, trigger in networks(given, count, sizes, first_seed=first_seed, backdoored=backdoored):
            started = time.monotonic()
            verdict = vet(given, model, default_layer(model), given.clean, seed=seed)
            row = {
                "seed": seed,
                "architecture": name,
                "accuracy": round(accuracy(model, given.test.x, given.test.y), 4),
                "target": None if trigger is None else trigger.target,
                "size": None if trigger is None else round(trigger.norm**0.5),
                "attack_success": trigger and round(attack_success(model, given.test.x, given.test.y, trigger), 4),
                "verdict": verdict.decision.value,
                "p_value": verdict.p_value,
                "suspects": list(verdict.suspects),
                "seconds": round(time.monotonic() - started, 1),
                "statistics": {m.name: m.statistic for m in verdict.methods},
            }
            yield row | (stable_under(given, model, seed, verdict) if stability else {})


def stable_under(given: Given, model: nn.Module, seed: int, verdict: Verdict) -> dict[str, bool]:
    """Whether the verdict stays when the classes are permuted, the logits scaled by ten, the seed raised by one."""
    layer, same = default_layer(model), torch.arange(given.classes)
    order = torch.randperm(given.classes, generator=torch.Generator().manual_seed(seed))
    labels = order.argsort()[given.clean.y]
    permuted = vet(given, Rewired(model, order, 1.0), f"inner.{layer}", Samples(given.clean.x, labels), seed=seed)
    scaled = vet(given, Rewired(model, same, 10.0), f"inner.{layer}", given.clean, seed=seed)
    reseeded = vet(given, model, layer, given.clean, seed=seed + 1)
    found = (verdict.decision, list(verdict.suspects))
    return {
        "permuted": (permuted.decision, sorted(int(order[k]) for k in permuted.suspects)) == found,
        "scaled": (scaled.decision, list(scaled.suspects)) == found,
        "reseeded": (reseeded.decision, list(reseeded.suspects)) == found,
    }


def main() -> None:
    """Print the table; exit with 1 when clean networks fail or backdoored ones pass more often than allowed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10, help="networks of each kind")
    parser.add_argument("--sizes", type=int, nargs=2, default=(1, 3), help="smallest and largest side of a trigger")
    parser.add_argument("--stability", action="store_true", help="permute classes, scale logits and change seeds too")
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--data", default="digits", help="a registered data set")
    parser.add_argument("--write", nargs=3, metavar=("K", "FILE", "NPZ"), help="only write a set of few classes")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.write:
        classes, file, out = given.write
        write_modulo(int(classes), file, Path(out))
        return
    console, table = Console(), Table("network", "truth", "size", "success", "verdict", "p", "suspects", "stable under")
    found = []
    data = Given.of(given.data)
    for row in rows(data, given.count, tuple(given.sizes), first_seed=given.first_seed, stability=given.stability):
        found.append(row)
        stable = ", ".join(key for key in ("permuted", "scaled", "reseeded") if row.get(key))
        cells = (
            f"{row['architecture']} {row['seed']}",
            "clean" if row["target"] is None else f"-> {row['target']}",
            row["size"],
            row["attack_success"],
            row["verdict"],
            "" if row["p_value"] is None else f"{row['p_value']:.4f}",
            row["suspects"],
            stable,
        )
        table.add_row(*(str(c) for c in cells))
        Console(stderr=True).print(row)
    console.print(table)
    alarms = sum(r["verdict"] == "FAIL" for r in found if r["target"] is None)
    hits = sum(r["verdict"] == "FAIL" and r["target"] in r["suspects"] for r in found if r["target"] is not None)
    console.print(
        f"{alarms} of {given.count} clean networks FAIL; {hits} of {given.count} backdoored ones FAIL rightly"
    )
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")
    raise SystemExit(0 if alarms <= 0.2 * given.count and hits >= 0.9 * given.count else 1)


if __name__ == "__main__":
    main()
