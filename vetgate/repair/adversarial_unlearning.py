"""Find what misleads the network on many images at once, teach it the true labels under that, and look again.

A backdoor is a change of the image that is the same for every image, or for every image of a class, and overrules what
it shows. So for some images of each minibatch a patch of random size, a faint picture over all of it or a smooth warp
is sharpened by a few steps until the network as it is by then is wrong on them together; then these images are taught
with their true labels. Nobody needs to know the trigger or its label. Half of the patches lie where the network heeds
the image most, and more than half are sharpened on images of one class alone. Steps are sharpness-aware, since what a
backdoor rests on are a few large weights. The last ones see clean images alone, and then accuracy on images held out
decides how far to go along the way from the submitted weights to those that were found, and beyond.

Source    Zeng et al., "Adversarial Unlearning of Backdoors via Implicit Hypergradient", ICLR 2022, arXiv:2110.03735;
          steps: Zhu et al., "Enhancing Fine-Tuning Based Backdoor Defense with Sharpness-Aware Minimization", ICCV
          2023, arXiv:2304.11823.
Deviates  The inner problem starts anew for each minibatch, from patches and warps as well as from perturbations of the
          whole image, and the outer step takes its solution as given: no implicit gradient. The submitted network is
          taught beside the labels, images are shifted by up to a pixel, and batch statistics stay as they are. Shares,
          steps and reach were chosen on half of the bank's open members that the verdict misses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vetgate.contract import Repair, Subject, repair
from vetgate.effort import image_count
from vetgate.probe import accuracy
from vetgate.role import RepairRole
from vetgate.tuning import Lessons, Tuning, moved, tune

ROLE = RepairRole(
    uses=None,
    title="Adversarial unlearning",
    sentence="Trains a copy on clean images under what misleads it, patch, picture or warp, with their true labels.",
)
# shares of faint pictures and of warps among what is sharpened, the rest being squares
FAINT, WARPED = 0.4, 0.15
# shares of the squares that are sharpened on images of one class, and that lie where they mislead most
OF_ONE_CLASS, AIMED = 0.6, 0.5
# on the way from the submitted weights to those that were found
REACHES = (1.3, 1.2, 1.1, 1.0, 0.9, 0.8, 0.7)
# how much more often a square lies where the network heeds the image more
KEEN = 3
# points along each side between which a warp is smooth; pixels that it moves, on average; how far a point may go a step
POINTS, LEAST_PIXELS, MORE_PIXELS, POINT_STEP = 4, 0.5, 1.5, 0.5
# images that carry the same change, and by how many pixels images are shifted at most
ALIKE, SHIFT = 32, 1

# images (B, C, H, W) that are to carry one change, with their labels (B,), to the images under it
Spoil = Callable[[Tensor, Tensor], Tensor]


@repair(role=ROLE, needs={"clean"}, paper="https://arxiv.org/abs/2110.03735")
def adversarial_unlearning(
    subject: Subject,
    *,
    steps: int = 900,
    spoilt: float = 0.3,
    inner: int = 5,
    step: float = 0.25,
    lr: float = 1e-3,
    batch: int = 64,
    held_out: float = 0.1,
    clean_end: float = 0.4,
    rho: float = 1.5,
    distilled: float = 0.2,
    budget: float = 0.02,
) -> Repair:
    """Train for `steps` minibatches of `batch` images, fewer where they are large.

    Of all but the share `clean_end`, a share `spoilt` carries what misleads. That is sharpened by `inner` steps of up
    to `step` in every pixel and channel; each step of training goes from weights moved uphill by `rho` in units of
    their own size. `distilled` is the weight of what the submitted network says of the clean images beside that of the
    labels. The reach is the largest of REACHES that costs at most a share `budget` of the images held out, or one of
    them where they are few; else the smallest.
    """
    assert subject.clean is not None
    model, lessons = subject.model, Lessons.of(subject.model, subject.clean, held_out, apart=True)
    held, submitted = lessons.held, {name: value.clone() for name, value in model.named_parameters()}
    before = accuracy(model, held.x, held.y)
    misleading = Misleading(model, lessons.taught.y, spoilt, inner, step, left=round((1 - clean_end) * steps))
    batch = image_count(held.x[0, 0].numel(), batch)
    plan = Tuning(steps=steps, batch=batch, lr=lr, distilled=distilled, sharpness=rho)
    tune(model, lessons, plan, change=misleading.change, choose=misleading.choose)
    found = {name: value.clone() for name, value in model.named_parameters()}
    for reach in REACHES:
        go(model, submitted, found, reach)
        after = accuracy(model, held.x, held.y)
        # in images: one that is lost says nothing
        if (before - after) * len(held) <= max(1.0, budget * len(held)) + 1e-6:
            break
    return Repair(model, {"steps": float(steps), "reach": reach, "accuracy_before": before, "accuracy_after": after})


@torch.no_grad()
def go(model: nn.Module, begin: Mapping[str, Tensor], end: Mapping[str, Tensor], reach: float) -> None:
    """Set the model's weights to those at `reach` on the way from `begin` (0) to `end` (1), by name."""
    for name, value in model.named_parameters():
        value.copy_(torch.lerp(begin[name], end[name], reach))


