"""Whether a model can be vetted on a data set: which labels, names and numbers of images it must have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.data.splits import SHARES
from vetgate.errors import NotUnderstood

# an image of each class, or a track where there are tracks, for each purpose that x_train is divided into; one to test
FEWEST_TRAIN, FEWEST_TEST = len(SHARES), 1
# how many classes an error names
NAMED = 5


def check_usable(
    file: str,
    y_train: NDArray[np.int64],
    y_test: NDArray[np.int64],
    names: Sequence[str] | None,
    track: NDArray[np.integer] | None,
) -> None:
    """Raise NotUnderstood, naming `file`, unless a model of these classes can be vetted on such images."""

    def refuse(expected: str, got: str, remedy: str) -> NotUnderstood:
        return NotUnderstood(f"{file}: expected {expected}, got {got}; {remedy}")

    _check_names(refuse, names)
    found = np.unique(np.concatenate([y_train, y_test]))
    classes = int(found[-1]) + 1 if names is None else len(names)
    if classes < 2:
        raise refuse("two classes or more", f"{classes}", "add images of other classes")
    if len(found) < classes:
        lacking = _first_absent(found, classes)
        remedy = "number them from 0 without gaps, or add images" if names is None else "add images of them"
        raise refuse(f"images with each label from 0 to {classes - 1}", f"none with {lacking}", remedy)
    for part, y, tracks, least in (("train", y_train, track, FEWEST_TRAIN), ("test", y_test, None, FEWEST_TEST)):
        what = "images" if tracks is None else "tracks"
        rows = y if tracks is None else np.unique(np.stack([y, tracks.astype(np.int64)]), axis=1)[0]
        counts = np.bincount(rows, minlength=classes)
        few = np.flatnonzero(counts < least)
        if len(few):
            got = ", ".join(f"{counts[label]} of class {names[label] if names else label}" for label in few[:NAMED])
            more = f" and {len(few) - NAMED} more" if len(few) > NAMED else ""
            purposes = f", one to {', '.join(SHARES)}" if part == "train" else ""
            remedy = "add images, or leave such classes out" if tracks is None else "add tracks, or leave them out"
            raise refuse(f"{least} or more {what} of each class in x_{part}{purposes}", f"{got}{more}", remedy)


def doubts(contents: Mapping[str, Any]) -> list[str]:
    """What looks wrong with a registered set and may be right all the same, a sentence each."""
    brightest = contents.get("brightest")
    if brightest is None or brightest > 1:
        return []
    return [
        f"no pixel of {contents['name']} exceeds {brightest}, where 255 is white: if they were meant from 0 to 1, "
        "multiply them by 255 and add the set again"
    ]


def _check_names(refuse: Any, names: Sequence[str] | None) -> None:
    seen: set[str] = set()
    for label, name in enumerate(names or ()):
        if not name.strip():
            raise refuse("a name for each class", f"an empty one for {label}", "name it, or leave class_names out")
        if name.strip() in seen:
            raise refuse("another name for each class", f"{name.strip()!r} twice", "rename one of them")
        seen.add(name.strip())


def _first_absent(found: NDArray[np.int64], classes: int) -> str:
    # a label may be as large as 2**63 - 1: none of the numbers in between is made
    absent: list[int] = []
    expected = 0
    for label in map(int, found):
        absent += range(expected, min(label, expected + NAMED))
        expected = label + 1
        if len(absent) >= NAMED:
            break
    else:
        absent += range(expected, min(classes, expected + NAMED))
    more = classes - len(found) - len(absent[:NAMED])
    return ", ".join(map(str, absent[:NAMED])) + (f" and {more} more" if more > 0 else "")
