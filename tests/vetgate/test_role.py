"""Facts about a method stand on the method: the judge goes by them, and no other file names one."""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import vetgate.detect
import vetgate.repair  # noqa: F401 - registers every method
from tests.vetgate.verdict.test_judge import BACKDOOR, POLICY, Case, label_norms, reference, rows, stimulation
from tests.vetgate.verdict.test_judge import calibration as calibrated
from vetgate.contract import DETECTORS, REPAIRS, Axis, Evidence
from vetgate.errors import BadPolicy
from vetgate.role import (
    By,
    Confirm,
    Role,
    _read,
    by_label,
    guard_functions,
    guard_roles,
    repair_roles,
    roles,
    source_of,
    title_of,
    weight_of,
)
from vetgate.verdict.calibration import Calibration, MethodPin, Seen
from vetgate.verdict.findings import findings
from vetgate.verdict.judge import Decision
from vetgate.verdict.reasons import Code
from vetgate.verdict.seen import Failure

ROOT = Path(__file__).parents[2]
BY_LABEL = Role(
    axis=Axis.CLASS, weight=1, null=By.LABEL, confirm=Confirm.HELD_OUT_AND_SECOND_START, title="Fake", sentence="Fakes."
)


def test_what_is_declared_is_what_is_registered() -> None:
    assert set(roles()) == set(DETECTORS) and set(repair_roles()) == set(REPAIRS)
    assert all(roles()[name].axis is method.axis for name, method in DETECTORS.items())
    assert all(repair_roles()[name].uses == method.uses for name, method in REPAIRS.items())
    assert all(title_of(name) and not title_of(name).islower() for name in [*DETECTORS, *REPAIRS])


def test_roles_are_read_without_torch() -> None:
    imports = "import sys, vetgate.role as r, vetgate.verdict.policy"
    program = f"{imports}; r.roles(); r.repair_roles(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=60).returncode == 0


def test_no_method_is_named_outside_its_own_file() -> None:
    names = {*roles(), *repair_roles(), *guard_roles()}
    files = [f for folder in ("vetgate", "tasks", "flows", "docs", "benchmarks") for f in (ROOT / folder).rglob("*.py")]
    assert len(files) > 150
    named = {
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and node.value in names and file.stem != node.value
    }
    assert named == set()


@pytest.mark.parametrize(
    "source",
    [
        "x = 1",
        "ROLE = Role(weight=1)",
        "ROLE = Role(axis=Axis.CLASS, weight=weigh(), null=By.MODEL, confirm=Confirm.NEVER, title='', sentence='')",
        "ROLE = Role(axis=Axis.TRAIN, weight=1, null=By.MODEL, confirm=Confirm.SUCCESS, title='', sentence='')",
        "ROLE = Role(axis=Axis.TRAIN, weight=1, null=By.LABEL, confirm=Confirm.ROWS, title='', sentence='')",
        "ROLE = Role(axis=Axis.CLASS, weight=1, null=By.MODEL, confirm=Confirm.ROWS, title='', sentence='')",
        "ROLE = Role(axis=Axis.CLASS, weight=-1, null=By.MODEL, confirm=Confirm.NEVER, title='', sentence='')",
    ],
)
def test_a_role_that_is_missing_or_makes_no_sense_is_refused(tmp_path: Path, source: str) -> None:
    (tmp_path / "fake.py").write_text(source)
    with pytest.raises(BadPolicy, match="fake"):
        _read(tmp_path / "fake.py", Role)


def guard_file(tmp_path: Path, decorator: str) -> Path:
    (tmp_path / "guard").mkdir()
    text = f"def _fit(): ...\n{decorator}\ndef fake(): ...\n"
    (tmp_path / "guard" / "fake.py").write_text(text)
    return tmp_path


def test_the_functions_of_a_guard_are_those_that_its_registration_names(tmp_path: Path) -> None:
    for name in guard_roles():
        assert "fit" in guard_functions(name)
    package = guard_file(tmp_path, "@guard(fit=_fit, vote=fake, needs={'clean'})")
    assert guard_functions("fake", package) == {"fit": "_fit", "vote": "fake"}


@pytest.mark.parametrize(
    "decorator", ["@guard(needs={'clean'})", "@guard(fit=elsewhere)", "@guard(fit=partial(_fit, 1))"]
)
def test_functions_that_stand_elsewhere_are_refused(tmp_path: Path, decorator: str) -> None:
    with pytest.raises(BadPolicy, match=r"functions of vetgate/guard/fake\.py"):
        guard_functions("fake", guard_file(tmp_path, decorator))


def fakes(*names: str, count: int = 24) -> Calibration:
    """References on which each fake gave what an inverting detector gives."""
    made = []
    for seed in range(count):
        one = reference(seed)
        label = next(seen for name, seen in one.seen.items() if by_label(name))
        seen = {name: label if by_label(name) else Seen(statistic=one.seen["abs"].statistic) for name in names}
        made.append(one.model_copy(update={"seen": seen}))
    pins = {name: MethodPin(code="code", params={}) for name in names}
    found = calibrated(*made)
    return replace(found, bank=found.bank.model_copy(update={"methods": pins}))


