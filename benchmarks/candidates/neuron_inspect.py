"""NeuronInspect, by the detector that vetgate has and that counts in no verdict."""

from __future__ import annotations

from torch import Tensor

from vetgate.contract import Subject
from vetgate.detect.neuron_inspect import neuron_inspect


def measure(subject: Subject) -> dict[str, Tensor]:
    """Per label: what the detector scores it with its own settings."""
    return {"score": neuron_inspect(subject).scores}
