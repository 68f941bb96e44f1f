"""Results that vetters sign: what anybody else lays into the store is not believed, and holds no vetting up."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tasks.sandbox.host import Crashed, Limits
from tasks.settings import Settings
from tasks.store.open import open_store
from tasks.vetting import inspect, signed_results
from tasks.vetting.inspect import Case, Found, read_evidence, recorded
from tasks.vetting.signed_results import SignedResult, find, read, save, vetter_key
from vetgate.digest import canonical_json, sha256_json
from vetgate.errors import BadSignature, Denied, StoreError
from vetgate.trust import dsse
from vetgate.trust.keys import (
    APPROVER,
    GATE,
    SUBMITTER,
    VETTER,
    key_id,
    load_key,
    new_key,
    raw_public,
    read_trust_root,
    trust_key,
    utc_now,
)
from vetgate.trust.root import TrustRoot
from vetgate.trust.seeds import Seed
from vetgate.trust.statements import EVIDENCE, EXAMINATION, INSPECTION, REPAIR, sign_statement
from vetgate.trust.strict_json import time_text

MANIFEST, OTHER = "ab" * 32, "cd" * 32
ABOUT = {"manifest": MANIFEST, "method": "abs", "params": {"steps": 10}, "code": "c" * 64, "run": ""}
FOUND = {"evidence": {"method": "abs", "statistic": 0.25}, "seconds": 1.5, "sandbox_level": 2}
YEAR = timedelta(days=365)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    made = Settings(home=tmp_path / "home")
    vetter_key(made)
    return made


def path_of(key: str, about: dict[str, Any] = ABOUT) -> str:
    return f"evidence/{about['manifest']}/{about['method']}/{key}.json"


def lay(settings: Settings, blob: object, name: str = "", about: dict[str, Any] = ABOUT) -> str:
    """An object of a stranger where a result that depends on `about` is looked for; its key."""
    key = f"{sha256_json(about)}-{name or sha256_json(str(blob))}"
    assert open_store(settings).create(path_of(key, about), canonical_json(blob))
    return key


def known(settings: Settings, key: str) -> SignedResult | None:
    return read(open_store(settings), read_trust_root(settings.trust_root), EVIDENCE, MANIFEST, "abs", key)


def stated(about: dict[str, Any] = ABOUT, found: Any = FOUND, **changes: Any) -> dict[str, Any]:
    said = {"issued": time_text(utc_now()), "manifest": about["manifest"], "about": about, "result": sha256_json(found)}
    return said | changes


@pytest.mark.parametrize(
    "kind, folder",
    [(EVIDENCE, "evidence"), (INSPECTION, "inspections"), (REPAIR, "repairs"), (EXAMINATION, "examinations")],
)
def test_what_was_signed_is_found_again_with_whose_key_it_was(settings: Settings, kind: str, folder: str) -> None:
    assert find(settings, kind, ABOUT) is None
    made = save(settings, kind, ABOUT, FOUND)
    assert (made.about, made.found) == (ABOUT, FOUND) and made.vetter == key_id(vetter_key(settings))
    assert find(settings, kind, ABOUT) == made and find(settings, kind, ABOUT | {"run": "second"}) is None
    (path,) = open_store(settings).list(f"{folder}/")
    assert path == f"{folder}/{MANIFEST}/abs/{made.key}.json"


def test_a_vetter_s_key_is_made_and_trusted_once_and_for_its_owner_alone(settings: Settings) -> None:
    keys = read_trust_root(settings.trust_root).keys
    assert [key.role for key in keys] == [GATE, VETTER]
    assert settings.vetter_key.stat().st_mode & 0o777 == 0o600
    assert key_id(vetter_key(settings)) == keys[1].id and read_trust_root(settings.trust_root).keys == keys


def signed_by(role: str, *, until: timedelta = YEAR) -> Callable[[Settings], Ed25519PrivateKey]:
    def make(settings: Settings) -> Ed25519PrivateKey:
        key = Ed25519PrivateKey.generate()
        trust_key(settings.trust_root, raw_public(key), role, now=utc_now() - YEAR, valid=YEAR + until)
        return key

    return make


@pytest.mark.parametrize(
    "key",
    [
        lambda settings: Ed25519PrivateKey.generate(),
        lambda settings: load_key(settings.gate_key),
        signed_by(APPROVER),
        signed_by(SUBMITTER),
        signed_by(VETTER, until=-timedelta(days=1)),
    ],
    ids=["unknown", "the gate", "an approver", "a submitter", "expired"],
)
def test_what_another_key_signed_is_not_believed(
    settings: Settings, key: Callable[[Settings], Ed25519PrivateKey]
) -> None:
    envelope = sign_statement(EVIDENCE, stated(), key(settings))
    digest = dsse.digest(envelope)
    laid = lay(settings, {"signed": envelope, "found": FOUND}, digest)
    with pytest.raises(Denied):
        known(settings, laid)
    assert find(settings, EVIDENCE, ABOUT) is None


class TestCopied:
    """Results that a vetter did sign, of something else."""

    def test_under_the_name_of_another_submission(self, settings: Settings) -> None:
        made = save(settings, EVIDENCE, ABOUT | {"manifest": OTHER}, FOUND)
        blob = json.loads(open_store(settings).read(path_of(made.key, made.about)))
        for name in ("", made.key.rpartition("-")[2]):
            with pytest.raises(BadSignature, match="of this name"):
                known(settings, lay(settings, blob, name))
        assert find(settings, EVIDENCE, ABOUT) is None

    @pytest.mark.parametrize(
        "changes", [{"run": "second"}, {"code": "d" * 64}, {"params": {"steps": 1}}, {"method": "strip"}]
    )
    def test_of_another_run_code_parameter_or_method(self, settings: Settings, changes: dict[str, Any]) -> None:
        made = save(settings, EVIDENCE, ABOUT | changes, FOUND)
        blob = json.loads(open_store(settings).read(path_of(made.key, made.about)))
        with pytest.raises(BadSignature, match="of this name"):
            known(settings, lay(settings, blob))

    def test_of_another_kind(self, settings: Settings) -> None:
        made = save(settings, REPAIR, ABOUT, FOUND)
        blob = json.loads(open_store(settings).read(f"repairs/{MANIFEST}/abs/{made.key}.json"))
        with pytest.raises(Denied, match="got a statement of type"):
            known(settings, lay(settings, blob, made.key.rpartition("-")[2]))

    def test_with_other_findings(self, settings: Settings) -> None:
        made = save(settings, EVIDENCE, ABOUT, FOUND)
        file = Path(settings.store, path_of(made.key))
        file.chmod(0o644)
        for changed in ({"evidence": {"method": "abs", "statistic": -1.0}}, {"sandbox_level": 3}, {"more": None}):
            file.write_bytes(canonical_json(json.loads(file.read_bytes()) | {"found": FOUND | changed}))
            with pytest.raises(BadSignature, match="that was signed"):
                known(settings, made.key)
            assert find(settings, EVIDENCE, ABOUT) is None


@pytest.mark.parametrize(
    "blob",
    [
        None,
        [],
        {"signed": {}, "found": FOUND},
        {"signed": None, "found": FOUND},
        {"signed": {"payloadType": "x", "payload": "", "signatures": []}, "found": FOUND},
        {"about": ABOUT, **FOUND},
        {"found": FOUND},
    ],
)
def test_what_is_no_signed_result_is_not_believed_and_does_not_hide_one(settings: Settings, blob: object) -> None:
    laid = lay(settings, blob, "0" * 64)
    with pytest.raises(Denied):
        known(settings, laid)
    made = save(settings, EVIDENCE, ABOUT, FOUND)
    assert find(settings, EVIDENCE, ABOUT) == made
    assert open_store(settings).read(path_of(laid)) == canonical_json(blob), "what another stored stays"


def test_bytes_that_are_no_json_are_not_believed(settings: Settings) -> None:
    for turn, data in enumerate((b"", b"{", b"\xff", b"[" * 100_000)):
        key = f"{sha256_json(ABOUT)}-{turn:064}"
        open_store(settings).create(path_of(key), data)
        with pytest.raises(BadSignature, match="expected a signed evidence"):
            known(settings, key)
    assert find(settings, EVIDENCE, ABOUT) is None


def test_more_objects_than_are_looked_at_only_cost_another_computation(settings: Settings) -> None:
    for turn in range(signed_results.MOST):
        lay(settings, {}, f"{turn:064}")
    made = save(settings, EVIDENCE, ABOUT, FOUND)
    assert find(settings, EVIDENCE, ABOUT) is None and known(settings, made.key) == made


class TestKeys:
    """The key of the process that signs."""

    def test_one_that_is_no_longer_trusted_signs_nothing_and_is_not_trusted_again(self, settings: Settings) -> None:
        trust = read_trust_root(settings.trust_root)
        settings.trust_root.write_bytes(canonical_json(TrustRoot(trust.keys[:1]).to_json()))
        with pytest.raises(BadSignature, match="trust root"):
            save(settings, EVIDENCE, ABOUT, FOUND)
        assert read_trust_root(settings.trust_root).keys == trust.keys[:1]

    @pytest.mark.parametrize("role", [GATE, APPROVER])
    def test_one_of_another_role_signs_nothing(self, settings: Settings, tmp_path: Path, role: str) -> None:
        key = new_key(tmp_path / "other")
        trust_key(settings.trust_root, raw_public(key), role, now=utc_now(), valid=YEAR)
        other = settings.model_copy(update={"vetter_key": tmp_path / "other"})
        with pytest.raises(Denied, match=f"vetter's key that is valid now, got a {role}'s"):
            save(other, EVIDENCE, ABOUT, FOUND)

    def test_one_that_ran_out_signs_nothing(self, settings: Settings, tmp_path: Path) -> None:
        key = new_key(tmp_path / "old")
        trust_key(settings.trust_root, raw_public(key), VETTER, now=utc_now() - YEAR, valid=timedelta(days=30))
        with pytest.raises(Denied, match="valid now"):
            vetter_key(settings.model_copy(update={"vetter_key": tmp_path / "old"}))

    def test_where_the_gate_is_elsewhere_none_is_made(self, tmp_path: Path) -> None:
        worker = Settings(home=tmp_path / "worker", gate_url="http://gate:8481")
        with pytest.raises(StoreError, match="vetgate keys new FILE --role vetter"):
            vetter_key(worker)
        assert not worker.trust_root.exists() and not worker.vetter_key.exists()


class TestRecorded:
    """A detector's evidence, from its answer to what is kept."""

    @pytest.fixture
    def case(self, monkeypatch: pytest.MonkeyPatch) -> Case:
        monkeypatch.setattr(inspect, "code_digest", lambda kind, name: "c" * 64)
        return Case(MANIFEST, "", {}, Seed(1234567890123, "e" * 64), Limits())

    def test_it_is_signed_and_kept_without_its_seed(self, settings: Settings, case: Case) -> None:
        answer = {"evidence": {"method": "abs", "seed": case.seed.number}, "seconds": 1.5, "sandbox_level": 2}
        found = Found(**recorded(settings, case, "abs", {}, lambda: answer))
        assert found.key is not None and found.seconds == 1.5
        kept = read_evidence(settings, MANIFEST, "abs", found.key)
        assert kept is not None and kept["evidence"] == {"method": "abs"}
        assert kept["about"] == inspect.provenance(case, "detect", "abs", {})
        assert (kept["about"]["seed_commitment"], kept["vetter"]) == ("e" * 64, key_id(vetter_key(settings)))
        store = open_store(settings)
        assert not any(str(case.seed.number).encode() in store.read(key) for key in store.list(""))
        assert recorded(settings, case, "abs", {}, lambda: pytest.fail("computed again")) == asdict(found)

    @pytest.mark.parametrize("given", [{"seed": 7}, {"seed": None}, {}])
    def test_evidence_of_another_seed_is_a_failure(self, settings: Settings, case: Case, given: Any) -> None:
        answer = {"evidence": {"method": "abs", **given}, "seconds": 1.5, "sandbox_level": 2}
        found = Found(**recorded(settings, case, "abs", {}, lambda: answer))
        assert found.key is None and found.failure_code == Crashed.code and "another" in str(found.failure)
        assert not list(open_store(settings).list("evidence/"))

    def test_what_a_stranger_laid_there_is_computed_anew(self, settings: Settings, case: Case) -> None:
        about = inspect.provenance(case, "detect", "abs", {})
        lay(settings, {"about": about, **FOUND}, about=about)
        lay(settings, {"signed": {}, "found": FOUND}, about=about)
        evidence = {"method": "abs", "seed": case.seed.number, "statistic": 9.0}
        answer = {"evidence": evidence, "seconds": 2.5, "sandbox_level": 2}
        found = Found(**recorded(settings, case, "abs", {}, lambda: answer))
        kept = read_evidence(settings, MANIFEST, "abs", str(found.key))
        assert kept is not None and kept["evidence"]["statistic"] == 9.0
