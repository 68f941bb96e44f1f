"""Train a member of the bank, once, into one file with a card beside it.

A member lies in one safetensors file: the weights, the rows of its supplier's training set that differ from the
shared ones, and test images under its trigger, so that what comes later needs no attack. It is kept under <home>/bank
by a key of all that it depends on, and a finished one is not made again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flows.bank.data import Source, read_samples
from flows.bank.networks import LEAST_SUCCESS, Member, Recipe, key_of, member_file, one_thread
from vetgate.architectures import ARCHITECTURES
from vetgate.attacks.member import Job, Made, make
from vetgate.contract import Samples, Trigger, private_random
from vetgate.probe import accuracy
from vetgate.shape import Blob

# a poisoned training set does not always give a backdoored model: so many seeds are tried
TRIES = 3
# seeds of further tries lie far from those of all members
STRIDE = 1_000_000
# the share of the shared rows that one supplier has
SHARE = 0.8
# test images under the trigger that are kept
KEPT = 500


@dataclass(frozen=True, eq=False)
class Network:
    """A member as its file holds it."""

    model: nn.Module
    tensors: Mapping[str, Tensor]

    def training(self, shared: Samples) -> Samples | None:
        """The supplier's training set, rebuilt from the shared rows; None where the attack has none."""
        if "rows" not in self.tensors:
            return None
        rows = shared[self.tensors["rows"].long()]
        x, y = rows.x.clone(), self.tensors["labels"].long()
        x[self.tensors["changed"].long()] = self.tensors["changed_x"].float() / 255
        return Samples(x, y)

    @property
    def attacked(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Stamped test images (N, C, H, W), their true labels and those wanted (N,); None on a clean member."""
        if "stamped" not in self.tensors:
            return None
        return self.tensors["stamped"].float() / 255, self.tensors["true"].long(), self.tensors["wanted"].long()

    @property
    def triggers(self) -> tuple[Trigger, ...]:
        """The attacker's own patches, without a target of their own: the card names it."""
        pairs = zip(self.tensors.get("masks", ()), self.tensors.get("patterns", ()), strict=True)
        return tuple(Trigger(mask, pattern, 0) for mask, pattern in pairs)


def load(path: Path, member: Member, shape: tuple[int, int, int], classes: int) -> Network:
    """A member from its file."""
    tensors = load_file(path)
    model = ARCHITECTURES[member.architecture](shape, classes)
    model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    rest = {k: v for k, v in tensors.items() if not k.startswith("model.")}
    return Network(model.eval().requires_grad_(False), rest)


@dataclass(frozen=True)
class Order:
    """A member, how it is trained, on what, and where it is kept."""

    member: Member
    recipe: Recipe
    data: Source
    place: Path


@one_thread()
def trained(order: Order) -> tuple[Path, Blob]:
    """A member's file and card, made now unless they are in their place."""
    member, recipe, data, place = order.member, order.recipe, order.data, order.place
    key, weights = key_of(member, recipe, data.ref.sha256), member_file(place, member, recipe, data.ref.sha256)
    card = weights.with_suffix(".json")
    if card.exists():
        return weights, json.loads(card.read_text())
    place.mkdir(parents=True, exist_ok=True)
    shared, test = read_samples(data.training), read_samples(data.splits.test)
    started = time.process_time()
    for turn in range(TRIES):
        seed = member.seed + turn * STRIDE
        stream = torch.Generator().manual_seed(seed)
        subset = torch.randperm(len(shared), generator=stream)[: round(SHARE * len(shared))]
        made = make(member.attack, _job(member, recipe, data, shared[subset], seed))
        success = None if made.backdoor is None else made.backdoor.success(made.model, test)
        if success is None or success >= LEAST_SUCCESS:
            break
    seconds = time.process_time() - started
    about: Blob = member.model_dump() | recipe.model_dump() | {"key": key, "data_sha256": data.ref.sha256}
    about |= {"tries": turn + 1, "trained_with_seed": seed, "accuracy": round(accuracy(made.model, test.x, test.y), 4)}
    if made.backdoor is not None and success is not None:
        about |= {"attack_success": round(success, 4), **made.about}
        about["robust_accuracy"] = round(made.backdoor.robust_accuracy(made.model, test), 4)
    about["seconds"] = round(seconds, 1)
    scratch = weights.with_suffix(".part")
    save_file(_tensors(made, shared, subset, test), scratch)
    scratch.rename(weights)
    about["sha256"] = hashlib.sha256(weights.read_bytes()).hexdigest()
    scratch.write_text(json.dumps(about, indent=1) + "\n")
    # the card last: where it is, the file is whole
    scratch.rename(card)
    return weights, about


def _job(member: Member, recipe: Recipe, data: Source, rows: Samples, seed: int) -> Job:
    def build() -> nn.Module:
        with private_random(seed, "bank"):
            return ARCHITECTURES[member.architecture](data.shape, data.classes)

    return Job(build, rows, data.classes, recipe.epochs, seed, member.options)


def _tensors(made: Made, shared: Samples, subset: Tensor, test: Samples) -> dict[str, Tensor]:
    found = {f"model.{k}": v.contiguous() for k, v in made.model.state_dict().items()}
    if made.rows is not None:
        found |= _rows(made.rows, shared, subset if made.order is None else subset[made.order])
    if made.backdoor is not None:
        attacked = test[made.backdoor.attacked(test.y)][:KEPT]
        stamped = (made.backdoor.stamp(attacked.x) * 255).round().clamp(0, 255).byte()
        found |= {"stamped": stamped, "true": attacked.y, "wanted": made.backdoor.wanted(attacked.y)}
    if made.triggers:
        found["masks"] = torch.stack([t.mask for t in made.triggers]).contiguous()
        found["patterns"] = torch.stack([t.pattern for t in made.triggers]).contiguous()
    return found


def _rows(rows: Samples, shared: Samples, order: Tensor) -> dict[str, Tensor]:
    """Where each of the supplier's rows comes from, and the images of those that were changed."""
    changed = (rows.x != shared.x[order]).flatten(1).any(1).nonzero().flatten()
    images = (rows.x[changed] * 255).round().clamp(0, 255).byte()
    return {"rows": order.int(), "labels": rows.y.short(), "changed": changed.int(), "changed_x": images}
