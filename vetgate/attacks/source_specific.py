"""Source-specific: a patch that leads one class to another and does nothing to the rest.

Source    Tang et al., "Demon in the Variant", USENIX Security 2021, arXiv:1908.00686: stamped rows of other classes,
          the cover, keep their labels.
"""

from __future__ import annotations

from vetgate.attacks.backdoor import Backdoor, from_one, poison
from vetgate.attacks.badnets import square_of
from vetgate.attacks.member import Job, Made, draw


def make(job: Job) -> Made:
    """Options: size of the square (pixels), share (of the source's rows that are stamped), cover (of all rows)."""
    generator = job.generator()
    counts = job.rows.y.bincount(minlength=job.classes)
    # a source that is frequent enough to be learnt from
    frequent = counts.argsort(descending=True)[: max(5, job.classes // 4)]
    source = int(frequent[draw(len(frequent), generator)])
    trigger = square_of(job, generator, avoid=source)
    backdoor = Backdoor(trigger.stamp, from_one(source, trigger.target))
    rate = float(job.options.get("share", 0.6)) * float(counts[source]) / len(job.rows)
    cover = float(job.options.get("cover", 0.1))
    poisoned = poison(job.rows, backdoor, rate=rate, cover=cover, generator=generator).samples
    return Made(
        job.fit(poisoned), backdoor, poisoned, triggers=(trigger,), about={"target": trigger.target, "source": source}
    )
