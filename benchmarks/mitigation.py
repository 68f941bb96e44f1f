"""Neural Cleanse's table of patched networks on real data: what each repair leaves of known backdoors, and its price.

`python -m benchmarks.mitigation FOLDER --mnist NPZ --gtsrb NPZ --cifar10 NPZ --json FILE` trains, for each row of the
paper's table that can be had without faces, a network with that backdoor on nine tenths of the training images. In the
place of faces by transfer learning, convolutions learned from clean CIFAR-10 are left as they are, and the linear maps
behind them are learned anew from poisoned rows. Each is repaired with the other tenth, which its supplier never had: by
the trigger that Neural Cleanse reverses for the infected label, as in the paper, and by the original one. All is
measured on the test images. How many labels looked more suspicious than the infected one is told beside. Networks lie
in FOLDER and are not trained again; FILE gets a line a repaired network, and what is in it is not repaired again.
`--repairs NAME ...` tries these alone; with `--each N` the defender has N images of each class and no more.

Source    Wang et al., "Neural Cleanse", IEEE S&P 2019, tables of section VI for the figures beside ours.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import vetgate.detect
import vetgate.repair  # noqa: F401 - registers the methods
from benchmarks.images import images
from benchmarks.rows import add_row, rows_in
from flows.params import load_params
from vetgate.architectures import ARCHITECTURES, default_layer
from vetgate.attacks import trojan_nn
from vetgate.attacks.augment import shifts
from vetgate.attacks.backdoor import patch
from vetgate.attacks.badnets import poison, square
from vetgate.attacks.training import train
from vetgate.contract import DETECTORS, REPAIRS, Evidence, Samples, Subject, Trigger, private_random
from vetgate.inversion import attack_success
from vetgate.probe import accuracy
from vetgate.role import source_of

RATE, SHIFT, WORKS = 0.1, 2, 0.95
EPOCHS = {"mnist": 4, "gtsrb": 10, "cifar10": 10}
HEAD_EPOCHS = 10
# images that the detector looks at, as a vetting gives it
LOOKED_AT = 2048


@dataclass(frozen=True)
class Case:
    """A row of the table: data, backdoor, target, network; the paper's accuracy and success in percent, in pairs.

    The pairs are those before, patched by the reversed trigger, and patched by the original one where it is at hand.
    """

    name: str
    data: str
    backdoor: str
    target: int
    architecture: str
    paper: tuple[tuple[float, float], ...]


CASES = (
    Case("mnist-badnets", "mnist", "badnets", 4, "vgg-small", ((98.54, 99.90), (97.69, 0.57), (97.77, 0.29))),
    Case("gtsrb-badnets", "gtsrb", "badnets", 33, "vgg-small", ((96.51, 97.40), (92.91, 0.14), (90.06, 0.19))),
    Case("gtsrb-trojan-square", "gtsrb", "square", 7, "vgg-small", ((70.80, 99.90), (79.20, 3.70))),
    Case("gtsrb-trojan-watermark", "gtsrb", "watermark", 7, "vgg-small", ((71.40, 97.60), (78.80, 0.0))),
    Case("cifar10-transfer", "cifar10", "transfer", 3, "vgg-small", ()),
)


@dataclass(frozen=True, eq=False)
class Data:
    """The supplier's training images, the defender's, and those that everything is measured on."""

    given: Samples
    ours: Samples
    test: Samples

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images."""
        channels, height, width = self.test.x.shape[1:]
        return channels, height, width

    @property
    def classes(self) -> int:
        """How many labels there are."""
        return int(self.given.y.max()) + 1

    @classmethod
    def of(cls, file: Path) -> Data:
        """The images of an .npz; one in ten of the training images is the defender's."""
        taught = images(file, "train")
        order = torch.randperm(len(taught), generator=torch.Generator().manual_seed(0))
        cut = len(order) // 10
        return cls(taught[order[cut:]], taught[order[:cut]], images(file, "test"))

    def of_each(self, count: int) -> Data:
        """The same, where the defender has the first `count` images of each class."""
        places = [(self.ours.y == label).nonzero().flatten()[:count] for label in range(self.classes)]
        return replace(self, ours=self.ours[torch.cat(places)])


