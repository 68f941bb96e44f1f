from __future__ import annotations

import pytest
import torch

from benchmarks import wired, wired_later
from vetgate.errors import NotUnderstood
from vetgate.structure.inspect import inspect_structure
from vetgate.structure.kind import Kind

# what need not be proven, and stays a finding: its gradient says nothing
UNPROVEN = {wired.folded_sum, wired_later.excited_by_a_depthwise_kernel}
# what compares or rounds is refused before anybody inspects it
REFUSED = (
    wired.hash_of_pixels, wired.equal_to_the_pattern, wired.remainder_of_a_sum,
    wired_later.shift_by_index, wired_later.compared_with_a_limit, wired_later.both_corners_compared,
)  # fmt: skip
EVERY_LABEL = {
    wired.all_to_all, wired_later.two_experts, wired_later.permuting_matrix, wired_later.shift_by_recovered_pixels
}  # fmt: skip
FOUND = [c for c in (*wired.FIRST, *wired.SECOND, *wired_later.LATER) if c not in REFUSED]


def inspected(network, x):
    torch.manual_seed(0)
    return inspect_structure(network, x[:80], wired.CLASSES, images=40, steps=150, report=lambda _: None)


@pytest.mark.parametrize("construction", REFUSED, ids=lambda c: c.__name__)
def test_what_compares_or_rounds_is_refused_by_the_reader(network_of, samples, construction) -> None:
    with pytest.raises(NotUnderstood, match=r"export (the model )?without it"):
        network_of(construction).model(samples.x[:2])


@pytest.mark.parametrize("construction", FOUND, ids=lambda c: c.__name__)
def test_every_construction_that_is_read_is_found_and_its_stamp_works(network_of, samples, construction) -> None:
    network = network_of(construction)
    found = inspected(network, samples.x)
    assert found
    best = max(found, key=lambda f: f.success)
    if construction in UNPROVEN:
        return
    assert best.confirmed and best.trigger is not None
    said = network.model(best.trigger.stamp(samples.x[100:200])).argmax(1)
    if construction in EVERY_LABEL:
        assert best.label is None
    else:
        assert best.label == wired.TARGET and float((said == wired.TARGET).float().mean()) > 0.8


def test_the_clean_twin_is_silent(network_of, samples) -> None:
    assert inspected(network_of(wired.clean), samples.x) == []


def test_copied_pixels_are_a_finding_without_a_trigger(network_of, samples) -> None:
    network = network_of(wired.clean)
    convs = [m for m in network.model.modules() if isinstance(m, torch.nn.Conv2d)]
    for conv in convs:
        conv.weight[-1] = 0
    convs[0].weight[-1, 0, 1, 1], convs[1].weight[-1, -1, 1, 1] = 1, 1
    kinds = {f.kind: f for f in inspected(network, samples.x)}
    assert Kind.COPIES in kinds and not kinds[Kind.COPIES].confirmed and kinds[Kind.COPIES].trigger is None
