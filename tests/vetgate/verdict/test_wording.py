"""Text is made of reasons and never read back: with every text reworded, nothing that decides changes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import flows.gate.decide
import flows.production.verify  # noqa: F401 - the errors of everything that verification imports
from flows.cli.sarif import rule_of
from flows.gate.decide import answer
from tasks.mlflow import webhooks
from tasks.records.ledger_chain import entries
from tasks.sandbox import answers as sandbox_answers
from tasks.store import lease
from tests.deciding import BACKDOORED, CLEAN, METHOD, ODD, Court
from tests.vetgate.verdict.test_judge import CLEAN as SILENT
from tests.vetgate.verdict.test_judge import GAPS, TROJANED
from vetgate import errors
from vetgate.errors import VetgateError
from vetgate.verdict.findings import findings
from vetgate.verdict.judge import rescanned
from vetgate.verdict.reasons import Code, Reason
from vetgate.verdict.wording import WORDS, render, rendered

OTHER = "{method} {label}: other words, of a PASS, a revoked signature and label 3, which rescan: names no label"


@contextmanager
def reworded() -> Iterator[None]:
    """Every sentence and every message of an error says something else, and misleading words at that."""
    with pytest.MonkeyPatch.context() as patch:
        for code in Code:
            patch.setitem(WORDS, code, f"{code.name} {OTHER}")
        patch.setattr(VetgateError, "__str__", lambda error: "exactly the attested files, got a signed FAIL")
        yield


def test_every_code_has_its_words_and_each_says_something_else() -> None:
    assert set(WORDS) == set(Code)
    whole = [reason for reason in map(render, map(Reason, Code))]
    assert len(set(whole)) == len(whole)


def test_figures_are_rounded_and_what_is_none_is_a_word() -> None:
    figures = {"norm": 3.26, "median": float("nan"), "held_out": 0.974}
    assert render(Reason(Code.TRIGGER, "m", 7, figures)) == (
        "label 7: a trigger of 3.3 pixels suffices (median label nan) and sends 97 % of unseen images there"
    )


@pytest.mark.parametrize("gap", ["nothing", *GAPS])
@pytest.mark.parametrize("case", [SILENT, TROJANED], ids=["clean", "trojaned"])
def test_reworded_every_verdict_rescan_and_finding_is_the_same(case: Any, gap: str) -> None:
    changed = case if gap == "nothing" else GAPS[gap][0](case)

    def decided() -> list[Any]:
        verdict = changed.judged()
        again = [rescanned(verdict, alarm) for alarm in (0.005, 1e-9)]
        return [(v.decision, v.suspects, v.p_value, findings(v.to_json())) for v in (verdict, *again)]

    before, texts = decided(), rendered(changed.judged().reasons)
    with reworded():
        assert rendered(changed.judged().reasons) != texts
        assert decided() == before


def test_reworded_the_gate_signs_the_same_and_waives_the_same(tmp_path: Path) -> None:
    def decided(court: Court) -> list[Any]:
        manifest = court.submit(b"weights")
        differing, agreeing = (court.request(manifest, effect, run="two") for effect in (ODD, BACKDOORED))
        found = []
        for asked in (
            court.request(manifest, CLEAN),
            court.request(manifest, CLEAN, purpose="rescan"),
            court.request(manifest, ODD, purpose="rescan"),
            court.request(manifest, BACKDOORED, purpose="rescan", second=differing),
            court.request(manifest, BACKDOORED, purpose="rescan", second=agreeing),
            court.request(manifest, ODD),
            court.request(manifest, CLEAN, evidence={}, failures={METHOD: "out of memory"}),
        ):
            answered = answer(court.settings, asked)
            assert "error" not in answered, answered
            claims = answered["attestation"] and attested(court, answered["attestation"])
            signed = claims and (claims["verdict"], claims["findings"], claims["purpose"])
            codes = [record["code"] for record in answered["verdict"]["reason_records"]]
            found.append((answered["verdict"]["decision"], signed, codes))
        found.append([entry.kind for entry in entries(court.store)])
        return found

    before = decided(Court(tmp_path / "one", tmp_path))
    with reworded():
        assert decided(Court(tmp_path / "two", tmp_path)) == before


def test_reworded_a_decision_keeps_its_key(tmp_path: Path) -> None:
    court = Court(tmp_path / "home", tmp_path)
    manifest = court.submit(b"weights")
    first = answer(court.settings, court.request(manifest, BACKDOORED))
    with reworded():
        again = answer(court.settings, court.request(manifest, BACKDOORED, asked=True))
    assert again["verdict"]["reasons"] != first["verdict"]["reasons"]
    assert (again["key"], again["attestation"]) == (first["key"], first["attestation"])


def test_every_error_has_a_code_an_exit_code_and_a_rule_that_no_word_changes() -> None:
    def every(kind: type[VetgateError]) -> Iterator[type[VetgateError]]:
        yield kind
        for special in kind.__subclasses__():
            yield from every(special)

    ours = [k for k in every(VetgateError) if k.__module__.partition(".")[0] in ("vetgate", "tasks", "flows")]
    assert {errors.Altered, sandbox_answers.TimedOut, lease.LeaseHeld, webhooks.Forged} <= set(ours)
    assert len({kind.code for kind in ours}) == len(ours)
    for kind in ours:
        made = [kind.__new__(kind, words) for words in ("", "expected a PASS, got one for x, which was revoked")]
        assert len({(rule_of(error).id, error.exit_code) for error in made}) == 1


def attested(court: Court, key: str) -> dict[str, Any]:
    from tasks.records.attestations import attestation_at

    return attestation_at(court.store, key).claims
