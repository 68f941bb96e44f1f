"""The model bank: which networks it holds, clean and backdoored, and the data they are trained on.

`infra/bank/members.yaml` lists the members; `bank` in params.yaml says what is trained with, and which members are
sealed: these enter no calibration, no tuning and no debugging. The second wave confirms what was chosen on the open
members; the sealed ones are for the end.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, PositiveInt, ValidationError

from vetgate import shipped
from vetgate.digest import attack_digest, sha256_json
from vetgate.errors import BadPolicy

PARAMS, BANK = shipped.PARAMS, shipped.BANK
MEMBERS = BANK / "members.yaml"
# how honest suppliers and customers come by a network
CLEAN, FINE_TUNED, MISLABELLED = HONEST = ("clean", "fine_tuned", "mislabelled")
# which members are scored together: the open ones, or those held back
OPEN, SECOND, SEALED = GROUPS = ("open", "second", "sealed")
# a backdoored network is one whose attack works on this share of images
LEAST_SUCCESS = 0.8


class Recipe(BaseModel, frozen=True, extra="forbid"):
    """How networks are trained on a data set: rows they see at most, and epochs."""

    images: PositiveInt
    epochs: PositiveInt


class Member(BaseModel, frozen=True, extra="forbid"):
    """One network to make: the seed decides its weights, its rows and what its attacker draws."""

    name: str
    data: str
    attack: str
    architecture: str
    seed: int
    options: dict[str, int | float | str | bool] = {}

    @property
    def clean(self) -> bool:
        """Whether nothing was hidden in it."""
        return self.attack in HONEST


class Plan(BaseModel, frozen=True, extra="forbid"):
    """The bank's section: the methods of dvc.yaml's stages, a recipe for each data set, the members held back."""

    detectors: tuple[str, ...] = ()
    repairs: tuple[str, ...] = ()
    sets: dict[str, Recipe]
    second: frozenset[str] = frozenset()
    sealed: frozenset[str] = frozenset()

    def group(self, name: str) -> str:
        """Whether a member is open, of the second wave that confirms, or sealed."""
        return SEALED if name in self.sealed else SECOND if name in self.second else OPEN


def members(path: Path = MEMBERS) -> dict[str, Member]:
    """The members by name, in the order of the file; raises BadPolicy."""
    try:
        listed = yaml.safe_load(path.read_text())["members"]
        return {name: Member(name=name, **about) for name, about in listed.items()}
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValidationError) as error:
        raise BadPolicy(f"expected the bank's members in {path}, got {error}; restore the file") from error


def plan(path: Path = PARAMS) -> Plan:
    """The `bank` section of params.yaml; raises BadPolicy."""
    try:
        return Plan.model_validate(yaml.safe_load(path.read_text())["bank"])
    except (OSError, yaml.YAMLError, KeyError, ValidationError) as error:
        raise BadPolicy(f"expected a section bank in {path}, got {error}; restore the file") from error


def key_of(member: Member, recipe: Recipe, data_sha256: str) -> str:
    """What a member's bytes depend on, as a digest."""
    about = member.model_dump(exclude={"name"}) | recipe.model_dump()
    return sha256_json([about, data_sha256, attack_digest(member.attack, member.architecture)])


def member_file(place: Path, member: Member, recipe: Recipe, data_sha256: str) -> Path:
    """Where a member's file is kept; it is whole once there is a card beside it."""
    return place / f"{member.name}-{key_of(member, recipe, data_sha256)[:16]}.safetensors"


def read_all(folder: Path) -> dict[str, dict[str, Any]]:
    """The JSON objects in a folder by file name, without those of data sets that were not there."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    return {name: blob for name, blob in found.items() if "absent" not in blob}


def once(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The JSON object at a path; where there is none, what `make` gives is written there, whole or not at all."""
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    with one_thread():
        found = make()
    scratch = path.with_suffix(".part")
    scratch.write_text(json.dumps(found, indent=1) + "\n")
    scratch.rename(path)
    return found


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums are split among threads, so how many there are decides the last bits of a trained network."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
