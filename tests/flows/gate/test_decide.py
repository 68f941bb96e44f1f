from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from flows.gate.decide import answer, make_ready
from flows.gate.judged import NOT_CANONICAL, NOT_SIGNED
from tasks.mlflow.heads import publish_head
from tasks.records.attestations import attestation_at, newest_attestation, save_attestation
from tasks.records.coverage import admitted_until
from tasks.records.ledger_chain import entries, entry_key
from tasks.records.ledger_state import ledger_state
from tasks.records.ledger_verify import verify_ledger
from tasks.settings import Settings
from tasks.store.open import open_store
from tasks.vetting import signed_results
from tasks.vetting.intake import read_record, seed_of
from tests.deciding import BACKDOORED, CLEAN, METHOD, ODD, TARGET, Court
from tests.production import Home
from tests.vetgate.verdict.test_judge import label_norms
from vetgate.digest import canonical_json, sha256_json
from vetgate.errors import Stale
from vetgate.trust import attest, dsse
from vetgate.trust.keys import VETTER, TrustRoot, key_id, load_key, read_trust_root, utc_now
from vetgate.trust.statements import EVIDENCE, sign_statement
from vetgate.trust.strict_json import as_time, time_text


@pytest.fixture
def court(tmp_path: Path) -> Court:
    return Court(tmp_path / "home", tmp_path)


def asked(court: Court, manifest: str, effect: float | None, run: str = "", **more: Any) -> dict[str, Any]:
    """The gate's answer, which is no error."""
    answered = answer(court.settings, court.request(manifest, effect, run, **more))
    assert "error" not in answered, answered
    return answered


def newest(court: Court, manifest: str) -> dict[str, Any]:
    found = newest_attestation(ledger_state(court.settings), manifest)
    assert found is not None
    return found.claims


def kinds(court: Court) -> list[str]:
    """What the ledger, which is whole, tells of."""
    verify_ledger(court.settings)
    return [entry.kind for entry in entries(court.store)]


def stored(court: Court) -> set[str]:
    """Everything in the store that the gate writes."""
    written = ("verdicts/", "attestations/", "ledger/")
    return {key for folder in written for key in court.store.list(folder)}


LAID = f"revocations/{'1' * 64}.json"


