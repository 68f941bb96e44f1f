"""Fine-tune on clean images with steps that look for flat places: what only a few large weights hold is unlearned.

A backdoor's neurons have larger weights than others, and a step of plain fine-tuning on clean images leaves them where
they are, since clean images do not need them to move. Sharpness-aware steps first move every weight uphill in
proportion to its size, so that the large ones move most, and follow the gradient that is found there.

Source    Zhu et al., "Enhancing Fine-Tuning Based Backdoor Defense with Sharpness-Aware Minimization", ICCV 2023,
          arXiv:2304.11823; adaptive steps: Kwon et al., ICML 2021, arXiv:2102.11600.
Deviates  Adam instead of SGD, a few hundred steps, no label smoothing; batch statistics stay as they are.
"""

from __future__ import annotations

from vetgate.contract import Repair, Subject, repair
from vetgate.role import RepairRole
from vetgate.tuning import Tuning, tuned

ROLE = RepairRole(
    uses=None,
    title="Sharpness-aware fine-tuning (FT-SAM)",
    sentence="Trains a copy further on clean images, away from what only a few large weights hold.",
)


@repair(
    role=ROLE,
    needs={"clean"},
    paper="https://arxiv.org/abs/2304.11823",
    waived={"check_backdoor_weakens": "clean images alone give the backdoor's weights hardly a reason to move"},
)
def fine_tuning_sam(
    subject: Subject,
    *,
    steps: int = 400,
    lr: float = 1e-3,
    batch: int = 64,
    held_out: float = 0.1,
    rho: float = 2.0,
    distilled: float = 0.0,
) -> Repair:
    """Train for `steps` minibatches, each step from weights moved uphill by `rho` in units of their own size."""
    return tuned(subject, Tuning(steps=steps, batch=batch, lr=lr, distilled=distilled, sharpness=rho), held_out)
