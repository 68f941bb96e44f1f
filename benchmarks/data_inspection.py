"""Poisoned training sets on real data: which rows each detector flags, and what is left when they are gone.

`python -m benchmarks.data_inspection --mnist NPZ --gtsrb NPZ --cifar10 NPZ --json FILE` trains, on a part of the images
of each data set, networks with a BadNets patch on a share of the rows (a 4x4 white square bottom right), and others on
clean rows, each by a seed of its own. Every detector that flags rows looks at each; the network is trained again
without the rows that one of them flags, and without those that any of params.yaml flags, as the repair flow does. All
is measured on the test images. FILE gets a line a network; what is in it is not done again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import vetgate.detect
import vetgate.repair  # noqa: F401 - registers the methods
from benchmarks.images import images
from flows.params import load_params
from vetgate.architectures import ARCHITECTURES, default_layer
from vetgate.attacks.backdoor import patch
from vetgate.attacks.badnets import poison, square
from vetgate.attacks.training import train
from vetgate.contract import DETECTORS, REPAIRS, Axis, Evidence, Samples, Subject, private_random
from vetgate.errors import DefenceError
from vetgate.probe import accuracy
from vetgate.repair.remove_and_retrain import remove_and_retrain

ARCHITECTURE = "small-cnn"
# the attack counts where it reaches this; a repair is to leave at most that
WORKS, LEFT = 0.8, 0.05
SHIPPED = "shipped"


@dataclass(frozen=True)
class Plan:
    """What is tried on one data set: rows to train on, epochs, poisoned shares with a seed each, and clean sets."""

    rows: int
    epochs: int
    rates: tuple[float, ...]
    seeds: int
    clean: int


PLANS = {
    "mnist": Plan(12_000, 6, (0.005, 0.01, 0.05, 0.1, 0.2), 1, 20),
    "gtsrb": Plan(12_000, 10, (0.01, 0.1), 1, 5),
    "cifar10": Plan(12_000, 12, (0.01, 0.1), 1, 5),
}


@dataclass(frozen=True, eq=False)
class Given:
    """A supplier's training set with a network of it, the rows that are poisoned, and images to measure on."""

    subject: Subject
    poisoned: Tensor
    test: Samples
    target: int
    epochs: int


def given(plan: Plan, every: Samples, test: Samples, rate: float, seed: int) -> Given:
    """A training set by a seed, `rate` of it poisoned, and a network that was trained on it."""
    generator = torch.Generator().manual_seed(seed)
    rows = every[torch.randperm(len(every), generator=generator)[: plan.rows]]
    classes, shape = int(every.y.max()) + 1, (rows.x.shape[1], rows.x.shape[2], rows.x.shape[3])
    target = int(torch.randint(0, classes, (1,), generator=generator))
    poisoned = torch.zeros(len(rows), dtype=torch.bool)
    if rate:
        made = poison(rows, square(shape, target, row=-4, column=-4, size=4), rate=rate, generator=generator)
        rows, poisoned = made.samples, made.rows
    with private_random(seed, "weights"):
        model = ARCHITECTURES[ARCHITECTURE](shape, classes)
    train(model, rows, epochs=plan.epochs, seed=seed)
    subject = Subject(model=model, layer=default_layer(model), classes=classes, train=rows)
    return Given(subject, poisoned, test, target, plan.epochs)


def row_of(case: Given, seed: int) -> dict[str, Any]:
    """What each detector flags in a training set, and what retraining without it leaves."""
    shape = (case.test.x.shape[1], case.test.x.shape[2], case.test.x.shape[3])
    backdoor = patch(square(shape, case.target, row=-4, column=-4, size=4))
    attacked = bool(case.poisoned.any())

    def measured(model: torch.nn.Module) -> dict[str, float]:
        found = {"accuracy": round(accuracy(model, case.test.x, case.test.y), 4)}
        return found | ({"attack_success": round(backdoor.success(model, case.test), 4)} if attacked else {})

    assert case.subject.train is not None
    params, found = load_params(), {}
    row: dict[str, Any] = {"target": case.target, "poisoned": int(case.poisoned.sum())}
    row |= {"rows": len(case.poisoned), "before": measured(case.subject.model), "by": {}}
    for name, method in DETECTORS.items():
        if method.axis is not Axis.TRAIN:
            continue
        started = time.process_time()
        try:
            found[name] = method(case.subject, seed=seed, **params.detect.get(name, {}))
        except DefenceError as error:
            row["by"][name] = {"failed": str(error)}
            continue
        row["by"][name] = {"seconds": round(time.process_time() - started, 1)} | flags(found[name].flagged, case)
    shipped = [evidence for name, evidence in found.items() if name in params.detect]
    union = torch.stack([evidence.flagged for evidence in shipped]).any(0)
    row["by"][SHIPPED] = flags(union, case)
    for name, evidence in {**{name: [one] for name, one in found.items()}, SHIPPED: shipped}.items():
        entry = row["by"][name]
        if attacked and entry["flagged"]:
            entry["after"] = measured(retrained(case, evidence, seed))
    return row


