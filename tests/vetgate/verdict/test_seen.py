"""Evidence read back from the store without torch: bit for bit what a detector gave, or an error."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from vetgate.contract import Axis, Evidence, Trigger
from vetgate.errors import NotFinite, StoreError
from vetgate.verdict.seen import StoredEvidence


def evidence() -> Evidence:
    return Evidence(
        statistic=0.1,
        scores=torch.tensor([0.1, 1e-30, 3.5]),
        cutoff=math.inf,
        triggers=(Trigger(torch.rand(1, 4, 4), torch.rand(3, 4, 4), 2),),
        neurons=torch.tensor([[0, 3]]),
        details={"held_out": [1.0, 0.5, 0.25]},
        method="neural_cleanse",
        axis=Axis.CLASS,
        params={"steps": 3},
        seed=2**53 - 1,
    )


def blob() -> dict[str, Any]:
    return dict(json.loads(json.dumps(evidence().to_json())))


def test_everything_comes_back_bit_for_bit() -> None:
    given = evidence()
    found = StoredEvidence.from_json(json.loads(json.dumps(given.to_json())))
    for name in ("method", "axis", "params", "seed", "statistic", "details"):
        assert getattr(found, name) == getattr(given, name), name
    assert found.scores.dtype == np.float32 and found.scores.tobytes() == given.scores.numpy().tobytes()
    (trigger,) = found.triggers
    assert trigger.target == 2 and trigger.mask.tobytes() == given.triggers[0].mask.numpy().tobytes()


@pytest.mark.parametrize("missing", sorted(blob()))
def test_what_lacks_a_part_is_no_evidence(missing: str) -> None:
    lacking = {name: value for name, value in blob().items() if name != missing}
    with pytest.raises(StoreError, match="vet again"):
        StoredEvidence.from_json(lacking)


def changed(part: str, **changes: Any) -> Callable[[dict[str, Any]], None]:
    def change(found: dict[str, Any]) -> None:
        (found["triggers"][0][part] if part in ("mask", "pattern") else found[part]).update(changes)

    return change


@pytest.mark.parametrize(
    "change",
    [
        changed("scores", base64="not base64!"),
        changed("scores", shape=[4]),
        changed("scores", shape=[-1]),
        changed("scores", shape=[1, 3]),
        changed("scores", dtype="bool"),
        changed("scores", dtype="float64"),
        changed("mask", shape=[4, 4]),
        changed("mask", shape=[1, 2, 8]),
        changed("mask", dtype="int64"),
        changed("neurons", shape=[5]),
        lambda found: found.update(axis="nowhere"),
        lambda found: found.update(statistic="high"),
        lambda found: found.update(triggers=[3]),
        lambda found: found["triggers"][0].pop("target"),
    ],
)
def test_what_is_out_of_shape_is_no_evidence(change: Callable[[dict[str, Any]], None]) -> None:
    found = blob()
    change(found)
    with pytest.raises(StoreError, match="vet again"):
        StoredEvidence.from_json(found)


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found.update(statistic=math.nan),
        lambda found: found.update(statistic=math.inf),
        lambda found: found.update(cutoff=math.nan),
        changed("scores", base64="AACAfwAAAAAAAAAA"),
        changed("scores", base64="AADAfwAAAAAAAAAA"),
    ],
)
def test_what_is_not_finite_is_refused(change: Callable[[dict[str, Any]], None]) -> None:
    found = blob()
    change(found)
    with pytest.raises(NotFinite):
        StoredEvidence.from_json(found)
