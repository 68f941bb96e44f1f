"""Neural Cleanse's figure of pruning: accuracy and attack success against the share of neurons that are silenced.

`python -m benchmarks.pruning_curve FOLDER --mnist NPZ --gtsrb NPZ --json FILE --png FILE` takes the networks of
`benchmarks.mitigation` from FOLDER, or trains them there, orders the channels of the last layer before the logits by
how much more active they are under the trigger that Neural Cleanse reverses, as `neuron_pruning` does, and silences
more and more of them. Accuracy, and success of the original and of the reversed trigger, are of the test images.

Source    Wang et al., "Neural Cleanse", IEEE S&P 2019, figures of section VI.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console
from torch import nn

from benchmarks.mitigation import Case, Data, asked_for, asking, for_label, infected, reversed_on
from vetgate.architectures import default_layer
from vetgate.channels import FilterLayer, layers_of, silence
from vetgate.contract import Samples, Subject, Trigger
from vetgate.inversion import attack_success
from vetgate.probe import accuracy
from vetgate.repair.neuron_pruning import gap

STEPS = 20
LINES = {"accuracy": "accuracy", "original": "success of the original trigger", "reversed": "of the reversed one"}


def curve(
    model: nn.Module, layer: FilterLayer, order: torch.Tensor, test: Samples, triggers: dict[str, Trigger]
) -> Iterator[dict[str, float]]:
    """One point for each share of channels silenced, in the order given: from none to all but one."""
    for step in range(STEPS + 1):
        count = min(len(order) - 1, round(step / STEPS * len(order)))
        pruned = copy.deepcopy(model)
        silence(pruned, layer, order[:count])
        point = {"share": count / len(order), "accuracy": accuracy(pruned, test.x, test.y)}
        yield point | {name: attack_success(pruned, test.x, test.y, trigger) for name, trigger in triggers.items()}


def measured(case: Case, images: Data, place: Path) -> dict[str, Any]:
    """The curve of one network."""
    model, original = infected(case, images, place)
    subject = Subject(model=model, layer=default_layer(model), classes=images.classes, clean=images.ours)
    found = for_label(reversed_on(subject, images.ours), case.target)
    layer = layers_of(model, images.ours.x)[-1]
    order = gap(model, layer, images.ours, found.triggers).argsort(descending=True)
    triggers = {"original": original, "reversed": found.triggers[0]}
    points = list(curve(model, layer, order, images.test, triggers))
    return {"case": case.name, "channels": len(order), "points": points}


def drawn(curves: Sequence[dict[str, Any]]) -> Figure:
    """One panel a network."""
    figure = Figure(figsize=(4.5 * len(curves), 3.4), layout="constrained")
    for panel, found in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves, strict=True):
        for name, label in LINES.items():
            panel.plot([p["share"] for p in found["points"]], [p[name] for p in found["points"]], label=label)
        panel.set(title=found["case"], xlabel="share of channels silenced", ylim=(-0.02, 1.02))
        panel.grid(alpha=0.3)
    figure.axes[0].legend(fontsize="small")
    return figure


def main() -> None:
    """Measure, write the figures and draw them."""
    parser = asking(__doc__)
    parser.add_argument("--png", type=Path, required=True)
    given = parser.parse_args()
    chosen, files = asked_for(given)
    curves = []
    for case in chosen:
        curves.append(measured(case, Data.of(files[case.data]), given.folder))
        Console(stderr=True).print(case.name, curves[-1]["points"])
    given.json.write_text(json.dumps(curves, indent=1) + "\n")
    drawn(curves).savefig(given.png, dpi=90)


if __name__ == "__main__":
    main()
