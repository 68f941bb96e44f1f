"""What can be wrong with the structure of a network; the judge reads it without torch."""

from __future__ import annotations

from enum import IntEnum


class Kind(IntEnum):
    """A kind of finding; evidence holds the number, which never changes its meaning.

    AROUND: what reads pixels joins what comes from trained layers. IN_FRONT: pixels are bent before the first layer.
    BESIDE: parts that share no trained layer meet behind the last one. SILENT: a channel that no clean image opens
    outweighs all others. COPIES: pixels are copied from layer to layer.
    """

    AROUND = 1
    IN_FRONT = 2
    BESIDE = 3
    SILENT = 4
    COPIES = 5
