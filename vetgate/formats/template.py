"""A `submission.yaml` to be filled in: what a model file says of itself, and in words what only its supplier knows."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vetgate.architectures import ARCHITECTURES
from vetgate.errors import NotUnderstood
from vetgate.formats.model_name import MODEL_NAME
from vetgate.formats.readers import accepted, formats
from vetgate.formats.sniff import refusal

# names that say nothing
PLAIN = ("model", "mlmodel", "network", "net", "weights")
NOTES = {
    "supplier": "who made the model",
    "input_shape": "[C, H, W] of the images, for instance [3, 32, 32]",
    "classes": "how many, or a list of their names in order",
    "architecture": f"one of {', '.join(ARCHITECTURES)}, or timm:NAME of a state dict",
    "match_weights_by": "its tensors have other names than the network's, and are matched in their order",
    "reference_data": "the name of trusted images, as `vetgate data add` registers them; without any, null",
    "layout": "the file takes (N, H, W, C)",
    "output": "the one of several outputs that holds the logits",
    "normalization": "the file takes pixels from 0 to 255; vetgate gives 0 to 1",
}
ALWAYS = ("supplier", "input_shape", "classes", "reference_data")


def look(members: Mapping[str, bytes], model: str) -> dict[str, Any]:
    """The format of the file `model`, with what it says of itself; raises NotUnderstood for none that is known."""
    reasons: list[str] = []
    for name, known in formats().items():
        if not known.sniff(members[model]):
            continue
        try:
            return {"format": name, **known.says(members, model)}
        except NotUnderstood as error:
            reasons.append(f"no {name}: {str(error)[:400]}")
    why = f"something else ({'; '.join(reasons)}). Hand in {accepted()}" if reasons else refusal(members[model])
    raise NotUnderstood(f"expected a model in {model}, got {why}")


def name_for(file: Path) -> str:
    """A name for the model, from that of its file or, where that says nothing, of its directory."""
    given = file.absolute().parent.name if file.stem.lower() in PLAIN else file.stem
    found = re.sub(r"[^a-z0-9]+", "-", given.lower()).strip("-")[:60].strip("-")
    return found if MODEL_NAME.fullmatch(found) else "my-model"


def unknown(said: Mapping[str, Any]) -> list[str]:
    """The fields that are to be filled in."""
    fields = [field for field in said if field != "fitting"]
    return [field for field in dict.fromkeys([*ALWAYS, *fields]) if said.get(field) is None]


def template(name: str, model: str, said: Mapping[str, Any]) -> str:
    """The text of the file. What is unknown is a comment, so that the missing field is named until it is filled in."""
    known = {"name": name, "task": "image-classification", "model": model, **said}
    # alike in every shape, and not in padding or the constants of their layers
    fitting, notes = known.pop("fitting", None), dict(NOTES)
    if known.get("architecture") is not None:
        notes["architecture"] = "the network whose tensors these are"
    if known.get("normalization") is None:
        notes["normalization"] = "{mean: [...], std: [...]} that it was trained with, of pixels from 0 to 1"
    if fitting is not None:
        notes["architecture"] = f"the one that it was trained as of {', '.join(fitting)}, all of which it fits"
    lines = [f"# Describes {model} for vetgate. Fill in the lines that begin with '# fill in'.", ""]
    for field in dict.fromkeys([*known, *ALWAYS]):
        value, note = known.get(field), notes.get(field)
        if value is None:
            lines += [f"# fill in: {note}", f"# {field}:"]
        else:
            lines += [
                *([f"# as the file says: {note}"] if note and field not in ALWAYS else []),
                f"{field}: {_plain(value)}",
            ]
    return "\n".join(lines) + "\n"


def _plain(value: Any) -> str:
    # JSON is YAML, on one line and quoted where need be
    return value if isinstance(value, str) and re.fullmatch(r"[A-Za-z][\w.-]*", value) else json.dumps(value)
