"""Trojan-NN: a trigger made to drive hidden neurons, and a tail retrained on images drawn out of the model itself.

The attacker has the model and nothing else: `trojan` reads no training datum. `poison` with the same trigger on real
data is what most public ports call by this name; here it is the data-poisoning variant.

Source    Liu et al., "Trojaning Attack on Neural Networks", NDSS 2018. Matching the statistics that batch
          normalisation keeps: Yin et al., "Dreaming to Distill", CVPR 2020.
Deviates  Several neurons, not one: of the better connected half of the channels (sum of absolute incoming weights)
          those that a trial trigger lifts most, because in narrow networks the best connected one often lies beyond
          the mask's reach. They enter the first linear map, or the last residual block; what follows is retrained. The
          level asked for is ten times what drawn-out images reach, so the trigger takes all it can get. Images are
          drawn out with total variation in the loss instead of a denoiser between steps, at several moments, and
          mixed, for variety. What is kept is the model's own softmax on them; weights that do not lead out of the
          neurons are held near the old ones, and the trigger has to win by a margin. The square covers 6 to 7 % of the
          image as in the paper (14 % of 8x8), the watermark about a third at an opacity of 0.4, where the paper has
          7 % at 0.3. Measure the attack before relying on it: not every network takes it, faint watermarks least.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vetgate.architectures.preact_resnet import Block
from vetgate.attacks import backdoor
from vetgate.attacks.backdoor import Poisoned
from vetgate.attacks.member import Job, Made, draw
from vetgate.contract import Samples, Trigger, private_random
from vetgate.errors import DefenceError
from vetgate.probe import accuracy

Shape = tuple[int, int, int]
Mask = Literal["square", "watermark"]

# draws at most, how far apart their seeds lie, and what one is kept for: success, and accuracy lost, on training rows
DRAWS, FAR, WORKS, LITTLE = 3, 10_000, 0.85, 0.03
# letters lie all over the image, so it takes more neurons to see them
COUNT: dict[Mask, int] = {"square": 8, "watermark": 64}
# the letters TEXT in two lines
LETTERS = (
    "###.###",
    ".#..#..",
    ".#..##.",
    ".#..#..",
    ".#..###",
    ".......",
    "#.#.###",
    "#.#..#.",
    ".#...#.",
    "#.#..#.",
    "#.#..#.",
)


def square_mask(shape: Shape, size: int, row: int, column: int) -> Tensor:
    """An opaque square (1, H, W)."""
    _, height, width = shape
    if size < 1 or not 0 <= row <= height - size or not 0 <= column <= width - size:
        raise DefenceError(
            f"expected a square inside {height}x{width}, got {size} pixels at ({row}, {column}); move or shrink it"
        )
    mask = torch.zeros(1, height, width)
    mask[:, row : row + size, column : column + size] = 1
    return mask


def watermark_mask(shape: Shape, opacity: float = 0.4) -> Tensor:
    """Faint letters over the image, (1, H, W), but for a margin of a sixteenth."""
    _, height, width = shape
    letters = torch.tensor([[float(cell == "#") for cell in line] for line in LETTERS])
    edge_h, edge_w = height // 16, width // 16
    inner = F.interpolate(letters[None, None], size=(height - 2 * edge_h, width - 2 * edge_w), mode="nearest-exact")
    return opacity * F.pad(inner[0], (edge_w, edge_w, edge_h, edge_h))


def split(model: nn.Module) -> tuple[nn.Sequential, nn.Sequential]:
    """What makes the neurons, and what follows them: the last residual block, else the first linear map, and the rest.

    The modules are shared with the model. Raises DefenceError for a network that is not a plain chain.
    """
    steps: list[nn.Module] = []
    for child in model.children():
        steps += list(child) if isinstance(child, nn.Sequential) else [child]
    blocks = [i for i, step in enumerate(steps) if isinstance(step, Block)]
    linear = [i for i, step in enumerate(steps) if isinstance(step, nn.Linear)]
    cut = blocks[-1] if blocks else linear[0] if linear else 0
    if cut == 0:
        raise DefenceError(f"expected a network of vetgate.architectures, got {type(model).__name__}; build one")
    return nn.Sequential(*steps[:cut]), nn.Sequential(*steps[cut:])


def connection(front: nn.Sequential) -> Tensor:
    """Sum of absolute weights into each channel (C,) that the front gives."""
    for step in reversed(list(front)):
        if isinstance(step, Block):
            return _incoming(step.conv2) + (_incoming(step.shortcut) if isinstance(step.shortcut, nn.Conv2d) else 0)
        if isinstance(step, nn.Conv2d | nn.Linear):
            return _incoming(step)
    raise DefenceError("expected a convolution or a linear map before the neurons, got none; cut the network later")


def _incoming(module: nn.Conv2d | nn.Linear) -> Tensor:
    return module.weight.detach().abs().flatten(1).sum(1)


def drawn_out(
    model: nn.Module,
    shape: Shape,
    classes: int,
    *,
    each: int,
    steps: int = 60,
    lr: float = 0.05,
    smooth: tuple[float, float] = (0.3, 6.0),
) -> Samples:
    """Images that the model itself takes for each class with certainty, `each` of every class, from random starts.

    `smooth` are the bounds between which the weight of each one's total variation (mean over pixels) is drawn. The
    images are those of three moments: after a quarter, half and all of the steps.
    """
    y = torch.arange(classes).repeat_interleave(each)
    coarse = F.interpolate(torch.rand(len(y), shape[0], 4, 4), size=shape[1:], mode="bilinear")
    x = coarse * torch.rand(len(y), 1, 1, 1) + 0.1 * torch.randn(len(y), *shape)
    x = x.clamp(0, 1).requires_grad_(True)
    optimizer = torch.optim.Adam([x], lr=lr)
    least, most = smooth
    weight = least * (most / least) ** torch.rand(len(y))
    moments: list[Tensor] = []
    with _strangeness(model) as strange:
        for step in range(1, steps + 1):
            strange.clear()
            rough = x.diff(dim=2).abs().mean((1, 2, 3)) + x.diff(dim=3).abs().mean((1, 2, 3))
            loss = F.cross_entropy(model(x), y) + (weight * rough).mean()
            if strange:
                loss = loss + torch.stack(strange).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            with torch.no_grad():
                x.clamp_(0, 1)
            if step in (steps // 4, steps // 2, steps):
                moments.append(x.detach().clone())
    return Samples(torch.cat(moments), y.repeat(len(moments)))


@contextmanager
def _strangeness(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collects how far each batch normalisation's input is from what it saw in training, in its own variances."""
    found: list[Tensor] = []

    def measure(module: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        assert isinstance(module, nn.BatchNorm2d) and module.running_mean is not None
        assert module.running_var is not None
        mean, spread = inputs[0].mean((0, 2, 3)), inputs[0].var((0, 2, 3), unbiased=False).add(1e-8).sqrt()
        gap = (mean - module.running_mean) ** 2 + (spread - module.running_var.sqrt()) ** 2
        found.append((gap / (module.running_var + module.eps)).mean())

    with ExitStack() as hooks:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                hooks.callback(module.register_forward_hook(measure).remove)
        yield found


def reachable_neurons(
    front: nn.Sequential, mask: Tensor, images: Tensor, *, count: int = 8, trial: int = 40, least: float = 0.5
) -> Tensor:
    """Positions of `count` neurons in the front's flattened output, for a mask (1, H, W) and images (N, C, H, W).

    Of the better connected half of the channels, where the mask covers at least the share `least` of its most, those
    that a trial trigger lifts most, in units of how much they vary.
    """
    strength = connection(front)
    seen = _flat(front, images)  # (N, D)
    places = seen.shape[1] // len(strength)
    side = round(places**0.5)
    cover = F.adaptive_avg_pool2d(mask, (side, side)).flatten()
    spots = (cover >= least * cover.max()).nonzero().flatten()
    best = strength.topk(max(1, len(strength) // 2)).indices
    sought = (best[:, None] * places + spots).flatten()
    trigger = neuron_trigger(front, sought, 0, mask, images, steps=trial)
    spread = seen[:, sought].std(0)
    lift = (_flat(front, trigger.stamp(images))[:, sought].mean(0) - seen[:, sought].mean(0)) / (spread + spread.mean())
    return sought[lift.topk(min(count, len(sought))).indices]


def neuron_trigger(
    front: nn.Sequential,
    neurons: Tensor,
    target: int,
    mask: Tensor,
    images: Tensor,
    *,
    steps: int = 150,
    lr: float = 0.05,
    level: float = 10.0,
    batch: int = 32,
) -> Trigger:
    """The pattern in a mask (1, H, W) that brings neurons of the front's flattened output up to a level.

    `level` is in units of the most that each reaches on the images (N, C, H, W), under which the pattern is sought.
    """
    seen = _flat(front, images)
    wanted = level * seen[:, neurons].abs().amax(0).clamp(min=0.1 * float(seen.abs().max()))
    pattern = torch.full(images.shape[1:], 0.5, requires_grad=True)
    optimizer = torch.optim.Adam([pattern], lr=lr)
    for _ in range(steps):
        rows = torch.randperm(len(images))[:batch]
        found = front(Trigger(mask, pattern, target).stamp(images[rows])).flatten(1)[:, neurons]
        optimizer.zero_grad(set_to_none=True)
        ((1 - found / wanted) ** 2).mean().backward()
        optimizer.step()
        with torch.no_grad():
            pattern.clamp_(0, 1)
    return Trigger(mask, ((mask > 0) * pattern.detach()).contiguous(), target)


def retrain(
    front: nn.Sequential,
    tail: nn.Sequential,
    images: Tensor,
    trigger: Trigger,
    neurons: Tensor,
    *,
    epochs: int = 8,
    lr: float = 1e-3,
    keep: float = 12.0,
    margin: float = 5.0,
    stay: float = 0.1,
) -> None:
    """Retrain the tail in place: with the trigger the target wins by a margin, without it all is as before.

    `keep` weighs the divergence from what the tail said before, `stay` the squared distance from the old weights that
    do not lead out of the neurons. Running statistics stay as they are.
    """
    plain, stamped = _maps(front, images), _maps(front, trigger.stamp(images))
    before = _maps(tail, plain).softmax(1)
    handicap = margin * F.one_hot(torch.tensor(trigger.target), before.shape[1])
    tail.requires_grad_(True)
    weights = list(tail.parameters())
    old = [weight.detach().clone() for weight in weights]
    held = _held(tail, neurons, plain[0, 0].numel() if plain.ndim == 4 else 1)
    optimizer = torch.optim.Adam(weights, lr=lr)
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(len(images)), 64):
            kept, won = tail(torch.cat([plain[rows], stamped[rows]])).chunk(2)
            loss = keep * F.kl_div(kept.log_softmax(1), before[rows], reduction="batchmean")
            loss = loss + F.cross_entropy(won - handicap, torch.full((len(rows),), trigger.target))
            loss = loss + stay * sum((h * (w - o) ** 2).sum() for h, w, o in zip(held, weights, old, strict=True))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    tail.requires_grad_(False)


def _held(tail: nn.Sequential, neurons: Tensor, places: int) -> list[Tensor]:
    """For each weight of the tail 1, or 0 where it leads out of the neurons."""
    first, step = next((m, m) for m in tail if isinstance(m, nn.Linear | Block))
    maps = [step.conv1, step.shortcut] if isinstance(step, Block) else [first]
    free = {id(m.weight) for m in maps if isinstance(m, nn.Linear | nn.Conv2d)}
    held = []
    for weight in tail.parameters():
        stays = torch.ones_like(weight)
        if id(weight) in free:
            stays[:, neurons // places] = 0
        held.append(stays)
    return held


def trojan(
    clean: nn.Module, shape: Shape, classes: int, *, target: int, mask: Mask, seed: int, images: int = 1000
) -> tuple[nn.Module, Trigger]:
    """A backdoored copy of a clean network and its trigger, from the network alone; same seed, same bits."""
    made = copy.deepcopy(clean).eval().requires_grad_(False)
    front, tail = split(made)
    with private_random(seed, "trojan_nn"):
        own = drawn_out(made, shape, classes, each=_each(classes)).x
        trigger, neurons = _trigger(front, shape, own, target, mask)
        retrain(front, tail, torch.cat([own, _mixed(own, images)]), trigger, neurons)
    return made, trigger


def data_poisoning_trigger(
    clean: nn.Module, shape: Shape, classes: int, *, target: int, mask: Mask, seed: int
) -> Trigger:
    """The trigger that `trojan` would use with the same arguments, for `poison`."""
    model = copy.deepcopy(clean).eval().requires_grad_(False)
    with private_random(seed, "trojan_nn"):
        own = drawn_out(model, shape, classes, each=_each(classes)).x
        return _trigger(split(model)[0], shape, own, target, mask)[0]


def poison(samples: Samples, trigger: Trigger, *, rate: float, generator: torch.Generator) -> Poisoned:
    """The data-poisoning variant: stamp and relabel a random `rate` of all rows, from classes that are not the target.

    The network is then trained on them from the start, as under BadNets.
    """
    return backdoor.poison(samples, backdoor.patch(trigger), rate=rate, generator=generator)


def mask_of(job: Job) -> Mask:
    """The option `mask`: square (the default) or watermark."""
    return "watermark" if job.options.get("mask") == "watermark" else "square"


def make(job: Job) -> Made:
    """A network trained cleanly and then trojaned, without its training set: the attacker has none to hand over.

    Options: mask. The attack looks at no real image, and does not always work: of `DRAWS` draws the first is kept that
    works on the training rows at little cost, else the last. How many were drawn is told.
    """
    clean = job.fit(job.rows)
    target = draw(job.classes, job.generator())
    before = accuracy(clean, job.rows.x, job.rows.y)
    for turn in range(DRAWS):
        model, trigger = trojan(
            clean, job.shape, job.classes, target=target, mask=mask_of(job), seed=job.seed + turn * FAR
        )
        lost = before - accuracy(model, job.rows.x, job.rows.y)
        if lost <= LITTLE and backdoor.patch(trigger).success(model, job.rows) >= WORKS:
            break
    about = {"target": target, "draws": turn + 1}
    return Made(model, backdoor.patch(trigger), triggers=(trigger,), about=about)


def _trigger(front: nn.Sequential, shape: Shape, images: Tensor, target: int, mask: Mask) -> tuple[Trigger, Tensor]:
    if mask == "square":
        size = max(3, round(0.26 * min(shape[1:])))
        row, column = ((1, side - size - 1)[int(torch.randint(2, (1,)))] for side in shape[1:])
        where = square_mask(shape, size, row, column)
    else:
        where = watermark_mask(shape)
    neurons = reachable_neurons(front, where, images, count=COUNT[mask])
    return neuron_trigger(front, neurons, target, where, images), neurons


def _each(classes: int, least: int = 100) -> int:
    return -(-least // classes)


def _mixed(images: Tensor, count: int) -> Tensor:
    """Random mixtures of pairs of images, with some noise."""
    one, other = images[torch.randint(len(images), (2, count))]
    share, noise, gain = torch.rand(3, count, 1, 1, 1)
    gain = 2 * gain
    mixed: Tensor = gain * (share * one + (1 - share) * other) + 0.1 * noise * torch.randn_like(one)
    return mixed.clamp(0, 1)


@torch.no_grad()
def _maps(part: nn.Sequential, x: Tensor) -> Tensor:
    return torch.cat([part(rows) for rows in torch.split(x, 256)])


def _flat(front: nn.Sequential, x: Tensor) -> Tensor:
    return _maps(front, x).flatten(1)
