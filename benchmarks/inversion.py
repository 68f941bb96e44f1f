"""What trigger inversion costs and finds: the textbook loop of Neural Cleanse beside the engine, on the same models.

`OMP_NUM_THREADS=1 python -m benchmarks.inversion SHARED --json FILE` runs both on networks of 43, 10, 1,283 and 100
classes, and on clean and backdoored digits members of the bank. The textbook loop runs on a few labels drawn at random,
and costs are given a label; on digits it runs on all labels. What is finished is kept in FILE, and a second start goes
on from there. Members of the bank must be at hand (VETGATE_HOME, `make bank`); SHARED holds `data/cifar100.npz` and
`models/third-party-e`.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

import vetgate.detect  # noqa: F401 - registers the detectors
from benchmarks.inversion_tables import ENGINE, TEXTBOOK, costs, detected
from benchmarks.statistics import open_members
from benchmarks.subjects import SEED, Case, case_of, first_members, member_case
from benchmarks.textbook import Plan, invert_label
from flows.bank.evidence import Gradients
from flows.bank.files import Files
from flows.params import load_params
from vetgate.contract import DETECTORS, Samples, Subject
from vetgate.digest import code_digest
from vetgate.errors import MissingInput, StoreError
from vetgate.shape import Blob

DETECTION, DIGITS, KINDS = "detection", "digits", ("clean", "backdoored")
# by what each part tells for the time it takes
PARTS = ("43", DETECTION, "10", "1283", "100")
# labels that the engine searches at most; where there are more, drawn ones, all logits taking part
MOST_LABELS = 128
# images in a pass whose speed is what the network can do, and processor seconds that this is timed for
PASS, TIMED = 128, 1.0


class FirstLabels(nn.Module):
    """Another's logits with those of some labels first, in their order, and then all others."""

    def __init__(self, inner: nn.Module, labels: Sequence[int], classes: int) -> None:
        super().__init__()
        self.inner = inner
        self.order = torch.tensor([*labels, *(k for k in range(classes) if k not in set(labels))])

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K) of images (B, C, H, W)."""
        out: Tensor = self.inner(x)[:, self.order]
        return out


class Kept:
    """Finished pieces of work by name, in a JSON file where one is given."""

    def __init__(self, path: Path | None, settings: Blob) -> None:
        self.path, self.settings, self.found = path, settings, dict[str, Blob]()
        if path is not None and path.exists():
            held = json.loads(path.read_text())
            if held["settings"] != settings:
                raise StoreError(f"expected figures of this code and these parameters in {path}; name another file")
            self.found = held["found"]

    def once(self, name: str, make: Callable[[], Blob]) -> Blob:
        """What is kept under a name; made and written down where there is nothing."""
        if name not in self.found:
            self.found[name] = make()
            if self.path is not None:
                lines = ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in self.found.items())
                scratch = self.path.with_suffix(".part")
                scratch.write_text(f'{{"settings": {json.dumps(self.settings)},\n"found": {{\n{lines}\n}}}}\n')
                scratch.rename(self.path)
        return self.found[name]


def main() -> None:
    """Measure what is not measured yet, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "shared", type=Path, nargs="?", help="folder of shared data and models, for 100 and 1,283 classes"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="numbers of classes, or detection")
    parser.add_argument("--labels", type=int, default=3, help="labels that the textbook loop runs on, for each model")
    parser.add_argument("--members", type=int, default=10, help="members of each kind that detection is measured on")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep finished work here, and go on from it")
    given = parser.parse_args()
    if min(given.labels, given.members) < 1:
        parser.error("--labels and --members are 1 or more")
    console = Console(width=180)
    settings = {
        "code": code_digest("detect", ENGINE),
        "params": load_params().detect[ENGINE],
        "plan": asdict(Plan()),
        "threads": torch.get_num_threads(),
    }
    kept = Kept(given.json, settings)
    compared, members = list[Blob](), list[Blob]()
    with Progress(console=Console(stderr=True)) as bar:
        for part in given.parts:
            try:
                if part == DETECTION:
                    members = detection(given.members, kept, bar)
                else:
                    compared.append(comparison(part, given.shared, given.labels, kept, bar))
            except MissingInput as error:
                console.print(f"{part}: left out, since {error}")
    if compared:
        costs(compared, console)
    if members:
        detected(members, console)


def comparison(part: str, shared: Path | None, count: int, kept: Kept, bar: Progress) -> Blob:
    """Both loops on one network, the textbook loop on `count` labels, and the network's speed right before each."""
    return both(part, functools.cache(functools.partial(case_of, part, shared)), count, kept, bar, timed=True)


def detection(count: int, kept: Kept, bar: Progress) -> list[Blob]:
    """Both loops on all labels of `count` clean and as many backdoored members, clean and backdoored taking turns."""
    files = Files()
    every = open_members(files)
    pairs = zip(*(first_members(every, DIGITS, kind, count) for kind in KINDS), strict=True)
    members = [member for pair in pairs for member in pair]
    cases = [functools.cache(functools.partial(member_case, member, files)) for member in members]
    return [both(f"{DETECTION}/{m.name}", case, None, kept, bar) for m, case in zip(members, cases, strict=True)]


