from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from vetgate.errors import Denied, Stale
from vetgate.trust.keys import APPROVER, GATE, SUBMITTER, PublicKey, TrustRoot, key_id, raw_public
from vetgate.trust.statements import APPROVAL, WAIVER, sign_statement
from vetgate.trust.strict_json import time_text
from vetgate.trust.waivers import (
    Waived,
    read_approval,
    read_waiver,
    sign_approval,
    sign_waiver,
    waived,
    waived_until,
    why_never,
    why_not,
)
from vetgate.verdict.policy import WaiverPolicy
from vetgate.verdict.reasons import Code

NOW = datetime(2026, 11, 23, 9, 30, tzinfo=UTC)
LEDGER, MANIFEST, FINDING = "1" * 64, "a" * 64, "backdoor:label-7"
ALICE, BOB, CAROL, SAM, GATEKEEPER = (Ed25519PrivateKey.from_private_bytes(bytes([n] * 32)) for n in range(5))
ROLES = {ALICE: APPROVER, BOB: APPROVER, CAROL: APPROVER, SAM: SUBMITTER, GATEKEEPER: GATE}
POLICY = WaiverPolicy(approvals=2, max_days=30)


def trust(**windows: timedelta) -> TrustRoot:
    """The key of every role, each valid from a day ago for ninety days."""
    return TrustRoot(
        tuple(
            PublicKey(raw_public(key), role, NOW - timedelta(days=1), NOW + windows.get(role, timedelta(days=90)))
            for key, role in ROLES.items()
        )
    )


class Case:
    """A waiver that Sam, who submitted, asks for, and the approvals of it."""

    def __init__(self, finding: str = FINDING, days: int = 10, manifest: str = MANIFEST) -> None:
        valid = timedelta(days=days)
        envelope = sign_waiver(
            SAM, ledger=LEDGER, manifest=manifest, finding=finding, reason="a test", now=NOW, valid=valid
        )
        self.waiver = read_waiver(envelope, trust(), NOW)

    def ruled(self, *approvers: Ed25519PrivateKey, findings: tuple[str, ...] = (FINDING,), **changes: Any) -> Waived:
        given = [read_approval(sign_approval(k, of=self.waiver.digest, now=NOW), trust(), NOW) for k in approvers]
        asked: dict[str, Any] = {
            "manifest": MANIFEST,
            "policy": POLICY,
            "submitters": {key_id(SAM)},
            "now": NOW + timedelta(days=1),
            "revoked": lambda digest: False,
        }
        return waived(findings, [self.waiver], given, **(asked | changes))


def test_two_approvers_cover_a_finding_until_the_waiver_runs_out() -> None:
    found = Case(days=10).ruled(ALICE, BOB)
    assert [waiver.finding for waiver in found.waivers] == [FINDING]
    assert {approval.keyid for approval in found.approvals} == {key_id(ALICE), key_id(BOB)}
    assert found.expires == NOW + timedelta(days=10)


def test_one_key_counts_once() -> None:
    with pytest.raises(Denied, match="has 1 of 2 approvals"):
        Case().ruled(ALICE, ALICE)
    envelopes = [sign_approval(ALICE, of="b" * 64, now=NOW + timedelta(seconds=n)) for n in range(3)]
    assert len({read_approval(e, trust(), NOW + timedelta(minutes=1)).digest for e in envelopes}) == 3


def test_the_submitter_s_own_approval_does_not_count() -> None:
    with pytest.raises(Denied, match="has 1 of 2 approvals"):
        Case().ruled(ALICE, BOB, submitters={key_id(BOB)})
    with pytest.raises(Denied, match="has 1 of 2 approvals"):
        Case().ruled(ALICE, BOB, submitters={key_id(SAM), key_id(ALICE)})


def test_where_the_submitter_is_unknown_nothing_counts() -> None:
    with pytest.raises(Denied, match="not signed"):
        Case().ruled(ALICE, BOB, CAROL, submitters=set())


@pytest.mark.parametrize("key", [SAM, GATEKEEPER])
def test_keys_of_another_role_do_not_count(key: Ed25519PrivateKey) -> None:
    with pytest.raises(Denied, match="role approver"):
        read_approval(sign_approval(key, of="b" * 64, now=NOW), trust(), NOW)


def test_the_gate_asks_for_no_waiver_itself() -> None:
    envelope = sign_waiver(
        GATEKEEPER, ledger=LEDGER, manifest=MANIFEST, finding="x", reason="y", now=NOW, valid=timedelta(1)
    )
    with pytest.raises(Denied, match="role approver or submitter"):
        read_waiver(envelope, trust(), NOW)


def test_keys_out_of_their_window_do_not_count() -> None:
    envelope = sign_approval(ALICE, of="b" * 64, now=NOW)
    with pytest.raises(Denied, match="valid now"):
        read_approval(envelope, trust(approver=timedelta(hours=1)), NOW + timedelta(hours=2))
    with pytest.raises(Denied, match="valid now"):
        read_approval(sign_approval(ALICE, of="b" * 64, now=NOW - timedelta(days=2)), trust(), NOW)


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (Case(finding="backdoor:label-8"), "backdoor:label-7 has no waiver"),
        (Case(manifest="b" * 64), "backdoor:label-7 has no waiver"),
        (Case(days=31), "more than the 30 days"),
    ],
)
def test_a_waiver_for_something_else_or_for_too_long_covers_nothing(case: Case, reason: str) -> None:
    with pytest.raises(Denied, match=reason):
        case.ruled(ALICE, BOB)


