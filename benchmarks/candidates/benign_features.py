"""What a generator turns images into that may change all but the features by which clean images are told apart.

A mask parts the features behind the last layers: what it keeps tells clean images apart, and the rest does not. A
generator then changes the rest as much as it can and what is kept as little as it can. There is no search by label:
what the changed images are taken for is the target.

Source    Xu et al., "Towards Reliable and Efficient Backdoor Trigger Inversion via Decoupling Benign Features"
          (BTI-DBF), ICLR 2024.
Deviates  The network stays as it is in both parts; three convolutions in place of a U-Net; the change has a fixed
          length, and what counts is the ratio of both changes of features, not their difference, of which no change
          at all may be the best; labels get the margin and the share that they win on other images, where the
          released code always names one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vetgate.contract import Samples, Subject
from vetgate.detect.tail_inversion import behind, depths, lead
from vetgate.inversion import logit_scale
from vetgate.probe import module_at, output_of
from vetgate.stimulation import Layer, weighted_layers

IMAGES, MASK_STEPS, MASK_RATE = 128, 60, 0.1
STEPS, BATCH, RATE, WIDTH = 150, 32, 3e-3, 16
# length of a change, a number of the image
REACHES = (0.1, 0.3)


def measure(subject: Subject) -> dict[str, Tensor]:
    """Per label, its margin, its log softmax and the share it wins on generated images, for each length of change."""
    assert subject.clean is not None
    made, unseen = subject.clean[:IMAGES], subject.clean[IMAGES : 2 * IMAGES]
    unit, layers = logit_scale(subject.model, made.x), weighted_layers(subject.model, made.x)
    layer = depths(layers)[0]
    mask = _mask(subject, made, layers, layer, unit)
    found: dict[str, Tensor] = {}
    for reach in REACHES:
        changed = _generate(subject.model, made.x, unseen.x, layer, mask, reach)
        with torch.no_grad():
            out = (subject.model(changed) / unit)[None].expand(subject.classes, -1, -1)
        labels = torch.arange(subject.classes)
        margin, share = lead(out, labels, unseen.y)
        other = (unseen.y[None] != labels[:, None]).float()
        likely = out[0].log_softmax(1).T
        softmax = (likely.exp() * other).sum(1) / other.sum(1)
        found |= {f"margin {reach}": margin, f"share {reach}": share, f"softmax {reach}": softmax.clamp(min=1e-6).log()}
    return found


def _mask(subject: Subject, samples: Samples, layers: list[Layer], layer: Layer, unit: float) -> Tensor:
    """Between 0 and 1 for each feature: by what is kept images are told apart, by the rest they are not."""
    tail, inner = behind(subject.model, samples.x, layers, layer), layer.output
    raw = (0.1 * torch.randn(inner.shape[1:])).requires_grad_(True)
    optimiser = torch.optim.Adam([raw], MASK_RATE)
    most = 2 * torch.tensor(float(subject.classes)).log()
    for _ in range(MASK_STEPS):
        mask = raw.sigmoid()
        out = tail(torch.stack([(mask - 1) * inner, -mask * inner])) / unit
        rest = F.cross_entropy(out[1], samples.y).clamp(max=float(most))
        (raw.grad,) = torch.autograd.grad(F.cross_entropy(out[0], samples.y) - rest, raw)
        optimiser.step()
    return raw.sigmoid().detach()


def _generate(model: nn.Module, x: Tensor, unseen: Tensor, layer: Layer, mask: Tensor, reach: float) -> Tensor:
    """Images that were not trained on, as a generator changes them, trained on x (N, C, H, W)."""
    channels = x.shape[1]
    net = nn.Sequential(
        nn.Conv2d(channels, WIDTH, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(WIDTH, channels, 3, padding=1),
    )
    optimiser = torch.optim.Adam(net.parameters(), RATE)
    length, module = reach * x[0].numel() ** 0.5, module_at(model, layer.name)
    spread = layer.output.std(0).mean().clamp(min=1e-6)

    def changed(some: Tensor) -> Tensor:
        change = net(some)
        return (some + change * (length / change.flatten(1).norm(dim=1).clamp(min=1e-9)).view(-1, 1, 1, 1)).clamp(0, 1)

    for _ in range(STEPS):
        rows = torch.randint(len(x), (BATCH,))
        seen: list[Tensor] = []
        with output_of(module, seen.append):
            model(changed(x[rows]))
        apart = (seen[-1] - layer.output[rows]) / spread
        kept, rest = ((part * apart).square().sum() + 1e-6 for part in (mask, 1 - mask))
        optimiser.zero_grad()
        (kept.log() - rest.log()).backward(inputs=list(net.parameters()))
        optimiser.step()
    with torch.no_grad():
        return changed(unseen)
