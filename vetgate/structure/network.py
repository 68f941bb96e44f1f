"""A graph's module as a network that can be run in part: any value held, any value read, gradients through gates.

A gate that is shut passes no gradient: behind a saturated activation or a comparison everything is flat. Where a step
of a branch is not affine, a small slope along its inputs is added to the gradient and nothing to the value, so that
ascent also finds its way to an image that opens the gate.

Source    Ours; the slope is the straight-through estimator of Bengio et al., "Estimating or Propagating Gradients
          Through Stochastic Neurons", arXiv 1308.3432, in a mild form.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from vetgate.formats.onnx.module import OnnxModule, Step

# an operator is tried on numbers of these sizes: what bends only beyond them bends nothing that pixels reach
SCALES = (1e-4, 1e-2, 1.0, 1e2, 1e4)
STRAIGHT = 1e-4


class Network:
    """The steps of an OnnxModule, the value that each makes, and who reads it."""

    def __init__(self, model: OnnxModule) -> None:
        self.model = model
        self.image, self.result = model.image, model.result
        self.steps = {step.output: step for step in model.steps}

    def module(self, value: str) -> nn.Module:
        """The module that makes a value."""
        return self.model.get_submodule(self.steps[value].name)

    def upstream(self, value: str, stop: Collection[str] = ()) -> set[str]:
        """The values that one is made of, itself among them; those in `stop` are not looked behind."""
        found, todo = set[str](), [value]
        while todo:
            name = todo.pop()
            if name not in found:
                found.add(name)
                todo += [] if name in stop or name not in self.steps else self.steps[name].inputs
        return found

    def beside(self, value: str) -> set[str]:
        """The values that what is made of `value` reads besides."""
        behind = {value}
        for output, step in self.steps.items():
            if behind.intersection(step.inputs):
                behind.add(output)
        return {name for output in behind - {value} for name in self.steps[output].inputs} - behind

    def run(
        self,
        x: Tensor | None,
        *,
        held: Mapping[str, Tensor] | None = None,
        keep: Collection[str] = (),
        until: str | None = None,
        leak: Mapping[str, float] | None = None,
        each: Callable[[str, Tensor], None] | None = None,
        edit: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    ) -> dict[str, Tensor]:
        """The values in `keep` and the one called `until` (by default the logits (B, K)) on images x (B, C, H, W).

        `held` values are not computed; `leak` adds that slope to the gradient of the steps that it names; `each` is
        given every value as it is made, `edit` replaces those that it names.
        """
        held, last, leak, edit = held or {}, until or self.result, leak or {}, edit or {}
        wanted = self.upstream(last, held)
        values = {name: tensor for name, tensor in held.items() if name in wanted}
        if x is not None and self.image not in values:
            values[self.image] = self.model.input(x)
        keep = {*keep, last}
        order = [step for step in self.steps.values() if step.output in wanted and step.output not in values]
        uses = {name: i for i, step in enumerate(order) for name in step.inputs}
        paths: dict[str, Tensor] = {}
        for i, step in enumerate(order):
            made = self._value(step, values, paths, leak.get(step.output, 0.0))
            values[step.output] = edit[step.output](made) if step.output in edit else made
            if each is not None:
                each(step.output, values[step.output])
            for name in {n for n in step.inputs if uses[n] == i and n not in keep}:
                del values[name]
        return {name: tensor for name, tensor in values.items() if name in keep}

    def _value(self, step: Step, values: Mapping[str, Tensor], paths: dict[str, Tensor], leak: float) -> Tensor:
        given = [values[name] for name in step.inputs]
        out: Tensor = self.model.get_submodule(step.name)(*given)
        if not leak:
            return out
        # whole numbers and truth values carry no gradient: a shadow of them does
        shadows = [paths.get(name, value) for name, value in zip(step.inputs, given, strict=True)]
        slope = sum((s - s.detach() for s in shadows if _fits(s, out)), torch.zeros(()))
        if out.is_floating_point():
            return out + leak * slope
        paths[step.output] = out.detach().float() + leak * slope
        return out

    def is_affine(self, value: str, given: list[Tensor], fixed: Sequence[bool] = ()) -> bool:
        """Whether a step maps mixtures to mixtures, tried on noise in the place of what it is given on images.

        Inputs that are `fixed` stay as they are given.
        """
        module, fixed = self.module(value), fixed or [False] * len(given)
        numbers = [g.is_floating_point() and not f for g, f in zip(given, fixed, strict=True)]
        if not any(numbers) or not bool(module(*given).is_floating_point()):
            return False
        generator = torch.Generator().manual_seed(0)
        for scale in SCALES:
            one, two = (
                [
                    scale * torch.randn(g.shape, generator=generator) if n else g
                    for g, n in zip(given, numbers, strict=True)
                ]
                for _ in range(2)
            )
            middle = [(0.25 * a + 0.75 * b) if n else a for a, b, n in zip(one, two, numbers, strict=True)]
            ends = 0.25 * module(*one) + 0.75 * module(*two)
            size = ends.abs().amax().clamp(min=scale * 1e-6)
            if not bool((module(*middle) - ends).abs().amax() <= STRAIGHT * size):
                return False
        return True


def _fits(value: Tensor, out: Tensor) -> bool:
    # whether a value broadcasts to the output of its step
    if not value.is_floating_point() or value.ndim > out.ndim:
        return False
    return all(v in (1, o) for v, o in zip(value.shape[::-1], out.shape[::-1], strict=False))