def judged(*seen: Evidence | Failure, by: Calibration, **policy: Any) -> Any:
    asked = {"required": tuple(sorted({s.method for s in seen})), **policy}
    return replace(Case(seen=seen, calibration=by), policy=POLICY.model_copy(update=asked)).judged()


def test_any_number_of_label_scoring_methods_make_a_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("fake_a", "fake_b"):
        monkeypatch.setitem(roles(), name, BY_LABEL)
    by = fakes("fake_a", "fake_b")
    silent = [replace(label_norms(), method=name) for name in ("fake_a", "fake_b")]
    found = [replace(label_norms(backdoor=BACKDOOR), method=name) for name in ("fake_a", "fake_b")]
    passed, failed = judged(*silent, by=by), judged(*found, by=by)
    assert passed.decision is Decision.PASS and passed.calibrated
    assert (failed.decision, failed.suspects) == (Decision.FAIL, (BACKDOOR,))
    assert findings(failed.to_json()) == (f"backdoor:label-{BACKDOOR}",)
    alone = judged(found[0], by=fakes("fake_a"))
    assert (alone.decision, alone.suspects) == (Decision.FAIL, (BACKDOOR,))


@pytest.mark.parametrize("confirm", [Confirm.NEVER, Confirm.SUCCESS])
def test_a_new_detector_of_labels_never_speaks_of_poisoned_rows(
    monkeypatch: pytest.MonkeyPatch, confirm: Confirm
) -> None:
    monkeypatch.setitem(roles(), "fake_a", BY_LABEL)
    monkeypatch.setitem(roles(), "fake_c", replace(BY_LABEL, null=By.MODEL, confirm=confirm))
    by = fakes("fake_a", "fake_c")
    extreme = replace(stimulation(backdoor=BACKDOOR, statistic=50.0), method="fake_c")
    verdict = judged(replace(label_norms(), method="fake_a"), extreme, by=by)
    assert next(m for m in verdict.methods if m.name == "fake_c").alarmed
    codes = {reason.code for reason in verdict.reasons}
    assert Code.POISONED_DATA not in codes
    assert verdict.decision is (Decision.FAIL if confirm is Confirm.SUCCESS else Decision.INCONCLUSIVE)


def test_what_is_advisory_is_shown_and_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(roles(), "fake_a", BY_LABEL)
    monkeypatch.setitem(roles(), "fake_c", replace(BY_LABEL, null=By.MODEL, confirm=Confirm.SUCCESS, weight=0))
    by, norms = fakes("fake_a", "fake_c"), replace(label_norms(), method="fake_a")
    extreme = replace(stimulation(backdoor=BACKDOOR, statistic=50.0), method="fake_c")
    without = judged(norms, by=by, required=("fake_a",))
    for seen in (extreme, Failure("fake_c", "boom"), replace(extreme, seed=7), replace(extreme, params={"x": 1})):
        verdict = judged(norms, seen, by=by, required=("fake_a",))
        assert (verdict.decision, verdict.p_value, verdict.reasons) == (
            Decision.PASS,
            without.p_value,
            without.reasons,
        )
        assert [m.name for m in verdict.methods] == ["fake_a", "fake_c"]
    twice = judged(norms, extreme, extreme, by=by, required=("fake_a",))
    assert twice.decision is Decision.PASS
    shown = judged(norms, extreme, by=by, required=("fake_a",)).methods[1]
    assert shown.alarmed and shown.suspects == (BACKDOOR,)
    for required in (Failure("fake_c", "boom"), replace(extreme, params={"x": 1})):
        assert judged(norms, required, by=by).decision is Decision.INCONCLUSIVE
    assert weight_of("fake_c") == 0


def test_rows_are_found_by_any_method_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(roles(), "fake_a", BY_LABEL)
    by_rows = replace(BY_LABEL, axis=Axis.TRAIN, null=By.MODEL, confirm=Confirm.ROWS)
    monkeypatch.setitem(roles(), "fake_d", by_rows)
    verdict = judged(replace(label_norms(), method="fake_a"), rows("fake_d", 50.0), by=fakes("fake_a", "fake_d"))
    assert findings(verdict.to_json()) == ("poisoned-data:fake_d",)


def test_what_gives_triggers_and_counts_most_is_the_source_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert source_of("triggers") is not None and by_label(str(source_of("triggers")))
    monkeypatch.setitem(roles(), "fake_a", replace(BY_LABEL, weight=2.0, gives=("triggers",)))
    assert source_of("triggers") == "fake_a"
    others = [name for name in roles() if "neurons" in roles()[name].gives]
    assert source_of("triggers", dict.fromkeys(others)) == others[0]
    assert source_of("neurons", {}) is None
