"""What a method is to the rest of vetgate, declared once, in the method's own file, and read without torch.

A detector says `ROLE = Role(axis=Axis.CLASS, ...)`, a repair `ROLE = RepairRole(...)`, of plain values only: they are
read from the source. The judge, the calibration, the bank, the policy's defaults, reports and docs go by them.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from vetgate.errors import BadPolicy

PACKAGE = Path(__file__).parent
# modules in the folders of methods that hold none
BESIDE_METHODS = {"__init__", "alarm_rate", "contract", "guarded", "measure", "package"}
Uses = Literal["flagged", "triggers", "neurons"]
# labels of a model are compared with each other; of fewer, each with the same in clean models on the same data alone
FEWEST_CLASSES = 4


class Axis(StrEnum):
    """What the scores of an Evidence are about: training rows, class labels, or inputs."""

    TRAIN = "train"
    CLASS = "class"
    INPUT = "input"


class By(StrEnum):
    """What a statistic is held against: simulated labels like those of clean models, clean models, or nothing.

    Against nothing: what is found is proven on the model itself, or is a question, whatever clean models look like.
    """

    LABEL = "label"
    MODEL = "model"
    NOTHING = "nothing"


class Confirm(StrEnum):
    """How a suspicion becomes a finding.

    HELD_OUT_AND_SECOND_START: details `held_out` (success on unseen images) and `second_start` (effect from another
    start), one a label. SUCCESS: detail `success`, one a trigger. REPEATED: detail `repeated`, the scores measured
    again. MISLABELLED: the same, and what is measured are training rows. ROWS: the rows of the training set are the
    finding. NEVER: the statistic counts, and names nothing. PROVEN: details are the findings, each
    [kind, share of images on which it alone decides, label or -1, 1 if it was confirmed].
    """

    HELD_OUT_AND_SECOND_START = "held-out-and-second-start"
    SUCCESS = "success"
    REPEATED = "repeated"
    MISLABELLED = "mislabelled"
    ROWS = "rows"
    NEVER = "never"
    PROVEN = "proven"


@dataclass(frozen=True, kw_only=True)
class Role:
    """A detector's part in a verdict.

    `weight` is fixed before any model is looked at; 0 is advisory: shown, never counted. `gives` is what repairs can
    use. `mask_sizes`: scores are minus the log of a mask's size, and so mean something without references. `by_data`:
    scores are habits of a data set, and count only where references are on the subject's. `by_architecture`: scores
    are habits of an architecture, and count only where references are of the subject's. `on_device`: the network may
    compute on another device than the processor, which takes images from it and gives logits back to it.
    """

    axis: Axis
    weight: float
    null: By
    confirm: Confirm
    title: str
    sentence: str
    gives: tuple[Uses, ...] = ()
    mask_sizes: bool = False
    by_data: bool = False
    by_architecture: bool = False
    on_device: bool = False

    def __post_init__(self) -> None:
        by_rows = self.confirm is Confirm.ROWS
        if self.weight < 0 or by_rows != (self.axis is Axis.TRAIN) or (self.null is By.LABEL) > self.scores_labels:
            raise ValueError(
                f"expected a weight of 0 or more, rows of a training set and labels of a model, got {self}"
            )
        if (self.confirm is Confirm.PROVEN) != (self.null is By.NOTHING) or (self.null is By.NOTHING and self.weight):
            raise ValueError(f"expected what is proven to be held against nothing, without a weight, got {self}")
        if self.confirm not in (Confirm.ROWS, Confirm.NEVER) and not self.scores_labels:
            raise ValueError(f"expected labels to confirm, got scores of {self.axis} in {self.title}")

    @property
    def scores_labels(self) -> bool:
        """Whether the scores are of class labels."""
        return self.axis is Axis.CLASS


@dataclass(frozen=True, kw_only=True)
class RepairRole:
    """A repair's part: the evidence that it uses, None for none, and its name and sentence for people.

    `tells` names the share among what it changed of which half or more says, without a trigger to measure, that it took
    something out.
    """

    uses: Uses | None
    title: str
    sentence: str
    tells: str | None = None


@dataclass(frozen=True, kw_only=True)
class GuardRole:
    """A run-time guard's part: the evidence that it uses, None for none, and its name and sentence for people.

    `votes`: it can also say what an input should have been taken for. `normalisation`: it guards only networks with
    batch normalisation.
    """

    uses: Uses | None
    title: str
    sentence: str
    votes: bool = False
    normalisation: bool = False


R = TypeVar("R", Role, RepairRole, GuardRole)


def roles() -> dict[str, Role]:
    """Every detector's role by name."""
    return _declared("detect", Role)


