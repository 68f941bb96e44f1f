"""Waivers, approvals, revocations and keys as people use them, with the real gate behind."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from flows.cli.gate import app
from flows.cli.status import at_a_glance
from flows.gate.decide import answer
from flows.gate.issue import newest_verified, signing_context
from flows.gate.waive import UnknownFinding, approve, waive
from flows.production.promote import promote
from tasks.records.attestations import newest_attestation
from tasks.records.coverage import covered
from tasks.records.ledger_chain import append, entries, entry_key
from tasks.records.ledger_state import ledger_state
from tasks.records.ledger_verify import verify_ledger
from tasks.records.submitters import read_submitter, save_submitter, sign_submission
from tests.databases import with_registry
from tests.deciding import BACKDOORED, CLEAN, METHOD, TARGET, Court
from vetgate.digest import canonical_json
from vetgate.errors import BadSubmission, Denied, Removed, Stale
from vetgate.trust import attest
from vetgate.trust.keys import key_id, load_key, new_key, raw_public, read_trust_root, trust_key, utc_now
from vetgate.trust.statements import SUBMISSION, sign_statement
from vetgate.trust.strict_json import as_time
from vetgate.trust.waivers import sign_waiver

FINDING = f"backdoor:label-{TARGET}"


class Trial(Court):
    """A model with a backdoor that Sam handed in, and two approvers, Alice and Bob."""

    def __init__(self, home: Path, room: Path, **policy: Any) -> None:
        super().__init__(home, room, **policy)
        self.sam, self.alice, self.bob = self.person("sam", "submitter"), self.person("alice"), self.person("bob")
        self.manifest = self.signed(b"bad", self.sam)
        self.judge(BACKDOORED)

    def judge(self, effect: float | None, **more: Any) -> dict[str, Any]:
        from flows.gate.decide import answer

        answered = answer(self.settings, self.request(self.manifest, effect, **more))
        assert "error" not in answered, answered
        return answered

    def waive(self, finding: str | None = FINDING, days: int = 10, key: Path | None = None) -> dict[str, Any]:
        return waive(self.settings, self.manifest, finding, "a test model", days, key or self.sam)

    def waived(self) -> dict[str, Any]:
        """The waiver that Alice and Bob approved."""
        made = self.waive()
        for key in (self.alice, self.bob):
            approve(self.settings, made["waiver"], key)
        return made

    def newest(self) -> dict[str, Any]:
        found = newest_attestation(ledger_state(self.settings), self.manifest)
        assert found is not None
        return found.claims

    def kinds(self) -> list[str]:
        """What the ledger, which is whole, tells of."""
        verify_ledger(self.settings)
        return [entry.kind for entry in entries(self.store)]


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    return Trial(tmp_path / "home", tmp_path)


@pytest.fixture
def registered(tmp_path: Path) -> Callable[..., Trial]:
    """A trial with a registry, under a policy of its own."""

    def make(**policy: Any) -> Trial:
        return Trial(with_registry(tmp_path / "home"), tmp_path, **policy)

    return make


def test_two_approvers_let_a_finding_pass_until_the_waiver_ends(trial: Trial) -> None:
    made = trial.waive(days=10)
    assert (made["needed"], made["approvals"], made["attestation"]) == (2, [], None)
    assert f"{FINDING} has 0 of 2 approvals" in made["lacking"]
    first = approve(trial.settings, made["waiver"], trial.alice)
    assert (len(first["approvals"]), first["attestation"]) == (1, None)
    assert trial.newest()["verdict"] == "FAIL"
    second = approve(trial.settings, made["waiver"][:12], trial.bob)
    claims = trial.newest()
    assert (second["verdict"], second["until"]) == ("WAIVED", claims["expires"])
    assert (claims["verdict"], claims["findings"], claims["expires"]) == ("WAIVED", [FINDING], made["expires"])
    assert [w["digest"] for w in claims["waivers"]] == [made["waiver"]]
    assert {a["keyid"] for a in claims["approvals"]} == {key_id(load_key(k)) for k in (trial.alice, trial.bob)}
    assert trial.kinds() == ["submitter", "verdict", "waiver", "approval", "approval", "verdict"]


def test_what_is_waived_can_be_promoted_and_is_covered_until_a_waiver_is_revoked(
    registered: Callable[..., Trial],
) -> None:
    trial = registered()
    with pytest.raises(Denied, match="got FAIL"):
        promote(trial.settings, "digits", trial.manifest)
    made = trial.waived()
    granted = promote(trial.settings, "digits")
    assert (granted["verdict"], granted["submission"]) == ("WAIVED", trial.manifest)
    found = covered(trial.settings, "digits", granted["version"], granted["source"])
    assert found.until == as_time(made["expires"], "expires")
    assert run(trial, "revoke", made["waiver"][:12], "--reason", "it was a mistake").code == 0
    with pytest.raises(Stale, match="was revoked"):
        covered(trial.settings, "digits", granted["version"], granted["source"])
    with pytest.raises(Stale, match="was revoked") as caught:
        promote(trial.settings, "digits", trial.manifest)
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("key", ["sam", "gate"])
def test_a_key_of_another_role_cannot_approve(trial: Trial, key: str) -> None:
    made = trial.waive()
    path = trial.sam if key == "sam" else trial.settings.gate_key
    with pytest.raises(Denied, match="role approver"):
        approve(trial.settings, made["waiver"], path)


def test_a_submitter_cannot_approve_his_own_waiver_even_where_he_may_approve_others(trial: Trial) -> None:
    manifest = trial.signed(b"alice's own", trial.alice)
    trial.manifest = manifest
    trial.judge(BACKDOORED)
    made = trial.waive(key=trial.alice)
    approve(trial.settings, made["waiver"], trial.bob)
    with pytest.raises(Denied, match="not the submitter") as caught:
        approve(trial.settings, made["waiver"], trial.alice)
    assert caught.value.exit_code == 1
    # one that she puts there past the command counts as little
    from tasks.records.waivers import save_approval
    from vetgate.trust.waivers import sign_approval

    key = load_key(trial.alice)
    save_approval(trial.store, made["waiver"], key_id(key), sign_approval(key, of=made["waiver"], now=utc_now()))
    trial.judge(BACKDOORED, sandbox_level=2)
    assert trial.newest()["verdict"] == "FAIL"


def test_one_key_counts_once(trial: Trial) -> None:
    made = trial.waive()
    for _ in range(3):
        assert len(approve(trial.settings, made["waiver"], trial.alice)["approvals"]) == 1
    assert trial.newest()["verdict"] == "FAIL"


def test_a_key_that_is_not_trusted_or_no_longer_valid_signs_nothing(trial: Trial, tmp_path: Path) -> None:
    new_key(tmp_path / "stranger")
    with pytest.raises(Denied, match="trust root"):
        trial.waive(key=tmp_path / "stranger")
    carol = new_key(tmp_path / "carol")
    ago = utc_now() - timedelta(days=9)
    trust_key(trial.settings.trust_root, raw_public(carol), "approver", now=ago, valid=timedelta(days=8))
    with pytest.raises(Denied, match="valid until"):
        approve(trial.settings, trial.waive()["waiver"], tmp_path / "carol")


def test_an_unsigned_submission_cannot_be_waived(trial: Trial) -> None:
    trial.manifest = trial.submit(b"unsigned")
    trial.judge(BACKDOORED)
    with pytest.raises(Denied, match="not signed"):
        trial.waive()


def test_what_was_not_understood_is_never_waived(trial: Trial) -> None:
    trial.manifest = trial.signed(b"?", trial.sam)
    trial.judge(CLEAN, evidence={}, failures={METHOD: "bad header"}, refused=True)
    with pytest.raises(Denied, match="never be waived"):
        trial.waive("not-understood")


def test_a_waiver_has_a_reason_and_no_more_days_than_the_policy_gives(trial: Trial) -> None:
    for days in (0, 31):
        with pytest.raises(Denied, match="1 to 30 days"):
            trial.waive(days=days)
    with pytest.raises(BadSubmission, match="a reason"):
        waive(trial.settings, trial.manifest, FINDING, " ", 3, trial.sam)


def test_a_policy_without_waivers_gives_none(tmp_path: Path) -> None:
    trial = Trial(tmp_path / "strict", tmp_path, waivers={"allowed": False})
    with pytest.raises(Denied, match="under this policy"):
        trial.waive()


def test_an_unknown_finding_lists_those_there_are(trial: Trial) -> None:
    for asked in (None, "backdoor:label-8"):
        with pytest.raises(UnknownFinding) as caught:
            trial.waive(asked)
        assert (caught.value.findings, caught.value.exit_code) == ((FINDING,), 4)


def test_a_waiver_of_other_bytes_or_of_another_finding_lets_nothing_pass(trial: Trial) -> None:
    trial.waived()
    bad, trial.manifest = trial.manifest, trial.signed(b"just as bad", trial.sam)
    trial.judge(BACKDOORED)
    assert trial.newest()["verdict"] == "FAIL"
    trial.manifest = bad
    trial.judge(CLEAN, evidence={}, failures={METHOD: "out of memory"}, asked=True)
    assert trial.newest()["verdict"] == "INCONCLUSIVE"


def test_an_expired_waiver_can_neither_be_approved_nor_counted(trial: Trial) -> None:
    key, ago = load_key(trial.alice), utc_now() - timedelta(hours=1)
    trust_key(trial.settings.trust_root, raw_public(key), "approver", now=ago, valid=timedelta(days=9))
    from tasks.records.waivers import save_waiver

    root = json.loads(trial.settings.trust_root.read_bytes())
    for held in root["keys"]:
        held["not_before"] = "2020-01-01T00:00:00Z"
    trial.settings.trust_root.write_bytes(canonical_json(root))
    made = sign_waiver(
        key,
        ledger=ledger_state(trial.settings).id,
        manifest=trial.manifest,
        finding=FINDING,
        reason="late",
        now=ago,
        valid=timedelta(minutes=30),
    )
    save_waiver(trial.store, trial.manifest, made)
    with pytest.raises(Stale, match="expired") as caught:
        approve(trial.settings, attest.digest(made), trial.bob)
    assert caught.value.exit_code == 5


def test_vetting_again_keeps_a_waiver_and_a_clean_verdict_needs_none(trial: Trial) -> None:
    made = trial.waived()
    again = trial.judge(BACKDOORED, asked=True)
    assert again["verdict"]["decision"] == "FAIL"
    assert trial.newest()["verdict"] == "WAIVED"
    assert trial.judge(BACKDOORED, asked=True)["attestation"] == again["attestation"]
    assert trial.judge(CLEAN)["attestation"] == again["attestation"]
    run(trial, "revoke", made["waiver"], "--reason", "enough")
    trial.judge(BACKDOORED, asked=True)
    assert trial.newest()["verdict"] == "FAIL"
    trial.judge(CLEAN, asked=True)
    assert trial.newest()["verdict"] == "PASS"


def test_a_rescan_of_what_is_waived_renews_the_waived_verdict_and_asks_for_no_second_run(trial: Trial) -> None:
    trial.waived()
    before = trial.newest()
    answered = trial.judge(BACKDOORED, purpose="rescan")
    assert answered["attestation"] and "wants_second" not in answered
    assert (trial.newest()["verdict"], trial.newest()["purpose"]) == ("WAIVED", "rescan")
    assert trial.newest()["expires"] == before["expires"]


def test_promotion_waits_for_as_many_approvals_as_the_policy_demands(registered: Callable[..., Trial]) -> None:
    trial = registered(promotion={"approvals": 2})
    trial.manifest = trial.signed(b"good", trial.sam)
    attestation = trial.judge(CLEAN)["attestation"]
    digest = attestation.rpartition("-")[2].removesuffix(".json")
    with pytest.raises(Denied, match=f"expected 2 approvals of attestation {digest}, got 0"):
        promote(trial.settings, "digits", trial.manifest)
    approve(trial.settings, digest[:12], trial.alice)
    approve(trial.settings, digest[:12], trial.alice)
    with pytest.raises(Denied, match="got 1"):
        promote(trial.settings, "digits", trial.manifest)
    approved_by_bob = approve(trial.settings, digest[:12], trial.bob)
    assert (approved_by_bob["needed"], approved_by_bob["verdict"], len(approved_by_bob["approvals"])) == (2, "PASS", 2)
    granted = promote(trial.settings, "digits", trial.manifest)
    assert len(granted["approvals"]) == 2
    (entry,) = [entry for entry in entries(trial.store) if entry.kind == "promotion"]
    assert entry.subject["approvals"] == granted["approvals"]
    # an approval that is taken back counts no more
    (approval, _) = trial.store.list(f"approvals/{digest}/")
    revoked = attest.digest(json.loads(trial.store.read(approval)))
    run(trial, "revoke", revoked, "--reason", "on second thought")
    with pytest.raises(Denied, match="got 1"):
        promote(trial.settings, "digits", trial.manifest)


def test_an_unsigned_submission_cannot_gather_approvals(registered: Callable[..., Trial]) -> None:
    trial = registered(promotion={"approvals": 1})
    trial.manifest = trial.submit(b"unsigned")
    digest = trial.judge(CLEAN)["attestation"].rpartition("-")[2].removesuffix(".json")
    with pytest.raises(Denied, match="signed submission"):
        approve(trial.settings, digest, trial.alice)
    with pytest.raises(Denied, match="not signed"):
        promote(trial.settings, "digits", trial.manifest)


class Ended:
    """How a command ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def blob(self) -> dict[str, Any]:
        return dict(json.loads(self.out))


