"""Kill a vetting and its promotion after every write there is, and refuse every write once: does it end the same?

`python -m benchmarks.kills [--only REGEX] [--json FILE]`. For each write of an undisturbed run, in a new home each: the
process is killed with SIGKILL right after it, or the write fails as on a full disk; then the same command is given once
more. What is there in the end is held against the undisturbed home: objects in the store by kind, entries of the
ledger, runs, versions and aliases in MLflow, and the lease. A method that had finished must not have begun again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tasks.mlflow.client import registry
from tasks.records.ledger_verify import verify_ledger
from tasks.settings import Settings
from tasks.store.open import open_store
from tests import models, quick
from tests.killing import Turn, Vettings, vettings
from vetgate.shape import Blob

MOST_TRIES = 3
# where a method, or the fitting of guards, had begun and what it found was not kept
LOST = {
    ("killed", "store create invocations"),
    ("killed", "store copy_in_file guards"),
    ("refused", "store create evidence"),
    ("refused", "store copy_in_file guards"),
    ("refused", "store create guards"),
}


def main() -> None:
    """Run it, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="a regular expression for the writes to try")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), given.only)
    table = Table("fate", "after, or at", "tries", "methods begun", "same end", "seconds")
    for row in rows:
        table.add_row(row["fate"], row["point"], str(row["tries"]), str(row["begun"]), row["same"], f"{row['seconds']}")
    Console(width=140).print(table)
    print(f"{sum(row['same'] == 'yes' for row in rows)} of {len(rows)} ended as if undisturbed")
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


def measure(folder: Path, only: str) -> list[Blob]:
    """One row for each write whose name `only` finds, and each fate."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("VETGATE_", "PREFECT_", "MLFLOW_"))}
    installation = quick.build(folder / "quick")
    places = {k.removeprefix("VETGATE_").lower(): v for k, v in installation.items()}
    directory = models.honest_submission(folder / "given" / "model", models.read_digits(folder))
    # one secret for all homes, so that nothing but what happens to them tells them apart
    (folder / "new" / "keys").mkdir(parents=True, mode=0o700)
    (folder / "new" / "keys" / "seed.secret").write_bytes(bytes(range(32)))

    def home(name: str) -> Settings:
        shutil.copytree(folder / "new", folder / name)
        return Settings(home=folder / name, **places)

    rows: list[Blob] = []
    (folder / "warm").mkdir()
    with vettings(inherited | installation | {"VETGATE_HOME": str(folder / "warm")}) as vet:
        settings = home("undisturbed")
        turn = Turn(str(settings.home), str(directory), "undisturbed", promote=True)
        wanted = state(settings, vet(turn).result)
        assert wanted["verdict"] == "PASS" and wanted["aliases"] == {"champion": "1"}, wanted
        for fate in ("killed", "refused"):
            visited: list[str] = []
            while True:
                settings = home(f"{fate}-{len(visited)}")
                struck = replace(turn, home=str(settings.home), fate=fate, only=only, visited=visited)
                row = _row(vet, struck, settings, wanted)
                shutil.rmtree(settings.home)
                if row is None:
                    break
                print(row, flush=True)
                rows.append(row)
                visited.append(row["point"])
    return rows


def _row(vet: Vettings, turn: Turn, settings: Settings, wanted: Blob) -> Blob | None:
    """Let the fate strike, then try until it is through; None when there was no write left to strike at."""
    started = time.monotonic()
    struck = last = vet(turn)
    if struck.point is None:
        return None
    tries = 1
    while (last.result is None or "error" in last.result) and tries < MOST_TRIES:
        last, tries = vet(replace(turn, fate="undisturbed")), tries + 1
    found = state(settings, last.result)
    differs = {key: found[key] for key in wanted if key != "begun" and found[key] != wanted[key]}
    # only what was lost before it could be kept is looked for again
    lost = (turn.fate, struck.point.split("/")[0]) in LOST
    if found["begun"] != wanted["begun"] + lost:
        differs["begun"] = found["begun"]
    return {
        "fate": turn.fate,
        "point": struck.point,
        "tries": tries,
        "begun": found["begun"],
        "same": str(differs) if differs else "yes",
        "seconds": round(time.monotonic() - started, 1),
    }


def state(settings: Settings, result: Blob | None) -> Blob:
    """What there is of one submission in the end, and how often a method began on it."""
    store, result = open_store(settings), result or {"verdict": None, "manifest_sha256": "none"}
    manifest = str(result.get("manifest_sha256"))
    about = Counter(key.split("/")[0] for key in store.list(""))
    begun = about.pop("invocations", 0)
    lease = json.loads(store.read(f"leases/{manifest}.json")) if store.exists(f"leases/{manifest}.json") else {}
    with registry(settings) as client:
        experiments = {item.experiment_id: item.name for item in client.search_experiments()}
        runs = Counter(
            f"{experiments[run.info.experiment_id]} {run.info.status}" for run in client.search_runs([*experiments])
        )
        versions = Counter(version.name for version in client.search_model_versions())
        production = client.search_registered_models("name LIKE 'prod.%'")
        aliases = {alias: str(version) for model in production for alias, version in model.aliases.items()}
    return {
        "verdict": result.get("verdict"),
        "promoted": "promoted" in result,
        "objects": dict(about),
        "ledger": verify_ledger(settings)["kinds"],
        "lease": [lease.get("done"), lease.get("attempt")],
        "runs": dict(runs),
        "versions": dict(versions),
        "aliases": aliases,
        "begun": begun,
    }


if __name__ == "__main__":
    main()
