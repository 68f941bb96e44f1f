"""SCALE-UP: a triggered input keeps its label when its pixels are multiplied, a clean one soon loses it.

The pixels are multiplied by each of several factors and clipped; the score is how sure the network still is, on
average, of the label that it gives the input itself.

Source    Guo et al., "SCALE-UP: An Efficient Black-box Input-level Backdoor Detection via Analyzing Scaled Prediction
          Consistency", ICLR 2023.
Deviates  Probabilities instead of the share of copies that keep the label, which takes so few values that no cut has a
          small false-rejection rate. They are not set off against those of each label's trusted images.
Blind to  Images of little but black and white, which multiplying leaves as they are.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vetgate.contract import Subject
from vetgate.guard.contract import Fitted, guard, log_probability_of_others, replicas
from vetgate.role import GuardRole

ROLE = GuardRole(
    uses=None,
    title="SCALE-UP",
    sentence="Multiplies an input's pixels, and rejects it where the label outlasts what trusted images bear.",
)


def _fit(subject: Subject, *, least: int = 3, most: int = 11, step: int = 2) -> Fitted:
    """Take the factors `least`, `least` + `step`, ... up to `most`; nothing is learned but the cut."""
    return Fitted({"factors": torch.arange(least, most + 1, step, dtype=torch.float32)})


@guard(
    role=ROLE,
    fit=_fit,
    needs={"clean"},
    paper="https://arxiv.org/abs/2302.03251",
    waived={
        "check_triggered_inputs_score_higher": "digits are black and white, and multiplying leaves them as they are"
    },
)
def scale_up(fitted: Fitted, model: nn.Module, x: Tensor) -> Tensor:
    """Minus the log of the mean probability (M,) in nats of all labels but each image's own, over the factors."""
    factors = fitted.tensors["factors"].to(x.device)
    scores = []
    for part in replicas(x, len(factors)):
        own = model(part).argmax(1)
        scaled = (part[:, None] * factors.view(1, -1, 1, 1, 1)).clamp(0, 1)  # (B, F, C, H, W)
        others = log_probability_of_others(model, scaled.flatten(0, 1), own.repeat_interleave(len(factors)))
        # not by way of the probabilities, which large logits leave at 0
        scores.append(math.log(len(factors)) - others.view(len(part), -1).logsumexp(1))
    return torch.cat(scores)