def run(trial: Court, *arguments: str | Path, as_json: bool = True) -> Ended:
    """A command of the gate in this process, its one object or its lines captured."""
    given = [*map(str, arguments), *(["--json"] if as_json else [])]
    out, err = trial.room / "stdout", trial.room / "stderr"
    places = {
        f"VETGATE_{k.upper()}": str(v) for k, v in trial.settings.model_dump(mode="json").items() if v is not None
    }
    before = dict(os.environ)
    saved_fds = [os.dup(fd) for fd in (1, 2)]
    with out.open("w") as stdout, err.open("w") as stderr:
        os.dup2(stdout.fileno(), 1)
        os.dup2(stderr.fileno(), 2)
        os.environ.update(places)
        try:
            code = app(given, standalone_mode=False)
        finally:
            os.environ.clear()
            os.environ.update(before)
            for fd, saved in zip((1, 2), saved_fds, strict=True):
                os.dup2(saved, fd)
                os.close(saved)
    return Ended(int(code), out.read_text(), err.read_text())


class TestCommands:
    """The command line: one object on stdout and the documented exit codes."""

    def test_from_keys_to_a_waived_verdict(self, tmp_path: Path) -> None:
        court = Court(tmp_path / "home", tmp_path)
        for name, role in (("sam", "submitter"), ("alice", "approver"), ("bob", "approver")):
            made = run(court, "keys", "new", tmp_path / name, "--role", role, "--days", "30")
            assert (made.code, made.blob["role"], made.blob["valid"]) == (0, role, True)
        assert [k["role"] for k in run(court, "keys", "list").blob["keys"]] == [
            "gate",
            "submitter",
            "approver",
            "approver",
        ]
        manifest = court.submit(b"bad")
        save_submitter(court.store, manifest, sign_submission(manifest, "digits", load_key(tmp_path / "sam")))
        from flows.gate.decide import answer

        answer(court.settings, court.request(manifest, BACKDOORED))
        asking = ("waive", manifest[:12], "--reason", "known", "--days", "7", "--key", tmp_path / "sam")
        listed = run(court, *asking)
        assert (listed.code, listed.blob["findings"]) == (4, [FINDING])
        waiver = run(court, *asking, "--finding", FINDING).blob["waiver"]
        assert run(court, "approve", waiver[:16], "--key", tmp_path / "alice").code == 0
        last = run(court, "approve", waiver, "--key", tmp_path / "bob")
        assert (last.code, last.blob["verdict"]) == (0, "WAIVED")
        proved = run(court, "ledger", "verify")
        assert (proved.code, proved.blob["entries"]) == (0, 6)
        assert [e["kind"] for e in run(court, "ledger", "list", "--kind", "approval").blob["entries"]] == [
            "approval",
            "approval",
        ]

    def test_refusals_have_the_documented_exit_codes(self, trial: Trial, tmp_path: Path) -> None:
        waiver = trial.waive()["waiver"]
        assert run(trial, "approve", waiver, "--key", trial.sam).code == 1
        assert run(trial, "approve", "0" * 64, "--key", trial.alice).code == 4
        trial.alice.chmod(0o644)
        shown = run(trial, "approve", waiver, "--key", trial.alice)
        assert shown.code == 1 and "owner only" in shown.blob["error"]
        assert run(trial, "revoke", waiver, "--reason", "no").code == 0
        assert run(trial, "approve", waiver, "--key", trial.bob).code == 5
        assert run(trial, "revoke", "0" * 64, "--reason", "no").code == 4
        assert run(trial, "revoke", trial.manifest, "--reason", " ").code == 4
        assert run(trial, "keys", "new", tmp_path / "x", "--role", "admin", "--days", "3").code == 4
        assert not (tmp_path / "x").exists()
        assert run(trial, "keys", "trust", tmp_path / "x", "--role", "approver", "--days", "3").code == 4

    def test_a_verdict_can_be_revoked_by_its_submission_and_says_by_whom(self, trial: Trial) -> None:
        unsigned = run(trial, "revoke", trial.manifest[:12], "--reason", "leaked")
        assert (unsigned.code, unsigned.blob["kind"], unsigned.blob["by"]) == (0, "verdict", None)
        (entry,) = [entry for entry in entries(trial.store) if entry.kind == "revocation"]
        assert (entry.subject["digest"], entry.subject["by"]) == (unsigned.blob["revoked"], None)
        with pytest.raises(Stale, match="revoked"):
            newest_verified(signing_context(trial.settings, trial.manifest))
        trial.manifest = trial.signed(b"another", trial.sam)
        trial.judge(BACKDOORED)
        signed = run(trial, "revoke", trial.manifest, "--reason", "leaked", "--key", trial.alice)
        assert signed.blob["by"] == key_id(load_key(trial.alice))
        last = [entry for entry in entries(trial.store) if entry.kind == "revocation"][-1]
        assert last.subject["by"] == signed.blob["by"]
        assert run(trial, "revoke", trial.manifest, "--reason", "x", "--key", trial.sam).code == 1
        assert run(trial, "ledger", "verify").code == 0

    def test_a_ledger_that_something_is_missing_of_ends_with_five(self, trial: Trial) -> None:
        append(trial.settings, "rescan", {})
        Path(trial.settings.store, entry_key(1)).unlink()
        proved = run(trial, "ledger", "verify")
        assert proved.code == 5 and "entries are missing" in proved.blob["error"]

    def test_people_read_lines(self, trial: Trial) -> None:
        asked = ("waive", trial.manifest, "--reason", "x", "--days", "3", "--key", trial.sam)
        assert FINDING in run(trial, *asked, as_json=False).out
        assert "verdict" in run(trial, "ledger", "list", as_json=False).out
        assert "approver" in run(trial, "keys", "list", as_json=False).out

    def test_a_public_key_from_elsewhere_is_trusted_in_its_role(self, trial: Trial, tmp_path: Path) -> None:
        key = new_key(tmp_path / "elsewhere" / "dora")
        public = tmp_path / "elsewhere" / "dora.pub"
        assert run(trial, "keys", "trust", public, "--role", "approver", "--days", "5").code == 0
        assert key_id(key) in run(trial, "keys", "list").out
        assert run(trial, "keys", "trust", public, "--role", "gate", "--days", "5").code == 1


