"""What run-time guards see of known triggers, and what they cost: guards fitted on trusted images, members of the bank.

`VETGATE_HOME=HOME python -m benchmarks.runtime --json FILE` takes the backdoored members that
`python -m flows.bank.stage fill` has trained under HOME, and the clean networks that an adversarial patch fools. Each
guard learns of the images for repairs and has its cut set on those for validation, at 1 and at 5 % false rejections;
detection is measured on the attacker's own stamped test images that the network takes for the wanted label, and false
rejections on test images. FILE gets a line a member and guard, and what is in it is not done again. `--members` and
`--guards` name some of them; `--attacks` those of some attacks.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

import vetgate.detect
import vetgate.guard  # noqa: F401 - registers the methods
from benchmarks.trained import trained
from flows.bank.data import Source, read_samples
from flows.bank.networks import OPEN, Member, members, plan
from flows.bank.train import Network
from flows.params import load_params
from tasks.settings import load_settings
from vetgate.architectures import default_layer
from vetgate.contract import DETECTORS, Evidence, Samples, Subject
from vetgate.errors import DefenceError
from vetgate.guard.contract import GUARDS, Guard
from vetgate.probe import accuracy, logits
from vetgate.role import source_of

RATES = (0.01, 0.05)


def to_measure() -> list[Member]:
    """The open members with a trigger, those of adversarial patches among them."""
    return [m for m in members().values() if plan().group(m.name) == OPEN and not m.clean]


def evidence_of(subject: Subject, member: Member, file: Path) -> list[Evidence]:
    """What the detector that reverses triggers finds, run once and then read from its file."""
    method = source_of("triggers")
    assert method is not None
    if file.exists():
        return [Evidence.from_json(json.loads(file.read_text()))]
    found = DETECTORS[method](subject, seed=member.seed, **load_params().detect.get(method, {}))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found.to_json()))
    return [found]


def figures(
    guard: Guard, subject: Subject, evidence: Sequence[Evidence], held: Samples, test: Samples, attacked: Attacked
) -> dict[str, Any]:
    """AUROC, and at each rate the share of working triggered images and of clean ones that are rejected."""
    started = time.process_time()
    fitted = guard.fit(subject, *evidence)
    out: dict[str, Any] = {"fit_seconds": round(time.process_time() - started, 2), "rates": {}}
    started = time.process_time()
    clean = guard.score(fitted, subject.model, test.x)
    out["ms"] = round(1000 * (time.process_time() - started) / len(test), 3)
    stamped = guard.score(fitted, subject.model, attacked.x)
    truth = [0] * len(clean) + [1] * len(stamped)
    out["auroc"] = round(float(roc_auc_score(truth, torch.cat([clean, stamped]).nan_to_num(posinf=1e30).numpy())), 4)
    for rate in RATES:
        cut = guard.with_cut(fitted, subject.model, held.x, rate=rate)
        assert cut.cut is not None
        detected, rejected = (float((s > cut.cut).float().mean()) for s in (stamped, clean))
        out["rates"][str(rate)] = {"detected": round(detected, 4), "rejected": round(rejected, 4)}
    if guard.voting is not None:
        bare, voted = accuracy(subject.model, test.x, test.y), guard.vote(fitted, subject.model, test.x)
        right = guard.vote(fitted, subject.model, attacked.x).labels == attacked.true
        out["vote"] = {
            "noise": f"{fitted.numbers['family']} {fitted.numbers['level']:g}",
            "accuracy": [round(bare, 4), round(float((voted.labels == test.y).float().mean()), 4)],
            "corrected": round(float(right.float().mean()), 4),
        }
    return out


class Attacked:
    """The stamped test images that the network takes for the wanted label, with their true labels."""

    def __init__(self, model: nn.Module, given: tuple[Tensor, Tensor, Tensor]) -> None:
        x, true, wanted = given
        works = logits(model, x).argmax(1) == wanted
        self.x, self.true, self.success = x[works], true[works], float(works.float().mean())


def rows(wanted: Sequence[Member], guards: Sequence[str], out: Path, place: Path) -> Iterator[dict[str, Any]]:
    """One row a member that is trained and a guard."""
    lines = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    done = {(row["name"], row["guard"]) for row in lines}
    for member, given, network in trained(load_settings(), wanted):
        left = [name for name in guards if (member.name, name) not in done]
        if not left or network.attacked is None:
            continue
        yield from _rows(member, given, network, left, out, place)


def _rows(
    member: Member, given: Source, network: Network, guards: Sequence[str], out: Path, place: Path
) -> Iterator[dict[str, Any]]:
    model, splits = network.model, given.splits
    assert network.attacked is not None
    attacked = Attacked(model, network.attacked)
    subject = Subject(model=model, layer=default_layer(model), classes=given.classes, clean=read_samples(splits.repair))
    held, test = read_samples(splits.validate), read_samples(splits.test)
    for name in guards:
        row: dict[str, Any] = {"name": member.name, "data": member.data, "attack": member.attack, "guard": name}
        row |= {"architecture": member.architecture, "success": round(attacked.success, 4), "images": len(attacked.x)}
        evidence: list[Evidence] = []
        if GUARDS[name].role.uses is not None:
            searched = Subject(
                model=model, layer=subject.layer, classes=given.classes, clean=read_samples(splits.invert)
            )
            evidence = evidence_of(searched, member, place / f"{member.name}.json")
        try:
            row |= figures(GUARDS[name], subject, evidence, held, test, attacked)
        except DefenceError as error:
            row["failed"] = str(error)
        with out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        yield row


def table(found: Sequence[Mapping[str, Any]]) -> Table:
    """A line an attack, a column a guard: AUROC and detection at the rates, means over the members."""
    guards = sorted({row["guard"] for row in found})
    shown = Table("attack", "members", *guards, title="AUROC, detected at 1 % / at 5 % false rejections")
    for attack in sorted({row["attack"] for row in found}):
        mine = [row for row in found if row["attack"] == attack]
        cells = []
        for guard in guards:
            measured = [row for row in mine if row["guard"] == guard and "failed" not in row]
            each = [mean(row["rates"][str(rate)]["detected"] for row in measured) for rate in RATES] if measured else []
            text = " / ".join(f"{share:.0%}" for share in each)
            cells.append(f"{mean(r['auroc'] for r in measured):.3f} {text} ({len(measured)})" if measured else "")
        shown.add_row(attack, str(len({row["name"] for row in mine})), *cells)
    clean = [[row["rates"][str(rate)]["rejected"] for rate in RATES] for row in found if "failed" not in row]
    shown.caption = "false rejections on test images, mean: " + " and ".join(
        f"{mean(pair[at] for pair in clean):.2%} at {rate:.0%}" for at, rate in enumerate(RATES)
    )
    return shown


def main() -> None:
    """Do what is not in the file yet, and print the table of what is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--members", nargs="+", default=[m.name for m in to_measure()])
    parser.add_argument("--attacks", nargs="+", default=sorted({m.attack for m in to_measure()}))
    parser.add_argument("--guards", nargs="+", default=sorted(GUARDS), choices=sorted(GUARDS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    wanted = [m for m in to_measure() if m.name in given.members and m.attack in given.attacks]
    place = given.json.with_suffix("").with_name(f"{given.json.stem}-evidence")
    for row in rows(wanted, given.guards, given.json, place):
        Console(stderr=True).print(row)
    Console(width=180).print(table([json.loads(line) for line in given.json.read_text().splitlines()]))


if __name__ == "__main__":
    main()
