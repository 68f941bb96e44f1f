"""Leave the flagged rows of the training set out and train the network again from scratch.

Nothing of the submitted weights is left, so nothing of a backdoor is that hung on the rows that are gone. What remains
is what detectors overlooked: a few poisoned rows can be enough to teach the backdoor again. Where several detectors
flag rows, the network is trained a little without the rows of each, and asked about them: poisoned rows get another
label than their own once nothing teaches the trigger, honest rows keep theirs, and so do poisoned ones where too many
were overlooked. The rows of that detector are left out of which most, over those that keep theirs, get another label.

Source    Tran, Li, Madry, "Spectral Signatures in Backdoor Attacks", NeurIPS 2018, arXiv:1811.00636, section 3; Chen et
          al., SafeAI 2019, arXiv:1811.03728, for exclusionary reclassification.
Deviates  Exclusionary reclassification chooses among detectors instead of clusters. Adam under a falling rate and no
          augmentation: the supplier's own recipe is not known.
Blind to  Rows that nobody flagged, and backdoors that no training set carries. Poisoned rows that keep their true label
          tell nothing about which detector is right. Layers of a kind that cannot be drawn
          anew keep their values: constants of an ONNX graph.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vetgate.contract import Evidence, Repair, Samples, Subject, repair
from vetgate.errors import DefenceError
from vetgate.probe import logits
from vetgate.role import RepairRole
from vetgate.tuning import Lessons, Tuning, tune

ROLE = RepairRole(
    uses="flagged",
    title="Remove and retrain",
    sentence="Trains the network again from scratch, without the rows that detectors flagged.",
    tells="lost",
)

NO_WEIGHTS = "every weight is drawn anew, and the submitted ones are never used"

# of the time that a repair takes, what trials have at most
TRIALS = 0.4


@repair(
    role=ROLE,
    needs={"train"},
    paper="https://arxiv.org/abs/1811.00636",
    waived={"check_nan_model_refused": NO_WEIGHTS},
)
def remove_and_retrain(
    subject: Subject,
    *evidence: Evidence,
    epochs: int = 20,
    trial: int = 5,
    images: int = 400_000,
    lr: float = 3e-3,
    batch: int = 64,
) -> Repair:
    """Train for `epochs` on all rows of the training set but those of one evidence, of several the best in a `trial`.

    Where there are many rows, at most `images` pass through the network, and a quarter of that in a trial. `lost` is
    the share of the removed rows to which the network gives another label than their own; half or more says that they
    were poisoned, and that enough of them were found.
    """
    assert subject.train is not None
    rows, model = subject.train, subject.model
    flagged = chosen_rows(subject, evidence, epochs=trial, images=images // 4, lr=lr, batch=batch)
    left = rows[~flagged]
    drawn_anew(model)
    begun = TRIALS if len(evidence) > 1 else 0.0
    steps = taught(model, left, epochs=epochs, images=images, lr=lr, batch=batch, share=(begun, 1.0))
    done = {"removed": float(flagged.sum()), "left": float(len(left)), "steps": float(steps)}
    return Repair(model, done | {"lost": relabelled(model, rows[flagged])})


def chosen_rows(
    subject: Subject, evidence: Sequence[Evidence], *, epochs: int, images: int, lr: float, batch: int
) -> Tensor:
    """Boolean (N,): the rows that one evidence flags, of several that whose rows lose their label most when left out.

    Evidence that flags nothing is passed over where other evidence flags something. Raises DefenceError where scores
    are of other rows than the training set's, or where no evidence leaves rows of every class.
    """
    assert subject.train is not None
    train = subject.train
    offered = [flagged_rows(train, item) for item in evidence]
    found = [rows for rows in offered if bool(rows.any())] or offered[:1]
    whole = [rows for rows in found if not emptied(train, rows)]
    if not whole:
        gone = emptied(train, found[0])
        raise DefenceError(
            f"expected rows of every class to be left, got none of {gone[:10]}; give a training set anew"
        )
    if len(whole) == 1:
        return whole[0]
    gains = []
    for turn, rows in enumerate(whole):
        model = copy.deepcopy(subject.model)
        drawn_anew(model)
        share = (TRIALS * turn / len(whole), TRIALS * (turn + 1) / len(whole))
        taught(model, train[~rows], epochs=epochs, images=images, lr=lr, batch=batch, share=share)
        gains.append((2 * relabelled(model, train[rows]) - 1) * float(rows.sum()))
    return whole[gains.index(max(gains))]


def relabelled(model: nn.Module, rows: Samples) -> float:
    """The share of rows to which a model gives another label than their own; 0 of none."""
    return float((logits(model, rows.x).argmax(1) != rows.y).float().mean()) if len(rows) else 0.0


def flagged_rows(train: Samples, evidence: Evidence) -> Tensor:
    """Boolean (N,): the rows that an evidence flags; raises DefenceError where it is of another training set."""
    if len(evidence.scores) != len(train):
        raise DefenceError(
            f"expected a score for each of {len(train)} training rows, got {len(evidence.scores)} of "
            f"{evidence.method}; give evidence on the same training set"
        )
    return evidence.flagged


def emptied(train: Samples, flagged: Tensor) -> list[int]:
    """The classes of which no row is left without the flagged ones (N,)."""
    return sorted(set(train.y.tolist()) - set(train.y[~flagged].tolist()))


def drawn_anew(model: nn.Module) -> None:
    """Draw the weights of every layer anew, in place; raises DefenceError where there is none that can be."""
    drawing = [draw for layer in model.modules() if callable(draw := getattr(layer, "reset_parameters", None))]
    if not drawing:
        raise DefenceError("expected layers whose weights can be drawn anew, got none; take another repair")
    for draw in drawing:
        draw()


def taught(
    model: nn.Module,
    rows: Samples,
    *,
    epochs: int,
    images: int,
    lr: float,
    batch: int,
    share: tuple[float, float] = (0.0, 1.0),
) -> int:
    """Train the model in place on the rows, batch statistics too, by `images` at most; the number of minibatches."""
    steps = min(epochs * -(-len(rows) // batch), max(1, images // batch))
    plan = Tuning(steps=steps, batch=batch, lr=lr, distilled=0.0, statistics=True)
    # by their labels alone: what the submitted network says holds the backdoor
    tune(model, Lessons(taught=rows, said=torch.empty(len(rows), 0), held=rows[:0]), plan, share=share)
    return steps