class TestSubmission:
    """What the gate answers to a first vetting."""

    @pytest.mark.parametrize("gone", [(2,), (1, 2)])
    @pytest.mark.parametrize("named", [False, True])
    def test_nothing_is_signed_after_an_end_that_was_cut_off_before_a_published_head(
        self, court: Court, gone: tuple[int, ...], named: bool
    ) -> None:
        """Asked of a home of the gate that did not see the end, as one that was restored from a backup."""
        court.settings.policy.write_text(
            court.settings.policy.read_text() + f"\nledger: {{heads: [{court.room / 'heads'}]}}\n"
        )
        manifest = court.submit(b"clean")
        asked(court, manifest, CLEAN)
        asked(court, court.submit(b"another"), CLEAN)
        publish_head(court.settings)
        for number in gone:
            Path(court.settings.store, entry_key(number)).unlink()
        late = court.settings.model_copy(
            update={"home": court.room / "late"} | ({"tracking_uri": f"sqlite:///{court.room}/no.db"} if named else {})
        )
        before = stored(court)
        said = answer(late, court.request(manifest, CLEAN))
        assert said["kind"] == "Removed" and stored(court) == before

    def test_a_verdict_is_signed_kept_and_entered(self, court: Court) -> None:
        manifest = court.submit(b"clean")
        answered = asked(court, manifest, CLEAN)
        claims = newest(court, manifest)
        assert (answered["verdict"]["decision"], claims["verdict"], claims["findings"]) == ("PASS", "PASS", [])
        assert (claims["purpose"], claims["decision"]) == ("submission", answered["key"])
        assert court.store.exists(f"verdicts/{manifest}/{answered['key']}.json")
        assert kinds(court) == ["verdict"]

    def test_a_fail_names_its_findings(self, court: Court) -> None:
        manifest = court.submit(b"bad")
        assert asked(court, manifest, BACKDOORED)["verdict"]["decision"] == "FAIL"
        assert newest(court, manifest)["findings"] == [f"backdoor:label-{TARGET}"]

    def test_a_file_that_was_not_understood_says_so(self, court: Court) -> None:
        manifest = court.submit(b"?")
        request = court.request(manifest, CLEAN, evidence={}, failures={METHOD: "bad header"}, refused=True)
        assert answer(court.settings, request)["verdict"]["decision"] == "INCONCLUSIVE"
        assert newest(court, manifest)["findings"][:2] == ["not-understood", f"inconclusive:{METHOD}"]

    def test_asking_again_gives_the_same_attestation_and_a_person_with_other_evidence_a_new_one(
        self, court: Court
    ) -> None:
        manifest = court.submit(b"clean")
        first, again = asked(court, manifest, CLEAN), asked(court, manifest, CLEAN)
        assert first["attestation"] == again["attestation"]
        other = asked(court, manifest, BACKDOORED, asked=True)
        assert other["attestation"] != first["attestation"]
        assert newest(court, manifest)["verdict"] == "FAIL"
        assert newest(court, manifest)["previous"] == first["attestation"].rpartition("-")[2].removesuffix(".json")
        assert kinds(court) == ["verdict", "verdict"]

    def test_of_two_decisions_within_a_second_the_second_is_the_newer(self, court: Court) -> None:
        manifest = court.submit(b"weights")
        asked(court, manifest, BACKDOORED)
        asked(court, manifest, CLEAN, asked=True)
        assert newest(court, manifest)["verdict"] == "PASS"
        asked(court, manifest, BACKDOORED, asked=True)
        assert newest(court, manifest)["verdict"] == "FAIL"

    def test_unsigned_nothing_is_written_at_all(self, court: Court) -> None:
        manifest = court.submit(b"clean")
        for purpose in ("submission", "rescan"):
            answered = asked(court, manifest, CLEAN, sign=False, purpose=purpose)
            assert (answered["verdict"]["decision"], answered["attestation"]) == ("PASS", None)
        assert stored(court) == set()

    def test_evidence_from_another_seed_is_an_error(self, court: Court) -> None:
        manifest = court.submit(b"clean")
        request = court.request(manifest, CLEAN, run="two") | {"run": ""}
        assert answer(court.settings, request)["kind"] == "StoreError"
        assert asked(court, manifest, CLEAN, run="two")["run"] == "two"

    def test_errors_are_answers(self, court: Court) -> None:
        manifest = court.submit(b"clean")
        assert answer(court.settings, {"op": "sign"})["kind"] == "BadSubmission"
        assert answer(court.settings, {})["kind"] == "StoreError"
        assert answer(court.settings, court.request(manifest, CLEAN, purpose="audit"))["kind"] == "BadSubmission"
        assert (
            answer(court.settings, court.request(manifest, CLEAN) | {"manifest": "0" * 64})["kind"] == "BadSubmission"
        )

    @pytest.mark.parametrize(
        "asked_for",
        [
            {},
            {"key": None},
            {"key": ["waivers"]},
            {"key": "../../keys/gate.ed25519"},
            {"key": "waivers/\ud800.json"},
            {"key": f"waivers/{'0' * 64}.json"},
            {"key": f"ledger/{0:012}.json"},
            {"key": "submissions/"},
            {"key": f"revocations/{'0' * 64}.json"},
            {"key": LAID, "manifest": {"a": 1}},
            {"key": LAID, "manifest": "x"},
        ],
    )
    def test_what_is_nothing_to_record_is_the_caller_s_error(
        self, court: Court, asked_for: dict[str, Any], capfd: pytest.CaptureFixture[str]
    ) -> None:
        court.store.create(LAID, b"{}")
        answered = answer(court.settings, {"op": "record", **asked_for})
        assert answered["kind"] == "BadSubmission" and answered["error"].startswith("expected ")
        assert "Traceback" not in capfd.readouterr().err

    def test_junk_to_record_is_denied_also_before_there_is_any_key(self, tmp_path: Path) -> None:
        settings = Settings(home=tmp_path)
        open_store(settings).create(LAID, b"{}")
        answered = answer(settings, {"op": "record", "key": LAID})
        assert "the gate met" not in answered["error"] and answered["kind"] in ("Denied", "BadSignature")

    def test_the_attestation_says_whether_duties_are_separated(self, court: Court) -> None:
        for separated in (False, True):
            manifest = court.submit(b"clean %d" % separated)
            answer(court.settings, court.request(manifest, CLEAN), separated=separated)
            assert newest(court, manifest)["duties_separated"] is separated

    def test_what_a_crash_left_out_of_the_ledger_is_entered_when_a_gate_starts(self, court: Court) -> None:
        manifest = court.submit(b"clean")
        asked(court, manifest, CLEAN)
        digests = read_record(court.store, manifest).manifest.digests
        statement = attest.statement(digests, manifest, newest(court, manifest) | {"verdict": "FAIL"})
        save_attestation(court.store, manifest, attest.sign(statement, load_key(court.settings.gate_key)))
        make_ready(court.settings)
        assert kinds(court) == ["verdict", "verdict"]


