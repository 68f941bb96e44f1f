"""One object that others laid into the store: revoking, approving, promoting and reconciling go on beside it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from flows.cli.status import at_a_glance
from flows.gate import keys
from flows.gate.revoke import revoke
from flows.gate.waive import approve
from flows.production.automatic import promote_all_due
from flows.production.reconcile import reconcile
from flows.vetting.sweep import sweep
from tasks.records.ledger_entries import catch_up
from tasks.records.ledger_verify import verify_ledger
from tasks.store.lease import leased
from tests.production import Home, home_in
from vetgate.digest import canonical_json
from vetgate.errors import BadSubmission, Denied
from vetgate.trust.statements import PROMOTION, WAIVER, sign_statement

M, D = "a" * 64, "b" * 64
# well-formed names of each folder, of which none is what it says
SQUATTED = (f"waivers/{M}/{D}.json", f"approvals/{M}/{D}.json", f"attestations/{M}/20260101T000000Z-{D}.json")
SHAPELESS = ("waivers/x.json", "approvals/x/y.json", "attestations/a\nb.json", "promotions/digits/a\\b.json")


def lay(home: Home, name: str, data: bytes = b"junk") -> Path:
    path = Path(home.settings.store, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return home_in(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"junk",
        b"{}",
        canonical_json(sign_statement(WAIVER, {"issued": "2026-01-01T00:00:00Z"}, Ed25519PrivateKey.generate())),
    ],
)
@pytest.mark.parametrize("name", [*SQUATTED, *SHAPELESS, f"submissions/{M}0.json", f"submissions/{M}.json"])
def test_a_verdict_is_revoked_beside_it(home: Home, name: str, content: bytes) -> None:
    manifest = home.submit(b"model")
    digest = home.decide(manifest)
    lay(home, name, content)
    assert revoke(home.settings, digest[:16], "leaked")["revoked"] == digest
    assert revoke(home.settings, manifest, "again")["kind"] == "verdict"


@pytest.mark.parametrize("name", ["submissions/{m}0.json", "waivers/zz/{d}.json", "waivers/{m}/{d}.json"])
def test_what_bears_the_same_name_makes_nothing_ambiguous(home: Home, name: str) -> None:
    manifest = home.submit(b"model")
    digest = home.decide(manifest)
    lay(home, name.format(m=manifest, d=digest))
    assert revoke(home.settings, manifest, "leaked")["revoked"] == revoke(home.settings, digest, "leaked")["revoked"]


def test_nothing_is_revoked_that_only_a_stranger_laid_there(home: Home) -> None:
    for name in SQUATTED:
        lay(home, name, b"{}")
    with pytest.raises(BadSubmission, match="which fits 0"):
        revoke(home.settings, D, "who knows")
    undecided = home.submit(b"model")
    with pytest.raises(Denied, match="expected a verdict on"):
        revoke(home.settings, undecided, "too early")


@pytest.mark.parametrize("name", [*SQUATTED, *SHAPELESS])
def test_an_approver_is_asked_for_what_he_lacks_and_not_for_what_lies_beside_it(home: Home, name: str) -> None:
    manifest = home.submit(b"model")
    digest = home.decide(manifest)
    keys.new(home.settings, home.room / "alice", "approver", 30)
    lay(home, name)
    with pytest.raises(Denied, match="expected a signed submission"):
        approve(home.settings, digest, home.room / "alice")


@pytest.mark.parametrize(
    "name", [*SHAPELESS, "promotions/x.json", "promotions/digits/1/x.json", "revocations/a\nb.json"]
)
def test_what_is_bad_is_taken_back_beside_it_and_it_is_named(home: Home, name: str) -> None:
    home.promoted(b"before")
    bad = home.submit(b"bad")
    home.let_in(bad)
    home.decide(bad, "FAIL")
    lay(home, name)
    assert catch_up(home.settings) == []
    assert [taken["version"] for taken in reconcile(home.settings)["taken_back"]] == ["2"]
    assert verify_ledger(home.settings)["strange"] == at_a_glance(home.settings)["strange"] == [repr(name)]


def automatic(room: Path) -> Home:
    policy = room / "policy.yaml"
    policy.write_text(
        yaml.safe_dump({"name": "auto", "required": ["neural_cleanse"], "promotion": {"automatic": "champion"}})
    )
    return home_in(room, policy=policy)


@pytest.mark.parametrize(
    "name", ["promotions/digits/junk.json", "promotions/digits/9.json", "promotions/digits/a\nb.json"]
)
@pytest.mark.parametrize("forged", [False, True])
def test_what_is_due_is_promoted_beside_it(tmp_path: Path, name: str, forged: bool) -> None:
    home = automatic(tmp_path)
    manifest = home.submit(b"model")
    home.decide(manifest)
    said = {"manifest": manifest, "issued": "2026-01-01T00:00:00Z"}
    envelope = sign_statement(PROMOTION, said, Ed25519PrivateKey.generate())
    lay(home, name, canonical_json(envelope) if forged else b"junk")
    (granted,) = promote_all_due(home.settings)
    assert granted["manifest_sha256"] == manifest and home.aliases()["champion"] == granted["version"]
    assert promote_all_due(home.settings) == []


@pytest.mark.parametrize(
    "content",
    [b"", b"junk", b"[]", b"{}", *({"until": until} for until in (1e300, "x", None)), {"pid": "x"}],
)
def test_what_is_no_lease_holds_nothing_up(home: Home, content: bytes | dict[str, object]) -> None:
    manifest = home.submit(b"model")
    lease = {"holder": "x", "host": "y", "pid": 1, "born": "1", "attempt": 1, "until": 0.0, "done": True}
    lay(
        home, f"leases/{manifest}.json", content if isinstance(content, bytes) else canonical_json({**lease, **content})
    )
    assert [row["state"] for row in at_a_glance(home.settings)["submissions"]] == ["waiting"]
    assert sweep(home.settings, lambda *started: None)["vetted"] == [manifest]
    with leased(home.settings, manifest) as held:
        assert held.attempt == 1
