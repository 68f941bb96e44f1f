"""Code of others verifies what our gate signed: securesystemslib the envelope, in-toto-attestation the statement."""

from __future__ import annotations

import base64
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.exceptions import VerificationError

from flows.gate.decide import answer
from tests.deciding import BACKDOORED, CLEAN, Court
from vetgate.shipped import ROOT
from vetgate.trust import attest
from vetgate.trust.keys import load_key, read_trust_root, trust_key, utc_now

SCRIPT = ROOT / "docs" / "examples" / "audit.py"


def _audit() -> Callable[[Path, Path, Path], dict[str, Any]]:
    spec = importlib.util.spec_from_file_location("audit", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.audit


audit = _audit()


class Case:
    """What an auditor is handed: the trust root, an attestation and the files, copied out of an installation."""

    def __init__(self, court: Court, folder: Path, effect: float | None) -> None:
        self.court, self.manifest = court, court.submit(b"clean" if effect is None else b"backdoored")
        answered = answer(court.settings, court.request(self.manifest, effect))
        self.files, self.attestation, self.trust = folder / "files", folder / "attestation.json", folder / "trust.json"
        self.attestation.write_bytes(court.store.read(answered["attestation"]))
        self.trust.write_bytes(court.settings.trust_root.read_bytes())
        shutil.copytree(Path(court.settings.store, "quarantine", self.manifest), self.files)

    def verdict(self) -> dict[str, Any]:
        return audit(self.trust, self.attestation, self.files)

    def alter(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Change the envelope, its signature staying what it was."""
        envelope = json.loads(self.attestation.read_text())
        change(envelope)
        self.attestation.write_text(json.dumps(envelope))

    def state(self, change: Callable[[dict[str, Any]], None], key: Ed25519PrivateKey | None = None) -> None:
        """Change the statement; it is signed anew if a key is given."""
        envelope = json.loads(self.attestation.read_text())
        statement = json.loads(base64.b64decode(envelope["payload"]))
        change(statement)
        altered = attest.sign(statement, key or Ed25519PrivateKey.generate())
        self.attestation.write_text(json.dumps(altered if key else {**envelope, "payload": altered["payload"]}))


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(Court(tmp_path / "home", tmp_path), tmp_path, CLEAN)


def test_what_the_gate_signed_is_verified_by_their_code(case: Case) -> None:
    ours = attest.claims(attest.read_envelope(case.attestation.read_bytes()))
    assert case.verdict()["verdict"] == "PASS"
    # all of it is read, and read alike
    assert case.verdict() == json.loads(json.dumps(ours), parse_int=float)


def test_a_fail_is_verified_as_one(tmp_path: Path) -> None:
    assert Case(Court(tmp_path / "home", tmp_path), tmp_path, BACKDOORED).verdict()["verdict"] == "FAIL"


@pytest.mark.parametrize(
    "change",
    [
        lambda statement: statement["predicate"].update(verdict="WAIVED"),
        lambda statement: statement["predicate"].update(expires="2099-01-01T00:00:00Z"),
        lambda statement: statement["subject"][0]["digest"].update(sha256="0" * 64),
        lambda statement: statement.update(predicateType="https://vetgate.dev/attestation/verdict/v2"),
        lambda statement: statement["predicate"].update(name="another"),
    ],
)
def test_an_altered_statement_is_not(case: Case, change: Callable[[dict[str, Any]], None]) -> None:
    case.state(change)
    with pytest.raises(VerificationError):
        case.verdict()


@pytest.mark.parametrize(
    "change",
    [
        lambda envelope: envelope.update(payloadType="application/vnd.in-toto+json2"),
        lambda envelope: envelope["signatures"].clear(),
        lambda envelope: envelope["signatures"][0].update(sig=base64.b64encode(bytes(64)).decode()),
        lambda envelope: envelope["signatures"][0].update(keyid="0" * 64),
        lambda envelope: envelope.update(payload=envelope["payload"][:-8] + "AAAAfQ=="),
    ],
)
def test_an_altered_envelope_is_not(case: Case, change: Callable[[dict[str, Any]], None]) -> None:
    case.alter(change)
    with pytest.raises(VerificationError):
        case.verdict()


def test_a_key_that_is_no_gate_s_does_not_count(case: Case, tmp_path: Path) -> None:
    stranger, approver = Ed25519PrivateKey.generate(), load_key(case.court.person("approver"))
    case.trust.write_bytes(case.court.settings.trust_root.read_bytes())
    assert {key.role for key in read_trust_root(case.trust).keys} >= {"gate", "approver"}
    for key in (stranger, approver):
        case.state(lambda statement: None, key)
        # a root without any gate's key leaves nothing to verify with
        with pytest.raises(VerificationError):
            case.verdict()
    raw = stranger.public_key().public_bytes_raw()
    trust_key(case.trust, raw, "gate", now=utc_now() - timedelta(days=9), valid=timedelta(days=8))
    case.state(lambda statement: None, stranger)
    with pytest.raises(VerificationError):
        case.verdict()
    trust_key(case.trust, raw, "gate", now=utc_now(), valid=timedelta(days=1))
    case.state(lambda statement: None, stranger)
    assert case.verdict()["verdict"] == "PASS"


@pytest.mark.parametrize(
    "change",
    [
        lambda files: (files / "model.onnx").write_bytes(b"other"),
        lambda files: (files / "submission.yaml").unlink(),
        lambda files: (files / "more.bin").write_bytes(b""),
    ],
)
def test_other_files_are_not_those_that_were_vetted(case: Case, change: Callable[[Path], object]) -> None:
    for file in case.files.iterdir():
        file.chmod(0o644)
    change(case.files)
    with pytest.raises(ValueError, match="other files"):
        case.verdict()


def test_what_was_signed_for_another_purpose_or_no_longer_holds_is_no_verdict(case: Case) -> None:
    key, whole = load_key(case.court.settings.gate_key), case.attestation.read_bytes()
    for change, message in [
        (lambda s: s.update(predicateType="https://vetgate.dev/promotion/v1"), "no verdict"),
        (lambda s: s["predicate"].update(expires="2020-01-01T00:00:00Z"), "expired"),
        (lambda s: s["subject"].clear(), "subject"),
    ]:
        case.attestation.write_bytes(whole)
        case.state(change, key)
        with pytest.raises(ValueError, match=message):
            case.verdict()
    case.attestation.write_bytes(whole)
    root = json.loads(case.trust.read_text())
    case.trust.write_text(json.dumps({**root, "revoked": [attest.digest(attest.read_envelope(whole))]}))
    with pytest.raises(ValueError, match="revoked"):
        case.verdict()


def test_as_a_program_it_ends_with_the_verdict(case: Case) -> None:
    line = [sys.executable, str(SCRIPT), str(case.trust), str(case.attestation), str(case.files)]
    done = subprocess.run(line, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "digits PASS\n"), done.stderr
    case.alter(lambda envelope: envelope.update(payloadType="text/plain"))
    assert subprocess.run(line, capture_output=True).returncode == 1