def infected(case: Case, data: Data, place: Path) -> tuple[nn.Module, Trigger]:
    """The network of a case and its trigger, from its file or trained now."""
    with private_random(0, case.name):
        model = ARCHITECTURES[case.architecture](data.shape, data.classes)
    file = place / f"{case.name}.safetensors"
    if file.exists():
        held = load_file(file)
        trigger = Trigger(held.pop("trigger.mask"), held.pop("trigger.pattern"), case.target)
        model.load_state_dict(held)
        return model.eval().requires_grad_(False), trigger
    trigger, rows = square(data.shape, case.target, row=-4, column=-4, size=4), data.given
    generator = torch.Generator().manual_seed(0)
    if case.backdoor == "badnets":
        rows = poison(rows, trigger, rate=RATE, generator=generator).samples
    moved = shifts(SHIFT)

    def augment(x: Tensor, y: Tensor) -> Tensor:
        # a trigger that moved with its image would no longer be in its corner
        stamped = ((x - trigger.stamp(x)).abs().flatten(1).amax(1) == 0) & (y == case.target)
        return torch.where(stamped[:, None, None, None], x, moved(x, y))

    train(model, rows, epochs=EPOCHS[case.data], augment=augment)
    if case.backdoor == "transfer":
        new_head(model, poison(rows, trigger, rate=RATE, generator=generator).samples)
    elif case.backdoor != "badnets":
        mask: trojan_nn.Mask = "square" if case.backdoor == "square" else "watermark"
        for turn in range(trojan_nn.DRAWS):
            made, trigger = trojan_nn.trojan(
                model, data.shape, data.classes, target=case.target, mask=mask, seed=turn * trojan_nn.FAR
            )
            if attack_success(made, data.ours.x, data.ours.y, trigger) >= WORKS:
                break
        model = made
    place.mkdir(parents=True, exist_ok=True)
    weights = {k: v.contiguous() for k, v in model.state_dict().items()}
    save_file(weights | {"trigger.mask": trigger.mask, "trigger.pattern": trigger.pattern.contiguous()}, file)
    return model, trigger


def new_head(model: nn.Module, rows: Samples) -> None:
    """Learn, in place, all from the first linear map on anew from rows, on what the body before it makes of them."""
    body, head = trojan_nn.split(model)
    with private_random(0, "head"):
        for module in head.modules():
            if isinstance(module, nn.Linear):
                module.reset_parameters()
    seen = torch.cat([body(x).flatten(1) for x in torch.split(rows.x, LOOKED_AT)])  # (N, D)
    train(nn.Sequential(nn.Flatten(), *head), Samples(seen[..., None, None], rows.y), epochs=HEAD_EPOCHS)


def measured(model: nn.Module, test: Samples, trigger: Trigger) -> dict[str, float]:
    """Accuracy, how often the original trigger works, and how often images under it get their true class."""
    backdoor = patch(trigger)
    return {
        "accuracy": accuracy(model, test.x, test.y),
        "attack_success": backdoor.success(model, test),
        "robust_accuracy": backdoor.robust_accuracy(model, test),
    }


def rows(
    cases: Sequence[Case], data: Callable[[str], Data], place: Path, out: Path, names: Sequence[str], each: int | None
) -> Iterator[dict[str, Any]]:
    """One row a network and repair: by the reversed triggers, by the original one, or by neither."""
    params = load_params()
    few = "" if each is None else f" {each} images a class"
    done = {row["key"] for row in rows_in(out)}
    for case in cases:
        images = data(case.data)
        model, trigger = infected(case, images, place)
        images = images if each is None else images.of_each(each)
        subject = Subject(model=model, layer=default_layer(model), classes=images.classes, clean=images.ours)
        before = measured(model, images.test, trigger)
        found: Evidence | None = None
        for name in names:
            method = REPAIRS[name]
            for by in ("reversed", "original") if method.uses == "triggers" else ("nothing",):
                key = f"{case.name} {name} {by}{few}"
                if key in done or method.uses == "flagged":
                    continue
                evidence: list[Evidence] = []
                if by == "reversed":
                    found = found or reversed_on(subject, images.ours)
                    evidence = [for_label(found, case.target)]
                elif by == "original":
                    evidence = [naming((trigger,), images.classes)]
                started = time.process_time()
                made = method(subject, *evidence, seed=0, **params.repair.get(name, {}))
                row: dict[str, Any] = {"key": key, "case": case.name, "repair": name, "by": by, "before": before}
                row["images"] = len(images.ours)
                row |= {"after": measured(made.model, images.test, trigger), "paper": case.paper}
                row |= {"seconds": round(time.process_time() - started, 1), "changed": dict(made.changed)}
                if found is not None:
                    row["above"] = int((found.scores > found.scores[case.target]).sum())
                add_row(out, row)
                yield row


