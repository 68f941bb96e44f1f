"""How often the demo ends as expected: `vetgate demo` in fresh homes, each with a seed of its own.

`python -m benchmarks.demo --homes 20 --json FILE` exits with 1 unless all of them do. Under the seed of a home the two
suppliers train other networks and the vettings draw otherwise. `--first-seed` chooses where the seeds begin: 0 is what
`vetgate demo` runs by itself.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

OWN = ("VETGATE_", "PREFECT_", "MLFLOW_")


def demo(home: Path, seed: int) -> tuple[int, str]:
    """Run the demo in a home: exit code, and what it printed."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(OWN)}
    done = subprocess.run(
        [sys.executable, "-m", "flows", "demo", "--seed", str(seed), "--json"],
        env=inherited | {"VETGATE_HOME": str(home)},
        stdout=subprocess.PIPE,
        text=True,
    )
    return done.returncode, done.stdout


def row_of(seed: int, code: int, printed: str, seconds: float) -> dict[str, Any]:
    """What one demo came to; one that printed no ending, or an exit code that does not fit it, differs as well."""
    try:
        ending = json.loads(printed)
        unexpected = [*ending["unexpected"]]
    except (ValueError, KeyError, TypeError):
        said = printed.strip()[-300:] or "nothing"
        ending, unexpected = {}, [f"expected an ending, got exit code {code} and {said}"]
    if not unexpected and code != 0:
        unexpected = [f"expected exit code 0, got {code}"]
    repaired = ending.get("repaired") or {}
    trojaned = ending.get("trojaned") or {}
    return {
        "seed": seed,
        "as_expected": not unexpected,
        "unexpected": unexpected,
        "accuracy": [trojaned.get("accuracy"), repaired.get("accuracy")],
        "patch": [trojaned.get("patch"), repaired.get("patch")],
        "seconds": round(seconds, 1),
    }


def rows(seeds: Sequence[int], run: Callable[[Path, int], tuple[int, str]] = demo) -> Iterator[dict[str, Any]]:
    """One row a seed, each in a home that is new and gone afterwards."""
    for seed in seeds:
        with tempfile.TemporaryDirectory() as room:
            started = time.monotonic()
            code, printed = run(Path(room, "home"), seed)
            yield row_of(seed, code, printed, time.monotonic() - started)


def table(found: Sequence[dict[str, Any]]) -> Table:
    """A line a home; accuracy and the secret patch are of the trojaned model and of the repaired one."""
    shown = Table("seed", "ended", "accuracy", "secret patch", "seconds")
    for row in found:
        ended = "as expected" if row["as_expected"] else "; ".join(row["unexpected"])
        shown.add_row(str(row["seed"]), ended, _pair(row["accuracy"]), _pair(row["patch"]), str(row["seconds"]))
    return shown


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and write the rows; 0 when every demo ended as expected."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--homes", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    if given.homes < 1 or given.first_seed < 0:
        parser.error("expected at least one home, and seeds from 0 on")
    found = []
    for row in rows(range(given.first_seed, given.first_seed + given.homes)):
        found.append(row)
        Console(stderr=True).print(row)
        if given.json:
            given.json.write_text(json.dumps(found, indent=1) + "\n")
    console, good = Console(), sum(row["as_expected"] for row in found)
    console.print(table(found))
    console.print(f"{good} of {len(found)} ended as expected")
    return 0 if good == len(found) else 1


def _pair(shares: Sequence[float | None]) -> str:
    return " → ".join("–" if share is None else f"{100 * share:.1f} %" for share in shares)


if __name__ == "__main__":
    sys.exit(main())
