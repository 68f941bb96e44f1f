"""Backdoors wired into a graph: what the structural inspector finds, and that ordinary networks are silent.

`python -m benchmarks.structure --json FILE` wires every construction of `benchmarks.wired` and `benchmarks.wired_later`
around a trained digits network and inspects it, and the clean twin. FIRST are those that the inspector was settled on;
SECOND and LATER were looked at afterwards, once. `--architectures` inspects our own architectures, trained on digits
and written as ONNX; `--models DIR ...` submissions of ordinary networks, on images of noise where digits do not fit;
`--exports DIR` the architectures of timm with random weights, exported by both exporters into DIR unless they lie there
(as `benchmarks.real_architectures` has them), each in a process of its own; `--bank` the open members of the bank whose
weights lie in the home, written as ONNX: backdoored ones too, whose wiring is ordinary. One object a row goes to FILE;
rows that FILE has are kept, and exports and members that have one are not inspected again.
"""

from __future__ import annotations

import argparse
import io
import json
import time
import warnings
from collections.abc import Collection, Iterator
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import vetgate.detect  # noqa: F401 - registers the detectors
from benchmarks import wired, wired_later
from benchmarks.load_memory import forget_peak, resident
from benchmarks.real_architectures import MODEL, canonical_of, exported
from benchmarks.timm_models import ARCHITECTURES as OF_TIMM
from benchmarks.timm_models import EXPORTERS, images
from benchmarks.trained import members_to_measure, trained
from flows.bank.data import read_samples
from tasks.settings import load_settings
from vetgate.architectures import ARCHITECTURES
from vetgate.attacks.training import train
from vetgate.contract import DETECTORS, Evidence, Samples, Subject
from vetgate.errors import NotUnderstood
from vetgate.formats.inspect import read_member
from vetgate.formats.load import Loaded, described, load_members
from vetgate.formats.submission import FILE
from vetgate.probe import logits
from vetgate.role import by_itself
from vetgate.structure.kind import Kind

IMAGES = 400
# of a network of timm: as many images as the detector takes
NOISE = 80
COLUMNS = ("case", "half", "findings", "kind", "confirmed", "label", "decides", "stamped", "seconds", "cpu", "memory")


def inspected(loaded: Loaded, samples: Samples) -> tuple[Evidence, float]:
    """What the inspector says of a loaded model, and the seconds that it took."""
    (name,) = (name for name in DETECTORS if by_itself(name))
    subject = Subject(model=loaded.model, layer=loaded.layer, classes=loaded.classes, clean=samples[:IMAGES])
    started = time.monotonic()
    evidence: Evidence = DETECTORS[name](subject)
    return evidence, time.monotonic() - started


def row(case: str, half: str, loaded: Loaded, samples: Samples) -> dict[str, Any]:
    """One row: of the findings the one that decides most, and what its stamp does to images that were not used."""
    found: dict[str, Any] = {"case": case, "half": half}
    loaded.model.requires_grad_(False)
    evidence, seconds = inspected(loaded, samples)
    found |= {"findings": len(evidence.details), "seconds": round(seconds, 2)}
    if not evidence.details:
        return found
    path, (kind, decides, label, confirmed) = max(evidence.details.items(), key=lambda item: item[1][1])  # type: ignore
    found |= {"kind": Kind(int(kind)).name, "confirmed": bool(confirmed), "label": int(label), "decides": decides}
    if evidence.triggers and len(samples) > IMAGES:
        rest = samples[IMAGES:]
        changed = labels(loaded, evidence.triggers[0].stamp(rest.x)) != labels(loaded, rest.x)
        # images that have the label anyway say nothing
        found["stamped"] = round(float(changed[rest.y != label].float().mean()), 3)
    return {**found, "path": path}


def labels(loaded: Loaded, x: torch.Tensor) -> torch.Tensor:
    """The labels (N,) of images."""
    return logits(loaded.model, x).argmax(1)


def constructions() -> Iterator[dict[str, Any]]:
    """Every construction, and the clean twin."""
    model, samples = wired.trained_digits(), shuffled()
    sets = {"first": (wired.clean, *wired.FIRST), "second": wired.SECOND, "later": wired_later.LATER}
    for half, construction in ((half, c) for half, those in sets.items() for c in those):
        with TemporaryDirectory() as folder:
            place = wired.write_wired(Path(folder, "case"), construction, model)
            yield of_directory(construction.__name__, half, place, samples)


