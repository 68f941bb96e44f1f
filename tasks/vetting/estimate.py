"""How long the detectors will take on a model, told from the time that one image takes through it and back."""

from __future__ import annotations

from vetgate.effort import effort, image_count, minibatch

# what the detectors of params.yaml come to, in images there and back: for each label that is searched, for each label
# that is looked at, apart from labels, and where there is a training set; a test holds them to the bank's evidence
EACH_LABEL, EACH_LOOKED_AT, APART, OF_TRAINING = 2_500, 500, 20_000, 35_000
# of how many labels triggers are searched on small images, and for how many sweeps the others are looked at; a test
# holds these to the detector's own
SEARCHED, SWEEPS = 128, 4
# and of so many small images, other than for the search
IMAGES = 20


def images_for(classes: int, pixels: int, *, training: bool) -> int:
    """Images there and back that all detectors together are worth on a model with so many classes."""
    able = effort(pixels, most=SEARCHED, look=SWEEPS)
    searched = min(classes, able.labels)
    looked_at = round(EACH_LOOKED_AT * able.sweeps / SWEEPS) * (classes if classes > searched else 0)
    # of large images methods take fewer, and the search itself, which is about half of what a label takes, half
    fewer, steps = image_count(pixels, IMAGES) / IMAGES, minibatch(pixels, IMAGES) / IMAGES
    each, apart = EACH_LABEL * (steps + fewer) / 2, APART * fewer
    return round(each * searched + looked_at + apart) + (OF_TRAINING if training else 0)


def spoken(seconds: float) -> str:
    """A duration as people say it: to ten seconds below two minutes, to minutes above."""
    if seconds < 120:
        return f"{max(10, round(seconds / 10) * 10)} s"
    return f"{round(seconds / 60)} min"