def repair_roles() -> dict[str, RepairRole]:
    """Every repair's role by name."""
    return _declared("repair", RepairRole)


def guard_roles() -> dict[str, GuardRole]:
    """Every run-time guard's role by name."""
    return _declared("guard", GuardRole)


def guard_functions(name: str, package: Path = PACKAGE) -> dict[str, str]:
    """The functions in a guard's own file that its registration names: `fit`, and `vote` where it votes."""
    body = ast.parse((package / "guard" / f"{name}.py").read_text()).body
    functions = {node.name: node for node in body if isinstance(node, ast.FunctionDef)}
    decorators = functions[name].decorator_list if name in functions else []
    given = [k for call in decorators if isinstance(call, ast.Call) for k in call.keywords if k.arg in ("fit", "vote")]
    found = {str(k.arg): ast.unparse(k.value) for k in given}
    if "fit" not in found or not functions.keys() >= set(found.values()):
        raise BadPolicy(
            f"expected {name} registered with functions of vetgate/guard/{name}.py, got {found}; put them there"
        )
    return found


def role_of(method: str) -> Role | None:
    """A detector's role; None for what is no detector of this version."""
    return roles().get(method)


def weight_of(method: str) -> float:
    """How much a detector counts; nothing when it is none."""
    role = role_of(method)
    return 0.0 if role is None else role.weight


def by_label(method: str) -> bool:
    """Whether a detector's null is simulated from the labels of the references."""
    role = role_of(method)
    return role is not None and role.null is By.LABEL


def by_itself(method: str) -> bool:
    """Whether what a detector finds is proven on the model itself, so that it is held against no references."""
    role = role_of(method)
    return role is not None and role.null is By.NOTHING


def scores_labels(method: str) -> bool:
    """Whether a detector scores the class labels of a model."""
    role = role_of(method)
    return role is not None and role.scores_labels


def source_of(what: Uses, among: Mapping[str, Any] | None = None) -> str | None:
    """The detector that repairs go by where one has to be chosen: of those that give `what`, that with most weight."""
    known = {name: role for name, role in roles().items() if among is None or name in among}
    giving = [name for name, role in known.items() if what in role.gives]
    return max(giving, key=weight_of, default=None)


def title_of(method: str) -> str:
    """A method's name for people."""
    found = roles().get(method) or repair_roles().get(method) or guard_roles().get(method)
    return found.title if found else method.replace("_", " ").capitalize()


def sentence_of(method: str) -> str:
    """What a method does, in one sentence; empty for what is no method."""
    found = roles().get(method) or repair_roles().get(method) or guard_roles().get(method)
    return found.sentence if found else ""


@cache
def _declared(folder: str, kind: type[R]) -> dict[str, R]:
    found = {}
    for path in sorted((PACKAGE / folder).glob("*.py")):
        if path.stem not in BESIDE_METHODS:
            found[path.stem] = _read(path, kind)
    return found


def _read(path: Path, kind: type[R]) -> R:
    """The one role in a method's file."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ROLE" and isinstance(node.value, ast.Call):
            try:
                return kind(**{str(k.arg): _value(k.value) for k in node.value.keywords})
            except (TypeError, ValueError, KeyError) as error:
                raise BadPolicy(
                    f"expected ROLE of {path.stem} as a {kind.__name__}, got {error}; correct it"
                ) from error
    raise BadPolicy(f"expected ROLE = {kind.__name__}(...) in {path.stem}, got none; declare it, as its neighbours do")


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return {"Axis": Axis, "By": By, "Confirm": Confirm}[node.value.id][node.attr]
    return ast.literal_eval(node)