def test_an_expired_or_revoked_waiver_covers_nothing_and_neither_does_a_revoked_approval() -> None:
    case = Case(days=10)
    with pytest.raises(Denied, match="expired on 2026-12-03"):
        case.ruled(ALICE, BOB, now=NOW + timedelta(days=10))
    with pytest.raises(Denied, match="was revoked"):
        case.ruled(ALICE, BOB, revoked=lambda digest: digest == case.waiver.digest)
    approval = case.ruled(ALICE, BOB).approvals[0].digest
    with pytest.raises(Denied, match="has 1 of 2 approvals"):
        case.ruled(ALICE, BOB, revoked=lambda digest: digest == approval)


def test_every_finding_must_be_covered_and_approvals_of_one_waiver_do_not_serve_another() -> None:
    with pytest.raises(Denied, match="inconclusive:abs has no waiver"):
        Case().ruled(ALICE, BOB, findings=(FINDING, "inconclusive:abs"))
    other = read_approval(sign_approval(BOB, of=Case(days=9).waiver.digest, now=NOW), trust(), NOW)
    case = Case(days=10)
    one = read_approval(sign_approval(ALICE, of=case.waiver.digest, now=NOW), trust(), NOW)
    with pytest.raises(Denied, match="has 1 of 2 approvals"):
        waived(
            (FINDING,),
            [case.waiver],
            [one, other],
            manifest=MANIFEST,
            policy=POLICY,
            submitters={key_id(SAM)},
            now=NOW,
            revoked=lambda digest: False,
        )


def test_what_was_not_understood_is_never_waived_and_a_pass_has_nothing_to_waive() -> None:
    with pytest.raises(Denied, match="never be waived"):
        Case(finding="not-understood").ruled(ALICE, BOB, findings=("not-understood",))
    with pytest.raises(Denied, match="no finding"):
        Case().ruled(ALICE, BOB, findings=())


def test_why_a_finding_is_not_waived_is_a_code() -> None:
    for finding, policy, submitters, code in (
        (FINDING, WaiverPolicy(allowed=False), {"sam"}, Code.WAIVERS_NOT_ALLOWED),
        ("not-understood", POLICY, {"sam"}, Code.NEVER_WAIVED_UNREAD),
        ("inconclusive:unexplained", POLICY, {"sam"}, Code.NEVER_WAIVED_UNEXPLAINED),
        (FINDING, POLICY, set[str](), Code.NEVER_WAIVED_UNSIGNED),
    ):
        never = why_never(finding, policy, submitters)
        assert never is not None and (never.code, never.finding, never.figures) == (code, None, {"finding": finding})
    late = why_not(Case(days=10).waiver, POLICY, NOW + timedelta(days=10), lambda digest: False)
    assert late is not None and late.code is Code.WAIVER_EXPIRED
    assert why_not(Case(days=10).waiver, POLICY, NOW, lambda digest: False) is None


def test_a_policy_that_allows_no_waivers_has_none() -> None:
    with pytest.raises(Denied, match="under this policy"):
        Case().ruled(ALICE, BOB, policy=WaiverPolicy(allowed=False))


def test_a_waiver_that_names_another_asker_or_ends_before_it_begins_is_denied() -> None:
    said = {"ledger": LEDGER, "manifest": MANIFEST, "finding": FINDING, "reason": "x", "issued": time_text(NOW)}
    later = time_text(NOW + timedelta(days=1))
    wrong = said | {"requested_by": key_id(ALICE), "expires": later}
    with pytest.raises(Denied, match="requested by"):
        read_waiver(sign_statement(WAIVER, wrong, SAM), trust(), NOW)
    backwards = said | {"requested_by": key_id(SAM), "expires": time_text(NOW)}
    with pytest.raises(Denied, match="expiry after"):
        read_waiver(sign_statement(WAIVER, backwards, SAM), trust(), NOW)
    other = {"digest": "b" * 64, "approver": key_id(BOB), "issued": time_text(NOW)}
    with pytest.raises(Denied, match="approval by key"):
        read_approval(sign_statement(APPROVAL, other, ALICE), trust(), NOW)
    with pytest.raises(Denied, match="exactly the keys"):
        read_approval(sign_statement(APPROVAL, said, ALICE), trust(), NOW)


class TestWaivedUntil:
    """What a WAIVED verdict holds until, for a caller who has verified it."""

    def claims(self) -> dict[str, Any]:
        found = Case(days=10).ruled(ALICE, BOB)
        listed = {"waivers": [w.to_json() for w in found.waivers], "approvals": [a.to_json() for a in found.approvals]}
        return {"name": "digits", **listed}

    def test_it_holds_until_the_first_waiver_ends(self) -> None:
        assert waived_until(self.claims(), NOW, lambda digest: False) == NOW + timedelta(days=10)

    def test_it_is_stale_from_then_on_and_when_a_waiver_or_an_approval_is_revoked(self) -> None:
        with pytest.raises(Stale, match="expired"):
            waived_until(self.claims(), NOW + timedelta(days=10), lambda digest: False)
        for given in (*self.claims()["waivers"], *self.claims()["approvals"]):
            with pytest.raises(Stale, match="revoked"):
                waived_until(self.claims(), NOW, lambda digest, mine=given["digest"]: digest == mine)

    def test_without_waivers_or_approvals_it_is_denied(self) -> None:
        for lacking in ("waivers", "approvals"):
            with pytest.raises(Denied):
                waived_until(self.claims() | {lacking: []}, NOW, lambda digest: False)
