"""The fitted guards of one model as one file: safetensors, what is no tensor as JSON in its header, never code.

The file names the manifest of the model that they were fitted for, and is bound by its digest.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import safetensors.torch
from torch import Tensor

from vetgate.digest import canonical_json
from vetgate.errors import DefenceError, NotFinite, NotUnderstood
from vetgate.formats.safetensors_file import inspect_safetensors
from vetgate.guard.contract import GUARDS, Fitted

KEY = "vetgate.guards"
FORMAT = 1
# what a server holds in memory beside the network
MAX_BYTES = 256 << 20
# what of it is left to names and plain numbers
HEADER = 1 << 20
FIELDS = {"guard", "params", "numbers", "seed", "cut", "rate", "share", "cut_on", "tensors"}
ADVICE = "vet the model again"


@dataclass(frozen=True, eq=False)
class Package:
    """The guards of the model with this manifest (SHA-256), each with its cut, in the order in which they are asked."""

    manifest: str
    guards: tuple[Fitted, ...]


def too_large(guards: Sequence[Fitted]) -> dict[str, str]:
    """Why some of the guards do not go into a file, by name: the largest ones, until the rest fit."""
    sizes = {fitted.guard: sum(t.nbytes for t in fitted.tensors.values()) for fitted in guards}
    reasons, most = {}, MAX_BYTES - HEADER
    while sizes and sum(sizes.values()) > most:
        name = max(sizes, key=lambda each: sizes[each])
        others = sum(sizes.values()) - sizes[name]
        beside = f" beside {others} of the others" if sizes[name] <= most else ""
        reasons[name] = (
            f"expected at most {most} bytes of fitted guards, got {sizes.pop(name)} of {name}{beside}; let it keep "
            "less by its parameters (fewer overlays, carriers or dims; steps: 0), or leave it out of the policy"
        )
    return reasons


def to_bytes(package: Package) -> bytes:
    """The file of a package, the same bytes for the same guards; raises DefenceError where one has no cut."""
    tensors: dict[str, Tensor] = {}
    listed: list[dict[str, Any]] = []
    for fitted in package.guards:
        if fitted.cut is None or fitted.rate is None:
            raise DefenceError(f"expected a cut for {fitted.guard}, got none; set it on trusted images first")
        listed.append(
            {
                "guard": fitted.guard,
                "params": dict(fitted.params),
                "numbers": dict(fitted.numbers),
                "seed": fitted.seed,
                "cut": fitted.cut,
                "rate": fitted.rate,
                "share": fitted.share,
                "cut_on": fitted.cut_on,
                "tensors": sorted(fitted.tensors),
            }
        )
        tensors |= {f"{fitted.guard}.{name}": t.contiguous() for name, t in sorted(fitted.tensors.items())}
    if not tensors:
        raise DefenceError("expected guards that learned something, got none; name some in the policy")
    header = {"format": FORMAT, "manifest": package.manifest, "guards": listed}
    data = safetensors.torch.save(tensors, {KEY: canonical_json(header).decode()})
    if len(data) > MAX_BYTES:
        raise DefenceError(f"expected at most {MAX_BYTES} bytes of fitted guards, got {len(data)}; take fewer guards")
    return data


def from_bytes(data: bytes, *, manifest: str) -> Package:
    """The package in a file, for the model with this manifest; raises NotUnderstood for anything else.

    Nothing in it is run. Whether it is the file that was vetted, its digest says.
    """
    if len(data) > MAX_BYTES:
        raise NotUnderstood(f"expected at most {MAX_BYTES} bytes of guards, got {len(data)}; {ADVICE}")
    entries = inspect_safetensors(data)
    try:
        header = json.loads(_metadata(data)[KEY])
        if set(header) != {"format", "manifest", "guards"} or header["format"] != FORMAT:
            raise ValueError(f"format {header.get('format')}")
        if header["manifest"] != manifest:
            raise NotUnderstood(f"expected guards of {manifest}, got those of {header['manifest']}; {ADVICE}")
        tensors = safetensors.torch.load(data)
        package = Package(manifest, tuple(_fitted(given, tensors) for given in header["guards"]))
    except (KeyError, TypeError, ValueError, AttributeError, DefenceError) as error:
        raise NotUnderstood(f"expected fitted guards, got {type(error).__name__}: {error!s:.200}; {ADVICE}") from error
    named = {f"{fitted.guard}.{name}" for fitted in package.guards for name in fitted.tensors}
    if named != set(entries) or len({fitted.guard for fitted in package.guards}) != len(package.guards):
        raise NotUnderstood(f"expected each guard once and its tensors alone, got others; {ADVICE}")
    return package


def _metadata(data: bytes) -> Mapping[str, str]:
    size = int.from_bytes(data[:8], "little")
    return dict(json.loads(data[8 : 8 + size])["__metadata__"])


def _fitted(given: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Fitted:
    name = given["guard"]
    if set(given) != FIELDS or name not in GUARDS:
        raise ValueError(f"expected a guard of this version, got {name!r}")
    numbers = [given["cut"], given["rate"], *(given[name] for name in ("share", "cut_on") if given[name] is not None)]
    if not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
        raise NotFinite(f"expected a finite cut for {name}, got {numbers}")
    plain: Sequence[Any] = [*given["numbers"].values(), *given["params"].values()]
    if not all(value is None or isinstance(value, int | float | str | bool) for value in plain):
        raise ValueError(f"expected plain numbers for {name}, got others")
    return Fitted(
        tensors={inner: tensors[f"{name}.{inner}"] for inner in given["tensors"]},
        numbers=given["numbers"],
        guard=name,
        params=given["params"],
        seed=int(given["seed"]),
        cut=float(given["cut"]),
        rate=float(given["rate"]),
        share=None if given["share"] is None else float(given["share"]),
        cut_on=None if given["cut_on"] is None else int(given["cut_on"]),
    )