def architectures() -> Iterator[dict[str, Any]]:
    """Our own architectures as graphs."""
    samples = shuffled()
    for name, make in ARCHITECTURES.items():
        torch.manual_seed(0)
        model = train(make(wired.SHAPE, wired.CLASSES), samples, epochs=6).eval()
        yield of_network(name, "ordinary", model, samples, wired.CLASSES)


def of_bank(done: Collection[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    """Trained networks of the bank, but for those that are done (half, case)."""
    wanted = [member for member in members_to_measure() if ("bank", member.name) not in done]
    for member, data, network in trained(load_settings(), wanted):
        samples = read_samples(data.splits.confirm)
        yield of_network(member.name, "bank", network.model.eval(), samples, data.classes)


def of_network(case: str, half: str, model: nn.Module, samples: Samples, classes: int) -> dict[str, Any]:
    """The row of a network of ours, written as ONNX and read as a vetting reads it."""
    file, (_, channels, height, width) = io.BytesIO(), samples.x.shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (samples.x[:2],), file, dynamo=False, dynamic_axes={"x": {0: "N"}}, input_names=["x"])
    described, data = canonical_of({MODEL: file.getvalue()}, (channels, height, width), classes)
    return row(case, half, load_members({described.model: data}, described), samples)


def of_directory(case: str, half: str, place: Path, samples: Samples | None = None) -> dict[str, Any]:
    """The row of a submission, on noise where there are no samples."""
    submission = described({FILE: (place / FILE).read_bytes()})
    members = {submission.model: read_member(place, submission.model)}
    if samples is None:
        noise = torch.rand(NOISE, *submission.input_shape, generator=torch.Generator().manual_seed(0))
        samples = Samples(noise, torch.zeros(NOISE, dtype=torch.int64))
    try:
        loaded = load_members(members, submission)
    except NotUnderstood as error:
        return {"case": case, "half": half, "findings": "refused", "path": str(error)[:200]}
    return row(case, half, loaded, samples)


def exports(files: Path, done: Collection[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    """The networks of timm, but for those that are done (half, case)."""
    for exporter in EXPORTERS:
        for architecture in OF_TIMM:
            if (exporter, architecture) not in done:
                with get_context("spawn").Pool(1, torch.set_num_threads, (1,)) as process:
                    yield process.apply(of_export, (architecture, exporter, files / f"{architecture}.{exporter}"))


def of_export(architecture: str, exporter: str, folder: Path) -> dict[str, Any]:
    """The row of one file, read as a vetting does; `memory` is by how many MiB the process grew while it inspected."""
    side = OF_TIMM[architecture][1]
    described, data = canonical_of(exported(architecture, exporter, folder), (3, side, side), 1000)
    torch.manual_seed(0)
    samples = Samples(images(NOISE, side, side), torch.zeros(NOISE, dtype=torch.int64))
    loaded = load_members({described.model: data}, described)
    forget_peak()
    before, started = resident("VmRSS"), time.process_time()
    found = row(architecture, exporter, loaded, samples)
    return found | {"cpu": round(time.process_time() - started, 1), "memory": (resident("VmHWM") - before) >> 20}


def shuffled() -> Samples:
    """The digits in an order of their own."""
    samples = wired.digits()
    return samples[torch.randperm(len(samples), generator=torch.Generator().manual_seed(0))]


def main() -> None:
    """Print the table, and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--models", type=Path, nargs="*", default=[])
    parser.add_argument("--architectures", action="store_true")
    parser.add_argument("--exports", type=Path)
    parser.add_argument("--bank", action="store_true")
    given = parser.parse_args()
    text = given.json.read_text() if given.json is not None and given.json.exists() else ""
    rows = {(one["half"], one["case"]): one for one in map(json.loads, text.splitlines())}
    if given.exports is not None:
        measured = exports(given.exports, set(rows))
    elif given.bank:
        measured = of_bank(set(rows))
    elif given.models:
        measured = (of_directory(place.name, "ordinary", place) for place in given.models)
    else:
        measured = architectures() if given.architectures else constructions()
    for one in measured:
        print(*(str(one.get(column, "-")) for column in COLUMNS), flush=True)
        rows[one["half"], one["case"]] = one
        if given.json is not None:
            given.json.write_text("".join(json.dumps(one) + "\n" for one in rows.values()))
    table = Table(*COLUMNS)
    for one in rows.values():
        table.add_row(*(str(one.get(column, "")) for column in COLUMNS))
    Console().print(table)


if __name__ == "__main__":
    main()
