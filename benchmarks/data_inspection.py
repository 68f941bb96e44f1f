"""Poisoned training sets on real data: which rows each detector flags, and what is left when they are gone.

`python -m benchmarks.data_inspection --mnist NPZ --gtsrb NPZ --cifar10 NPZ --json FILE` trains, on a part of the images
of each data set, networks with a BadNets patch on a share of the rows (a 4x4 white square bottom right), and others on
clean rows, each by a seed of its own. Every detector that flags rows looks at each; the network is trained again
without the rows that one of them flags. "shipped" is what the repair flow does: of the detectors of params.yaml it
follows one, and calls a class poisoned only where the rows that it left out get another label from the new network.
Of the test images 2,048 are the trusted ones; all is measured on the others. FILE gets a line a network; what is in
it is not done again. `--cost NPZ` says instead what each detector takes for 50,000 rows,
and `--bank FILE` what it flags of the bank's open members that `python -m flows.bank.stage fill` has trained.
"""

from __future__ import annotations

import argparse
import resource
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
from benchmarks.rows import add_row, rows_in
from benchmarks.trained import members_to_measure, trained
from flows.bank.data import read_samples
from flows.params import load_params
from tasks.settings import load_settings
from tasks.vetting.choose import MOST
from vetgate.architectures import ARCHITECTURES, default_layer
from vetgate.attacks.backdoor import patch
from vetgate.attacks.badnets import poison, square
from vetgate.attacks.training import train
from vetgate.contract import DETECTORS, REPAIRS, Axis, Evidence, Repair, Samples, Subject, private_random
from vetgate.errors import DefenceError
from vetgate.probe import accuracy
from vetgate.repair.remove_and_retrain import chosen_rows, remove_and_retrain

ARCHITECTURE = "small-cnn"
SHIPPED = "shipped"
# test images that detectors are given as trusted ones
TRUSTED = 2048


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
    drawn = torch.randperm(len(test), generator=generator)
    trusted, test = test[drawn[:TRUSTED]], test[drawn[TRUSTED:]]
    subject = Subject(model=model, layer=default_layer(model), classes=classes, clean=trusted, train=rows)
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
        row["by"][name] = {"seconds": round(time.process_time() - started, 1)} | flags(
            found[name].flagged, case.subject.train, case.poisoned
        )
    for name, evidence in found.items():
        entry = row["by"][name]
        if entry["flagged"] and (attacked or name in params.detect):
            again = retrained(case, evidence, seed)
            entry["lost"] = round(float(again.changed["lost"]), 4)
            if attacked:
                entry["after"] = measured(again.model)
    row["by"][SHIPPED] = followed(case, [found[name] for name in found if name in params.detect], row["by"], seed)
    return row


def followed(case: Given, shipped: Sequence[Evidence], by: dict[str, Any], seed: int) -> dict[str, Any]:
    """The entry of the detector that the repair follows; of none where its rows keep their label."""
    assert case.subject.train is not None
    flagging = [evidence for evidence in shipped if bool(evidence.flagged.any())]
    nothing = flags(torch.zeros_like(case.poisoned), case.subject.train, case.poisoned)
    if not flagging:
        return nothing
    repair: dict[str, Any] = REPAIRS[remove_and_retrain.__name__].defaults
    with private_random(seed, SHIPPED):
        rows = chosen_rows(
            case.subject,
            flagging,
            epochs=repair["trial"],
            images=repair["images"] // 4,
            lr=repair["lr"],
            batch=repair["batch"],
        )
    name = next(evidence.method for evidence in flagging if torch.equal(evidence.flagged, rows))
    return by[name] | {"followed": name} if by[name]["lost"] >= MOST else nothing | {"refused": name}


def retrained(case: Given, evidence: Evidence, seed: int) -> Repair:
    """The network of a training set without the rows that the evidence flags."""
    made: Repair = REPAIRS[remove_and_retrain.__name__](case.subject, evidence, seed=seed, epochs=case.epochs)
    return made


def flags(flagged: Tensor, rows: Samples, poisoned: Tensor) -> dict[str, Any]:
    """How many rows (N,) are flagged, how many of them are poisoned (N,), and the classes of at least one."""
    return {
        "flagged": int(flagged.sum()),
        "both": int((flagged & poisoned).sum()),
        "classes": rows.y[flagged].unique().tolist(),  # type: ignore[no-untyped-call]
    }