@pytest.mark.parametrize("folders", [("waivers", "approvals"), ("waivers",), ("approvals", "waivers", "submitters")])
def test_what_people_consented_to_in_another_store_of_the_same_gate_counts_there_only(
    trial: Trial, tmp_path: Path, folders: tuple[str, ...]
) -> None:
    keys = {name: getattr(trial.settings, name) for name in ("gate_key", "trust_root", "seed_secret", "vetter_key")}
    staging = Court(tmp_path / "staging", tmp_path)
    staging.settings = staging.settings.model_copy(update=keys)
    assert staging.signed(b"bad", trial.sam) == trial.manifest
    answer(staging.settings, staging.request(trial.manifest, BACKDOORED))
    made = waive(staging.settings, trial.manifest, FINDING, "staging only", 7, trial.alice)
    for key in (trial.alice, trial.bob):
        consented = approve(staging.settings, made["waiver"], key)
    assert consented["verdict"] == "WAIVED"
    for folder in folders:
        shutil.copytree(Path(staging.settings.store, folder), Path(trial.settings.store, folder), dirs_exist_ok=True)
    trial.judge(BACKDOORED, asked=True)
    assert trial.newest()["verdict"] == "FAIL" and "waiver" not in trial.kinds()
    with pytest.raises(Denied, match="signed for this ledger"):
        approve(trial.settings, made["waiver"], trial.bob)
    assert at_a_glance(trial.settings)["waivers"] == []


