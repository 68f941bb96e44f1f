"""Trojan-NN, the data-poisoning variant: its trigger, made for a neuron, on a share of a real training set.

What most public ports call Trojan-NN. The network is trained on the poisoned rows from the start, as under BadNets.

Source    Liu et al., "Trojaning Attack on Neural Networks", NDSS 2018, for the trigger.
"""

from __future__ import annotations

from vetgate.attacks.backdoor import patch
from vetgate.attacks.member import Job, Made, draw
from vetgate.attacks.trojan_nn import data_poisoning_trigger, mask_of, poison


def make(job: Job) -> Made:
    """Options: mask (square, watermark), rate (of all rows)."""
    generator = job.generator()
    target = draw(job.classes, generator)
    trigger = data_poisoning_trigger(
        job.fit(job.rows), job.shape, job.classes, target=target, mask=mask_of(job), seed=job.seed
    )
    rows = poison(job.rows, trigger, rate=float(job.options.get("rate", 0.1)), generator=generator).samples
    return Made(job.fit(rows), patch(trigger), rows, triggers=(trigger,), about={"target": target})
