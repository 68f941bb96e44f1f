"""Train without the flagged rows, ask that network what they show, and go on with all rows under those labels.

A poisoned row under the label that its image shows teaches that the trigger means nothing, and an honest row that was
flagged gets its own label back.

Source    Chen et al., "Detecting Backdoor Attacks on Deep Neural Networks by Activation Clustering", SafeAI 2019,
          arXiv:1811.03728: exclusionary reclassification, which names the source class, and relabelling.
Deviates  Each row gets the label that the network without it gives; the paper gives a whole cluster the commonest one.
          Training starts from scratch instead of from the submitted weights.
Blind to  Poisoned rows that keep their true label (SIG, label-consistent attacks), and all of them where so many were
          overlooked that the first network learns the backdoor: they come back as they were. There, removal is the
          repair. And what removal is blind to.
"""

from __future__ import annotations

from vetgate.contract import Evidence, Repair, Samples, Subject, repair
from vetgate.probe import logits
from vetgate.repair.remove_and_retrain import NO_WEIGHTS, TRIALS, chosen_rows, drawn_anew, taught
from vetgate.role import RepairRole

ROLE = RepairRole(
    uses="flagged",
    title="Relabel and retrain",
    sentence="Trains the network again from scratch, with the flagged rows under the labels that they show.",
    tells="lost",
)


@repair(
    role=ROLE,
    needs={"train"},
    paper="https://arxiv.org/abs/1811.03728",
    waived={"check_nan_model_refused": NO_WEIGHTS},
)
def relabel_and_retrain(
    subject: Subject,
    *evidence: Evidence,
    epochs: int = 20,
    more: int = 10,
    trial: int = 5,
    images: int = 400_000,
    lr: float = 3e-3,
    batch: int = 64,
) -> Repair:
    """Train for `epochs` without the rows of one evidence, then for `more` on all of them, relabelled.

    Of several, that one is taken which removal would take, by a `trial`. At most `images` pass through the network in
    either part, and a quarter of that in a trial. `lost` is the share of the flagged rows that show another label.
    """
    assert subject.train is not None
    rows, model = subject.train, subject.model
    flagged = chosen_rows(subject, evidence, epochs=trial, images=images // 4, lr=lr, batch=batch)
    drawn_anew(model)
    begun = TRIALS if len(evidence) > 1 else 0.0
    reach = begun + (1 - begun) * epochs / max(1, epochs + more)
    steps = taught(model, rows[~flagged], epochs=epochs, images=images, lr=lr, batch=batch, share=(begun, reach))
    shown = rows.y.clone()
    if bool(flagged.any()):
        shown[flagged] = logits(model, rows.x[flagged]).argmax(1)
    relabelled = float((shown != rows.y).sum())
    steps += taught(
        model, Samples(rows.x, shown), epochs=more, images=images, lr=lr / 3, batch=batch, share=(reach, 1.0)
    )
    done = {"flagged": float(flagged.sum()), "relabelled": relabelled, "steps": float(steps)}
    return Repair(model, done | {"lost": relabelled / max(1.0, done["flagged"])})
