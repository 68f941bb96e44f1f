"""Mutated files through the process that scans: none may end it, hold it up for 2 s, or take 512 MiB.

`python -m benchmarks.scan_fuzz [--count 200000] [--seed 0] [--json FILE]` mutates the files of the tests' corpus:
bytes, numbers, opcodes and whole parts, and packs some of what comes out into archives again, so that their sums are
right. It ends with 1 if a reader failed on any file; such files are kept in a directory, which is printed.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tasks.sandbox.scanning import ScanWorker
from tests.vetgate.scan.assembled import tarred, torch_legacy, torch_zip, zipped
from tests.vetgate.scan.benign import clean, harmless
from tests.vetgate.scan.malicious import malicious
from vetgate.scan.pickles.opcodes import OPCODES
from vetgate.scan.rules import UNFINISHED

LARGEST_SEED = 50_000
MOST_SECONDS, MOST_MEMORY = 2.0, 512 << 20
TOKENS = (
    b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"PK\x06\x06", b"\x80\x04", b"cos\nsystem\n", b"cnumpy\ndtype\n",
    b"\x1f\x8b\x08", b"\x93NUMPY\x01\x00", b"ustar", b"{}", b'"auto_map"', b"!!python/", b"\x89HDF\r\n\x1a\n",
)  # fmt: skip
NUMBERS = [struct.pack(layout, value) for layout, values in (
    ("<B", (0, 1, 127, 128, 255)), ("<H", (0, 1, 32768, 65535)), ("<I", (0, 1, 1 << 31, 2**32 - 1)),
    ("<Q", (0, 1, 1 << 31, 1 << 62, 2**64 - 1)), (">I", (1 << 31, 2**32 - 1)),
) for value in values]  # fmt: skip
Mutation = Callable[[random.Random, bytearray, list[bytes]], None]


@dataclass
class Fuzzed:
    """What came of it."""

    files: int = 0
    failed: int = 0
    restarts: int = 0
    slowest_seconds: float = 0.0
    peak_bytes: int = 0
    seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    rules: Counter[str] = field(default_factory=Counter)


def flip(rng: random.Random, data: bytearray, seeds: list[bytes]) -> None:
    """Other bytes in a few places."""
    for _ in range(rng.randint(1, 8)):
        data[rng.randrange(len(data))] = rng.randrange(256)


def number(rng: random.Random, data: bytearray, seeds: list[bytes]) -> None:
    """An extreme number over what stands there."""
    made, at = rng.choice(NUMBERS), rng.randrange(len(data))
    data[at : at + len(made)] = made


def opcode(rng: random.Random, data: bytearray, seeds: list[bytes]) -> None:
    """Opcodes of pickle put in or over what stands there."""
    at = rng.randrange(len(data))
    data[at : at + rng.randint(0, 1)] = bytes(rng.choices(list(OPCODES), k=rng.randint(1, 4)))


def token(rng: random.Random, data: bytearray, seeds: list[bytes]) -> None:
    """The beginning of something put in."""
    at = rng.randrange(len(data))
    data[at:at] = rng.choice(TOKENS)


def cut(rng: random.Random, data: bytearray, seeds: list[bytes]) -> None:
    """A part left out."""
    at = rng.randrange(len(data))
    del data[at : at + rng.choice((1, 4, 16, 256, len(data)))]


def repeat(rng: random.Random, data: bytearray, seeds: list[bytes]) -> None:
    """A part given again, once or very often."""
    at = rng.randrange(len(data))
    part = data[at : at + rng.randint(1, 64)]
    data[at:at] = part * rng.choice((1, 2, 16, 1000))


def splice(rng: random.Random, data: bytearray, seeds: list[bytes]) -> None:
    """A part of another file put in, or put behind."""
    other = rng.choice(seeds)
    at = rng.choice((rng.randrange(len(data)), len(data)))
    start = rng.randrange(len(other))
    data[at:at] = other[start : start + rng.choice((16, 256, len(other)))]


MUTATIONS: tuple[Mutation, ...] = (flip, number, opcode, token, cut, repeat, splice)
WRAPPERS: tuple[Callable[[bytes], bytes], ...] = (
    lambda data: zipped({"a/model.pkl": data, "b.txt": b"text\n"}),
    lambda data: zipped({"model.pkl": data}, 8),
    lambda data: torch_zip(data, {"data/0": bytes(16)}),
    lambda data: torch_zip(b"\x80\x02}.", {"data/0": data}),
    torch_legacy,
    lambda data: tarred({"model": data}),
    gzip.compress,
    zlib.compress,
)


def mutated(rng: random.Random, seeds: list[bytes]) -> bytes:
    """A file that was mutated a few times, and packed perhaps."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.randint(1, 4)):
        if data:
            rng.choice(MUTATIONS)(rng, data, seeds)
    made = bytes(data[: 4 * LARGEST_SEED])
    return rng.choice(WRAPPERS)(made) if rng.random() < 0.3 else made


def seeds_of_the_corpus() -> list[bytes]:
    """The files of the corpus, none of them large."""
    corpus = [*clean().values(), *harmless().values(), *malicious(Path("/nonexistent/marker")).values()]
    files = [data for made in corpus for data in ([made] if isinstance(made, bytes) else made.values())]
    return [data for data in files if 0 < len(data) <= LARGEST_SEED]


def fuzz(count: int, seed: int, folder: Path) -> Fuzzed:
    """Scan so many mutated files; those on which a reader failed stay in the folder."""
    rng, seeds, done = random.Random(seed), seeds_of_the_corpus(), Fuzzed()
    begun = time.monotonic()
    with ScanWorker() as worker:
        for index in range(count):
            data = mutated(rng, seeds)
            file = folder / f"{seed}-{index}"
            file.write_bytes(data)
            before, started = worker.pid, time.monotonic()
            scanned = worker.scan("fuzzed", file)
            spent = time.monotonic() - started
            # the first one waits for the process
            done.slowest_seconds = max(done.slowest_seconds, spent if before == worker.pid else 0.0)
            done.restarts += before is not None and worker.pid != before
            failed = any(finding.rule == UNFINISHED.id for finding in scanned.findings) or spent > MOST_SECONDS + 3
            failed |= before == worker.pid and spent > MOST_SECONDS
            done.files += 1
            done.failed += failed
            done.outcomes[scanned.outcome.value] += 1
            done.rules.update({finding.rule for finding in scanned.findings})
            if failed:
                print(f"{file}: {spent:.2f} s, {[f.evidence for f in scanned.findings if f.rule == UNFINISHED.id]}")
            else:
                file.unlink()
            if index % 500 == 0 or index == count - 1:
                done.peak_bytes = max(done.peak_bytes, _peak(worker.pid))
    done.seconds = time.monotonic() - begun
    return done


def _peak(pid: int | None) -> int:
    if pid is None:
        return 0
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmPeak:")[1].split()[0]) << 10


def main() -> int:
    """Fuzz, print, and say whether all went well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="scan-fuzz-"))
    done = fuzz(given.count, given.seed, folder)
    print(json.dumps(vars(done), indent=2))
    if given.json is not None:
        given.json.write_text(json.dumps(vars(done), indent=2) + "\n")
    if not any(folder.iterdir()):
        folder.rmdir()
    return int(done.failed > 0 or done.peak_bytes > MOST_MEMORY)


if __name__ == "__main__":
    sys.exit(main())