@pytest.mark.parametrize("when", ["after the verdict", "after the waiver", "all of them"])
def test_who_submitted_is_not_forgotten_when_his_signature_is_removed(trial: Trial, when: str) -> None:
    trial.manifest = trial.signed(b"two signed it", trial.sam)
    trial.sign(trial.manifest, load_key(trial.alice))
    trial.judge(BACKDOORED)
    made = trial.waive() if when == "after the waiver" else None
    for key in list(trial.store.list(f"submitters/{trial.manifest}/")):
        keyid = read_submitter(read_trust_root(trial.settings.trust_root), trial.manifest, trial.store.read(key))
        if when == "all of them" or keyid == key_id(load_key(trial.alice)):
            Path(trial.settings.store, key).unlink()
    made = made or trial.waive()
    with pytest.raises(Denied, match="not the submitter"):
        approve(trial.settings, made["waiver"], trial.alice)
    assert [entry.kind for entry in entries(trial.store)].count("submitter") == 3
    with pytest.raises(Removed, match="submitters/"):
        verify_ledger(trial.settings)


def test_a_submitter_is_entered_once_however_often_he_signs(trial: Trial) -> None:
    for number in range(3):
        said = {"manifest": trial.manifest, "name": "digits", "issued": f"2026-01-0{number + 1}T00:00:00Z"}
        save_submitter(trial.store, trial.manifest, sign_statement(SUBMISSION, said, load_key(trial.sam)))
    trial.judge(BACKDOORED)
    assert trial.kinds() == ["submitter", "verdict"]
