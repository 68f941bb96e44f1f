from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tasks.records.attestations import save_attestation
from tasks.records.coverage import Coverage, covered
from tasks.records.ledger_chain import append
from tasks.records.ledger_entries import catch_up, note
from tasks.records.ledger_state import ledger_state
from tasks.records.promotions import promotion_key, save_promotion
from tasks.records.revocations import save_revocation
from tasks.records.waivers import save_waiver
from tasks.settings import Settings
from tasks.store.open import open_store
from tests.alarms import told
from vetgate.digest import canonical_json
from vetgate.errors import Denied, NotPassed, Removed, Stale
from vetgate.trust import attest
from vetgate.trust.keys import load_or_create_key, raw_public, read_trust_root, trust_key, utc_now
from vetgate.trust.waivers import read_approval, read_waiver, sign_approval, sign_waiver

# later than any moment at which these tests run: what is asked is never before what was entered
NOW = utc_now().replace(microsecond=0) + timedelta(hours=1)
MANIFEST, FILES, SOURCE = "a" * 64, {"model.onnx": "b" * 64}, "s3://vetted/it"


class Production:
    """Version 1 of prod.digits, promoted by a real gate key, under whatever verdicts a test needs."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.store = settings, open_store(settings)
        self.key = load_or_create_key(settings.gate_key, settings.trust_root, now=NOW - timedelta(days=90))
        self.trust = read_trust_root(settings.trust_root)

    def decide(
        self, verdict: str = "PASS", key: Ed25519PrivateKey | None = None, entered: bool = True, **said: Any
    ) -> str:
        """A signed verdict in the store, and in the ledger; its digest."""
        stated: dict[str, Any] = {
            "name": "digits",
            "issued": NOW - timedelta(days=1),
            "valid": timedelta(days=30),
            "policy": {"name": "default", "sha256": "d" * 64},
            "methods": [],
            "reference_data": None,
            "calibration": None,
            "sandbox_level": 1,
        }
        predicate = attest.verdict_predicate(verdict=verdict, **(stated | said))
        predicate["after"] = ledger_state(self.settings).last
        envelope = attest.sign(attest.statement(FILES, MANIFEST, predicate), key or self.key)
        stored = save_attestation(self.store, MANIFEST, envelope)
        if entered:
            note(self.settings, stored)
        return attest.digest(envelope)

    def promote(self, **changes: Any) -> None:
        said = {"name": "digits", "version": "1", "manifest": MANIFEST, "files": FILES, "source": SOURCE}
        fields = said | {"run_id": "r", "attestation": "c" * 64, "now": NOW} | changes
        sha256 = save_promotion(self.store, self.trust, self.key, **fields)
        key = promotion_key(fields["name"], fields["version"])
        entered = {name: fields[name] for name in ("name", "version", "manifest", "source", "run_id", "attestation")}
        append(self.settings, "promotion", {**entered, "key": key, "sha256": sha256}, once=key)

    def covered(self, name: str = "digits", version: str = "1", source: str = SOURCE, **asked: Any) -> Coverage:
        return covered(self.settings, name, version, source, **({"now": NOW} | asked))


@pytest.fixture
def production(tmp_path: Path) -> Production:
    return Production(Settings(home=tmp_path / "home"))


def test_a_promoted_version_with_a_pass_in_force_is_covered_until_that_expires(production: Production) -> None:
    digest = production.decide()
    production.promote()
    found = production.covered()
    assert (found.manifest, found.files, found.grace) == (MANIFEST, FILES, False)
    assert found.until == NOW + timedelta(days=29)
    assert attest.digest(found.attestation.envelope) == digest
    assert found.promotion.source == SOURCE


def test_what_the_gate_never_promoted_is_not_covered_whatever_its_verdict(production: Production) -> None:
    production.decide()
    with pytest.raises(Denied, match="never promoted"):
        production.covered()
    production.promote(version="2")
    with pytest.raises(Denied, match="never promoted"):
        production.covered()


def test_another_place_than_the_promoted_one_is_not_covered(production: Production) -> None:
    production.decide()
    production.promote()
    with pytest.raises(Denied, match="at s3://vetted/it, got s3://evil"):
        production.covered(source="s3://evil")


def test_a_promotion_or_verdict_of_another_name_does_not_cover(production: Production) -> None:
    production.decide()
    production.promote()
    production.store.create("promotions/other/1.json", production.store.read("promotions/digits/1.json"))
    with pytest.raises(Denied, match="one it never promoted"):
        production.covered(name="other")
    production.promote(name="third")
    with pytest.raises(Denied, match="for third, got one for digits"):
        production.covered(name="third")


def test_a_promotion_that_another_key_signed_does_not_cover(production: Production, tmp_path: Path) -> None:
    production.decide()
    forger = Production(Settings(home=tmp_path / "forger"))
    forger.promote()
    production.store.create("promotions/digits/1.json", forger.store.read("promotions/digits/1.json"))
    assert catch_up(production.settings) == []
    with pytest.raises(Denied, match="one it never promoted"):
        production.covered()


def test_without_a_verdict_or_with_an_altered_one_nothing_is_covered(production: Production) -> None:
    production.promote()
    with pytest.raises(Denied, match="expected a verdict"):
        production.covered()
    production.decide(key=Ed25519PrivateKey.generate(), entered=False)
    with pytest.raises(Denied, match="expected a verdict"):
        production.covered()


@pytest.mark.parametrize("verdict", ["FAIL", "INCONCLUSIVE", "pass"])
def test_the_newest_verdict_counts(production: Production, verdict: str) -> None:
    production.decide(issued=NOW - timedelta(days=2))
    production.promote()
    production.decide(verdict, reasons=["because"])
    with pytest.raises(Denied, match=f"got {verdict}: because") as caught:
        production.covered()
    assert caught.value.exit_code == 1


def test_an_expired_or_revoked_verdict_is_stale(production: Production) -> None:
    digest = production.decide()
    production.promote()
    with pytest.raises(Stale, match="expired"):
        production.covered(now=NOW + timedelta(days=29))
    save_revocation(production.store, digest, "a test", None, NOW)
    with pytest.raises(Stale, match="revoked") as caught:
        production.covered()
    assert caught.value.exit_code == 5


@pytest.mark.parametrize(("hours", "grace"), [(1, True), (0, False), (-1, False)])
def test_a_fail_of_a_rescan_covers_for_as_long_as_its_grace_lasts(
    production: Production, hours: int, grace: bool
) -> None:
    production.promote()
    production.decide("FAIL", purpose="rescan", demote_after=NOW + timedelta(hours=hours))
    if grace:
        found = production.covered()
        assert (found.grace, found.until) == (True, NOW + timedelta(hours=hours))
    else:
        with pytest.raises(Stale, match="whose grace ended"):
            production.covered()


def test_a_fail_of_a_first_vetting_has_no_grace(production: Production) -> None:
    production.promote()
    production.decide("FAIL", demote_after=NOW + timedelta(hours=1))
    with pytest.raises(Denied, match="got FAIL"):
        production.covered()


class TestWaived:
    """A WAIVED verdict, whose waivers and approvals must all hold still."""

    def waived(self, production: Production, days: int = 10) -> list[str]:
        """Sign one; the digests of its waiver and its approval."""
        person = Ed25519PrivateKey.generate()
        root = production.settings.trust_root
        trust_key(root, raw_public(person), "approver", now=NOW - timedelta(days=3), valid=timedelta(days=90))
        production.trust = read_trust_root(root)
        asked: dict[str, Any] = {"manifest": MANIFEST, "finding": "backdoor:label-7", "reason": "a test"}
        asked["ledger"] = "f" * 64
        made = sign_waiver(person, now=NOW - timedelta(days=1), valid=timedelta(days=days), **asked)
        waiver = read_waiver(made, production.trust, NOW)
        approval = read_approval(sign_approval(person, of=waiver.digest, now=NOW), production.trust, NOW)
        save_waiver(production.store, MANIFEST, made)
        production.decide("WAIVED", waivers=[waiver.to_json()], approvals=[approval.to_json()])
        production.promote()
        return [waiver.digest, approval.digest]

    def test_it_covers_until_the_waiver_ends(self, production: Production) -> None:
        self.waived(production)
        found = production.covered()
        assert (found.claims["verdict"], found.until) == ("WAIVED", NOW + timedelta(days=9))
        with pytest.raises(Stale, match="expired"):
            production.covered(now=NOW + timedelta(days=9))

    @pytest.mark.parametrize("which", [0, 1])
    def test_it_is_stale_when_the_waiver_or_the_approval_is_revoked(self, production: Production, which: int) -> None:
        revoked = self.waived(production)[which]
        save_revocation(production.store, revoked, "a test", None, NOW)
        with pytest.raises(Stale, match=f"{revoked}, which was revoked"):
            production.covered()

    def test_it_is_stale_when_the_trust_root_revokes_the_waiver(self, production: Production) -> None:
        revoked, _ = self.waived(production)
        root = production.trust.to_json() | {"revoked": [revoked]}
        production.settings.trust_root.write_bytes(canonical_json(root))
        with pytest.raises(Stale, match="was revoked"):
            production.covered()

    def test_one_without_waivers_covers_nothing(self, production: Production) -> None:
        production.decide("WAIVED")
        production.promote()
        with pytest.raises(Denied, match="with waivers and approvals"):
            production.covered()


def test_the_moment_is_the_clock_s_where_none_is_given(production: Production) -> None:
    production.decide(issued=NOW - timedelta(days=31))
    production.promote(now=utc_now())
    with pytest.raises(Stale, match="expired"):
        production.covered(now=None)


class TestTheLedgerDecides:
    """What it tells of must be there as it was entered; what it does not tell of lets nothing through."""

    def gone(self, production: Production, prefix: str, *left: str) -> None:
        for key in production.store.list(prefix):
            if key not in left:
                Path(production.settings.store, key).unlink()

    def refused(self, production: Production, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
        serving = production.settings.model_copy(update={"home": production.settings.home.parent / "serving"})
        with told(monkeypatch) as alarms:
            for settings in (production.settings, serving):
                with pytest.raises(Removed, match=reason) as caught:
                    covered(settings, "digits", "1", SOURCE, now=NOW)
                assert caught.value.exit_code == 5
        assert {alarm["event"] for alarm in alarms} == {"vetgate.ledger.broken"}

    @pytest.mark.parametrize("verdict", ["FAIL", "INCONCLUSIVE", "PASS"])
    def test_a_newest_verdict_that_was_deleted_brings_no_earlier_one_back(
        self, production: Production, verdict: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        production.decide()
        production.promote()
        (kept,) = production.store.list("attestations/")
        production.decide(verdict, issued=NOW)
        self.gone(production, "attestations/", kept)
        self.refused(production, "which entry 3 tells of, got none", monkeypatch)

    @pytest.mark.parametrize("change", [b"", b"{}", b" "])
    def test_one_that_was_changed_counts_as_gone(
        self, production: Production, change: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        production.decide()
        production.promote()
        (key,) = production.store.list("attestations/")
        path = Path(production.settings.store, key)
        path.chmod(0o644)
        path.write_bytes(path.read_bytes() + change if change == b" " else change)
        self.refused(production, "as entry 1 tells of it, got other bytes", monkeypatch)

    @pytest.mark.parametrize("signed", [True, False])
    def test_a_revocation_that_was_deleted_is_in_force(
        self, production: Production, signed: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        digest = production.decide()
        production.promote()
        key = save_revocation(production.store, digest, "a test", production.key if signed else None, NOW)
        note(production.settings, key)
        self.gone(production, "revocations/")
        self.refused(production, "by which entry 3 revokes it, got none", monkeypatch)

    def test_a_waiver_whose_revocation_was_deleted_lets_nothing_pass(
        self, production: Production, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        revoked, _ = TestWaived().waived(production)
        note(production.settings, save_revocation(production.store, revoked, "a test", None, NOW))
        self.gone(production, "revocations/")
        self.refused(production, "by which entry 3 revokes it", monkeypatch)

    @pytest.mark.parametrize("verdict", ["FAIL", "INCONCLUSIVE"])
    def test_a_refusal_that_is_not_entered_yet_is_in_force(self, production: Production, verdict: str) -> None:
        production.decide()
        production.promote()
        production.decide(verdict, issued=NOW - timedelta(days=9), reasons=["because"], entered=False)
        with pytest.raises(NotPassed, match=f"got {verdict}: because"):
            production.covered()

    def test_a_pass_that_is_not_entered_yet_is_not_there(self, production: Production) -> None:
        production.promote()
        production.decide(entered=False)
        with pytest.raises(Denied, match="expected a verdict"):
            production.covered()
        production.decide("FAIL", reasons=["because"])
        production.decide(issued=NOW, entered=False)
        with pytest.raises(NotPassed, match="because"):
            production.covered()

    @pytest.mark.parametrize("days", [0, 1, 400])
    def test_a_fail_counts_however_early_its_clock_says_it_was(self, production: Production, days: int) -> None:
        production.decide(issued=NOW - timedelta(days=1))
        production.promote()
        production.decide("FAIL", issued=NOW - timedelta(days=days), valid=timedelta(days=900), reasons=["because"])
        expected = "because" if days < 90 else "expected a key that is valid"
        with pytest.raises(Denied, match=expected):
            production.covered()

    def test_a_pass_of_before_a_fail_is_never_entered_after_it(self, production: Production) -> None:
        production.decide(issued=NOW - timedelta(days=2))
        production.promote()
        (first,) = production.store.list("attestations/")
        production.decide(issued=NOW, entered=False)
        (hidden,) = {*production.store.list("attestations/")} - {first}
        path = Path(production.settings.store, hidden)
        data = path.read_bytes()
        path.unlink()
        production.decide("FAIL", reasons=["because"])
        path.write_bytes(data)
        assert catch_up(production.settings) == []
        with pytest.raises(Denied, match="issued after entry 3"):
            note(production.settings, hidden)
        with pytest.raises(NotPassed, match="because"):
            production.covered()

    def test_a_fail_that_is_removed_before_its_entry_is_entered_as_it_was_signed(
        self, production: Production, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        production.decide()
        production.promote()
        (kept,) = production.store.list("attestations/")
        production.decide("FAIL", entered=False)
        (key,) = {*production.store.list("attestations/")} - {kept}
        data = production.store.read(key)
        self.gone(production, "attestations/", kept)
        note(production.settings, key, data)
        self.refused(production, "which entry 3 tells of, got none", monkeypatch)

    @pytest.mark.parametrize("left", [None, b"{}", "another"])
    def test_a_promotion_that_is_not_as_it_was_entered(
        self, production: Production, left: bytes | str | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        production.decide()
        production.promote()
        path = Path(production.settings.store, promotion_key("digits", "1"))
        path.unlink()
        if left == "another":
            # the gate's own, signed at another moment
            fields = {"name": "digits", "version": "1", "manifest": MANIFEST, "files": FILES, "source": SOURCE}
            said = {"run_id": "r", "attestation": "c" * 64, "now": NOW - timedelta(hours=1)}
            save_promotion(production.store, production.trust, production.key, **fields, **said)
        elif isinstance(left, bytes):
            path.write_bytes(left)
        self.refused(production, "entry 2 tells of", monkeypatch)


class TestAnotherLedger:
    """A gate may keep several stores: what it signed for one says nothing in another."""

    @pytest.fixture
    def other(self, production: Production, tmp_path: Path) -> Production:
        return Production(production.settings.model_copy(update={"store": str(tmp_path / "other")}))

    def copied(self, production: Production, other: Production) -> None:
        """Who writes attestations/ here lays those of the other store beside ours."""
        for key in other.store.list("attestations/"):
            production.store.create(key, other.store.read(key))

    @pytest.mark.parametrize("longer", [0, 1, 5])
    def test_a_pass_of_it_takes_no_fail_away(self, production: Production, other: Production, longer: int) -> None:
        production.decide()
        production.promote()
        production.decide("FAIL", reasons=["because"])
        for turn in range(longer):
            append(other.settings, "rescan", {"turn": turn})
        other.decide()
        self.copied(production, other)
        assert catch_up(production.settings) == []
        with pytest.raises(NotPassed, match="because"):
            production.covered()

    @pytest.mark.parametrize("longer", [1, 5])
    def test_a_fail_of_it_takes_no_pass_away(self, production: Production, other: Production, longer: int) -> None:
        production.decide()
        production.promote()
        for turn in range(longer):
            append(other.settings, "rescan", {"turn": turn})
        other.decide("FAIL")
        self.copied(production, other)
        assert catch_up(production.settings) == [] and production.covered().claims["verdict"] == "PASS"

    def test_a_pass_of_before_any_entry_counts_in_no_ledger_that_has_begun(
        self, production: Production, other: Production
    ) -> None:
        other.decide(entered=False)
        append(production.settings, "rescan", {"turn": 0})
        self.copied(production, other)
        assert catch_up(production.settings) == []
        production.promote()
        with pytest.raises(Denied, match="expected a verdict"):
            production.covered()

    @pytest.mark.parametrize("verdict", ["PASS", "FAIL"])
    def test_one_of_other_bytes_is_entered_under_none(self, production: Production, verdict: str) -> None:
        production.decide(verdict)
        (key,) = production.store.list("attestations/")
        production.store.create(key.replace(MANIFEST, "e" * 64), production.store.read(key))
        assert catch_up(production.settings) == []
        assert ledger_state(production.settings).verdict("e" * 64) is None
