"""Whether what vetgate accepts of ONNX is what onnxruntime computes: random graphs of every operator, and their like.

`python -m benchmarks.onnx_fuzz [--count 1000] [--minutes 10] [--seed 0] [--workers 1] [--json FILE] [--keep DIRECTORY]`
draws graphs, changes most of them up to three times, damages the bytes of some, and takes each in as a submission. Of
what is accepted the canonical form and the submitted file, in onnxruntime with and without optimisations, are held
against our torch module on more images, in another batch. Each runs in a process that may crash: that is counted too.

differing: accepted, and on further images a runtime gives something else.
unstable: the same, where images that differ by the rounding of float32 give something else too, and so explain it.
unequal: read, and refused at intake, since a runtime gives something else on the images that intake looks at.
not run: read, and refused at intake, since onnxruntime loads or runs nothing of what is written.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from benchmarks.onnx_mutations import damage, mutate
from benchmarks.onnx_seeds import CLASSES, SHAPE, seed_graph
from vetgate.errors import DefenceError, NotUnderstood
from vetgate.formats.onnx.canonical import canonical_bytes
from vetgate.formats.onnx.equal import SUBMITTED, outputs, probes, runtimes
from vetgate.formats.onnx.graph import Graph
from vetgate.formats.onnx.module import build_module, default_layer
from vetgate.formats.onnx.reading.submitted import read_submitted
from vetgate.formats.onnx.rewriting.settle import settle
from vetgate.formats.onnx.runtime import TOLERANCE, difference
from vetgate.formats.probe_model import probe
from vetgate.formats.submission import Submission

SECONDS = 20
DAMAGED, UNCHANGED = 0.05, 0.15
SUBMISSION = Submission(
    name="fuzz",
    supplier="benchmarks",
    task="image-classification",
    model="model.onnx",
    format="onnx",
    input_shape=SHAPE,
    classes=CLASSES,
)


@dataclass
class Counts:
    """How often each outcome was met, why files were refused, and which numbers differ or crash."""

    outcomes: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    found: list[dict[str, Any]] = field(default_factory=list)


def main() -> None:
    """Run, print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="files to draw")
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the number of the first file")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", type=Path, help="where files that differ or crash are written")
    given = parser.parse_args()
    started = time.monotonic()
    counts = fuzz(given.seed, given.first, given.count, minutes=given.minutes, workers=given.workers, keep=given.keep)
    console, row = Console(), {"seed": given.seed, "first": given.first, "seconds": round(time.monotonic() - started)}
    console.print({**row, **counts.outcomes})
    for reason, times in counts.reasons.most_common(25):
        console.print(f"{times:8}  {reason}")
    for each in counts.found[:50]:
        console.print(each)
    if given.json is not None:
        given.json.write_text(json.dumps([{**row, **counts.outcomes, "found": counts.found}], indent=1) + "\n")


def fuzz(
    seed: int, first: int, count: int, *, minutes: float = float("inf"), workers: int = 1, keep: Path | None = None
) -> Counts:
    """The outcomes of files `first` to `first + count` of a seed."""
    counts, end = Counts(), time.monotonic() + 60 * minutes
    chunk = 500
    chunks = [(at, min(at + chunk, first + count)) for at in range(first, first + count, chunk)]
    running: list[_Worker] = []
    for begin, stop in track(chunks, description="files", disable=len(chunks) < 2):
        while len(running) >= workers:
            running = [worker for worker in running if not worker.collect(counts, keep)]
        if time.monotonic() > end:
            break
        running.append(_Worker(seed, begin, stop))
    while running:
        running = [worker for worker in running if not worker.collect(counts, keep)]
    return counts


class _Worker:
    # a process that examines files one after the other; another one takes over behind the file that it dies of
    def __init__(self, seed: int, begin: int, stop: int) -> None:
        self.seed, self.at, self.stop = seed, begin, stop
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("fork")
        self._ours, theirs = context.Pipe(duplex=False)
        self._process = context.Process(target=_examine_all, args=(theirs, self.seed, self.at, self.stop), daemon=True)
        self._process.start()
        theirs.close()
        self._since = time.monotonic()

    def collect(self, counts: Counts, keep: Path | None) -> bool:
        """Take what has come; whether everything has."""
        try:
            while self._ours.poll(0.2):
                self._took(self._ours.recv(), counts, keep)
        except EOFError:
            self._process.join()
            if self.at < self.stop:
                code = self._process.exitcode or 0
                name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
                self._took(("crashing", name), counts, keep)
            if self.at < self.stop:
                self._start()
                return False
            return True
        if time.monotonic() - self._since > SECONDS:
            self._process.kill()
        return False

    def _took(self, outcome: tuple[str, str], counts: Counts, keep: Path | None) -> None:
        kind, said = outcome
        self._since = time.monotonic()
        counts.outcomes[kind] += 1
        if kind == "refused":
            counts.reasons[said] += 1
        elif kind != "accepted":
            counts.found.append({"number": self.at, "outcome": kind, "said": said})
            if keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                data = drawn(self.seed, self.at)
                (keep / f"{kind}-{self.seed}-{self.at}.onnx").write_bytes(data or b"")
        self.at += 1


