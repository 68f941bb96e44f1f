"""Whether verdicts hang on what they must not: the seed, the count of threads, the scale of logits, the host's load.

`python -m benchmarks.robustness --data digits --count 10 --json FILE` judges as many open members of the bank whose
weights are at hand, half of them backdoored, each by a calibration that did not see it: as they are, from two other
seeds, with two threads, with logits times a hundred, and with every core busy. The policy's required methods run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

import vetgate.detect  # noqa: F401 - registers the detectors
from benchmarks.halves import Network
from benchmarks.statistics import Task, open_members, tasks_of
from flows.bank.calibrate import of_the_bank
from flows.bank.data import read_samples
from flows.bank.files import Files, verdict
from flows.bank.networks import member_file
from flows.bank.train import load
from flows.benchmark.score import without
from flows.params import load_params
from vetgate.architectures import default_layer
from vetgate.contract import DETECTORS, Subject
from vetgate.verdict.calibration import Calibration
from vetgate.verdict.policy import load_policy


class Scaled(nn.Module):
    """The same model with larger logits."""

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        out: Tensor = self.model(x)
        return self.factor * out


@dataclass(frozen=True)
class Change:
    """What is changed about a run that must not change its verdict."""

    seed: int = 0
    threads: int = 1
    scale: float = 1.0
    host: Callable[[], AbstractContextManager[None]] = nullcontext


@contextmanager
def busy() -> Iterator[None]:
    """Two processes a core that do nothing but compute, for as long as this one lives."""
    count, idle = 2 * (os.cpu_count() or 1), f"import os\nwhile os.getppid() == {os.getpid()}: pass"
    running = [subprocess.Popen([sys.executable, "-c", idle]) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


CHANGES = {
    "as it is": Change(),
    "seed + 1": Change(seed=1),
    "seed + 2": Change(seed=2),
    "two threads": Change(threads=2),
    "logits x 100": Change(scale=100.0),
    "busy host": Change(host=busy),
}


def main() -> None:
    """Judge each member under each change, print the table, and end with 1 where a decision hangs on one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--changes", nargs="+", choices=CHANGES, default=list(CHANGES), metavar="CHANGE")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    files = Files()
    whole = Calibration(of_the_bank(files), "bank")
    tasks = chosen(files, given.data, given.count)
    rows = [judged(task, files, whole, given.changes) for task in track(tasks, "members")]
    table = Table("member", *given.changes)
    for row in rows:
        table.add_row(row["name"], *(f"{row[name]['decision']} {row[name]['p_value']}" for name in given.changes))
    if given.json:
        given.json.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
    Console(width=180).print(table)
    sys.exit(any(len({row[name]["decision"] for name in given.changes}) > 1 for row in rows))


def chosen(files: Files, data: str, count: int) -> list[Task]:
    """Members to judge, half clean and half backdoored, by digests of their names."""
    members = [m for m in open_members(files) if m.data == data]

    def some(kind: str, many: int) -> list[Network]:
        alike = [m for m in members if m.kind == kind]
        return sorted(alike, key=lambda m: hashlib.sha256(m.name.encode()).hexdigest())[:many]

    return list(tasks_of("", files, [*some("clean", count - count // 2), *some("backdoored", count // 2)]))


def judged(task: Task, files: Files, whole: Calibration, changes: Sequence[str]) -> dict[str, Any]:
    """The decision and p-value on a member under each of CHANGES that is named."""
    card, policy, params = files.cards[task.member.name], load_policy(), load_params().detect
    weights = member_file(task.place, task.member, task.recipe, task.data.ref.sha256)
    model = load(weights, task.member, task.data.shape, task.data.classes).model
    clean = read_samples(task.data.splits.invert, task.data.splits.confirm)
    calibration = without(whole, task.member, card)
    found: dict[str, Any] = {"name": task.member.name}
    for name in changes:
        change = CHANGES[name]
        torch.set_num_threads(change.threads)
        subject = Subject(
            model=model if change.scale == 1 else Scaled(model, change.scale),
            layer=("" if change.scale == 1 else "model.") + default_layer(model),
            classes=task.data.classes,
            clean=clean,
        )
        with change.host():
            seen = [DETECTORS[m](subject, seed=task.member.seed + change.seed, **params[m]) for m in policy.required]
        ruled = verdict(seen, calibration, policy, card, files)
        found[name] = {"decision": ruled.decision.value, "p_value": ruled.p_value, "suspects": list(ruled.suspects)}
    return found


if __name__ == "__main__":
    main()
