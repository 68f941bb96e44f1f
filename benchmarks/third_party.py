"""Vet models that others made, as a user would: verdict, cost, memory of the whole process tree, and the repair.

`python -m benchmarks.third_party SHARED --models a b c d --homes 3 --json FILE` takes `SHARED/models/third-party-*` and
`SHARED/data/*.npz`; of the faces that e and f know there are no images, and they name no reference data. Every home is
a new installation with a secret of its own, and so with seeds of its own. Where the trigger is documented (a and c: a
white 5x5 square bottom right, to class 1), the repaired model is measured under it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import yaml
from rich.console import Console
from rich.table import Table

from benchmarks.images import images
from tasks.sandbox.prctl import PR_SET_CHILD_SUBREAPER, prctl
from vetgate.attacks.badnets import square
from vetgate.formats.load import load_model
from vetgate.formats.submission import read_submission
from vetgate.inversion import attack_success
from vetgate.probe import accuracy
from vetgate.shipped import POLICY

DATA = {"a": "mnist", "b": "mnist", "c": "cifar10", "d": "gtsrb", "e": None, "f": None}
DOCUMENTED = {"a": (5, 1), "c": (5, 1)}  # size of the white square bottom right, and its target


class Watch(threading.Thread):
    """The largest sum of memory over a process and all its descendants, in bytes; what n of them share counts once."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.peak, self.done = pid, 0, False

    def run(self) -> None:
        """Sample until told to stop."""
        while not self.done:
            try:
                root = psutil.Process(self.pid)
                total = 0
                for process in [root, *root.children(recursive=True)]:
                    try:
                        total += process.memory_full_info().pss
                    except psutil.Error:
                        continue
                self.peak = max(self.peak, total)
            except psutil.Error:
                return
            time.sleep(0.5)


def reap() -> None:
    """Wait for what a command left behind, which is this process's to wait for; so it is counted."""
    with suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


def processor_seconds() -> float:
    """Of all processes that this one, or what it has started, has started and that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def vetgate(home: Path, *arguments: str) -> tuple[int, dict[str, Any], dict[str, float]]:
    """Run the command line in a home: exit code, its JSON object, and what it took, in time and memory."""
    started, spent = time.monotonic(), processor_seconds()
    child = subprocess.Popen(
        [sys.executable, "-m", "flows", *arguments, "--json"],
        env=os.environ | {"VETGATE_HOME": str(home)},
        stdout=subprocess.PIPE,
        text=True,
    )
    watch = Watch(child.pid)
    watch.start()
    out, _ = child.communicate()
    seconds, watch.done = time.monotonic() - started, True
    reap()
    cost = {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(processor_seconds() - spent, 1),
        "peak_gib": round(watch.peak / 2**30, 2),
    }
    return child.returncode, json.loads(out), cost


def repairs_by_policy(home: Path, **repair: bool) -> None:
    """Have what is vetted in a home go by the shipped policy with these settings of its repairs."""
    policy = yaml.safe_load(POLICY.read_text())
    policy["repair"] |= repair
    home.mkdir(parents=True, exist_ok=True)
    (home / "policy.yaml").write_text(yaml.safe_dump(policy))
    os.environ["VETGATE_POLICY"] = str(home / "policy.yaml")


def under_documented_trigger(model: str, artifact: Path, shared: Path) -> dict[str, float]:
    """Clean accuracy and attack success of the documented trigger on all test images, for a submission's directory."""
    submission = read_submission(artifact)
    net = load_model(artifact, submission).model
    test = images(shared / "data" / f"{DATA[model]}.npz", "test")
    size, target = DOCUMENTED[model]
    trigger = square(submission.input_shape, target, row=-size, column=-size, size=size)
    return {
        "accuracy": accuracy(net, test.x, test.y),
        "attack_success": attack_success(net, test.x, test.y, trigger),
    }


def rows(shared: Path, models: list[str], homes: int) -> Iterator[dict[str, Any]]:
    """One row a model and home."""
    for turn in range(homes):
        with tempfile.TemporaryDirectory() as room:
            home = Path(room, "home")
            for data in sorted({data for m in models if (data := DATA[m]) is not None}):
                vetgate(home, "data", "add", data, str(shared / "data" / f"{data}.npz"))
            for model in models:
                directory = shared / "models" / f"third-party-{model}"
                code, result, cost = vetgate(home, "vet", str(directory))
                row = {
                    "model": model,
                    "home": turn,
                    "exit": code,
                    "verdict": result.get("verdict"),
                    "p_value": result.get("p_value"),
                    "suspects": result.get("suspects"),
                    "reasons": result.get("reasons", result.get("error")),
                    "methods": result.get("methods"),
                    "repair": result.get("repair"),
                    # of a model that nobody has images of: the labels to look at first
                    "first": {
                        record["method"]: record["figures"]["labels"]
                        for record in result.get("reason_records") or ()
                        if record["code"] == "surrogates"
                    },
                    **cost,
                }
                if model in DOCUMENTED:
                    row["documented_before"] = under_documented_trigger(model, directory, shared)
                    if result.get("repair"):
                        repaired = Path(result["repair"]["artifact"]).parent
                        row["documented_after"] = under_documented_trigger(model, repaired, shared)
                yield row


def main() -> None:
    """Print the table and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shared", type=Path)
    parser.add_argument("--models", nargs="+", default=sorted(DATA), choices=sorted(DATA))
    parser.add_argument("--homes", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    table = Table("model", "home", "verdict", "p", "suspects", "seconds", "CPU-s", "peak GiB")
    table.add_column("documented trigger")
    table.add_column("repair")
    found = []
    for row in rows(given.shared, given.models, given.homes):
        found.append(row)
        Console(stderr=True).print(row)
        trigger = " -> ".join(
            f"{row[k]['accuracy']:.3f}/{row[k]['attack_success']:.3f}"
            for k in ("documented_before", "documented_after")
            if k in row
        )
        repair = row["repair"] and row["repair"]["verdict"]
        cells = ("model", "home", "verdict", "p_value", "suspects", "seconds", "cpu_seconds", "peak_gib")
        table.add_row(*(str(row[c]) for c in cells), trigger, str(repair))
        if given.json:
            given.json.write_text(json.dumps(found, indent=1) + "\n")
    Console().print(table)


if __name__ == "__main__":
    main()
