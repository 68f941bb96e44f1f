from __future__ import annotations

import shutil
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tasks.records.ledger_chain import append
from tasks.records.ledger_state import LedgerState, ledger_state
from tasks.records.submitters import save_submitter, sign_submission, signers_of, submitters_of
from tasks.records.waivers import approvals_of, approved, save_approval, save_waiver, waivers_of
from tasks.settings import Settings
from tasks.store.open import open_store
from tasks.vetting.intake import take
from vetgate.digest import canonical_json
from vetgate.trust.keys import (
    APPROVER,
    GATE,
    SUBMITTER,
    PublicKey,
    TrustRoot,
    key_id,
    raw_public,
    read_trust_root,
    utc_now,
)
from vetgate.trust.statements import sign_statement
from vetgate.trust.strict_json import time_text
from vetgate.trust.waivers import sign_approval, sign_waiver

NOW = utc_now().replace(microsecond=0)
ALICE, BOB, SAM, GATEKEEPER = (Ed25519PrivateKey.from_private_bytes(bytes([n] * 32)) for n in range(4))
ROLES = {ALICE: APPROVER, BOB: APPROVER, SAM: SUBMITTER, GATEKEEPER: GATE}
YAML = """
name: digits
supplier: a test
task: image-classification
model: model.onnx
format: onnx
input_shape: [1, 8, 8]
classes: 10
"""


def trust(ends: datetime = NOW + timedelta(days=90)) -> TrustRoot:
    return TrustRoot(
        tuple(PublicKey(raw_public(key), role, NOW - timedelta(days=1), ends) for key, role in ROLES.items())
    )


class Desk:
    """An installation into which models are handed."""

    def __init__(self, room: Path) -> None:
        self.settings, self.room = Settings(home=room / "home"), room
        self.store = open_store(self.settings)

    def submit(self, weights: bytes, *, parent: str | None = None, by: Ed25519PrivateKey | None = None) -> str:
        directory = self.room / weights.decode()
        directory.mkdir()
        (directory / "submission.yaml").write_text(YAML + (f"parent: '{parent}'\n" if parent else ""))
        (directory / "model.onnx").write_bytes(weights)
        manifest = take(self.settings, directory).id
        if by is not None:
            save_submitter(self.store, manifest, sign_submission(manifest, "digits", by))
        return manifest

    def state(self, trusted: TrustRoot | None = None) -> LedgerState:
        self.settings.trust_root.parent.mkdir(exist_ok=True)
        self.settings.trust_root.write_bytes(canonical_json((trusted or trust()).to_json()))
        return ledger_state(self.settings)

    def submitters(self, manifest: str) -> set[str]:
        return set(submitters_of(self.state(), manifest))


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


class TestSubmitters:
    """Who submitted, from signatures alone."""

    def test_the_one_who_signed_submitted_also_when_he_may_approve_others(self, desk: Desk) -> None:
        for key in (SAM, ALICE):
            manifest = desk.submit(key_id(key)[:9].encode(), by=key)
            assert signers_of(desk.state(), manifest) == {key_id(key)}
            assert desk.submitters(manifest) == {key_id(key)}

    def test_no_submitter_is_known_of_what_is_unsigned(self, desk: Desk) -> None:
        manifest = desk.submit(b"unsigned")
        assert signers_of(desk.state(), manifest) == set()
        assert desk.submitters(manifest) == set()

    @pytest.mark.parametrize("key", [GATEKEEPER, Ed25519PrivateKey.generate()])
    def test_an_unknown_key_s_or_a_gate_s_signature_names_no_submitter(
        self, desk: Desk, key: Ed25519PrivateKey
    ) -> None:
        assert desk.submitters(desk.submit(b"model", by=key)) == set()

    def test_none_of_those_who_signed_is_lost(self, desk: Desk) -> None:
        manifest = desk.submit(b"model", by=SAM)
        save_submitter(desk.store, manifest, sign_submission(manifest, "digits", ALICE))
        save_submitter(desk.store, manifest, sign_submission(manifest, "digits", Ed25519PrivateKey.generate()))
        assert desk.submitters(manifest) == {key_id(SAM), key_id(ALICE)}

    @pytest.mark.parametrize("name", [".json", "/{zeros}.json", "/{zeros}", "/a/b.json", "/{zeros}.json/{zeros}.json"])
    @pytest.mark.parametrize("laid", ["junk", "{}", "a statement of a stranger's", "one on other bytes"])
    def test_what_a_stranger_laid_first_drops_no_signature(self, name: str, laid: str, desk: Desk) -> None:
        manifest = desk.submit(b"model")
        stranger = Ed25519PrivateKey.generate()
        data = {
            "a statement of a stranger's": canonical_json(sign_submission(manifest, "digits", stranger)),
            "one on other bytes": canonical_json(sign_submission("1" * 64, "digits", ALICE)),
        }.get(laid, laid.encode())
        desk.store.create(f"submitters/{manifest}{name.format(zeros='0' * 64)}", data)
        save_submitter(desk.store, manifest, sign_submission(manifest, "digits", SAM))
        assert desk.submitters(manifest) == {key_id(SAM)}

    def test_a_signature_of_other_bytes_names_no_submitter(self, desk: Desk) -> None:
        signed, other = desk.submit(b"signed", by=SAM), desk.submit(b"other")
        (key,) = desk.store.list(f"submitters/{signed}/")
        desk.store.create(key.replace(signed, other), desk.store.read(key))
        assert signers_of(desk.state(), other) == set()

    def test_a_key_that_ran_out_since_still_names_its_owner(self, desk: Desk) -> None:
        manifest = desk.submit(b"model")
        for hours, named in ((2, {key_id(SAM)}), (0, set())):
            said = {"manifest": manifest, "name": "digits", "issued": time_text(NOW - timedelta(hours=hours))}
            save_submitter(desk.store, manifest, sign_statement("submission", said, SAM))
            ended = trust(ends=NOW - timedelta(hours=1))
            assert signers_of(desk.state(ended), manifest) == named
            shutil.rmtree(Path(desk.settings.store, "submitters", manifest))

    def test_of_a_repaired_model_the_parent_s_submitter_counts_as_well(self, desk: Desk) -> None:
        parent = desk.submit(b"parent", by=SAM)
        child = desk.submit(b"child", parent=parent, by=ALICE)
        assert desk.submitters(child) == {key_id(SAM), key_id(ALICE)}

    def test_of_a_family_that_is_not_signed_throughout_no_submitter_is_known(self, desk: Desk) -> None:
        # a supplier who hands in a model as the repair of another supplier's must not be able to approve it
        parent, unsigned = desk.submit(b"parent", by=SAM), desk.submit(b"unsigned")
        assert desk.submitters(desk.submit(b"hidden", parent=parent)) == set()
        assert desk.submitters(desk.submit(b"orphan", parent=unsigned, by=ALICE)) == set()
        assert desk.submitters(desk.submit(b"lost", parent="0" * 64, by=ALICE)) == set()


