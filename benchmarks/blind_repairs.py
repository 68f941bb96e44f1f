"""Which repair hardens best blindly: each on the bank's open members that the verdict does not find, without evidence.

`VETGATE_HOME=HOME python -m benchmarks.blind_repairs --json FILE` takes the backdoored members that
`python -m flows.bank.stage fill` has trained under HOME and that the shipped policy and calibration let pass, the
model alone, and repairs a copy of each by every repair that needs no evidence and only clean images. All is measured on
the attacker's own stamped images and on the member's test images. `--clean N` adds N clean members of each data set.
FILE gets a line a member and repair; what is in it is not done again. `--repairs` names some of them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import vetgate.repair  # noqa: F401 - registers the methods
from benchmarks.bank_repairs import asked, change, rating
from benchmarks.rows import add_row, rows_in
from benchmarks.trained import trained
from flows.bank.data import read_samples
from flows.bank.files import Files, verdict
from flows.bank.networks import Member
from flows.bank.repair import measured
from flows.benchmark.tables import SOLVED
from flows.params import load_params
from tasks.settings import load_settings
from vetgate.architectures import default_layer
from vetgate.contract import REPAIRS, Subject
from vetgate.errors import DefenceError
from vetgate.verdict.calibration import load_calibration
from vetgate.verdict.judge import Decision
from vetgate.verdict.policy import load_policy


def missed(wanted: Sequence[Member]) -> list[Member]:
    """Those that the verdict on the model alone, from the evidence in git, does not FAIL; clean ones among them."""
    files, policy, calibration = Files(), load_policy(), load_calibration()
    assert calibration is not None

    def passes(member: Member) -> bool:
        seen = files.seen(member.name, policy.required)
        found = verdict(seen, calibration, policy, files.cards[member.name], files)
        return found.decision is not Decision.FAIL

    return [m for m in wanted if m.clean or (files.backdoored(m.name) and passes(m))]


def rows(wanted: Sequence[Member], repairs: Sequence[str], out: Path) -> Iterator[dict[str, Any]]:
    """One row a member that is trained and a repair."""
    done = {(row["name"], row["repair"]) for row in rows_in(out)}
    params = load_params()
    for member, given, network in trained(load_settings(), wanted):
        test = read_samples(given.splits.test)
        subject = Subject(
            model=network.model,
            layer=default_layer(network.model),
            classes=given.classes,
            clean=read_samples(given.splits.repair),
        )
        before = measured(network.model, test, network.attacked)
        for name in repairs:
            if (member.name, name) in done:
                continue
            started = time.process_time()
            try:
                made = REPAIRS[name](subject, seed=member.seed, **params.repair.get(name, {}))
                after = measured(made.model, test, network.attacked)
            except DefenceError as error:
                after = {"failed": str(error)}
            row = {"name": member.name, "data": member.data, "attack": member.attack, "repair": name}
            row |= {"before": before, "after": after, "seconds": round(time.process_time() - started, 1)}
            add_row(out, row)
            yield row


def table(found: Sequence[dict[str, Any]]) -> Table:
    """A line a repair: what it does to the members that were missed, and what it costs clean ones."""
    shown = Table("repair", "missed", "CA", "ASR", "RA", "DER", "ASR <= 10 %", "clean", "CA", "lost at most", "CPU-s")
    for name in sorted({row["repair"] for row in found}):
        mine = [row for row in found if row["repair"] == name and "failed" not in row["after"]]
        bad = [row for row in mine if "attack_success" in row["before"]]
        good = [row for row in mine if "attack_success" not in row["before"]]
        cells = [str(len(bad)), *(change(bad, what) for what in ("accuracy", "attack_success", "robust_accuracy"))]
        cells += [f"{mean(map(rating, bad)):.3f}"]
        cells += [str(sum(row["after"]["attack_success"] <= SOLVED for row in bad)), str(len(good))]
        lost = [row["before"]["accuracy"] - row["after"]["accuracy"] for row in good]
        cells += [change(good, "accuracy"), f"{max(lost):.1%}"] if good else ["", ""]
        shown.add_row(name, *cells, f"{mean(row['seconds'] for row in mine):.0f}")
    return shown


def main() -> None:
    """Do what is not in the file yet, and print the table of what is."""
    blind = [name for name, method in REPAIRS.items() if method.uses is None]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--clean", type=int, default=0)
    parser.add_argument("--repairs", nargs="+", default=blind, choices=blind)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for row in rows(missed(asked(given.clean, (0, 1))), given.repairs, given.json):
        Console(stderr=True).print(row["name"], row["repair"], row["before"], row["after"], row["seconds"])
    Console(width=160).print(table(rows_in(given.json)))


if __name__ == "__main__":
    main()
