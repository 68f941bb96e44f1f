"""Graph structure: paths that go around what was trained, and channels that only a trigger opens.

An attacker with a graph editor needs no training: a few operators that compare pixels with a pattern and push a logit
are a backdoor that no reversed trigger finds, since a shut gate passes no gradient. A graph is taken apart into where
its values come from; what joins without coming through trained layers is named, and driven: if it alone decides on most
images once they are changed, it is proven on the model itself, and no clean models need tell how rare it is.

Source    The attack: Bober-Irizar et al., "Architectural Backdoors in Neural Networks", CVPR 2023. The inspection is
          ours (docs/statistics.md).
Deviates  -
Blind to  What a supplier trained into the weights, which is for the other detectors; networks of named architectures,
          whose graph is ours, are not taken apart.
"""

from __future__ import annotations

import torch

from vetgate.contract import Evidence, Subject, detector, report
from vetgate.errors import MissingInput
from vetgate.formats.onnx.module import OnnxModule
from vetgate.probe import logits
from vetgate.role import Axis, By, Confirm, Role
from vetgate.structure.inspect import Finding, inspect_structure
from vetgate.structure.network import Network

ROLE = Role(
    axis=Axis.CLASS,
    weight=0.0,
    null=By.NOTHING,
    confirm=Confirm.PROVEN,
    title="Graph structure",
    sentence="Names what reaches the logits without coming through the trained layers, and drives it.",
    gives=("triggers",),
)
NO_WEIGHTS = "it asks how a graph is wired, and the twins differ in their weights"


@detector(
    role=ROLE,
    needs={"clean"},
    paper="https://openaccess.thecvf.com/content/CVPR2023/html/Bober-Irizar_Architectural_Backdoors_in_Neural_Networks_CVPR_2023_paper.html",
    waived={"check_trojaned_twin_scores_higher": NO_WEIGHTS, "check_target_stands_out": NO_WEIGHTS},
)
def graph_structure(subject: Subject, *, images: int = 40, steps: int = 150) -> Evidence:
    """The statistic is the number of findings; scores (K,) are the share of images that one sends to each label.

    At most `images` drive a branch, in so many `steps`. Details: the path of each finding, with its kind (`Kind`), the
    share of images on which it alone decides, the label (-1 for many or none), and 1 where it is confirmed.
    """
    clean = subject.clean
    if clean is None:
        raise MissingInput("graph_structure needs subject.clean, got None; give trusted samples")
    found: list[Finding] = []
    x = clean.x[torch.randperm(len(clean))[: 2 * images]]
    logits(subject.model, x)
    if isinstance(subject.model, OnnxModule):
        network = Network(subject.model)
        found = inspect_structure(network, x, subject.classes, images=images, steps=steps, report=report)
    report(1.0)
    scores = torch.zeros(subject.classes)
    for one in found:
        if one.label is not None:
            scores[one.label] = max(float(scores[one.label]), one.success)
    return Evidence(
        statistic=float(len(found)),
        scores=scores,
        cutoff=1e-6,
        triggers=tuple(one.trigger for one in found if one.trigger is not None),
        details={
            one.path: [
                float(one.kind),
                one.success,
                float(-1 if one.label is None else one.label),
                float(one.confirmed),
            ]
            for one in found
        },
    )
