"""Leave the flagged rows of the training set out and train the network again from scratch.

Nothing of the submitted weights is left, so nothing of a backdoor is that hung on the rows that are gone. What remains
is what detectors overlooked: a few poisoned rows can be enough to teach the backdoor again.

Source    Tran, Li, Madry, "Spectral Signatures in Backdoor Attacks", NeurIPS 2018, arXiv:1811.00636, section 3.
Deviates  Rows that any evidence flags are left out. Adam under a falling rate and no augmentation: the supplier's own
          recipe is not known.
Blind to  Rows that nobody flagged, and backdoors that no training set carries. Layers of a kind that cannot be drawn
          anew keep their values: constants of an ONNX graph.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vetgate.contract import Evidence, Repair, Samples, Subject, repair
from vetgate.errors import DefenceError
from vetgate.role import RepairRole
from vetgate.tuning import Lessons, Tuning, tune

ROLE = RepairRole(
    uses="flagged",
    title="Remove and retrain",
    sentence="Trains the network again from scratch, without the rows that detectors flagged.",
)

NO_WEIGHTS = "every weight is drawn anew, and the submitted ones are never used"


@repair(
    role=ROLE,
    needs={"train"},
    paper="https://arxiv.org/abs/1811.00636",
    waived={"check_nan_model_refused": NO_WEIGHTS},
)
def remove_and_retrain(
    subject: Subject, *evidence: Evidence, epochs: int = 20, lr: float = 3e-3, batch: int = 64
) -> Repair:
    """Train for `epochs` on all rows of the training set that no evidence flags."""
    assert subject.train is not None
    flagged = flagged_rows(subject.train, evidence)
    left = subject.train[~flagged]
    drawn_anew(subject.model)
    steps = taught(subject.model, left, epochs=epochs, lr=lr, batch=batch)
    return Repair(subject.model, {"removed": float(flagged.sum()), "left": float(len(left)), "steps": float(steps)})


def flagged_rows(train: Samples, evidence: Sequence[Evidence]) -> Tensor:
    """Boolean (N,): the rows that any evidence flags; raises DefenceError where no row of a class would be left."""
    found = torch.zeros(len(train), dtype=torch.bool)
    for item in evidence:
        if len(item.scores) != len(train):
            raise DefenceError(
                f"expected a score for each of {len(train)} training rows, got {len(item.scores)} of {item.method}; "
                "give evidence on the same training set"
            )
        found |= item.flagged
    gone = sorted(set(train.y.tolist()) - set(train.y[~found].tolist()))
    if gone:
        raise DefenceError(
            f"expected rows of every class to be left, got none of {gone[:10]}; give a training set anew"
        )
    return found


def drawn_anew(model: nn.Module) -> None:
    """Draw the weights of every layer anew, in place; raises DefenceError where there is none that can be."""
    drawing = [draw for layer in model.modules() if callable(draw := getattr(layer, "reset_parameters", None))]
    if not drawing:
        raise DefenceError("expected layers whose weights can be drawn anew, got none; take another repair")
    for draw in drawing:
        draw()


def taught(
    model: nn.Module, rows: Samples, *, epochs: int, lr: float, batch: int, share: tuple[float, float] = (0.0, 1.0)
) -> int:
    """Train the model in place on all rows, batch statistics too; the number of minibatches."""
    steps = epochs * -(-len(rows) // batch)
    plan = Tuning(steps=steps, batch=batch, lr=lr, distilled=0.0, statistics=True)
    # by their labels alone: what the submitted network says holds the backdoor
    tune(model, Lessons(taught=rows, said=torch.empty(len(rows), 0), held=rows[:0]), plan, share=share)
    return steps
