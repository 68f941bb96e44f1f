"""SentiNet: what decided the label is cut out; if it carries the label to other images, it is an attack.

The network is asked what else an input may show, and heat maps mark what speaks for its label and not for those
others; each region is laid over trusted images. Two numbers come of it: the share of images that it sends to the label
(fooled), and how sure the network stays of those images with noise in its place (confidence), which tells a region that
carries a label from one that hides the image. Trusted inputs draw a curve of the most that is usual; the score is how
far an input lies above it.

Source    Chou et al., "SentiNet: Detecting Localized Universal Attacks Against Deep Learning Systems", 2020. Maps by
          Grad-CAM: Selvaraju et al., ICCV 2017; with gradients place by place: Draelos and Carin, 2020, "HiResCAM".
Deviates  Other classes are proposed by the network's own view of the input, of its quadrants, and of the rest of it
          without each, in place of selective search. Gradients weigh maps place by place: their mean over places loses
          where it was, if the maps enter a linear layer. Regions by the pixels' own gradients are tried, too, since the
          last maps may answer beside what they answer to. Confidence is that in the image's own label, since a network
          can be as sure of noise. Images that show the label already do not count. The distance is taken on a grid.
Blind to  Triggers that cover the image or are no pixels (warps), those of one source class, and all-to-all. Of a patch
          of a quarter of a small image the region misses parts, without which it takes little with it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vetgate.contract import Subject
from vetgate.errors import DefenceError, MissingInput, NotFinite
from vetgate.guard.contract import Fitted, Number, guard, probabilities, replicas
from vetgate.probe import module_at, output_of
from vetgate.role import GuardRole

ROLE = GuardRole(
    uses=None,
    title="SentiNet",
    sentence="Lays what decided the label over trusted images, and rejects an input whose region takes them with it.",
)

# columns of confidence, in each of which the trusted input that fools most is taken
COLUMNS = 50
# steps of confidence at which the distance to the curve is measured
STEPS = 201
# what single pixels say is averaged over one in so many along each side
GRAINS = 10
# trusted images from which a curve can be drawn
FEWEST = 20


def last_map(model: nn.Module, x: Tensor) -> str:
    """The module that gives the last convolution's maps, after all that follows at the same shape, on images like x.

    Raises DefenceError where no convolution gives maps of more than one place.
    """
    ran: list[tuple[str, nn.Module, torch.Size]] = []
    handles = [
        m.register_forward_hook(lambda m, _, out, name=name: ran.append((name, m, getattr(out, "shape", torch.Size()))))
        for name, m in model.named_modules()
        if not list(m.children())
    ]
    try:
        probabilities(model, x[:1])
    finally:
        for handle in handles:
            handle.remove()
    maps = [i for i, (_, m, shape) in enumerate(ran) if isinstance(m, nn.Conv2d) and shape[-2:].numel() > 1]
    if not maps:
        raise DefenceError("expected a network with a convolution that gives a map, got none; drop this guard")
    names = [name for name, *_ in ran]
    after = [name for name, _, shape in ran[maps[-1] :] if shape == ran[maps[-1]][2] and names.count(name) == 1]
    return after[-1] if after else names[maps[-1]]


@torch.enable_grad()
def heat_maps(model: nn.Module, layer: str, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """What speaks for labels (B, L) in images x (B, C, H, W): maps (B, L, H, W), 1 at the largest, or 0 throughout.

    The first are those of the layer, which tell the place coarsely, the second those of the pixels themselves.
    """
    seen: list[Tensor] = []
    pixels = x.detach().clone().requires_grad_(True)
    with output_of(module_at(model, layer), seen.append):
        out = model(pixels)
    maps, coarse, fine = seen[-1], list[Tensor](), list[Tensor]()  # maps (B, D, h, w)
    if not (out.requires_grad and maps.requires_grad):
        raise DefenceError(f"expected gradients of the logits at {layer}, got none; drop this guard")
    shown = (x - x.mean((2, 3), keepdim=True)).detach()
    for column in labels.T:
        said = out.gather(1, column[:, None]).sum()
        slopes, steep = torch.autograd.grad(said, (maps, pixels), retain_graph=True)
        coarse.append((slopes * maps.detach()).sum(1).relu())
        fine.append((steep * shown).sum(1).relu())
    places = F.interpolate(torch.stack(coarse, 1), x.shape[-2:], mode="bilinear", align_corners=False)
    # odd, so that a mean stays where its pixels are
    grain = 2 * (min(x.shape[-2:]) // GRAINS // 2) + 1
    detail = F.avg_pool2d(torch.stack(fine, 1), grain, 1, grain // 2, count_include_pad=False)
    return largest_one(places), largest_one(detail)


def largest_one(heat: Tensor) -> Tensor:
    """Maps (..., H, W) over their largest value."""
    return heat / heat.amax((-2, -1), keepdim=True).clamp(min=1e-12)


def proposals(model: nn.Module, x: Tensor, labels: Tensor, count: int) -> Tensor:
    """The `count` classes (B, count) but the label (B,) of which the network is surest in some view of images x."""
    height, width = x.shape[-2:]
    views = [x]
    for rows in (slice(0, height // 2), slice(height // 2, height)):
        for columns in (slice(0, width // 2), slice(width // 2, width)):
            views.append(F.interpolate(x[..., rows, columns], (height, width), mode="bilinear", align_corners=False))
            without = x.clone()
            without[..., rows, columns] = x.mean((2, 3), keepdim=True)
            views.append(without)
    sure = torch.stack([probabilities(model, view) for view in views]).amax(0)  # (B, K)
    return sure.scatter(1, labels[:, None], -1.0).topk(count, 1).indices


def regions(fitted: Fitted, model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """Masks (B, L, 1, H, W) of zeros and ones: what speaks for the label (B,), alone and less each other class.

    They are those of the last maps, and then as many of the pixels.
    """
    others = proposals(model, x, labels, int(fitted.numbers["others"]))
    found = []
    for heat in heat_maps(model, str(fitted.numbers["layer"]), x, torch.cat([labels[:, None], others], 1)):
        own, rest = heat[:, :1], heat[:, 1:]
        # where nothing speaks for the label, all of the image does
        own = torch.where(own.amax((-2, -1), keepdim=True) > 0, own, 1.0)
        found += [own, largest_one((own - rest).relu())]
    return (torch.cat(found, 1) >= float(fitted.numbers["least"])).to(x.dtype)[:, :, None]


def points(fitted: Fitted, model: nn.Module, x: Tensor) -> Tensor:
    """Confidence and fooled share (M, L, 2) of the regions of images x (M, C, H, W)."""
    carriers, noise = fitted.tensors["carriers"].to(x.device), fitted.tensors["noise"].to(x.device)
    shown = probabilities(model, carriers).argmax(1)
    found = []
    for part in replicas(x, 2 * (1 + int(fitted.numbers["others"])) * len(carriers)):
        labels = probabilities(model, part).argmax(1)
        masks = regions(fitted, model, part, labels)[:, :, None]  # (B, L, 1, 1, H, W)
        pasted, inert = (laid_over(model, carriers, masks, fill) for fill in (part[:, None, None], noise))
        other = shown != labels[:, None, None]  # (B, 1, N)
        fooled = ((pasted.argmax(3) == labels[:, None, None]) & other).sum(2) / other.sum(2)
        sure = inert.gather(3, shown.expand(inert.shape[:3])[..., None]).mean((2, 3))
        # NaN of the network is no label, and stays NaN
        found.append(torch.stack([sure, fooled + 0 * pasted.mean((2, 3))], 2))
    return torch.cat(found)


def laid_over(model: nn.Module, carriers: Tensor, masks: Tensor, fill: Tensor) -> Tensor:
    """What the network says (B, L, N, K) of carriers (N, C, H, W) with a fill where masks (B, L, 1, 1, H, W) are 1."""
    laid = masks * fill + (1 - masks) * carriers  # (B, L, N, C, H, W)
    return probabilities(model, laid.flatten(0, 2)).view(*laid.shape[:3], -1)


def curve(usual: Tensor) -> Tensor:
    """The quadratic through what fools most at each confidence, of trusted points (P, 2): (5,).

    Its terms, constant first, then the least and the largest confidence that it was drawn from.
    """
    column = (usual[:, 0] * COLUMNS).long().clamp(max=COLUMNS - 1)
    tops = [usual[column == c][usual[column == c, 1].argmax()] for c in range(COLUMNS) if bool((column == c).any())]
    sure, fooled = torch.stack(tops).double().T
    powers = sure[:, None] ** torch.arange(3)
    # where there are fewer columns than terms
    ridge = 1e-6 * torch.eye(3, dtype=torch.float64)
    terms = torch.linalg.solve(powers.T @ powers + ridge, powers.T @ fooled)
    return torch.cat([terms, torch.stack([sure.min(), sure.max()])]).float()


def height(sure: Tensor, drawn: Tensor) -> Tensor:
    """The curve at confidences (...,); level beyond those that it was drawn from, where a quadratic runs off."""
    held = sure.clamp(drawn[3], drawn[4])
    return drawn[0] + drawn[1] * held + drawn[2] * held**2


def above(given: Tensor, drawn: Tensor) -> Tensor:
    """How far points (..., 2) lie from the curve, negative below it."""
    sure = torch.linspace(0, 1, STEPS, device=given.device)
    line = torch.stack([sure, height(sure, drawn)], 1)
    # not by way of a product, whose rounding would depend on the batch
    apart = torch.cdist(given.flatten(0, -2), line, compute_mode="donot_use_mm_for_euclid_dist")
    nearest = apart.amin(1).view(given.shape[:-1])
    return torch.where(given[..., 1] > height(given[..., 0], drawn), nearest, -nearest)


def _fit(subject: Subject, *, carriers: int = 32, images: int = 200, others: int = 1, least: float = 0.15) -> Fitted:
    """Draw `carriers` trusted images to lay regions over, and up to `images` more to draw the curve from.

    A region is where a heat map reaches `least` of its largest value, less those of the `others` classes proposed.
    """
    clean = subject.clean
    assert clean is not None
    if len(clean) < carriers + FEWEST:
        raise MissingInput(f"expected at least {carriers + FEWEST} trusted images, got {len(clean)}; give more")
    rows = torch.randperm(len(clean))
    base, rest = clean.x[rows[:carriers]], clean.x[rows[carriers : carriers + images]]
    shown = probabilities(subject.model, base)
    if not bool(torch.isfinite(shown).all()):
        raise NotFinite("the model gives NaN or infinity on trusted images, expected finite numbers; refuse it")
    if bool((shown.argmax(1) == shown[0].argmax()).all()):
        raise DefenceError("expected trusted images taken for two classes or more, got one; give others")
    mean, spread = (given[:, None, None] for given in (clean.x.mean((0, 2, 3)), clean.x.std((0, 2, 3))))
    noise = (mean + spread * torch.randn(base.shape[1:])).clamp(0, 1)
    numbers: dict[str, Number] = {
        "layer": last_map(subject.model, base),
        "others": min(others, shown.shape[1] - 1),
        "least": least,
    }
    learned = Fitted({"carriers": base.cpu().clone(), "noise": noise.cpu()}, numbers)
    usual = points(learned, subject.model, rest).flatten(0, 1)
    drawn = curve(usual)
    beyond = above(usual, drawn)
    # trusted points above the curve push it up by what they lie above it on average
    shift = float(beyond[beyond > 0].mean()) if bool((beyond > 0).any()) else 0.0
    return Fitted({**learned.tensors, "curve": drawn}, {**numbers, "shift": shift})


@guard(role=ROLE, fit=_fit, needs={"clean"}, paper="https://arxiv.org/abs/1812.00292")
def sentinet(fitted: Fitted, model: nn.Module, x: Tensor) -> Tensor:
    """How far above the curve (M,) the most telling region of each image (M, C, H, W) lies, both axes from 0 to 1."""
    given = points(fitted, model, x)
    return (above(given, fitted.tensors["curve"].to(x.device)) - float(fitted.numbers["shift"])).amax(1)
