"""Which statistics tell the bank's backdoored members from its clean ones, chosen on one half, confirmed on the other.

`python -m benchmarks.statistics [NAME ...] [--jobs N] [--json FILE]` measures the candidates of benchmarks/candidates
on the weights of all open members that are at hand, and keeps what it measured under <home>/bank/statistics, so that a
killed run goes on where it was. `stored` are the scores in the evidence that git holds, which needs no weights. Sealed
members are neither read nor loaded.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import pkgutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks import candidates
from benchmarks.halves import NULLS, Column, Network, score
from flows.bank.data import Source, read_samples
from flows.bank.evidence import Gradients, spread
from flows.bank.files import Files
from flows.bank.networks import OPEN, Member, Recipe, member_file, once, plan
from flows.bank.stage import _at_hand, _source
from flows.bank.train import load
from tasks.settings import load_settings
from vetgate.architectures import default_layer
from vetgate.contract import Subject, private_random

STORED = "stored"
NAMES = sorted(module.name for module in pkgutil.iter_modules(candidates.__path__))
# the images that a candidate gets, out of those that detectors invert on and confirm on
IMAGES = 512


@dataclass(frozen=True)
class Task:
    """One candidate on one member."""

    candidate: str
    member: Member
    recipe: Recipe
    data: Source
    place: Path


def main() -> None:
    """Measure what is not measured yet, score it, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {STORED}, {', '.join(NAMES)}; default: all")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path, help="the table of the best of each candidate, as Markdown")
    parser.add_argument("--data", action="append", help="only members on this data set; may be given several times")
    given = parser.parse_args()
    files = Files()
    members = [m for m in open_members(files) if not given.data or m.data in given.data]
    rows: list[dict[str, Any]] = []
    for name in given.names or [STORED, *NAMES]:
        found, cost = (stored(files, members), {}) if name == STORED else measured(name, files, members, given.jobs)
        for column, scores in found.items():
            for null in NULLS if max(map(len, scores.values())) > 1 else ["model"]:
                about = {"candidate": name, "column": column, "null": null, **cost}
                rows.append({**about, **score(scores, members, NULLS[null])})
    show(rows)
    if given.json:
        given.json.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
    if given.page:
        given.page.write_text(page(rows, sorted({m.data for m in members})))


def open_members(files: Files) -> list[Network]:
    """The open members that were inspected; patches that only fool a clean network are no backdoors."""
    found = []
    for name, member in files.members.items():
        if name in files.evidence and files.group(name) == OPEN:
            card = files.cards[name]
            attack = member.attack if card.get("form", "one") == "one" else f"{member.attack} {card['form']}"
            found.append(Network(name, member.data, member.architecture, attack, files.kind(name), card.get("target")))
    return found


def stored(files: Files, members: list[Network]) -> dict[str, Column]:
    """The scores per label of every detector, or its statistic, from the evidence in git."""
    found: dict[str, dict[str, Any]] = {}
    for member in members:
        for method, seen in files.evidence[member.name].items():
            if "statistic" in seen:
                found.setdefault(method, {})[member.name] = np.array(seen.get("scores") or [seen["statistic"]])
    return dict(found)


def measured(
    candidate: str, files: Files, members: list[Network], jobs: int
) -> tuple[dict[str, Column], dict[str, Any]]:
    """The columns of a candidate on the members whose weights are at hand, and what it costs in the median."""
    tasks = list(tasks_of(candidate, files, members))
    columns: dict[str, dict[str, Any]] = {}
    seconds, gradients = [], []
    with Progress() as bar:
        shown = bar.add_task(candidate, total=len(tasks))
        for task, found in spread(measure, tasks, jobs):
            for column, values in found["columns"].items():
                columns.setdefault(column, {})[task.member.name] = np.array(values)
            seconds.append(found["seconds"])
            gradients.append(found["image_gradients"])
            bar.advance(shown)
    if not tasks:
        return {}, {}
    return dict(columns), {
        "members": len(tasks),
        "seconds": round(float(np.median(seconds)), 2),
        "image_gradients": int(np.median(gradients)),
    }


def tasks_of(candidate: str, files: Files, members: list[Network]) -> Iterator[Task]:
    """A task for each member that has been trained under this home."""
    place, recipes = load_settings().home / "bank", plan().sets
    sources = {data: _source(data) for data in sorted({m.data for m in members} & _at_hand(load_settings()))}
    for member in members:
        if member.data in sources:
            about, recipe, data = files.members[member.name], recipes[member.data], sources[member.data]
            if member_file(place, about, recipe, data.ref.sha256).with_suffix(".json").exists():
                yield Task(candidate, about, recipe, data, place)


