"""How much memory a large ONNX file takes, in units of its size: `python -m benchmarks.load_memory FILES`.

`[--only vgg16] [--json FILE]`. FILES is the directory of `benchmarks.real_architectures`, to which what is missing is
exported. `load` is what the sandbox does before each method, `convert` what it does with a file that was handed in:
read to its last byte, written anew, that read again and held against onnxruntime. Each in a process of its own, whose
peak is of resident pages, mapped ones of the file included, above what is resident once everything is imported.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.real_architectures import cases, export_once, submission_of
from benchmarks.timm_models import ARCHITECTURES

WAYS = ("load", "convert")


@dataclass(frozen=True)
class Row:
    """One file in one way: `peak` of resident bytes above the interpreter, `size` of all its files, and seconds."""

    architecture: str
    exporter: str
    way: str
    size: int
    peak: int
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, help="where the exported files are kept")
    parser.add_argument("--only", default="^vgg16 ", help="a pattern for architecture and exporter")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--way", choices=WAYS, help="measure the one model in FILES in this very process")
    parser.add_argument("--side", type=int, default=224)
    args = parser.parse_args()
    if args.way:
        print(json.dumps(within(args.files, args.way, args.side)))
        return
    rows = []
    for architecture, exporter, fixed in cases():
        if fixed or not re.search(args.only, f"{architecture} {exporter}"):
            continue
        rows += measured(architecture, exporter, args.files / f"{architecture}.{exporter}")
    show(rows)
    if args.json:
        args.json.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))


def measured(architecture: str, exporter: str, folder: Path) -> list[Row]:
    """The rows of one file; what is not read as it was handed in is loaded in the form that vetgate writes."""
    export_once(architecture, exporter, folder)
    side = ARCHITECTURES[architecture][1]
    size = sum(path.stat().st_size for path in folder.iterdir())
    rows = []
    for way in WAYS if len(list(folder.iterdir())) == 1 else WAYS[1:]:
        command = [sys.executable, "-m", __spec__.name, str(folder), "--way", way, "--side", str(side)]
        told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        rows.append(Row(architecture, exporter, way, size, **told))
    return rows


def within(directory: Path, way: str, side: int) -> dict[str, float]:
    """Peak and seconds of this process."""
    import onnxruntime  # noqa: F401 - so that it counts as imported
    import torch

    import tasks.sandbox.operations as operations
    import vetgate.formats.onnx.equal
    import vetgate.formats.onnx.module  # noqa: F401
    from vetgate.formats.load import load_model

    torch.set_num_threads(1)
    submission = submission_of((3, side, side), 1000)
    forget_peak()
    before, begun = resident("VmRSS"), time.monotonic()
    if way == "load":
        load_model(directory, submission)
    else:
        with tempfile.TemporaryDirectory() as room:
            told = {"directory": str(directory), "submission": submission.model_dump(mode="json")}
            operations.inspect({**told, "out": str(Path(room, "written"))}, lambda done: None)
    return {"peak": resident("VmHWM") - before, "seconds": round(time.monotonic() - begun, 1)}


def forget_peak() -> None:
    """Let VmHWM of this process begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


def resident(kind: str) -> int:
    """VmRSS (now) or VmHWM (at most) of this process, in bytes."""
    return int(Path("/proc/self/status").read_text().split(f"{kind}:")[1].split()[0]) << 10


def show(rows: list[Row]) -> None:
    """Print a line a measurement."""
    table = Table("architecture", "exporter", "way", "size", "peak", "peak / size", "seconds")
    for row in rows:
        table.add_row(
            row.architecture, row.exporter, row.way, f"{row.size / 2**20:.0f} MiB", f"{row.peak / 2**20:.0f} MiB",
            f"{row.peak / row.size:.2f}", f"{row.seconds:.1f}",
        )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main()
