"""What guards cost where a model is served, and whether serving it grows: memory and throughput, over HTTP and not.

`python -m benchmarks.serving [--side 28] [--channels 1] [--predictions 100000] [--requests 2000] [--json FILE]` fits
the guards of the shipped policy that need trusted images only to a small network with random weights, whose answers
take as long as those of a trained one, and serves it in a process of its own. Images are drawn as those that the guards
were cut on, so that they reject about what they state. One thread; each rate is the median of its repetitions.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx
import psutil
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import vetgate.guard  # noqa: F401 - registers the guards
from flows.service.http.connections import Limits as Connections
from flows.service.http.serving import Server
from flows.service.scoring.aftermath import Aftermath
from flows.service.scoring.app import scoring_app
from flows.service.scoring.current import Current, Served
from flows.service.scoring.metrics import Metrics
from flows.service.scoring.serve import listening
from tasks.settings import Settings
from vetgate.architectures import ARCHITECTURES
from vetgate.contract import Samples, Subject
from vetgate.guard.contract import GUARDS
from vetgate.guard.guarded import Guarded, fit_guards
from vetgate.guard.package import Package
from vetgate.trust.keys import utc_now
from vetgate.verdict.policy import load_policy

ARCHITECTURE, CLASSES, MANIFEST = "small-cnn", 10, "0" * 64
BATCHES, SECONDS, REPEAT = (1, 64), 3.0, 5
SPAWN = multiprocessing.get_context("spawn")


def main() -> None:
    """Measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=28)
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--predictions", type=int, default=100_000)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = list(measure((given.channels, given.side, given.side), given.predictions, given.requests))
    table = Table("what", "figures")
    for row in rows:
        table.add_row(row["what"], ", ".join(f"{key} {value}" for key, value in row.items() if key != "what"))
    Console(width=200).print(table)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


def measure(shape: tuple[int, int, int], predictions: int, requests: int) -> Iterator[dict[str, Any]]:
    """The rows: memory in process and over HTTP, then what is answered a second, bare and behind guards."""
    model = guarded(shape, bare=False)
    named = [fitted.guard for fitted in model.package.guards]
    yield {"what": "guards", "names": named, "shape": list(shape), "architecture": ARCHITECTURE}
    yield {"what": "memory in process", **in_process(model, shape, predictions)}
    with served(shape, bare=False) as (client, process):
        yield {"what": "memory over HTTP", **over_http(client, process, shape, requests)}
    found: dict[bool, dict[int, float]] = {}
    for bare in (True, False):
        with served(shape, bare=bare) as (client, _):
            found[bare] = {batch: images_a_second(client, shape, batch) for batch in BATCHES}
    alone = {True: guarded(shape, bare=True), False: model}
    for batch in BATCHES:
        x = images(shape, batch, seed=5)
        each = {bare: rate(lambda one=one, x=x: one.predict(x), batch) for bare, one in alone.items()}
        yield {"what": f"images a second, in process, batch {batch}", **ratio(each[True], each[False])}
        yield {"what": f"images a second, over HTTP, batch {batch}", **ratio(found[True][batch], found[False][batch])}


def ratio(bare: float, behind: float) -> dict[str, float]:
    """Both rates, and how many times slower the second is."""
    return {"bare": round(bare, 1), "guarded": round(behind, 1), "slower": round(bare / behind, 2)}


def images(shape: tuple[int, int, int], count: int, seed: int) -> Tensor:
    """Images (M, C, H, W) that are alike in kind: smooth noise."""
    coarse = torch.rand(count, shape[0], 7, 7, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, shape[1:], mode="bilinear").clamp(0, 1)


def guarded(shape: tuple[int, int, int], *, bare: bool) -> Guarded:
    """The network behind the guards of the shipped policy, or behind none."""
    torch.manual_seed(0)
    model = ARCHITECTURES[ARCHITECTURE](shape, CLASSES).eval()
    if bare:
        return Guarded(model, Package(MANIFEST, ()), shape)
    policy, x = load_policy(None).guard, images(shape, 800, seed=1)
    with torch.no_grad():
        clean = Samples(x, model(x).argmax(1))
    subject = Subject(model=model, layer="", classes=CLASSES, clean=clean[:400], train=None)
    wanted: dict[str, dict[str, Any]] = {name: {} for name in policy.methods if GUARDS[name].role.uses is None}
    fitted, failed = fit_guards(subject, clean[400:], wanted, rate=float(policy.false_rejection_rate), seed=0)
    if failed:
        raise SystemExit(f"expected all of {', '.join(wanted)} to be fitted, got {failed}")
    return Guarded(model, Package(MANIFEST, fitted), shape)