def measure(task: Task) -> dict[str, Any]:
    """What a candidate gives on a member: its columns, processor seconds, and images that a gradient was taken of."""
    module = importlib.import_module(f"{candidates.__name__}.{task.candidate}")
    weights = member_file(task.place, task.member, task.recipe, task.data.ref.sha256)
    code = hashlib.sha256(Path(str(module.__file__)).read_bytes()).hexdigest()[:12]
    folder = task.place / "statistics"
    folder.mkdir(exist_ok=True)

    def run() -> dict[str, Any]:
        network = load(weights, task.member, task.data.shape, task.data.classes)
        clean = read_samples(task.data.splits.invert, task.data.splits.confirm)[:IMAGES]
        layer = default_layer(network.model)
        subject = Subject(model=network.model, layer=layer, classes=task.data.classes, clean=clean)
        counted, started = Gradients(network.model), time.process_time()
        try:
            with private_random(task.member.seed, task.candidate):
                given = module.measure(subject)
        finally:
            counted.stop()
        columns = {name: [round(v, 6) for v in values.flatten().tolist()] for name, values in given.items()}
        seconds = round(time.process_time() - started, 2)
        return {"columns": columns, "seconds": seconds, "image_gradients": counted.images}

    return once(folder / f"{weights.stem}.{task.candidate}.{code}.json", run)


HEAD = (
    *("candidate", "column", "null", "AUROC chosen on", "confirmed", "detected", "confirmed"),
    *("right label", "clean and backdoored", "CPU-s"),
)


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table: AUROC and share detected on either half with 95 % intervals, and what it costs a member."""
    found = [row["candidate"], row["column"], row["null"]]
    for what in ("auroc", "detected"):
        for half in ("choose", "confirm"):
            low, high = row[half][f"{what}_interval"]
            found.append(f"{row[half][what]} [{low}, {high}]")
    right, named = row["confirm"]["right_label"]
    counts = [sum(row[half][kind] for half in ("choose", "confirm")) for kind in ("clean", "backdoored")]
    return [*found, f"{right} of {named}", "{} and {}".format(*counts), str(row.get("seconds", ""))]


def by_choice(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Best on the half to choose on first."""
    return sorted(rows, key=lambda row: -(row["choose"]["auroc"] or 0))


def show(rows: list[dict[str, Any]]) -> None:
    """The table of all rows."""
    table = Table(*HEAD)
    for row in by_choice(rows):
        table.add_row(*cells(row))
    Console(width=180).print(table)


def page(rows: list[dict[str, Any]], data: list[str]) -> str:
    """What worked and what did not: of each candidate the column and null that won on the half to choose on."""
    won: dict[str, dict[str, Any]] = {}
    for row in by_choice(rows):
        won.setdefault(row["column"] if row["candidate"] == STORED else row["candidate"], row)
    tried = {name: sum(other["candidate"] == row["candidate"] for other in rows) for name, row in won.items()}
    lines = [
        "# Statistics on trial",
        "",
        "Generated by `benchmarks.statistics`, as `benchmarks/README.md` says; do not edit. Each row is the",
        "variant of a candidate that did best on one half of the bank's open members, and what the same variant",
        "comes to on the other half, which had no part in the choice. Detected is what exceeds all but 5 % of",
        "clean members. Brackets are 95 % bootstrap intervals over models. A variant is a column of",
        "`benchmarks/candidates/` under one of three nulls: the other labels of the model, the same label in clean",
        "models of the data set, or in those of the architecture too.",
        "",
        f"Open members on {', '.join(data)}; each candidate on those whose weights were at hand.",
        "",
        "| " + " | ".join([*HEAD, "variants"]) + " |",
        "|" + " --- |" * (len(HEAD) + 1),
        *("| " + " | ".join([*cells(row), str(tried[name])]) + " |" for name, row in won.items()),
        "",
        "## By attack",
        "",
        "Detected on the half that confirms, of those it has.",
        "",
    ]
    attacks = sorted({attack for row in won.values() for attack in row["confirm"]["by_attack"]})
    lines += ["| candidate | " + " | ".join(attacks) + " |", "|" + " --- |" * (len(attacks) + 1)]
    for name, row in won.items():
        found = row["confirm"]["by_attack"]
        lines.append(f"| {name} | " + " | ".join("{} of {}".format(*found.get(a, (0, 0))) for a in attacks) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
