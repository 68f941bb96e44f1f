from __future__ import annotations

import json
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn

from vetgate.contract import (
    DETECTORS,
    REPAIRS,
    Axis,
    Evidence,
    Method,
    Repair,
    Samples,
    Subject,
    Trigger,
    detector,
    repair,
    report,
    select,
)
from vetgate.errors import DefenceError, MissingInput, NotFinite, UnknownParameter
from vetgate.role import RepairRole, roles


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    before = dict(DETECTORS), dict(REPAIRS)
    yield
    for live, old in zip((DETECTORS, REPAIRS), before, strict=True):
        live.clear()
        live.update(old)


def subject() -> Subject:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3))
    return Subject(model=model, layer="3", classes=3, clean=Samples(torch.rand(5, 1, 8, 8), torch.arange(5) % 3))


def silent(statistic: float = 0.0) -> Evidence:
    return Evidence(statistic, torch.zeros(3), math.inf)


def registered(function) -> Method:  # type: ignore[no-untyped-def]
    detector(role=roles()["abs"], needs={"clean"}, paper="https://example.org")(function)
    return DETECTORS[function.__name__]


def test_a_result_carries_where_it_came_from() -> None:
    def probe_it(subject: Subject, *, steps: int = 3, lr: float = 0.1) -> Evidence:
        return silent(float(steps))

    found = registered(probe_it)(subject(), seed=7, steps=5)
    assert (found.method, found.axis, found.seed, found.params) == ("probe_it", Axis.CLASS, 7, {"steps": 5, "lr": 0.1})


def test_a_missing_need_and_an_unknown_parameter_are_refused_before_anything_runs() -> None:
    ran = []

    def probe_it(subject: Subject, *, steps: int = 3) -> Evidence:
        ran.append(1)
        return silent()

    method, bare = registered(probe_it), subject()
    with pytest.raises(UnknownParameter, match="stepz"):
        method(bare, stepz=1)
    with pytest.raises(MissingInput, match=r"subject\.clean"):
        method(Subject(model=bare.model, layer="3", classes=3))
    assert not ran


def test_the_model_is_held_still_while_a_detector_looks_and_given_back_as_it_was() -> None:
    given = subject()
    given.model.train()
    given.model[0].weight.requires_grad_(False)  # type: ignore[index]
    given.model[4].weight.grad = torch.ones(3, 72)  # type: ignore[index]

    def probe_it(subject: Subject) -> Evidence:
        assert not any(m.training for m in subject.model.modules())
        assert not any(p.requires_grad for p in subject.model.parameters())
        subject.model(torch.rand(2, 1, 8, 8))
        return silent()

    registered(probe_it)(given)
    assert all(m.training for m in given.model.modules())
    assert [p.requires_grad for p in given.model.parameters()] == [False, True, True, True, True, True]
    assert given.model[4].weight.grad is not None  # type: ignore[index]


def test_after_a_crash_weights_modes_flags_and_hooks_are_as_before() -> None:
    given = subject()
    given.model.train()
    hook = given.model[2].register_forward_hook(lambda *_: None)  # type: ignore[index]
    before = {k: v.clone() for k, v in given.model.state_dict().items()}

    def vandal(subject: Subject) -> Evidence:
        subject.model[0].register_forward_hook(lambda *_: None)  # type: ignore[index]
        subject.model[2]._forward_hooks.clear()  # type: ignore[index]
        subject.model.train().requires_grad_(True)
        subject.model(torch.rand(4, 1, 8, 8))  # moves the batch statistics
        with torch.no_grad():
            subject.model[0].weight.zero_()  # type: ignore[index]
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        registered(vandal)(given)
    assert all(torch.equal(v, before[k]) for k, v in given.model.state_dict().items())
    assert not given.model[0]._forward_hooks and hook.id in given.model[2]._forward_hooks  # type: ignore[index]
    assert all(m.training for m in given.model.modules())


def test_a_detector_that_changes_the_model_is_refused_and_undone() -> None:
    given = subject()
    before = given.model[0].weight.clone()  # type: ignore[index]

    def vandal(subject: Subject) -> Evidence:
        with torch.no_grad():
            subject.model[0].weight.add_(1)  # type: ignore[index]
        return silent()

    with pytest.raises(DefenceError, match="changed the model"):
        registered(vandal)(given)
    assert torch.equal(given.model[0].weight, before)  # type: ignore[index]