class TestApprovals:
    """What lies in the store counts only as far as its signatures do."""

    def approve(self, desk: Desk, of: str, key: Ed25519PrivateKey, filed: str | None = None) -> None:
        save_approval(desk.store, of, filed or key_id(key), sign_approval(key, of=of, now=NOW))

    def approved(self, desk: Desk, of: str, manifest: str) -> set[str]:
        return {a.keyid for a in approved(desk.state(), of, manifest, NOW)}

    def test_distinct_approvers_count(self, desk: Desk) -> None:
        manifest = desk.submit(b"model", by=SAM)
        for key in (ALICE, BOB):
            self.approve(desk, "e" * 64, key)
        assert self.approved(desk, "e" * 64, manifest) == {key_id(ALICE), key_id(BOB)}

    def test_one_key_under_many_names_counts_once(self, desk: Desk) -> None:
        manifest = desk.submit(b"model", by=SAM)
        for filed in ("1" * 64, "2" * 64, "3" * 64):
            self.approve(desk, "e" * 64, ALICE, filed)
        assert self.approved(desk, "e" * 64, manifest) == {key_id(ALICE)}

    def test_the_submitter_other_roles_and_strangers_do_not_count(self, desk: Desk) -> None:
        manifest = desk.submit(b"model", by=ALICE)
        for key in (ALICE, SAM, GATEKEEPER, Ed25519PrivateKey.generate()):
            self.approve(desk, "e" * 64, key)
        assert self.approved(desk, "e" * 64, manifest) == set()

    def test_approvals_of_something_else_and_rubbish_do_not_count(self, desk: Desk) -> None:
        manifest = desk.submit(b"model", by=SAM)
        save_approval(desk.store, "e" * 64, key_id(BOB), sign_approval(BOB, of="f" * 64, now=NOW))
        desk.store.create(f"approvals/{'e' * 64}/rubbish.json", b"{}")
        assert approvals_of(desk.store, trust(), "e" * 64, NOW) == []
        assert self.approved(desk, "e" * 64, manifest) == set()

    def test_a_waiver_filed_under_other_bytes_is_none_of_theirs(self, desk: Desk) -> None:
        state = self.begun(desk)
        asked = {"manifest": "a" * 64, "finding": "x", "reason": "y", "now": NOW, "valid": timedelta(days=1)}
        made = sign_waiver(SAM, ledger=state.id, **asked)
        save_waiver(desk.store, "a" * 64, made)
        save_waiver(desk.store, "b" * 64, made)
        desk.store.create(f"waivers/{'a' * 64}/rubbish.json", b"[]")
        assert [w.finding for w in waivers_of(state, "a" * 64, NOW)] == ["x"]
        assert waivers_of(state, "b" * 64, NOW) == []

    def begun(self, desk: Desk) -> LedgerState:
        """A ledger with an entry, whose gate may be that of another."""
        append(desk.settings, "denial", {"name": "digits", "reason": "a test"})
        public = read_trust_root(desk.settings.trust_root).keys
        return desk.state(TrustRoot((*trust().keys, *public)))

    @pytest.mark.parametrize("ledger", ["another", "empty", "none"])
    def test_a_waiver_of_another_ledger_is_none_of_this(self, desk: Desk, ledger: str, tmp_path: Path) -> None:
        (tmp_path / "other").mkdir()
        state, other = self.begun(desk), Desk(tmp_path / "other")
        named = {"another": lambda: self.begun(other).id, "empty": lambda: "0" * 64, "none": lambda: "7" * 64}[ledger]()
        asked = {"manifest": "a" * 64, "finding": "x", "reason": "y", "now": NOW, "valid": timedelta(days=1)}
        for store in (desk.store, other.store):
            save_waiver(store, "a" * 64, sign_waiver(SAM, ledger=named, **asked))
        assert waivers_of(state, "a" * 64, NOW) == []
        if ledger != "another":
            assert waivers_of(other.state(), "a" * 64, NOW) == []
