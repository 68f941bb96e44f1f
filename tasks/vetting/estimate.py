"""How long the detectors will take on a model, told from the time that one image takes through it and back."""

from __future__ import annotations

# what the detectors of params.yaml come to, in images there and back: for each label, apart from labels, and where
# there is a training set; a test holds them to the bank's evidence
EACH_LABEL, APART, OF_TRAINING = 2_500, 20_000, 35_000


def images_for(classes: int, *, training: bool) -> int:
    """Images there and back that all detectors together are worth on a model with so many classes."""
    return EACH_LABEL * classes + APART + (OF_TRAINING if training else 0)


def spoken(seconds: float) -> str:
    """A duration as people say it: to ten seconds below two minutes, to minutes above."""
    if seconds < 120:
        return f"{max(10, round(seconds / 10) * 10)} s"
    return f"{round(seconds / 60)} min"
