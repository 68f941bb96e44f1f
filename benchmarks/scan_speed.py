"""How fast large files are inspected and hashed, and in how much memory: `python -m benchmarks.scan_speed`.

`[--bytes 1073741824] [--json FILE]`. Each file is scanned by the process of `vetgate scan`; beside it stands how long
SHA-256 alone takes for the same file. Files lie in the temporary directory and were just written, so they are cached.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import struct
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from tasks.sandbox.scanning import ScanWorker
from tests.vetgate.scan.assembled import imported, text

BLOCK = np.random.default_rng(0).bytes(1 << 24)


def safetensors_file(path: Path, size: int) -> None:
    """One tensor of bytes."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        _fill(file, size)


def torch_file(path: Path, size: int) -> None:
    """A state dict of one tensor, as torch.save writes it."""
    number = b"\x8a\x05" + size.to_bytes(5, "little")
    storage = b"(" + text("storage") + imported("torch", "ByteStorage") + text("0") + text("cpu") + number + b"tQ"
    rebuilt = imported("torch._utils", "_rebuild_tensor_v2") + b"(" + storage + b"K\x00" + number + b"\x85K\x01\x85"
    pickled = b"\x80\x02}" + text("w") + rebuilt + b"\x89" + imported("collections", "OrderedDict") + b")RtRs."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        with archive.open(zipfile.ZipInfo("archive/data/0"), "w", force_zip64=True) as file:
            _fill(file, size)


def numpy_file(path: Path, size: int) -> None:
    """One array of bytes."""
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({size},), }}".ljust(117) + "\n"
    with path.open("wb") as file:
        file.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode())
        _fill(file, size)


WRITERS: dict[str, Callable[[Path, int], None]] = {
    "safetensors": safetensors_file,
    "torch (zip)": torch_file,
    "npy": numpy_file,
}


def measured(size: int, folder: Path) -> list[dict[str, Any]]:
    """A row for each format."""
    rows = []
    for name, write in WRITERS.items():
        path = folder / "file"
        write(path, size)
        hashed = min(_seconds_of_hash(path) for _ in range(2))
        with ScanWorker() as worker:
            worker.scan("first", folder)
            begun = time.monotonic()
            scanned = worker.scan(name, path, path.stat().st_size)
            seconds = time.monotonic() - begun
            status = Path(f"/proc/{worker.pid}/status").read_text()
        rows.append({
            "format": name, "bytes": path.stat().st_size, "outcome": scanned.outcome.value, "seconds": seconds,
            "sha256_seconds": hashed, "share_of_sha256_rate": hashed / seconds,
            "peak_resident_bytes": int(status.split("VmHWM:")[1].split()[0]) << 10,
        })  # fmt: skip
        path.unlink()
    return rows


def _fill(file: Any, size: int) -> None:
    for _ in range(size // len(BLOCK)):
        file.write(BLOCK)
    file.write(BLOCK[: size % len(BLOCK)])


def _seconds_of_hash(path: Path) -> float:
    begun = time.monotonic()
    with path.open("rb") as file:
        hashlib.file_digest(file, "sha256")
    return time.monotonic() - begun


def main() -> None:
    """Measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bytes", type=int, default=1 << 30)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measured(given.bytes, Path(folder))
    table = Table("format", "outcome", "seconds", "SHA-256 alone", "share of its rate", "peak memory")
    for row in rows:
        table.add_row(
            row["format"], row["outcome"], f"{row['seconds']:.1f}", f"{row['sha256_seconds']:.1f}",
            f"{row['share_of_sha256_rate']:.2f}", f"{row['peak_resident_bytes'] >> 20} MiB",
        )  # fmt: skip
    Console().print(table)
    if given.json is not None:
        given.json.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
