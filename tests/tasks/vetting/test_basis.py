"""What a repair goes by: evidence that holds what it uses; without any it is skipped, and says what it lacks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.sandbox.host import Limits
from tasks.settings import Settings
from tasks.vetting import signed_results
from tasks.vetting.basis import nothing_to_go_by, records_with
from tasks.vetting.inspect import Case, Data, Found
from vetgate.contract import pack
from vetgate.role import Uses, roles, source_of
from vetgate.trust import statements
from vetgate.trust.seeds import Seed
from vetgate.verdict.wording import render

CASE = Case("ab" * 32, "", {}, Seed(7, "cd" * 32), Limits(), Data({"repair": "r.safetensors"}))
TRIGGERS = str(source_of("triggers"))
NEURONS = next(name for name, role in roles().items() if "neurons" in role.gives)
FLAGGED = next(name for name, role in roles().items() if "flagged" in role.gives)
EVIDENCE: dict[str, Any] = {
    "scores": pack(torch.tensor([0.1, 0.9])),
    "cutoff": 0.5,
    "triggers": [{"target": 3}, {"target": 5}],
    "neurons": pack(torch.tensor([[1, 2]])),
}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path)


def kept(settings: Settings, method: str, **changed: Any) -> Found:
    """What a detector found, signed and in the store."""
    about = {"manifest": CASE.manifest, "method": method}
    signed = signed_results.save(
        settings, statements.EVIDENCE, about, {"evidence": {**EVIDENCE, **changed}, "seconds": 1.0}
    )
    return Found(method, signed.key, 1.0)


@pytest.mark.parametrize(
    "what, method, without",
    [
        ("triggers", TRIGGERS, {"triggers": [{"target": 5}]}),
        ("triggers", TRIGGERS, {"triggers": []}),
        ("neurons", NEURONS, {"neurons": None}),
        ("neurons", NEURONS, {"neurons": pack(torch.zeros(0, 2))}),
        ("flagged", FLAGGED, {"cutoff": 1.5}),
        ("flagged", FLAGGED, {"cutoff": None}),
        ("flagged", FLAGGED, {"scores": {"dtype": "float32", "shape": [9], "base64": "AAAA"}}),
        ("triggers", TRIGGERS, {"triggers": None}),
    ],
)
def test_evidence_counts_where_it_holds_what_is_used(
    settings: Settings, tmp_path: Path, what: Uses, method: str, without: dict[str, Any]
) -> None:
    (record,) = records_with(settings, CASE, [kept(settings, method)], what, [3])
    assert record["evidence"]["cutoff"] == 0.5
    empty = Settings(home=tmp_path / "other")
    assert records_with(empty, CASE, [kept(empty, method, **without)], what, [3]) == []


def test_what_failed_what_gives_something_else_and_what_is_no_detector_give_nothing(settings: Settings) -> None:
    found = [Found(TRIGGERS, None, None, "late"), kept(settings, FLAGGED), Found("oracle", "00", 1.0)]
    assert records_with(settings, CASE, found, "triggers", [3]) == []
    assert records_with(settings, CASE, [kept(settings, TRIGGERS)], "triggers", []) == []


@pytest.mark.parametrize("uses", ["triggers", "neurons", "flagged"])
def test_without_evidence_a_repair_is_skipped_and_says_what_it_lacks(uses: Uses) -> None:
    reason = nothing_to_go_by(CASE, "mend", uses, [], {"clean"})
    assert reason is not None and reason.figures == {"lacks": uses} and reason.finding is None
    words = {"triggers": "a trigger that leads", "neurons": "neurons that", "flagged": "training rows that"}
    assert words[uses] in render(reason)
    assert nothing_to_go_by(CASE, "mend", uses, [EVIDENCE], {"clean"}) is None


def test_one_that_uses_no_evidence_always_runs_where_its_data_are_there() -> None:
    assert nothing_to_go_by(CASE, "mend", None, [], {"clean"}) is None
    lacking = nothing_to_go_by(CASE, "mend", None, [], {"clean", "train"})
    assert lacking is not None and "it needs the supplier's training data" in render(lacking)
    given = replace(CASE, data=replace(CASE.data, training="t.safetensors"))
    assert nothing_to_go_by(given, "mend", None, [], {"clean", "train"}) is None
    assert nothing_to_go_by(given, "mend", None, [], {"inputs"}) is not None
    assert nothing_to_go_by(replace(CASE, data=Data()), "mend", None, [], {"clean"}) is not None
