"""Other scanners of model files beside `vetgate scan`, by their exit codes, on the corpus of the tests.

`python -m benchmarks.scanners [--picklescan PATH] [--modelscan PATH] [--fickling PATH] [--modelaudit PATH]
[--gadgets N] [--json FILE]` names executables, which belong into environments of their own; vetgate's is always asked.
Of the pickles that differ only in what they call, N are taken. A directory of the corpus counts as one file.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.vetgate.scan.benign import clean, harmless, written
from tests.vetgate.scan.malicious import malicious

# how each is called, and what its exit codes mean; any other is an error
CALLS = {
    "picklescan": ["-p"],
    "picklescan --strict": ["--strict", "-p"],
    "modelscan": ["-p"],
    "fickling": ["--check-safety"],
    "modelaudit": ["scan"],
    "vetgate": ["scan"],
}
MEANS = {0: "passed", 1: "malicious"}
TIMEOUT = 120


@dataclass(frozen=True)
class Scanner:
    """One way to call an executable."""

    name: str
    program: Path

    def outcome(self, path: Path, folder: Path) -> str:
        """What it says of a file: passed, malicious or other."""
        line = [str(self.program), *CALLS[self.name], str(path)]
        quiet = os.environ | {"PROMPTFOO_DISABLE_TELEMETRY": "1", "NO_ANALYTICS": "1", "DO_NOT_TRACK": "1"}
        try:
            done = subprocess.run(line, cwd=folder, env=quiet, capture_output=True, timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            return "other"
        return MEANS.get(done.returncode, "other")


def compared(scanners: list[Scanner], gadgets: int, folder: Path) -> tuple[list[dict[str, Any]], bool]:
    """A row for each scanner, with the names of the malicious files that it passed; and whether anything was run."""
    marker = folder / "ran"
    bad = malicious(marker)
    of_gadgets = [name for name in bad if name.startswith("gadget-")]
    step = max(1, len(of_gadgets) // max(gadgets, 1))
    left_out = set(of_gadgets) - set(of_gadgets[::step])
    groups = {
        "malicious": {name: made for name, made in bad.items() if name not in left_out},
        "ordinary": clean(),
        "unjudged": harmless(),
    }
    paths = {}
    for group, corpus in groups.items():
        (folder / group).mkdir()
        paths[group] = written(folder / group, corpus)
    rows = []
    for scanner in scanners:
        row: dict[str, Any] = {"scanner": scanner.name}
        for group, files in paths.items():
            outcomes = {name: scanner.outcome(path, folder) for name, path in files.items()}
            row[group] = {"files": len(files)} | Counter(outcomes.values())
            if group == "malicious":
                row["missed"] = sorted(name for name, outcome in outcomes.items() if outcome == "passed")
        rows.append(row)
        print(json.dumps(row), file=sys.stderr)
    return rows, marker.exists()


def main() -> int:
    """Compare, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("picklescan", "modelscan", "fickling", "modelaudit"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--gadgets", type=int, default=20)
    parser.add_argument("--json", type=Path)
    given = vars(parser.parse_args()) | {"vetgate": Path(sys.executable).with_name("vetgate")}
    programs = {name: given[name.split()[0]] for name in CALLS}
    scanners = [Scanner(name, program.absolute()) for name, program in programs.items() if program is not None]
    with tempfile.TemporaryDirectory() as folder:
        rows, ran = compared(scanners, given["gadgets"], Path(folder))
    table = Table(
        "scanner", "of malicious: found", "passed", "other", "of ordinary: passed", "called malicious", "other"
    )
    for row in rows:
        bad, good = row["malicious"], row["ordinary"]
        counts = [bad.get("malicious", 0), bad.get("passed", 0), bad.get("other", 0)]
        counts += [good.get("passed", 0), good.get("malicious", 0), good.get("other", 0)]
        table.add_row(row["scanner"], *map(str, counts))
    Console().print(table)
    if given["json"] is not None:
        given["json"].write_text("".join(json.dumps(row) + "\n" for row in rows))
    if ran:
        print("a payload was run", file=sys.stderr)
    return int(ran)


if __name__ == "__main__":
    sys.exit(main())