def both(
    place: str, case: Callable[[], Case], count: int | None, kept: Kept, bar: Progress, *, timed: bool = False
) -> Blob:
    """The engine on the labels of a network, and the textbook loop on the first `count` of them, or on all.

    The network is made or loaded only where something is left to do.
    """
    about = kept.once(f"{place}/about", lambda: case().about())
    labels = drawn(about["classes"], about["target"], min(MOST_LABELS, about["classes"]))
    sample = sorted(labels) if count is None else labels[:count]
    tools = (bar, timed)
    return {
        "about": about,
        ENGINE: kept.once(f"{place}/{ENGINE}", functools.partial(searched, case, labels, *tools)),
        TEXTBOOK: [kept.once(f"{place}/{TEXTBOOK}/{k}", functools.partial(inverted, case, k, *tools)) for k in sample],
    }


def drawn(classes: int, target: int | None, count: int) -> list[int]:
    """Labels in the order in which they are taken: a known target first, the others at random."""
    order: list[int] = torch.randperm(classes, generator=torch.Generator().manual_seed(SEED)).tolist()
    return ([] if target is None else [target]) + [k for k in order if k != target][: count - (target is not None)]


def searched(of: Callable[[], Case], labels: Sequence[int], bar: Progress, timed: bool) -> Blob:
    """The shipped detector on these labels of a network: mask norms, statistics and cost."""
    case = of()
    model, clean, layer, labels = case.model, case.clean, case.layer, list(labels)
    if len(labels) == case.classes:
        labels = list(range(case.classes))
    else:
        model = FirstLabels(model, labels, case.classes)
        clean, layer = Samples(clean.x, model.order.argsort()[clean.y]), f"inner.{layer}"
    subject = Subject(model=model, layer=layer, classes=len(labels), clean=clean)
    shown = bar.add_task(f"{case.name}: {len(labels)} labels", total=1)

    def heard(done: float) -> None:
        bar.update(shown, completed=done)

    def run() -> Blob:
        seen = DETECTORS[ENGINE](subject, seed=case.seed, progress=heard, **load_params().detect[ENGINE])
        return {
            "labels": len(labels),
            "norms": {str(k): round(n, 3) for k, n in zip(labels, seen.details["norms"], strict=True)},
            "log_norm": round(seen.statistic, 4),
            "index": round(float(seen.details["anomaly_index"]), 3),
            "named": labels[int(seen.scores.argmax())],
        }

    given = counted(case, f"engine, {len(labels)} labels", run, bar, timed)
    bar.remove_task(shown)
    return given


def inverted(of: Callable[[], Case], label: int, bar: Progress, timed: bool) -> Blob:
    """The textbook loop on one label of a network: mask norm, success, steps and cost."""
    case = of()
    shown = bar.add_task(f"{case.name}: label {label}", total=Plan().steps)

    def run() -> Blob:
        seed = case.seed * case.classes + label
        found = invert_label(case.model, case.clean.x, label, seed=seed, heard=lambda n: bar.update(shown, completed=n))
        return {
            "label": label,
            "norm": round(found.trigger.norm, 3),
            "success": round(found.success, 4),
            "steps": found.steps,
            "stopped_early": found.stopped_early,
        }

    given = counted(case, f"textbook loop, label {label}", run, bar, timed)
    bar.remove_task(shown)
    return given


def counted(case: Case, what: str, work: Callable[[], Blob], bar: Progress, timed: bool) -> Blob:
    """What the work gives, with its processor seconds and image-gradients, and the speed of the network before it."""
    alone = {"alone": round(plain_speed(case.model, case.clean.x), 1)} if timed else {}
    gradients, started = Gradients(case.model), time.process_time()
    try:
        given = work()
    finally:
        gradients.stop()
    cost = {"seconds": round(time.process_time() - started, 2), "image_gradients": gradients.images}
    bar.console.print(f"{case.name}: {what}: {cost['seconds']} CPU-s, {cost['image_gradients']} image-gradients")
    return given | cost | alone


def plain_speed(model: nn.Module, x: Tensor) -> float:
    """Images a processor second, forward and back to the input, in passes of 128: the faster of both memory layouts."""
    speeds = []
    for layout in (torch.contiguous_format, torch.channels_last):
        alone = copy.deepcopy(model).to(memory_format=layout)  # type: ignore[call-overload]
        images = x[torch.arange(PASS) % len(x)].contiguous(memory_format=layout).requires_grad_(True)
        passes: list[float] = []
        while len(passes) < 4 or sum(passes) < TIMED:
            started = time.process_time()
            torch.autograd.grad(alone(images).sum(), images)
            passes.append(time.process_time() - started)
        # the first pass warms up, and single ones are disturbed by what else runs
        speeds.append(PASS / float(np.median(passes[1:])))
    return max(speeds)


if __name__ == "__main__":
    main()
