"""The two files of Keras: what each says of its layers, and which arrays belong to which layer."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vetgate.errors import NotUnderstood
from vetgate.formats.keras.hdf5 import ADVICE, Hdf5, read_hdf5
from vetgate.formats.plain_json import read_object
from vetgate.scan.archives.zip_archive import content
from vetgate.scan.archives.zip_directory import zip_members
from vetgate.scan.inspection import Inspection, Place
from vetgate.scan.rules import RULES
from vetgate.scan.source import InMemory, Source

ZIP = b"PK\x03\x04"
CONFIG, WEIGHTS, METADATA = "config.json", "model.weights.h5", "metadata.json"
# what training left, which no image meets
TRAINING = re.compile(r"(optimizer|optimizer_weights)(/.*)?|.*/seed_generator(/.*)?")
HUMPS = re.compile(r"(?<=.)(?=[A-Z][a-z])|(?<=[a-z])(?=[A-Z])")
Arrays = Sequence[np.ndarray]


@dataclass(frozen=True)
class KerasFile:
    """A model as its file says it: its configuration, the version of Keras, and the arrays of each layer by name."""

    config: Mapping[str, Any]
    version: str
    weights: Mapping[str, Arrays]


def read_file(data: bytes) -> KerasFile:
    """Read a `.keras` archive or an `.h5` file with its architecture; raises NotUnderstood."""
    return _read_archive(data) if data.startswith(ZIP) else _read_single(data)


def layers_of(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The layers of a Sequential or Functional model, as the file describes them."""
    inner = config.get("config")
    layers = inner.get("layers") if isinstance(inner, dict) else inner  # a list in files of before 2019
    if not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
        raise NotUnderstood(f"expected a Sequential or Functional model with its layers, got none; {ADVICE}")
    return layers


def name_of(layer: Mapping[str, Any]) -> str:
    """The name of a layer."""
    config = layer.get("config")
    name = config.get("name", layer.get("name")) if isinstance(config, dict) else None
    if not isinstance(name, str) or not name:
        raise NotUnderstood(f"expected layers with names, got {str(layer)[:80]}; {ADVICE}")
    return name


def _read_archive(data: bytes) -> KerasFile:
    members = _unpacked(data)
    if set(members) != {CONFIG, WEIGHTS, METADATA}:
        raise NotUnderstood(f"expected {CONFIG}, {WEIGHTS} and {METADATA}, got {sorted(members)[:8]}; {ADVICE}")
    config = read_object(members[CONFIG], CONFIG)
    version = str(read_object(members[METADATA], METADATA).get("keras_version", ""))
    return KerasFile(config, version, _by_kind(read_hdf5(members[WEIGHTS]), layers_of(config)))


def _unpacked(data: bytes) -> dict[str, bytes]:
    inspection = Inspection("model", _no_more, len(data))
    place, found = Place(inspection), dict[str, bytes]()

    def read() -> None:
        source = InMemory(data)
        for member in zip_members(source, place):
            there = place.within(member.name)
            if not member.is_directory:
                unpacked = content(source, member, there)
                found[member.name] = unpacked.read(0, unpacked.size)

    place.guarded(read)
    for finding in inspection.findings:
        raise NotUnderstood(
            f"expected a plain zip archive, got {RULES[finding.rule].name} ({finding.rule}): {finding.evidence}; "
            f"{ADVICE}"
        )
    return found


def _no_more(source: Source, at: Place) -> None:
    raise NotUnderstood(f"expected only members of the archive, got {source.size} bytes more; {ADVICE}")


def _by_kind(held: Hdf5, layers: Iterable[Mapping[str, Any]]) -> dict[str, Arrays]:
    # a layer's arrays stand under the name of its class, and the number of those of that class before it
    counts: Counter[str] = Counter()
    weights: dict[str, Arrays] = {}
    used: set[str] = set()
    for layer in layers:
        kind = HUMPS.sub("_", re.sub(r"\W", "", str(layer.get("class_name")))).lower()
        path = f"layers/{kind}_{counts[kind]}/vars" if counts[kind] else f"layers/{kind}/vars"
        said = held.attributes.get(path, {}).get("name")
        if kind == "input_layer" and path not in held.attributes:
            continue  # a Sequential model does not count it
        counts[kind] += 1
        if said not in (None, name_of(layer)):
            raise NotUnderstood(f"expected the arrays of {name_of(layer)!r} in {path}, got those of {said!r}; {ADVICE}")
        mine = sorted((p for p in held.arrays if p.rpartition("/")[0] == path), key=_number)
        if [_number(p) for p in mine] != list(range(len(mine))):
            raise NotUnderstood(f"expected numbered arrays in {path}, got {mine[:5]}; {ADVICE}")
        weights[name_of(layer)] = [held.arrays[p] for p in mine]
        used.update(mine)
    _check_rest(held, used)
    return weights


def _read_single(data: bytes) -> KerasFile:
    held = read_hdf5(data)
    config = held.attributes[""].get("model_config")
    if not isinstance(config, str):
        raise NotUnderstood("expected an .h5 file with its architecture, got weights only; save it with model.save")
    root = "model_weights"
    version = str(held.attributes[""].get("keras_version", ""))
    weights: dict[str, Arrays] = {}
    used: set[str] = set()
    read = read_object(config, "model_config")
    for layer in layers_of(read):
        group = f"{root}/{name_of(layer)}"
        names = held.attributes.get(group, {}).get("weight_names", [])
        paths = [f"{group}/{name}" for name in names] if isinstance(names, list) else []
        missing = [path for path in paths if path not in held.arrays]
        if missing or len(set(paths)) < len(paths):
            raise NotUnderstood(f"expected the arrays that {group} names, each once, got no {missing[:3]}; {ADVICE}")
        weights[name_of(layer)] = [held.arrays[path] for path in paths]
        used.update(paths)
    _check_rest(held, used)
    return KerasFile(read, version, weights)


def _check_rest(held: Hdf5, used: set[str]) -> None:
    rest = [path for path in held.arrays if path not in used and not TRAINING.fullmatch(path)]
    if rest:
        raise NotUnderstood(f"expected arrays of the model's layers only, got {rest[:5]}; {ADVICE}")


def _number(path: str) -> int:
    last = path.rpartition("/")[2]
    return int(last) if last.isascii() and last.isdigit() and len(last) < 6 else -1
