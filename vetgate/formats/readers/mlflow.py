"""MLflow: the directory of a model that was logged with the onnx flavor, `MLmodel` beside the file that it names.

Only comes in: what is vetted is the ONNX graph. Other flavors hold pickles or code, and are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import yaml

from vetgate.errors import NotUnderstood
from vetgate.formats.readers import Format
from vetgate.formats.readers.onnx import FORMAT as ONNX
from vetgate.formats.readers.onnx import belongs as holds_weights
from vetgate.formats.yaml12 import load_plain

if TYPE_CHECKING:
    from vetgate.formats.submission import Submission

# how the environment was and what calls look like: MLflow's own, which nothing here reads
BESIDE = ("conda.yaml", "python_env.yaml", "requirements.txt", "input_example.json", "serving_input_example.json")
FILE, FLAVOR, PYFUNC = "MLmodel", "onnx", "python_function"
INSTEAD = "log the model with mlflow.onnx.log_model, or hand in an ONNX graph"


def sniff(data: bytes) -> bool:
    """A text: the description, and no model of another format under its name."""
    from vetgate.formats.sniff import refusal

    return refusal(data) is None and b"\x00" not in data


def inspect(members: Mapping[str, bytes], submission: Submission) -> None:
    """Read the description, and the graph that it names."""
    ONNX.inspect(*_as_onnx(members, submission))


def canonical(members: Mapping[str, bytes], submission: Submission) -> tuple[Submission, bytes]:
    """The graph as vetgate writes it."""
    return ONNX.canonical(*_as_onnx(members, submission))


def _as_onnx(members: Mapping[str, bytes], submission: Submission) -> tuple[dict[str, bytes], Submission]:
    name = model_file(members[submission.model])
    if name not in members or name == submission.model:
        raise NotUnderstood(f"expected {name} beside {submission.model}, which names it, got none; hand it in too")
    graph = {own: data for own, data in members.items() if own == name or holds_weights(own)}
    return graph, submission.model_copy(update={"model": name, "format": "onnx", "architecture": None})


def says(members: Mapping[str, bytes], model: str) -> Mapping[str, Any]:
    """What the graph says."""
    if model != FILE:
        raise NotUnderstood(f"expected MLflow's {FILE}, got {model}; name that file")
    name = model_file(members[model])
    return ONNX.says(members, name) if name in members else {}


def model_file(data: bytes) -> str:
    """The ONNX file that an `MLmodel` names; raises NotUnderstood for other flavors."""
    try:
        described = load_plain(data.decode())
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise NotUnderstood(
            f"expected MLflow's description as plain YAML, got {str(error)[:200]}; {INSTEAD}"
        ) from error
    flavors = described.get("flavors") if isinstance(described, dict) else None
    if not isinstance(flavors, dict) or not isinstance(flavors.get(FLAVOR), dict):
        got = ", ".join(map(str, flavors))[:120] if isinstance(flavors, dict) else "none"
        raise NotUnderstood(
            f"expected a model of MLflow's {FLAVOR} flavor, got {got}, which is unpickled or imported "
            f"to be loaded; {INSTEAD}"
        )
    others = sorted(str(flavor) for flavor in set(flavors) - {FLAVOR, PYFUNC})
    if others:
        raise NotUnderstood(f"expected the {FLAVOR} flavor only, got {others[:5]} too; {INSTEAD}")
    name = flavors[FLAVOR].get("data")
    if not isinstance(name, str):
        raise NotUnderstood(f"expected the file of the {FLAVOR} flavor as `data`, got {str(name)[:80]}; {INSTEAD}")
    return name


FORMAT = Format(
    accepts="an MLflow model directory of the onnx flavor",
    sniff=sniff,
    inspect=inspect,
    says=says,
    canonical=canonical,
    belongs=lambda name: name in BESIDE or name.endswith(".onnx") or holds_weights(name),
)
