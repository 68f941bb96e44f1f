"""How much of a search each label of a model gets, where there are many labels or large images."""

from __future__ import annotations

from dataclasses import dataclass

# images of up to so many pixels are searched with all effort; beyond, effort goes down as they grow
PIXELS = 64 * 64
# among fewer labels, what is usual cannot be told; of fewer images, what holds of all
FEWEST, FEWEST_IMAGES = 32, 8


@dataclass(frozen=True)
class Effort:
    """Of how many labels triggers are searched to the end, and for how many sweeps the others are looked at."""

    labels: int
    sweeps: int


def image_count(pixels: int, most: int) -> int:
    """How many images of so many pixels a method takes that keeps what they come to in every layer: at most `most`."""
    return max(min(most, FEWEST_IMAGES), round(most * min(1.0, PIXELS / pixels)))


def minibatch(pixels: int, most: int) -> int:
    """How many images of so many pixels a step of a search takes: `most`, and of large ones half as many."""
    return most if pixels <= PIXELS else max(1, most // 2)


def effort(pixels: int, *, most: int, look: int) -> Effort:
    """What can be afforded on images of so many pixels: `most` labels and `look` sweeps, or less where they are large.

    Never fewer than FEWEST labels, unless `most` is less, and never less than one sweep.
    """
    share = min(1.0, PIXELS / pixels)
    return Effort(max(min(most, FEWEST), round(most * share)), max(1, round(look * share)))