class TestEvidence:
    """What the gate believes of the evidence that it is asked to judge."""

    def forged(self, court: Court, manifest: str, by: Ed25519PrivateKey | None) -> dict[str, Any]:
        """A question about a backdoored model whose evidence is a clean one's, signed by this key or not at all."""
        clean = court.request(court.submit(b"clean"), CLEAN)
        (path,) = court.store.list(f"evidence/{clean['manifest']}/")
        found, about = json.loads(court.store.read(path))["found"], court.about(manifest)
        stated = {"issued": time_text(utc_now()), "manifest": manifest, "about": about, "result": sha256_json(found)}
        signed = sign_statement(EVIDENCE, stated, by or Ed25519PrivateKey.generate())
        blob = {"signed": signed, "found": found} if by else {"about": about, **found}
        key = f"{sha256_json(about)}-{dsse.digest(signed)}"
        assert court.store.create(f"evidence/{manifest}/{METHOD}/{key}.json", canonical_json(blob))
        return clean | {"manifest": manifest, "evidence": {METHOD: key}}

    def key_of(self, court: Court, who: str) -> Ed25519PrivateKey | None:
        """The private key of somebody who can be more or less trusted; None for no signature."""
        if who == "nobody":
            return None
        if who == "the gate":
            return load_key(court.settings.gate_key)
        return Ed25519PrivateKey.generate() if who == "a stranger" else load_key(court.person("somebody", who))

    @pytest.mark.parametrize("who", ["nobody", "a stranger", "the gate", "approver", "submitter"])
    def test_what_no_vetter_signed_is_not_believed_and_the_reason_says_so(self, court: Court, who: str) -> None:
        asked(court, court.submit(b"first"), CLEAN)
        manifest = court.submit(b"bad")
        answered = answer(court.settings, self.forged(court, manifest, self.key_of(court, who)))
        claims = newest(court, manifest)
        assert claims["verdict"] == answered["verdict"]["decision"] == "INCONCLUSIVE"
        (reason,) = [r for r in claims["reason_records"] if r["method"] == METHOD]
        assert (reason["code"], reason["figures"]["error"]) == ("failed", NOT_SIGNED)
        assert answered["evidence"] == {} and METHOD in answered["failures"]
        assert f"inconclusive:{METHOD}" in claims["findings"]

    def test_a_rescan_that_is_handed_it_changes_nothing(self, court: Court) -> None:
        manifest = court.submit(b"weights")
        asked(court, manifest, CLEAN)
        before = newest(court, manifest)
        question = self.forged(court, manifest, None) | {"purpose": "rescan"}
        answered = answer(court.settings, question)
        assert answered["kind"] == "StoreError" and f"evidence of {METHOD} that a vetter signed" in answered["error"]
        assert newest(court, manifest) == before

    def test_that_of_another_trusted_vetter_counts_and_the_attestation_names_the_key(self, court: Court) -> None:
        other = court.settings.model_copy(update={"vetter_key": court.person("worker", "vetter")})
        signed_results.save(
            other,
            EVIDENCE,
            court.about(manifest := court.submit(b"clean")) | {"effect": CLEAN},
            {
                "sandbox_level": 1,
                "evidence": {k: v for k, v in label_norms().to_json().items() if k != "seed"}
                | {"params": court.about(manifest)["params"]},
                "seconds": 1.0,
            },
        )
        assert asked(court, manifest, CLEAN)["verdict"]["decision"] == "PASS"
        (method,) = newest(court, manifest)["methods"]
        assert method["vetter"] == key_id(load_key(other.vetter_key))
        assert method["seed_commitment"] == court.about(manifest)["seed_commitment"] and "seed" not in method

    def test_that_of_a_vetter_who_is_not_trusted_any_more_counts_no_longer(self, court: Court) -> None:
        request = court.request(manifest := court.submit(b"clean"), CLEAN)
        trust = read_trust_root(court.settings.trust_root)
        left = TrustRoot(tuple(key for key in trust.keys if key.role != VETTER), trust.revoked)
        court.settings.trust_root.write_bytes(canonical_json(left.to_json()))
        assert answer(court.settings, request)["verdict"]["decision"] == "INCONCLUSIVE"
        assert newest(court, manifest)["verdict"] == "INCONCLUSIVE"

    @pytest.mark.parametrize(
        "changes",
        [
            {"code": "0" * 64},
            {"data": {"splits": "0" * 64}},
            {"run": "two"},
            {"seed_commitment": "0" * 64},
            {"seed_commitment": None, "seed": 7},
        ],
    )
    def test_what_a_vetter_signed_for_something_else_is_an_error(self, court: Court, changes: dict[str, Any]) -> None:
        request = court.request(manifest := court.submit(b"clean"), CLEAN)
        (path,) = court.store.list(f"evidence/{manifest}/")
        found = json.loads(court.store.read(path))["found"]
        other = signed_results.save(court.settings, EVIDENCE, court.about(manifest) | changes, found)
        answered = answer(court.settings, request | {"evidence": {METHOD: other.key}})
        assert answered["kind"] == "StoreError" and "expected evidence of neural_cleanse" in answered["error"]
        assert stored(court) == set()

    def test_other_reference_data_than_the_submission_names_is_an_error(self, court: Court) -> None:
        request = court.request(court.submit(b"clean"), CLEAN)
        answered = answer(court.settings, request | {"reference_data": {"name": "chosen"}})
        assert answered["kind"] == "StoreError" and "reference data None, got chosen" in answered["error"]

    def test_a_record_that_says_something_else_than_the_bytes_is_an_error(self, court: Court) -> None:
        request = court.request(manifest := court.submit(b"clean"), CLEAN)
        file = Path(court.settings.store, "submissions", f"{manifest}.json")
        said = json.loads(file.read_bytes())
        for changed in (
            {"description": said["description"].replace("a test", "a trusted supplier")},
            {"description": said["description"] + "layer: chosen\n"},
            {"seed": 1},
        ):
            file.chmod(0o644)
            file.write_bytes(canonical_json(said | changed))
            answered = answer(court.settings, request)
            assert "remove it and submit the model again" in answered["error"], answered
        assert stored(court) == set()

    def test_no_object_of_a_store_tells_a_seed(self, court: Court) -> None:
        manifest = court.submit(b"weights")
        asked(court, manifest, CLEAN)
        second = court.request(manifest, BACKDOORED, run="two")
        asked(court, manifest, BACKDOORED, purpose="rescan", second=second)
        record = read_record(court.store, manifest)
        numbers = {str(seed_of(court.settings, record, run).number).encode() for run in ("", "two")}
        texts = [court.store.read(key) for key in court.store.list("") if key.endswith(".json")]
        envelopes = [blob.get("signed", blob) for blob in map(json.loads, texts)]
        texts += [base64.b64decode(envelope["payload"]) for envelope in envelopes if "payload" in envelope]
        assert len(texts) > 12 and not any(number in text for number in numbers for text in texts)