@dataclass(eq=False)
class Misleading:
    """What misleads the network in a minibatch: drawn with its images, and sharpened on the first `share` of them.

    `labels` (N,) are those of all images; so many minibatches are `left` in which any are spoilt, and `drawn` is the
    kind of the one that was chosen last.
    """

    model: nn.Module
    labels: Tensor
    share: float
    inner: int
    step: float
    left: int
    drawn: float = 0.0

    @cached_property
    def present(self) -> list[int]:
        """The classes that there are images of."""
        return sorted(set(self.labels.tolist()))

    def choose(self, rows: Tensor) -> Tensor:
        """Positions (B,) of a minibatch; those that are spoilt may be of one class, other than were drawn."""
        self.left, self.drawn = self.left - 1, float(torch.rand(()))
        if self.left < 0:
            return rows
        if self.drawn >= FAINT + WARPED and float(torch.rand(())) < OF_ONE_CLASS:
            count = self._count(rows)
            # a class is as likely as another, however many images it has
            label = self.present[int(torch.randint(len(self.present), ()))]
            alike = (self.labels == label).nonzero().flatten()
            rows = torch.cat([alike[torch.randint(len(alike), (count,))], rows[count:]])
        return rows

    def change(self, x: Tensor, y: Tensor) -> Tensor:
        """Images (B, C, H, W) of the minibatch, the first of them spoilt."""
        x, count = moved(x, SHIFT).clone(), self._count(x)
        if count and self.left >= 0:
            x[:count] = self._misled(x[:count], y[:count])
        return x

    def _count(self, rows: Tensor) -> int:
        return round(self.share * len(rows))

    def _misled(self, x: Tensor, y: Tensor) -> Tensor:
        if FAINT <= self.drawn < FAINT + WARPED:
            return warped(self.model, x, y)
        height, width = x.shape[2:]
        mask = any_mask(height, width, float(self.drawn < FAINT))
        if self.drawn >= FAINT and float(torch.rand(())) < AIMED:
            mask = aimed(self.model, x, y, mask)
        return misled_in(self.model, x, y, mask, inner=self.inner, step=self.step)