def in_process(model: Guarded, shape: tuple[int, int, int], predictions: int) -> dict[str, Any]:
    """How memory grows over so many predictions, after a tenth of them to warm up."""
    process, batch, done = psutil.Process(), 64, 0
    outcomes: dict[str, int] = {}
    seen: list[float] = []
    begun = time.monotonic()
    while done < predictions * 1.1:
        for answer in model.predict(images(shape, batch, seed=done)):
            outcomes[answer.outcome] = outcomes.get(answer.outcome, 0) + 1
        done += batch
        if done >= predictions * 0.1 and len(seen) <= (done - predictions * 0.1) // (predictions / 10):
            seen.append(mebibytes(process))
    return {"predictions": done, **growth(seen), **outcomes, "seconds": round(time.monotonic() - begun, 1)}


def over_http(
    client: httpx.Client, process: psutil.Process, shape: tuple[int, int, int], requests: int
) -> dict[str, Any]:
    """How the memory of the server grows over so many requests of eight images, after a tenth of them."""
    seen: list[float] = []
    begun = time.monotonic()
    for number in range(int(requests * 1.1) + 1):
        if number >= requests * 0.1 and len(seen) <= (number - requests * 0.1) // (requests / 10):
            seen.append(mebibytes(process))
        ask(client, encoded(images(shape, 8, seed=number)))
    return {"requests": requests, **growth(seen), "seconds": round(time.monotonic() - begun, 1)}


def mebibytes(process: psutil.Process) -> float:
    """The resident memory of a process."""
    gc.collect()
    return round(process.memory_info().rss / 2**20, 1)


def growth(seen: list[float]) -> dict[str, Any]:
    """The memory at each tenth of the way, and how much more it is at the end than in the middle and at the start."""
    return {
        "mebibytes": seen,
        "grown": round(seen[-1] - seen[0], 1),
        "grown_in_second_half": round(seen[-1] - seen[len(seen) // 2], 1),
    }


def images_a_second(client: httpx.Client, shape: tuple[int, int, int], batch: int) -> float:
    """How many images a server answers for one caller, which asks again as soon as it is answered."""
    body = encoded(images(shape, batch, seed=5))
    return rate(lambda: ask(client, body), batch)


def rate(call: Callable[[], object], images_each: int) -> float:
    """Images a second, the median of REPEAT times SECONDS."""
    call()
    found = []
    for _ in range(REPEAT):
        begun, calls = time.perf_counter(), 0
        while (spent := time.perf_counter() - begun) < SECONDS / REPEAT or not calls:
            call()
            calls += 1
        found.append(calls * images_each / spent)
    return statistics.median(found)


def encoded(x: Tensor) -> bytes:
    """A request about images."""
    return json.dumps({"inputs": x.tolist()}).encode()


def ask(client: httpx.Client, body: bytes) -> None:
    """Ask, and be answered."""
    client.post("/invocations", content=body, headers={"content-type": "application/json"}).raise_for_status()


@contextmanager
def served(shape: tuple[int, int, int], *, bare: bool) -> Iterator[tuple[httpx.Client, psutil.Process]]:
    """A client of a server in a process of its own, and that process."""
    with tempfile.TemporaryDirectory() as home:
        ours, theirs = SPAWN.Pipe()
        process = SPAWN.Process(target=serve, args=(theirs, Path(home), shape, bare))
        process.start()
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{ours.recv()}", timeout=600, trust_env=False) as client:
                yield client, psutil.Process(process.pid)
        finally:
            process.terminate()
            process.join()


def serve(told: Connection, home: Path, shape: tuple[int, int, int], bare: bool) -> None:
    """What `vetgate serve` does once a model is verified."""
    torch.set_num_threads(1)
    model = guarded(shape, bare=bare)
    names = tuple(map(str, range(CLASSES)))
    rate = sum(float(fitted.rate or 0) for fitted in model.package.guards) or 0.05
    what = Served("bench", "1", MANIFEST, MANIFEST, utc_now() + timedelta(days=1), model, names, rate)
    metrics = Metrics([fitted.guard for fitted in model.package.guards])
    aftermath = Aftermath(Settings(home=home), metrics)
    aftermath.start()
    note = (lambda *seen: None) if bare else aftermath.note
    application = scoring_app(Current(lambda: what, lambda held: what.until), metrics, note)
    with listening("127.0.0.1", 0) as listener:
        told.send(listener.getsockname()[1])
        Server(application, "127.0.0.1", 0, Connections.of_this_process()).run([listener])


if __name__ == "__main__":
    os.environ.pop("PREFECT_API_URL", None)
    main()