def rows(files: dict[str, Path], out: Path) -> Iterator[dict[str, Any]]:
    """One row a network: all poisoned ones first, then the clean ones."""
    done = {row["key"] for row in rows_in(out)}
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
        add_row(out, row)
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


def bank_rows(out: Path) -> Iterator[dict[str, Any]]:
    """One row a trained open member of the bank whose attack poisons a training set, and for each clean one."""
    done = {row["key"] for row in rows_in(out)}
    params = load_params()
    for member, data, network in trained(load_settings(), [m for m in members_to_measure() if m.name not in done]):
        rows = network.training(read_samples(data.training))
        if rows is None:
            continue
        subject = Subject(
            model=network.model,
            layer=default_layer(network.model),
            classes=data.classes,
            clean=read_samples(data.splits.invert, data.splits.confirm),
            train=rows,
        )
        poisoned = torch.zeros(len(rows), dtype=torch.bool)
        if not member.clean:
            poisoned[network.tensors["changed"].long()] = True
        row: dict[str, Any] = {"key": member.name, "attack": member.attack, "poisoned": int(poisoned.sum()), "by": {}}
        for name, method in DETECTORS.items():
            if method.axis is Axis.TRAIN:
                found: Evidence = method(subject, seed=member.seed, **params.detect.get(name, {}))
                row["by"][name] = {"statistic": round(found.statistic, 3)} | flags(found.flagged, rows, poisoned)
        add_row(out, row)
        yield row


def bank_table(found: Sequence[dict[str, Any]]) -> Table:
    """By attack, for each detector: members of which it flags rows, precision and recall over all their rows."""
    names = sorted({name for row in found for name in row["by"]})
    shown = Table("attack", "members", *names)
    for attack in sorted({row["attack"] for row in found}):
        some = [row for row in found if row["attack"] == attack]
        cells = []
        for name in names:
            by = [row["by"][name] for row in some]
            flagged, both = sum(b["flagged"] for b in by), sum(b["both"] for b in by)
            poisoned = sum(row["poisoned"] for row in some)
            cell = f"{sum(b['flagged'] > 0 for b in by)}"
            cells.append(cell if not poisoned else f"{cell}; {both / max(1, flagged):.2f}, {both / poisoned:.2f}")
        shown.add_row(attack, str(len(some)), *cells)
    return shown


def cost(every: Samples, test: Samples, count: int) -> Table:
    """What each detector takes for so many rows, a tenth poisoned: processor seconds, and memory beyond the images.

    Where the data set has fewer, they come again.
    """
    every = every[torch.arange(count) % len(every)]
    case = given(Plan(count, 1, (), 1, 0), every, test, 0.1, 0)
    shown = Table("detector", "rows", "CPU-s", "memory grew by, MiB")
    for name, method in DETECTORS.items():
        if method.axis is Axis.TRAIN:
            before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
            method(case.subject)
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
            shown.add_row(name, str(len(every)), f"{time.process_time() - started:.0f}", f"{grown:.0f}")
    return shown


def main() -> None:
    """Do what is not in the file yet, and print the tables of what is."""
    parser = argparse.ArgumentParser(description=__doc__)
    for data in PLANS:
        parser.add_argument(f"--{data}", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--bank", type=Path, metavar="FILE", help="what each detector flags of the bank's open members")
    parser.add_argument("--cost", type=Path, metavar="NPZ", help="what the detectors take for many rows")
    parser.add_argument("--rows", type=int, default=50_000)
    asked = parser.parse_args()
    if asked.cost is not None:
        Console().print(cost(images(asked.cost, "train"), images(asked.cost, "test"), asked.rows))
        return
    if asked.bank is not None:
        for row in bank_rows(asked.bank):
            Console(stderr=True).print(row)
        Console(width=180).print(bank_table(rows_in(asked.bank)))
        return
    if asked.json is None:
        parser.error("expected --json FILE, --bank FILE or --cost NPZ")
    files = {data: file for data in PLANS if (file := getattr(asked, data)) is not None}
    for row in rows(files, asked.json):
        Console(stderr=True).print(row["key"], row["before"])
    for table in tables(rows_in(asked.json)):
        Console(width=160).print(table)


if __name__ == "__main__":
    main()
