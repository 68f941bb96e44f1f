"""Kill a part of the running service at every step of a submission's way: does it still end once, and the same?

`python -m benchmarks.kills_service [--parts PART ...] [--steps STEP ...] [--json FILE]` starts `vetgate up` with a
policy that promotes what passed, and for each part and each step hands in a model, kills the part with SIGKILL as soon
as the step is seen in the store, and has nothing but `vetgate sweep` and `vetgate up` themselves mend it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from flows.service.keeper import STEADY_SECONDS
from tests import models, quick
from tests.service.running import running_service
from tests.service.world import World, variant
from vetgate.shape import Blob

PARTS = ("vet-worker", "gate-worker", "prefect", "mlflow", "gate", "receiver")
# kinds of objects in the order in which they appear; {} is the manifest or the name
STEPS = (
    "submissions/{manifest}.json",
    "leases/{manifest}.json",
    "invocations/{manifest}/",
    "evidence/{manifest}/",
    "guards/{manifest}/",
    "attestations/{manifest}/",
    "verdicts/{manifest}/",
    "registered/thirdparty.{name}/",
    "results/{manifest}/",
    "vetted/{manifest}/",
    "promotions/{name}/",
    "moves/{name}/",
)
# how many objects of a kind there are in the end: of guards the file and its record
WHOLE = {"evidence": 1, "guards": 2, "attestations": 1, "verdicts": 1, "results": 1, "promotions": 1, "moves": 2}
ROOMS = ("prod", "guarded")
BY_NAME = ("promotions", "moves")
SECONDS, SWEEP_EVERY = 300.0, 5.0


def main() -> None:
    """Run it, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="*", default=PARTS)
    parser.add_argument("--steps", nargs="*", default=STEPS)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), given.parts, given.steps)
    table = Table("killed", "when there was", "seconds", "sweeps", "same end")
    for row in rows:
        table.add_row(row["part"], row["step"], f"{row['seconds']}", str(row["sweeps"]), row["same"])
    Console(width=140).print(table)
    print(f"{sum(row['same'] == 'yes' for row in rows)} of {len(rows)} ended as if undisturbed")
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


def measure(folder: Path, parts: Sequence[str], steps: Sequence[str]) -> list[Blob]:
    """One row for each part and step."""
    environment = quick.build(folder / "quick", promotion="{automatic: champion}")
    honest = models.honest_submission(folder / "honest", models.read_digits(folder))
    rows = []
    with running_service(folder / "home", **environment) as service:
        world = World(service)
        for part in parts:
            for step in steps:
                name = f"{part}-{step.split('/')[0]}"
                directory = variant(honest, folder / "given", name, noise=1 + len(rows))
                row = _killed(world, directory, name, part, step)
                print(row, flush=True)
                rows.append(row)
                # what ends again and again sooner than this is given up
                time.sleep(STEADY_SECONDS)
        done = service.vetgate("ledger", "verify", "--json")
        rows.append({"part": "none", "step": "ledger verify", "seconds": 0.0, "sweeps": 0, "same": _yes(done)})
    return rows


def _killed(world: World, directory: Path, name: str, part: str, step: str) -> Blob:
    store, started, sweeps = world.store, time.monotonic(), 0
    done = world.service.vetgate("submit", directory, "--json")
    manifest = json.loads(done.stdout)["manifest_sha256"]
    where = step.format(manifest=manifest, name=name)
    while next(iter(store.list(where)), None) is None:
        if time.monotonic() - started > SECONDS:
            return _row(part, step, started, sweeps, f"never got to {where}")
        time.sleep(0.02)
    world.service.kill(part)
    swept = time.monotonic()
    # a signed PASS is promoted also where its vetting died before it could publish the result
    while not world.results(manifest) or {_champion(world, name, room) for room in ROOMS} != {"1"}:
        if time.monotonic() - started > SECONDS:
            return _row(part, step, started, sweeps, "not promoted")
        if time.monotonic() - swept > SWEEP_EVERY:
            # the server that is away for a moment is an error that the next one mends
            world.service.vetgate("sweep")
            swept, sweeps = time.monotonic(), sweeps + 1
        time.sleep(0.2)
    world.service.until_healthy()
    counts = {kind: len(list(store.list(f"{kind}/{name if kind in BY_NAME else manifest}/"))) for kind in WHOLE}
    wrong: Blob = {kind: count for kind, count in counts.items() if count != WHOLE[kind]}
    if world.results(manifest)[0]["verdict"] != "PASS":
        wrong["verdict"] = world.results(manifest)[0]["verdict"]
    return _row(part, step, started, sweeps, str(wrong) if wrong else "yes")


def _champion(world: World, name: str, room: str) -> str | None:
    """The version that is champion; None where the registry is away for a moment."""
    from mlflow.exceptions import MlflowException

    try:
        return world.aliases(name, room).get("champion")
    except MlflowException:
        return None


def _row(part: str, step: str, started: float, sweeps: int, same: str) -> Blob:
    seconds = round(time.monotonic() - started, 1)
    return {"part": part, "step": step, "seconds": seconds, "sweeps": sweeps, "same": same}


def _yes(done: Any) -> str:
    return "yes" if done.returncode == 0 else str(done.stdout)


if __name__ == "__main__":
    main()