def aimed(model: nn.Module, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """A square mask (1, H, W) moved to where one change of the images x (B, C, H, W) misleads most, mostly."""
    size = round(float(mask.sum()) ** 0.5)
    change = (0.2 * torch.rand(x.shape[1:])).requires_grad_(True)
    loss = F.cross_entropy(model((x + change).clamp(0, 1)), y)
    (gradient,) = torch.autograd.grad(loss, change)
    heeded = F.avg_pool2d(gradient.abs().sum(0)[None], size, 1)[0]
    chances = (heeded.flatten() / heeded.max().clamp_min(1e-30)) ** KEEN + 1e-6
    top, left = divmod(int(torch.multinomial(chances, 1)), heeded.shape[1])
    found = torch.zeros_like(mask)
    found[:, top : top + size, left : left + size] = 1
    return found


def warped(model: nn.Module, x: Tensor, y: Tensor, *, inner: int = 3) -> Tensor:
    """Images (B, C, H, W) under one smooth warp that takes the network away from their labels (B,) in `inner` steps."""
    height, width = x.shape[2:]
    pixels = LEAST_PIXELS + MORE_PIXELS * float(torch.rand(()))
    identity = F.affine_grid(torch.eye(2, 3)[None], [1, 1, height, width], align_corners=False)

    def under(points: Tensor) -> Tensor:
        field = F.interpolate(points, size=(height, width), mode="bicubic", align_corners=True)
        # in units of the whole side, which is 2 wide
        shifts = (field * pixels / field.abs().mean()).permute(0, 2, 3, 1) * torch.tensor([2 / width, 2 / height])
        grid = (identity + shifts).expand(len(x), -1, -1, -1)
        return F.grid_sample(x, grid, align_corners=False, padding_mode="border")

    points = torch.randn(1, 2, POINTS, POINTS)
    for _ in range(inner):
        points = points.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(under(points)), y), points)
        points = points.detach() + POINT_STEP * gradient.sign()
    return under(points)


def spoil_some(x: Tensor, y: Tensor, share: float, spoil: Spoil) -> Tensor:
    """Images (B, C, H, W) of which a share is spoilt, ALIKE of them by the same change."""
    x = x.clone()
    chosen = torch.randperm(len(x))[: round(share * len(x))]
    for rows in chosen.split(ALIKE):  # type: ignore[no-untyped-call]
        x[rows] = spoil(x[rows], y[rows])
    return x


def misled(model: nn.Module, x: Tensor, y: Tensor, *, inner: int, step: float) -> Tensor:
    """Images (B, C, H, W) under a mask at random, whose pattern takes them away from their labels (B,)."""
    return misled_in(model, x, y, any_mask(x.shape[2], x.shape[3]), inner=inner, step=step)


def misled_in(model: nn.Module, x: Tensor, y: Tensor, mask: Tensor, *, inner: int, step: float) -> Tensor:
    """Images (B, C, H, W) under a mask (1, H, W), whose pattern takes them away from their labels (B,)."""
    pattern = sharpened(model, x, mask, torch.rand(x.shape[1:]), -1.0, y, inner=inner, step=step)
    return (1 - mask) * x + mask * pattern


def any_mask(height: int, width: int, faint: float = FAINT) -> Tensor:
    """A mask (1, H, W): an opaque square of a tenth to a quarter of the side anywhere, or a faint one everywhere."""
    if float(torch.rand(())) < faint:
        return torch.full((1, height, width), 0.1 + 0.2 * float(torch.rand(())))
    least, most = max(1, min(height, width) // 10), max(2, min(height, width) // 4)
    size = int(torch.randint(least, most + 1, (1,)))
    top, left = (int(torch.randint(side - size + 1, (1,))) for side in (height, width))
    mask = torch.zeros(1, height, width)
    mask[:, top : top + size, left : left + size] = 1
    return mask


def sharpened(
    model: nn.Module, x: Tensor, mask: Tensor, pattern: Tensor, way: float, labels: Tensor, *, inner: int, step: float
) -> Tensor:
    """A pattern (C, H, W) after `inner` signed steps, in a mask (1, H, W), on images x (B, C, H, W) together.

    The steps go towards labels (B,) where `way` is 1, away from them where it is -1.
    """
    for _ in range(inner):
        pattern = pattern.clone().requires_grad_(True)
        loss = way * F.cross_entropy(model((1 - mask) * x + mask * pattern), labels)
        (gradient,) = torch.autograd.grad(loss, pattern)
        pattern = (pattern.detach() - step * gradient.sign()).clamp(0, 1)
    return pattern
