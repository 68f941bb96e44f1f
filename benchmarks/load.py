"""Many submissions at once: all reach one verdict each, no database lock, memory stable.

`python -m benchmarks.load --count 200 --workers 2 [--json FILE]` starts the whole service in a temporary home, hands in
`count` small networks at once, and watches until each has its result. One row a fifth of the way. Every worker of the
pool takes as many runs at once as there are cores.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import save_file

from flows.service.parts import parts
from flows.vetting.submit import submit
from tasks.data.digits import write_digits
from tasks.environment import settle
from tasks.records.ledger_verify import verify_ledger
from tasks.settings import Settings, load_settings
from tasks.store.base import Store
from tasks.store.open import open_store
from tests import quick
from tests.service.running import running_service
from vetgate.architectures import ARCHITECTURES
from vetgate.attacks.training import train
from vetgate.contract import Samples

WARM = "flows.service.warm"
RUNS = ("prefect.engine", "prefect.flow_engine", "launch.py", "sandbox")
LOCKED = re.compile(r"database is locked|deadlock detected|could not serialize", re.IGNORECASE)


def main() -> None:
    """Run it, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), given.count, given.workers)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


def measure(folder: Path, count: int, workers: int) -> list[dict[str, Any]]:
    """One row for each fifth of the submissions: how many have a result, after how long, and the memory then."""
    with running_service(folder / "home", **quick.build(folder / "quick")) as service, ExitStack() as stack:
        os.environ.update(service.environment)
        settle()
        settings = load_settings()
        for _ in range(1, workers):
            stack.enter_context(_another_worker(settings, service.log))
        store = open_store(settings)
        started = time.monotonic()
        manifests = [submit(settings, directory).id for directory in submissions(folder / "given", count)]
        rows, before = [], _spent(service.process.pid)
        print(f"{count} submitted in {time.monotonic() - started:.1f} s", flush=True)
        for done in range(count // 5, count + 1, max(count // 5, 1)):
            _until(store, done, service.process.pid)
            row = {
                "results": done,
                "seconds": round(time.monotonic() - started, 1),
                "cpu_seconds": round(_spent(service.process.pid) - before),
                "servers_mib": round(_servers(service.process.pid) / 2**20),
                "locked": len(LOCKED.findall(service.log.read_text(errors="replace"))),
            }
            rows.append(row)
            print(row, flush=True)
        each = Counter(key.split("/")[1] for key in store.list("attestations/"))
        assert all(each[manifest] == 1 for manifest in manifests), each
        verdicts = Counter(_verdict(store, manifest) for manifest in manifests)
        ledger = verify_ledger(settings)
        rows[-1] |= {"verdicts": dict(verdicts), "attestations": sum(each.values()), "ledger": str(ledger)}
        print(rows[-1], flush=True)
    return rows


@contextmanager
def _another_worker(settings: Settings, log: Path) -> Iterator[None]:
    """One more worker of the pool `vet`, kept running and ended as `vetgate up` does with the first."""
    part = next(part for part in parts(settings) if part.name == "vet-worker")
    folder = settings.home / "run" / "another"
    folder.mkdir(parents=True, exist_ok=True)
    line = ["/bin/sh", "-c", part.supervised(os.getpid(), folder)]
    with log.open("ab") as out:
        process = subprocess.Popen(line, env=dict(part.environment), stdout=out, stderr=out)
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=60)


def submissions(folder: Path, count: int) -> Iterator[Path]:
    """`count` networks that differ by a little noise, each a submission of its own name."""
    import numpy as np

    folder.mkdir(parents=True)
    write_digits(folder / "digits.npz")
    with np.load(folder / "digits.npz") as arrays:
        x = torch.from_numpy(arrays["x_train"]).permute(0, 3, 1, 2).float() / 255
        samples = Samples(x.contiguous(), torch.from_numpy(arrays["y_train"]))
    torch.manual_seed(0)
    model = train(ARCHITECTURES["small-cnn"]((1, 8, 8), 10), samples, epochs=8, seed=0)
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    for turn in range(count):
        directory = folder / f"model-{turn:03}"
        directory.mkdir()
        noisy = {k: v + 1e-4 * torch.randn_like(v) if v.is_floating_point() else v for k, v in weights.items()}
        save_file(noisy, directory / "model.safetensors")
        described = {
            "name": directory.name,
            "supplier": "a benchmark",
            "task": "image-classification",
            "model": "model.safetensors",
            "format": "safetensors",
            "architecture": "small-cnn",
            "input_shape": [1, 8, 8],
            "classes": 10,
            "reference_data": "digits",
        }
        (directory / "submission.yaml").write_text(json.dumps(described))
        yield directory


def _until(store: Store, done: int, pid: int) -> None:
    while len({key.split("/")[1] for key in store.list("results/")}) < done:
        if not psutil.pid_exists(pid):
            raise SystemExit("the service ended before all was vetted; see its log")
        time.sleep(2)


def _servers(pid: int) -> int:
    """Resident bytes of what runs all the time: the parts of the service, without the runs of the moment."""
    total = 0
    for process in psutil.Process(pid).children(recursive=True):
        try:
            # a run is a fork of a worker's warm process, or what the worker starts for it
            forked = WARM in " ".join((process.parent() or process).cmdline())
            line = " ".join(process.cmdline())
            if not forked and all(word not in line for word in RUNS):
                total += process.memory_info().rss
        except psutil.Error:
            continue
    return total


def _spent(pid: int) -> float:
    """Processor seconds of all parts of the service so far, those of runs that have ended included."""
    total = 0.0
    for process in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.Error):
            total += sum(process.cpu_times()[:4])
    return total


def _verdict(store: Store, manifest: str) -> str:
    keys = list(store.list(f"results/{manifest}/"))
    assert len(keys) == 1, keys
    return str(json.loads(store.read(keys[0]))["verdict"])


if __name__ == "__main__":
    main()
