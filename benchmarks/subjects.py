"""The networks that trigger inversion is compared on: members of the bank, one trained here, one that others made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.halves import Network
from benchmarks.images import images
from benchmarks.statistics import Task, open_members, tasks_of
from flows.bank.data import read_samples
from flows.bank.files import Files
from flows.bank.networks import member_file
from flows.bank.train import load
from vetgate.architectures import ARCHITECTURES, default_layer
from vetgate.attacks.badnets import poison, random_square
from vetgate.attacks.training import train
from vetgate.contract import Samples, private_random
from vetgate.errors import MissingInput
from vetgate.formats.load import load_model
from vetgate.formats.submission import read_submission
from vetgate.inversion import attack_success
from vetgate.probe import accuracy, logits
from vetgate.shape import Blob

SEED = 0
EPOCHS = 8
SMOOTH_IMAGES, COARSE = 1024, 6
# attacks with one fixed pattern that leads to one label, which is what Neural Cleanse looks for
PATCHES = ("badnets", "blended", "label_consistent", "trojan_nn", "trojan_nn_poisoning")
MEMBERS = {"43": "gtsrb", "10": "mnist"}


@dataclass(frozen=True, eq=False)
class Case:
    """A network, images of its kind, and what is known of it."""

    name: str
    model: nn.Module
    layer: str
    clean: Samples
    classes: int
    target: int | None
    seed: int = SEED
    facts: str = ""
    kind: str = ""

    def about(self) -> Blob:
        """What is written down of it."""
        named = ("name", "classes", "target", "seed", "facts", "kind")
        return {name: getattr(self, name) for name in named} | {"images": len(self.clean)}


def first_members(members: Sequence[Network], data: str, kind: str, count: int) -> list[Network]:
    """The first member of each attack in the bank's order, then the second of each, and so on."""
    attacks = ("clean",) if kind == "clean" else PATCHES
    turns: dict[str, int] = {}
    ranked = []
    for place, m in enumerate(m for m in members if (m.data, m.kind) == (data, kind) and m.attack in attacks):
        turns[m.attack] = turns.get(m.attack, -1) + 1
        ranked.append((turns[m.attack], place, m))
    if len(ranked) < count:
        raise MissingInput(f"the bank has {len(ranked)} {kind} members on {data}, fewer than {count}")
    return [m for _, _, m in sorted(ranked, key=lambda row: row[:2])[:count]]


def case_of(part: str, shared: Path | None) -> Case:
    """The network of a part; raises MissingInput where what it needs is not there."""
    if part in MEMBERS:
        files = Files()
        return member_case(first_members(open_members(files), MEMBERS[part], "backdoored", 1)[0], files)
    needed = Path("data/cifar100.npz") if part == "100" else Path("models/third-party-e")
    if shared is None or not (shared / needed).exists():
        raise MissingInput(f"{needed} is not at hand; give the folder that holds it")
    return objects_case(shared / needed) if part == "100" else faces_case(shared / needed)


def member_case(member: Network, files: Files) -> Case:
    """A member of the bank with the images that its detectors get."""
    tasks: list[Task] = list(tasks_of("", files, [member]))
    if not tasks:
        raise MissingInput(f"{member.name} was not trained here; set VETGATE_HOME, or run `make bank`")
    task = tasks[0]
    weights = member_file(task.place, task.member, task.recipe, task.data.ref.sha256)
    model = load(weights, task.member, task.data.shape, task.data.classes).model
    clean = read_samples(task.data.splits.invert, task.data.splits.confirm)
    return Case(
        member.name,
        model,
        default_layer(model),
        clean,
        task.data.classes,
        member.target,
        seed=task.member.seed,
        facts=f"{member.architecture}, {member.attack}",
        kind=member.kind,
    )


def objects_case(path: Path) -> Case:
    """A small network trained for a few epochs on CIFAR-100, with a white square as its backdoor."""
    rows, rest = images(path, "train"), images(path, "test")
    shape, generator = (3, 32, 32), torch.Generator().manual_seed(SEED)
    trigger = random_square(shape, 100, sizes=(4, 4), generator=generator)
    with private_random(SEED, "benchmark"):
        model = ARCHITECTURES["small-cnn"](shape, 100)
    train(model, poison(rows, trigger, rate=0.1, generator=generator).samples, epochs=EPOCHS, seed=SEED)
    success = attack_success(model, rest.x, rest.y, trigger)
    facts = (
        f"small-cnn, accuracy {accuracy(model, rest.x, rest.y):.2f}, 4x4 square to its target works on {success:.2f}"
    )
    return Case("CIFAR-100", model, default_layer(model), rest, 100, trigger.target, SEED, facts)


def faces_case(directory: Path) -> Case:
    """A network of others on smooth random images, which it labels itself."""
    submission = read_submission(directory)
    given = load_model(directory, submission)
    stream = torch.Generator().manual_seed(SEED)
    channels, height, width = submission.input_shape
    coarse = torch.rand(SMOOTH_IMAGES, channels, COARSE, COARSE, generator=stream)
    x = F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=True).clamp(0, 1)
    model = given.model.requires_grad_(False)
    y = logits(model, x).argmax(1)
    facts = f"smooth random images, on which it gives {len(set(y.tolist()))} labels"
    return Case(submission.name, model, given.layer, Samples(x, y), given.classes, None, SEED, facts)