def test_a_repair_works_on_its_own_copy_and_needs_evidence() -> None:
    def wipe(subject: Subject, evidence: Evidence, *, keep: float = 0.0) -> Repair:
        with torch.no_grad():
            for parameter in subject.model.parameters():
                parameter.mul_(keep)
        return Repair(subject.model, {"tensors": 6.0})

    repair(
        role=RepairRole(uses="flagged", title="Wipe", sentence="Wipes."), needs={"clean"}, paper="https://example.org"
    )(wipe)
    given = subject()
    with pytest.raises(MissingInput, match="flagged"):
        REPAIRS["wipe"](given)
    found = REPAIRS["wipe"](given, silent(), seed=2)
    assert not any(p.any() for p in found.model.parameters()) and any(p.any() for p in given.model.parameters())
    assert not found.model.training and (found.method, found.seed, found.params) == ("wipe", 2, {"keep": 0.0})


def test_the_random_stream_is_private_and_the_seed_decides_it() -> None:
    def roll(subject: Subject) -> Evidence:
        return silent(float(torch.rand(())) + float(np.random.rand()))

    method, given = registered(roll), subject()
    torch.manual_seed(1)
    np.random.seed(1)
    expected = float(torch.rand(())), np.random.rand()
    torch.manual_seed(1)
    np.random.seed(1)
    one, two, other = (method(given, seed=s).statistic for s in (0, 0, 1))
    assert (float(torch.rand(())), np.random.rand()) == expected
    assert one == two != other


def test_progress_reaches_the_caller_alone_and_clipped() -> None:
    def slow(subject: Subject) -> Evidence:
        report(0.5)
        report(7.0)
        return silent()

    seen: list[float] = []
    registered(slow)(subject(), progress=seen.append)
    report(0.9)
    assert seen == [0.5, 1.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_evidence_refuses_what_is_not_finite(bad: float) -> None:
    with pytest.raises(NotFinite):
        Evidence(bad, torch.zeros(2), 1.0)
    with pytest.raises(NotFinite):
        Evidence(0.0, torch.tensor([0.0, bad]), 1.0)
    with pytest.raises(NotFinite):
        Evidence(0.0, torch.zeros(2), math.nan)


def test_evidence_and_samples_refuse_wrong_shapes_and_types() -> None:
    with pytest.raises(DefenceError, match="scores"):
        Evidence(0.0, torch.zeros(2, 2), 1.0)
    with pytest.raises(DefenceError, match="float32 on cpu"):
        Evidence(0.0, torch.zeros(2, dtype=torch.float64), 1.0)
    with pytest.raises(DefenceError, match="images"):
        Samples(torch.zeros(2, 8, 8), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(DefenceError, match="labels"):
        Samples(torch.zeros(2, 1, 8, 8), torch.zeros(3, dtype=torch.int64))


def test_evidence_survives_json_bit_for_bit() -> None:
    whole = Evidence(
        0.1 + 0.2,
        torch.tensor([1 / 3, -0.0, 5e-324]),
        math.inf,
        triggers=(Trigger(torch.rand(1, 2, 2), torch.rand(3, 2, 2), 4),),
        neurons=torch.tensor([[1, 2]]),
        details={"norms": [0.1, 2.0]},
        method="m",
        axis=Axis.CLASS,
        params={"steps": 3, "on": True, "name": None},
        seed=2**62 + 1,
    )
    text = json.dumps(whole.to_json(), allow_nan=False)
    back = Evidence.from_json(json.loads(text))
    assert json.dumps(back.to_json()) == text
    assert torch.equal(back.scores.view(torch.int32), whole.scores.view(torch.int32)) and back.cutoff == math.inf
    assert torch.equal(back.triggers[0].pattern, whole.triggers[0].pattern) and back.seed == whole.seed


def test_flags_follow_from_scores_and_cutoff() -> None:
    assert Evidence(1.0, torch.tensor([0.5, 1.0, 2.0]), 1.0).flagged.tolist() == [False, True, True]


def test_a_trigger_blends_by_its_mask() -> None:
    trigger = Trigger(torch.tensor([[[0.0, 0.5, 1.0]]]), torch.ones(1, 1, 3), 0)
    assert trigger.stamp(torch.zeros(1, 1, 1, 3)).flatten().tolist() == [0.0, 0.5, 1.0]
    assert trigger.norm == 1.5


def test_select_names_what_it_did_not_find() -> None:
    assert select([silent()], "").statistic == 0
    with pytest.raises(MissingInput, match="expected evidence of abs"):
        select([silent()], "abs")
