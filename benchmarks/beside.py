"""What a candidate would add to the verdict: every open member judged with its scores as those of one more detector.

`python -m benchmarks.beside CANDIDATE COLUMN [--weight W] [--architecture] [--json FILE]` takes what
`benchmarks.statistics` measures of a candidate on the members whose weights are at hand, and judges each member by a
calibration that did not see it, without the candidate and with it. AUROC and the shares of backdoored members with
p-values of at most 5 and 1 % are told for the half to choose on and the half that confirms. No label is confirmed by a
candidate: what is told is the p-value alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.halves import Column, Network, half_of
from benchmarks.rows import add_row
from benchmarks.statistics import NAMES, measured, open_members
from flows.bank.calibrate import of_the_bank
from flows.bank.files import Files, verdict
from flows.benchmark.score import policy_at, without
from vetgate.contract import Axis, Evidence
from vetgate.role import By, Confirm, Role, roles
from vetgate.verdict.calibration import Bank, Calibration, MethodPin, Reference, Seen
from vetgate.verdict.metrics import auroc
from vetgate.verdict.policy import Policy

CANDIDATE = "candidate"


def p_values(files: Files, members: list[Network], column: Column | None, policy: Policy) -> dict[str, float]:
    """The p-value of each member's verdict, with the candidate's scores where they are given."""
    bank = of_the_bank(files)
    if column is not None:
        bank = _with(bank, files, column)
        policy = policy.model_copy(update={"required": (*policy.required, CANDIDATE)})
    whole, found = Calibration(bank, "bank"), {}
    for name in (m.name for m in members):
        member, card = files.members[name], files.cards[name]
        seen = files.seen(name, [method for method in policy.required if method != CANDIDATE])
        if column is not None:
            scores = torch.tensor(column[name], dtype=torch.float32)
            seen.append(
                Evidence(
                    statistic=float(scores.max() - scores.median()),
                    scores=scores,
                    cutoff=float("inf"),
                    method=CANDIDATE,
                    axis=Axis.CLASS,
                    seed=seen[0].seed,
                )
            )
        p = verdict(seen, without(whole, member, card), policy, card, files).p_value
        # what could not be judged is never clean
        found[name] = 0.0 if p is None else p
    return found


def _with(bank: Bank, files: Files, column: Column) -> Bank:
    places = {(m.data, m.seed): name for name, m in files.members.items() if m.clean and name in column}

    def reference(one: Reference) -> Reference:
        scores = column[places[one.data, one.seed]]
        seen = Seen(statistic=float(scores.max() - np.median(scores)), scores=tuple(scores.tolist()))
        return one.model_copy(update={"seen": {**one.seen, CANDIDATE: seen}})

    pins = {**bank.methods, CANDIDATE: MethodPin(code="", params={})}
    return Bank(methods=pins, references=tuple(map(reference, bank.references)))


def row(found: dict[str, float], members: list[Network]) -> dict[str, Any]:
    """AUROC, shares found at 5 and 1 %, and false alarms at 5 %, on either half and on all."""
    chosen = half_of(members)
    out: dict[str, Any] = {}
    for half in ("choose", "confirm", "all"):
        mine = [m for m in members if half == "all" or chosen[m.name] == (half == "choose")]
        good, bad = (np.array([found[m.name] for m in mine if m.kind == kind]) for kind in ("clean", "backdoored"))
        out[half] = {
            "auroc": round(auroc(-good, -bad), 3),
            "at 5 %": round(float((bad <= 0.05).mean()), 3),
            "at 1 %": round(float((bad <= 0.01).mean()), 3),
            "false alarms": f"{int((good <= 0.05).sum())} of {len(good)}",
        }
    return out


def main() -> None:
    """Judge all members twice, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("candidate", choices=NAMES)
    parser.add_argument("column")
    parser.add_argument("--weight", type=float, default=1.0)
    parser.add_argument("--architecture", action="store_true", help="each label against clean models of its kind")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    files = Files()
    members = open_members(files)
    columns, _ = measured(given.candidate, files, members, given.jobs)
    if len(columns.get(given.column, ())) < len(members):
        parser.error(f"expected a column of all {len(members)} open members, got {len(columns.get(given.column, ()))}")
    roles()[CANDIDATE] = Role(
        axis=Axis.CLASS,
        weight=given.weight,
        null=By.LABEL,
        confirm=Confirm.REPEATED,
        title="Candidate",
        sentence="On trial.",
        by_architecture=given.architecture,
    )
    table, policy = Table("verdict", "half", "AUROC", "at 5 %", "at 1 %", "false alarms"), policy_at(None)
    about = {"candidate": given.candidate, "column": given.column, "weight": given.weight}
    for title, column in (("as it is", None), ("with it", columns[given.column])):
        found = row(p_values(files, members, column, policy), members)
        for half, figures in found.items():
            table.add_row(title, half, *map(str, figures.values()))
        if given.json:
            add_row(given.json, {**about, "verdict": title, **found})
    Console().print(table)


if __name__ == "__main__":
    main()