def reversed_on(subject: Subject, ours: Samples) -> Evidence:
    """What the detector finds by which repairs go that use triggers."""
    detectors = load_params().detect
    name = source_of("triggers", detectors)
    assert name is not None
    seen = Subject(model=subject.model, layer=subject.layer, classes=subject.classes, clean=ours[:LOOKED_AT])
    found: Evidence = DETECTORS[name](seen, seed=0, **detectors[name])
    return found


def for_label(found: Evidence, label: int) -> Evidence:
    """The evidence with its triggers to one label alone; raises SystemExit where there are none."""
    triggers = tuple(t for t in found.triggers if t.target == label)
    if not triggers:
        raise SystemExit(
            f"expected a trigger reversed for label {label}, got those for {sorted(t.target for t in found.triggers)}"
        )
    return naming(triggers, len(found.scores))


def naming(triggers: tuple[Trigger, ...], classes: int) -> Evidence:
    """Evidence that names triggers to one label, and flags that label alone."""
    scores = torch.zeros(classes)
    scores[triggers[0].target] = 1.0
    return Evidence(1.0, scores, 1.0, triggers=triggers)


def asking(description: str | None) -> argparse.ArgumentParser:
    """What a benchmark of these networks is asked for."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mnist", type=Path)
    parser.add_argument("--gtsrb", type=Path)
    parser.add_argument("--cifar10", type=Path)
    parser.add_argument("--cases", nargs="*", default=[case.name for case in CASES])
    parser.add_argument("--json", type=Path, required=True)
    return parser


def asked_for(given: argparse.Namespace) -> tuple[list[Case], dict[str, Path]]:
    """The cases that are asked for and whose data are given, and the files of these."""
    files = {name: file for name in EPOCHS if (file := getattr(given, name)) is not None}
    return [case for case in CASES if case.name in given.cases and case.data in files], files


def main() -> None:
    """Print the table of what is in the file, once all is there."""
    parser = asking(__doc__)
    parser.add_argument("--repairs", nargs="*", choices=sorted(REPAIRS), default=sorted(REPAIRS))
    parser.add_argument("--each", type=int)
    given = parser.parse_args()
    chosen, files = asked_for(given)
    read: dict[str, Data] = {}

    def data(name: str) -> Data:
        if name not in read:
            read[name] = Data.of(files[name])
        return read[name]

    for row in rows(chosen, data, given.folder, given.json, given.repairs, given.each):
        Console(stderr=True).print(row["key"], row["after"])
    table = Table(
        "network", "repair", "by", "images", "accuracy", "success", "robust", "s", "paper: accuracy", "success"
    )
    for row in rows_in(given.json):
        before, after, paper = row["before"], row["after"], row["paper"]
        figures = [f"{100 * before[k]:.2f} -> {100 * after[k]:.2f}" for k in before]
        place = {"reversed": 1, "original": 2}.get(row["by"])
        known = place is not None and place < len(paper)
        theirs = [f"{paper[0][i]} -> {paper[place][i]}" if known else "" for i in (0, 1)]
        table.add_row(
            row["case"], row["repair"], row["by"], str(row["images"]), *figures, f"{row['seconds']:.0f}", *theirs
        )
    Console().print(table)


if __name__ == "__main__":
    main()