def retrained(case: Given, evidence: Sequence[Evidence], seed: int) -> torch.nn.Module:
    """The network of a training set without the rows that the evidence flags."""
    made = REPAIRS[remove_and_retrain.__name__](case.subject, *evidence, seed=seed, epochs=case.epochs)
    model: torch.nn.Module = made.model
    return model


def flags(flagged: Tensor, case: Given) -> dict[str, Any]:
    """How many rows (N,) are flagged, how many of them are poisoned, and the classes of at least one."""
    assert case.subject.train is not None
    return {
        "flagged": int(flagged.sum()),
        "both": int((flagged & case.poisoned).sum()),
        "classes": case.subject.train.y[flagged].unique().tolist(),  # type: ignore[no-untyped-call]
    }


def rows(files: dict[str, Path], out: Path) -> Iterator[dict[str, Any]]:
    """One row a network: all poisoned ones first, then the clean ones."""
    done = {json.loads(line)["key"] for line in out.read_text().splitlines()} if out.exists() else set()
    read: dict[str, tuple[Samples, Samples]] = {}
    cases = [(data, rate, seed) for data in files for rate in PLANS[data].rates for seed in range(PLANS[data].seeds)]
    cases += [(data, 0.0, 100 + seed) for data in files for seed in range(PLANS[data].clean)]
    for data, rate, seed in cases:
        key = f"{data} {rate:g} {seed}"
        if key in done:
            continue
        if data not in read:
            read[data] = images(files[data], "train"), images(files[data], "test")
        row = {"key": key, "data": data, "rate": rate} | row_of(given(PLANS[data], *read[data], rate, seed), seed)
        with out.open("a") as lines:
            lines.write(json.dumps(row) + "\n")
        yield row


def tables(found: Sequence[dict[str, Any]]) -> tuple[Table, Table]:
    """What is flagged and left on poisoned sets, and what is flagged on clean ones."""
    poisoned = Table("data", "poisoned", "success", "by", "precision", "recall", "s", "success after", "accuracy")
    clean = Table("data", "by", "sets", "a class called poisoned", "most rows flagged")
    for row in (row for row in found if row["rate"]):
        for name, by in row["by"].items():
            if "failed" in by:
                continue
            before, after = row["before"], by.get("after", row["before"])
            precision = f"{by['both'] / by['flagged']:.2f}" if by["flagged"] else ""
            figures = [precision, f"{by['both'] / row['poisoned']:.2f}", f"{by.get('seconds', 0):.0f}"]
            figures += [f"{after['attack_success']:.1%}", f"{before['accuracy']:.1%} -> {after['accuracy']:.1%}"]
            poisoned.add_row(row["data"], f"{row['rate']:.1%}", f"{before['attack_success']:.1%}", name, *figures)
    sets: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for row in (row for row in found if not row["rate"]):
        for name, by in row["by"].items():
            if "failed" not in by:
                sets.setdefault((row["data"], name), []).append((len(by["classes"]), by["flagged"] / row["rows"]))
    for (data, name), flagged in sets.items():
        called = sum(classes > 0 for classes, _ in flagged)
        clean.add_row(data, name, str(len(flagged)), str(called), f"{max(share for _, share in flagged):.1%}")
    return poisoned, clean


def main() -> None:
    """Do what is not in the file yet, and print the tables of what is."""
    parser = argparse.ArgumentParser(description=__doc__)
    for data in PLANS:
        parser.add_argument(f"--{data}", type=Path)
    parser.add_argument("--json", type=Path, required=True)
    asked = parser.parse_args()
    files = {data: file for data in PLANS if (file := getattr(asked, data)) is not None}
    for row in rows(files, asked.json):
        Console(stderr=True).print(row["key"], row["before"])
    for table in tables([json.loads(line) for line in asked.json.read_text().splitlines()]):
        Console(width=160).print(table)


if __name__ == "__main__":
    main()