def _examine_all(out: Connection, seed: int, begin: int, stop: int) -> None:
    torch.set_num_threads(1)
    for number in range(begin, stop):
        out.send(examine(drawn(seed, number)))


def drawn(seed: int, number: int) -> bytes | None:
    """File `number` of a seed, or None where the draw gave no graph."""
    dice = random.Random(f"{seed} {number}")
    model = seed_graph(dice, number)
    if model is None:
        return None
    kind = dice.random()
    try:
        for _ in range(0 if kind < UNCHANGED else dice.choice([1, 1, 1, 2, 3])):
            mutate(model, dice)
        data: bytes = model.SerializeToString()
    except (ValueError, TypeError, OverflowError):
        # a number that the field does not hold
        return None
    return damage(data, dice) if kind > 1 - DAMAGED else data


@torch.no_grad()
def examine(data: bytes | None) -> tuple[str, str]:
    """accepted, refused, unequal, not run, differing or unstable, and why."""
    if data is None:
        return "refused", "no graph was drawn"
    try:
        read = read_submitted({SUBMISSION.model: data}, SUBMISSION)
        written = canonical_bytes(settle(read, SHAPE)[0])
        graph, _ = settle(read_submitted({SUBMISSION.model: written}, SUBMISSION), SHAPE)
        model = build_module(graph)
        probe(model, default_layer(model), SUBMISSION)
    except NotUnderstood as error:
        return "refused", _shape_of(str(error))
    except Exception as error:  # as the caller does: whatever torch and numpy raise, the file was not understood
        return "refused", f"{type(error).__name__}: {_shape_of(str(error))}"
    if canonical_bytes(graph) != written:
        return "differing", "another canonical form when read again"
    seen, x = probes(SHAPE), _images()
    try:
        expected_seen, expected = outputs(graph, torch.cat([seen, x])).split([len(seen), len(x)])
    except NotUnderstood:
        return "refused", "outputs that are not finite"
    for running in runtimes(written, members={SUBMISSION.model: data}, described=SUBMISSION):
        try:
            if (got := running.difference(seen, expected_seen)) is not None:
                return "unequal", f"{running.name}: {got}"
            if (got := running.difference(x, expected, least=TOLERANCE)) is not None:
                return ("unstable" if _unstable(graph, x, expected) else "differing"), f"{running.name}: {got}"
        except DefenceError as error:
            # nothing is served of it: intake refuses a file that does not run, or of which what is written does not
            handed_in = running.name == SUBMITTED
            return ("refused", "it does not run") if handed_in else ("not run", f"{running.name}: {error}"[:300])
    return "accepted", ""


def _images() -> torch.Tensor:
    noise = torch.rand(24, *SHAPE, generator=torch.Generator().manual_seed(1))
    noise[:8] = (noise[:8] < 0.5).float()
    noise[8], noise[9] = 0.0, 1.0
    return noise


def _unstable(graph: Graph, x: torch.Tensor, expected: torch.Tensor) -> bool:
    # a change of the images that float32 hardly holds changes the outputs as much
    ours, noise = (
        build_module(graph, strip=False),
        torch.rand(x.shape, generator=torch.Generator().manual_seed(2)) - 0.5,
    )
    return any(difference(expected, ours(x + 1e-6 * sign * noise), TOLERANCE / 4) is not None for sign in (-1, 1))


def _shape_of(said: str) -> str:
    # the message without names and numbers
    words = said.split(";")[0].split(", got")[0].split(" for ")[0].split()
    return " ".join(word for word in words if word.isalpha() or word in ("0", "1", "-1"))[:90]


if __name__ == "__main__":
    np.seterr(all="ignore")
    main()