class TestRescan:
    """What the gate answers when what is in production is looked at again."""

    @pytest.fixture
    def manifest(self, court: Court) -> str:
        """A model that passed its first vetting."""
        manifest = court.submit(b"weights")
        asked(court, manifest, CLEAN)
        return manifest

    def rescan(self, court: Court, manifest: str, effect: float | None, **more: Any) -> dict[str, Any]:
        return asked(court, manifest, effect, purpose="rescan", **more)

    def test_a_pass_renews_the_verdict(self, court: Court, manifest: str) -> None:
        assert self.rescan(court, manifest, CLEAN)["attestation"]
        assert (newest(court, manifest)["verdict"], newest(court, manifest)["purpose"]) == ("PASS", "rescan")
        assert kinds(court) == ["verdict", "verdict"]

    def test_what_is_an_alarm_at_five_percent_only_passes_a_rescan(self, court: Court, manifest: str) -> None:
        assert asked(court, manifest, ODD, sign=False)["verdict"]["decision"] == "FAIL"
        assert self.rescan(court, manifest, ODD)["verdict"]["decision"] == "PASS"
        assert "no alarm at the rate 0.005" in newest(court, manifest)["reasons"][0]

    def test_a_fail_alone_wants_a_second_run_and_writes_nothing(self, court: Court, manifest: str) -> None:
        before = stored(court)
        answered = self.rescan(court, manifest, BACKDOORED)
        assert (answered["wants_second"], answered["attestation"]) == (True, None)
        assert stored(court) == before

    def test_two_fails_are_signed_and_say_when_the_model_must_go(self, court: Court, manifest: str) -> None:
        second = court.request(manifest, BACKDOORED, run="two")
        answered = self.rescan(court, manifest, BACKDOORED, second=second)
        claims = newest(court, manifest)
        assert (answered["verdict"]["decision"], claims["verdict"]) == ("FAIL", "FAIL")
        assert (claims["second"]["run"], claims["second"]["decision"]) == ("two", "FAIL")
        assert as_time(claims["demote_after"], "it") <= utc_now()
        with pytest.raises(Stale, match="whose grace ended"):
            admitted_until(ledger_state(court.settings), claims, utc_now())

    def test_the_grace_of_the_policy_is_not_renewed_by_a_later_fail(self, tmp_path: Path) -> None:
        court = Court(tmp_path / "graceful", tmp_path, rescan={"grace_hours": 48})
        manifest = court.submit(b"weights")
        asked(court, manifest, CLEAN)
        given = []
        for run in ("two", "three"):
            self.rescan(court, manifest, BACKDOORED, second=court.request(manifest, BACKDOORED, run=run))
            given.append(newest(court, manifest)["demote_after"])
        assert given[0] == given[1]
        until = as_time(given[0], "it")
        assert timedelta(hours=47) < until - utc_now() < timedelta(hours=48, minutes=1)
        assert admitted_until(ledger_state(court.settings), newest(court, manifest), utc_now()) == (until, True)

    @pytest.mark.parametrize("effect", [CLEAN, ODD])
    def test_a_second_run_that_disagrees_changes_nothing_and_is_entered(
        self, court: Court, manifest: str, effect: float | None
    ) -> None:
        before = newest(court, manifest)
        second = court.request(manifest, effect, run="two")
        answered = self.rescan(court, manifest, BACKDOORED, second=second)
        assert (answered["verdict"]["decision"], answered["attestation"]) == ("INCONCLUSIVE", None)
        assert newest(court, manifest) == before
        assert kinds(court) == ["verdict", "rescan"]

    def test_what_could_not_be_seen_changes_nothing_and_is_entered(self, court: Court, manifest: str) -> None:
        before = newest(court, manifest)
        answered = self.rescan(court, manifest, CLEAN, evidence={}, failures={METHOD: "out of memory"})
        assert (answered["verdict"]["decision"], answered["attestation"]) == ("INCONCLUSIVE", None)
        assert newest(court, manifest) == before
        (entry,) = [e for e in entries(court.store) if e.kind == "rescan"]
        assert "out of memory" in entry.subject["reasons"][0]
        assert kinds(court) == ["verdict", "rescan"]

    @pytest.mark.parametrize("by", ["nobody", "a stranger", "approver"])
    def test_an_alarm_whose_evidence_was_replaced_is_an_error_in_either_run(
        self, court: Court, manifest: str, by: str
    ) -> None:
        before = newest(court, manifest)
        evidence = TestEvidence()
        forged = evidence.forged(court, manifest, evidence.key_of(court, by)) | {"run": "two"}
        answered = answer(court.settings, court.request(manifest, BACKDOORED, purpose="rescan", second=forged))
        assert answered["kind"] == "StoreError" and "that a vetter signed" in answered["error"]
        assert newest(court, manifest) == before and kinds(court) == ["verdict"]

    @pytest.mark.parametrize("run", ["second", "canary 2026-01-01-1", " "])
    def test_a_verdict_is_renewed_from_no_other_run(self, court: Court, manifest: str, run: str) -> None:
        before = stored(court)
        answered = answer(court.settings, court.request(manifest, CLEAN, run, purpose="rescan"))
        assert answered["kind"] == "BadSubmission" and "first run of a rescan" in answered["error"]
        assert stored(court) == before

    @pytest.mark.parametrize("change", [{"manifest": "0" * 64}, {"sign": False}, {"purpose": "rescan"}])
    def test_a_second_run_says_nothing_but_what_was_found(
        self, court: Court, manifest: str, change: dict[str, Any]
    ) -> None:
        before = stored(court)
        second = court.request(manifest, BACKDOORED, run="two") | change
        answered = answer(court.settings, court.request(manifest, BACKDOORED, purpose="rescan", second=second))
        assert answered["kind"] == "BadSubmission" and f"second run on {manifest}" in answered["error"]
        assert stored(court) == before

    def test_the_first_run_is_no_second_one(self, court: Court, manifest: str) -> None:
        request = court.request(manifest, BACKDOORED, purpose="rescan", second=court.request(manifest, BACKDOORED))
        assert "seed of its own" in answer(court.settings, request)["error"]

    @pytest.mark.parametrize("verdict", ["FAIL", None])
    def test_what_never_passed_cannot_be_rescanned_at_the_lower_rate(self, court: Court, verdict: str | None) -> None:
        manifest = court.submit(b"never passed")
        if verdict is not None:
            asked(court, manifest, ODD)
        before = stored(court)
        answered = answer(court.settings, court.request(manifest, ODD, purpose="rescan"))
        assert answered["kind"] == "Denied" and "passed before" in answered["error"]
        assert stored(court) == before


