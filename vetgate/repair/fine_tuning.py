"""Fine-tune on clean images and nothing else: the baseline that every other repair must beat.

Source    Fine-tuning is the baseline of Liu et al., "Fine-Pruning", RAID 2018, arXiv:1805.12185, where it fails against
          most backdoors.
Deviates  Batch statistics stay as they are.
"""

from __future__ import annotations

from vetgate.contract import Repair, Subject, repair
from vetgate.role import RepairRole
from vetgate.tuning import Tuning, tuned

ROLE = RepairRole(
    uses=None, title="Fine-tuning", sentence="Trains a copy further on clean images: the baseline of all repairs."
)


@repair(
    role=ROLE,
    needs={"clean"},
    paper="https://arxiv.org/abs/1805.12185",
    waived={"check_backdoor_weakens": "clean images alone give the backdoor's weights hardly a reason to move"},
)
def fine_tuning(
    subject: Subject,
    *,
    steps: int = 400,
    lr: float = 1e-3,
    batch: int = 64,
    held_out: float = 0.1,
    distilled: float = 0.5,
) -> Repair:
    """Train for `steps` minibatches; a share `distilled` of what is taught is what the submitted network says."""
    return tuned(subject, Tuning(steps=steps, batch=batch, lr=lr, distilled=distilled), held_out)
