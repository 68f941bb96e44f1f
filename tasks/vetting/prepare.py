"""The images that a submission is vetted on: its reference data split by purpose, its training data if it gave any."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from tasks.data.reference import describe, doubts, materialise, materialise_training, resolve
from tasks.progress import announce, progress_of
from tasks.settings import Settings
from tasks.vetting.inspect import Data
from vetgate.formats.submission import Submission

PURPOSES = ("invert", "confirm", "repair", "validate", "test")


def prepare(settings: Settings, submission: Submission, sizes: dict[str, int]) -> dict[str, Any]:
    """The fields of a Data; without reference data there are no splits, and whatever needs them fails closed."""
    shape, classes = submission.input_shape, submission.n_classes
    splits: dict[str, str] = {}
    source: dict[str, Any] = {}
    training = None
    if submission.reference_data is not None:
        ref = resolve(settings, submission.reference_data)
        for doubt in doubts(describe(settings, ref)):
            announce(f"warning: {doubt}")
        what = "reference data"
        paths = materialise(settings, ref, shape, sizes=sizes, classes=classes, progress=progress_of(what))
        splits = {purpose: str(getattr(paths, purpose)) for purpose in PURPOSES}
        source = {**asdict(ref), "splits": paths.digest}
    if submission.training_data is not None:
        ref = resolve(settings, submission.training_data)
        what = "training data"
        file = materialise_training(settings, ref, shape, classes=classes, progress=progress_of(what))
        training = str(file)
        source["training"] = file.parent.name
        source["training_data"] = asdict(ref)
    return asdict(Data(splits, training, source))