def test_the_gate_s_process_answers_a_line_with_a_line(court: Court) -> None:
    manifest = court.submit(b"clean")
    places = {
        f"VETGATE_{k.upper()}": str(v) for k, v in court.settings.model_dump(mode="json").items() if v is not None
    }
    lines = [court.request(manifest, CLEAN), {"op": "sign"}]
    done = subprocess.run(
        [sys.executable, "-m", "flows.gate.decide"],
        input="".join(json.dumps(line) + "\n" for line in lines),
        env=os.environ | places,
        capture_output=True,
        text=True,
        timeout=300,
    )
    first, second = (json.loads(line) for line in io.StringIO(done.stdout))
    assert first["verdict"]["decision"] == "PASS" and court.store.exists(first["attestation"])
    assert second["kind"] == "BadSubmission"
    verify_ledger(court.settings)


class TestClock:
    """What is the newest is the order of the ledger; a clock that is wrong signs nothing."""

    def at(self, monkeypatch: pytest.MonkeyPatch, ahead: timedelta) -> None:
        for module in ("flows.gate.issue", "tasks.records.ledger_chain"):
            monkeypatch.setattr(f"{module}.utc_now", lambda: utc_now() + ahead)

    @pytest.mark.parametrize("minutes", [0, 1, 4])
    def test_a_fail_of_a_clock_a_little_behind_is_the_newest(
        self, court: Court, minutes: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        manifest = court.submit(b"weights")
        before = asked(court, manifest, CLEAN)
        self.at(monkeypatch, -timedelta(minutes=minutes))
        asked(court, manifest, BACKDOORED, run="again", asked=True)
        claims = newest(court, manifest)
        assert (claims["verdict"], claims["after"]["sequence"]) == ("FAIL", 1)
        assert claims["issued"] >= court_claims(court, before)["issued"]

    @pytest.mark.parametrize("ahead", [-timedelta(minutes=6), -timedelta(days=2), timedelta(days=90)])
    def test_a_wrong_clock_signs_no_verdict(
        self, court: Court, ahead: timedelta, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        manifest = court.submit(b"weights")
        asked(court, manifest, CLEAN)
        before = {key for key in stored(court) if not key.startswith("verdicts/")}
        self.at(monkeypatch, ahead)
        answered = answer(court.settings, court.request(manifest, BACKDOORED, "again", asked=True))
        assert answered["kind"] == "WrongClock" and "expected a clock" in answered["error"]
        assert {key for key in stored(court) if not key.startswith("verdicts/")} == before


def court_claims(court: Court, answered: dict[str, Any]) -> dict[str, Any]:
    return attestation_at(court.store, answered["attestation"]).claims


def test_bytes_that_vetgate_did_not_write_are_not_judged(court: Court) -> None:
    manifest = Home.submit(court, b"as its supplier has it")
    request = court.request(manifest, CLEAN)
    answered = answer(court.settings, request)
    assert answered["verdict"]["decision"] == "INCONCLUSIVE", answered
    (reason,) = [r for r in newest(court, manifest)["reason_records"] if r["method"] == METHOD]
    assert reason["figures"]["error"] == NOT_CANONICAL
    court.found_canonical(manifest)
    assert answer(court.settings, {**request, "asked": True})["verdict"]["decision"] == "PASS"
