"""Code of others verifies what our gate signed: securesystemslib the envelope, in-toto-attestation the statement."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from copy import copy
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.exceptions import VerificationError

from flows.gate.decide import answer
from flows.production.verify import verify
from tests.deciding import BACKDOORED, CLEAN, Court
from vetgate.errors import VetgateError
from vetgate.shipped import ROOT
from vetgate.trust import attest
from vetgate.trust.keys import load_key, read_trust_root, trust_key, utc_now
from vetgate.trust.strict_json import time_text

SCRIPT = ROOT / "docs" / "examples" / "audit.py"


def _audit() -> Callable[[Path, Path, Path, str], dict[str, Any]]:
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

    def copied(self, folder: Path) -> Case:
        """The same in another folder."""
        handed = copy(self)
        handed.files = Path(shutil.copytree(self.files, folder / "files"))
        handed.attestation = Path(shutil.copy(self.attestation, folder))
        handed.trust = Path(shutil.copy(self.trust, folder))
        return handed

    def verdict(self) -> dict[str, Any]:
        return audit(self.trust, self.attestation, self.files, "digits")

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


@pytest.fixture(scope="module")
def decided(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """One that every test copies."""
    room = tmp_path_factory.mktemp("decided")
    return Case(Court(room / "home", room), room, CLEAN)


@pytest.fixture
def handed(decided: Case, tmp_path: Path) -> Case:
    """A copy of what an auditor is handed."""
    return decided.copied(tmp_path)


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
    with pytest.raises(ValueError, match="window of its key"):
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
    line = [sys.executable, str(SCRIPT), str(case.trust), str(case.attestation), str(case.files), "digits"]
    done = subprocess.run(line, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "digits PASS\n"), done.stderr
    for wrong in (line[:-1], [*line[:-1], "another"]):
        assert subprocess.run(wrong, capture_output=True).returncode == 1
    case.alter(lambda envelope: envelope.update(payloadType="text/plain"))
    assert subprocess.run(line, capture_output=True).returncode == 1


def later(**ahead: float) -> str:
    """The time in so many days or minutes, to be asked for when a test runs."""
    return time_text(utc_now() + timedelta(**ahead))


def says(**fields: Any) -> Callable[[Case], None]:
    """A verdict of the gate that says this, beside what it says."""
    return says_by(lambda: fields)


def says_by(fields: Callable[[], dict[str, Any]]) -> Callable[[Case], None]:
    """A verdict of the gate that says what a function gives when the test runs, beside what it says."""
    return lambda case: case.state(lambda s: s["predicate"].update(fields()), load_key(case.court.settings.gate_key))


def waived(*, expires: float = 3, **fields: Any) -> Callable[[Case], None]:
    """A verdict of the gate that was waived for so many days."""

    def stated() -> dict[str, Any]:
        waiver = {"digest": "ab" * 32, "finding": "backdoor:label-3", "expires": later(days=expires)}
        approval = {"digest": "cd" * 32, "of": "ab" * 32, "keyid": "ef" * 32}
        return {"verdict": "WAIVED", "waivers": [waiver], "approvals": [approval], **fields}

    return says_by(stated)


def states(change: Callable[[dict[str, Any]], Any]) -> Callable[[Case], None]:
    """A statement of the gate that was changed before it was signed."""
    return lambda case: case.state(change, load_key(case.court.settings.gate_key))


def revokes(digest: str | None = None) -> Callable[[Case], None]:
    """A trust root in which this, or else the verdict, is revoked."""

    def change(case: Case) -> None:
        revoked = digest or attest.digest(attest.read_envelope(case.attestation.read_bytes()))
        case.trust.write_text(json.dumps({**json.loads(case.trust.read_text()), "revoked": [revoked]}))

    return change


def trusts(change: Callable[[dict[str, Any]], object]) -> Callable[[Case], None]:
    """A trust root whose every key was changed."""

    def changed(case: Case) -> None:
        root = json.loads(case.trust.read_text())
        for key in root["keys"]:
            change(key)
        case.trust.write_text(json.dumps(root))

    return changed


def holds(change: Callable[[Path], object]) -> Callable[[Case], None]:
    """Files of which one is changed."""

    def changed(case: Case) -> None:
        case.files.chmod(0o755)
        model = case.files / "model.onnx"
        model.chmod(0o644)
        change(model)

    return changed


def leads_elsewhere(model: Path) -> None:
    model.rename(model.parents[1] / "elsewhere")
    model.symlink_to(model.parents[1] / "elsewhere")


def is_a_pipe(model: Path) -> None:
    model.unlink()
    os.mkfifo(model)


def both(*changes: Callable[[Case], None]) -> Callable[[Case], None]:
    """One after the other."""

    def change(case: Case) -> None:
        for one in changes:
            one(case)

    return change


GOOD: dict[str, Callable[[Case], None]] = {
    "as it was signed": lambda case: None,
    "a waived one": waived(),
    "a clock that is four minutes ahead": says_by(lambda: dict(issued=later(minutes=4))),
    "something else was revoked": revokes("99" * 32),
    "a trust root behind a link": lambda case: case.trust.symlink_to(case.trust.rename(case.trust.with_name("root"))),
}
REFUSED: dict[str, Callable[[Case], None]] = {
    "a fail": says(verdict="FAIL"),
    "an inconclusive one": says(verdict="INCONCLUSIVE"),
    "of another name": says(name="another"),
    "expired": says_by(lambda: dict(expires=later(minutes=-1))),
    "expired before it was issued": says_by(lambda: dict(issued=later(minutes=4), expires=later(minutes=3))),
    "issued in time to come": says_by(lambda: dict(issued=later(minutes=10))),
    "issued after its key": both(
        says_by(lambda: dict(issued=later(minutes=4))), trusts(lambda key: key.update(not_after=later(minutes=1)))
    ),
    "issued before its key": says_by(lambda: dict(issued=later(days=-9))),
    "its key ran out": trusts(lambda key: key.update(not_after=later(minutes=-1))),
    "its key is not valid yet": trusts(lambda key: key.update(not_before=later(minutes=1))),
    "its key is an approver's": trusts(lambda key: key.update(role="approver")),
    "its key bears another id": trusts(lambda key: key.update(keyid="0" * 64)),
    "revoked": revokes(),
    "its waiver was revoked": both(waived(), revokes("ab" * 32)),
    "its approval was revoked": both(waived(), revokes("cd" * 32)),
    "its waiver ran out": waived(expires=-1),
    "without a waiver": waived(waivers=[]),
    "without an approval": waived(approvals=[]),
    "an approval without a digest": waived(approvals=[{"of": "ab" * 32}]),
    "of another manifest": states(lambda s: s["subject"][0]["digest"].update(sha256="0" * 64)),
    "a file is stated twice": states(lambda s: s["subject"].append(s["subject"][0])),
    "of no manifest": states(lambda s: s["subject"].pop(0)),
    "no verdict": states(lambda s: s.update(predicateType="https://vetgate.dev/promotion/v1")),
    "with a second signature": lambda case: case.alter(lambda e: e["signatures"].append({"keyid": "0", "sig": "AAAA"})),
    "with a second payload": lambda case: case.attestation.write_text(
        case.attestation.read_text().replace("{", '{"payload": "e30=", ', 1)
    ),
    "with more than an envelope has": lambda case: case.alter(lambda e: e.update(more=1)),
    "with more than a signature has": lambda case: case.alter(lambda e: e["signatures"][0].update(more=1)),
    "altered": holds(lambda model: model.write_bytes(b"other")),
    "a file is missing": holds(lambda model: model.unlink()),
    "a file too many": holds(lambda model: (model.parent / "more").write_bytes(b"")),
    "a file is a link": holds(leads_elsewhere),
    "a file is a pipe": holds(is_a_pipe),
    "a file is a directory": holds(lambda model: (model.unlink(), model.mkdir())),
    "a file has another name elsewhere": holds(lambda model: (model.parents[1] / "other").hardlink_to(model)),
    "no attestation": lambda case: case.attestation.unlink(),
    "no trust root": lambda case: case.trust.unlink(),
}


class TestTheSameAnswer:
    """What `vetgate verify` refuses is refused by their code too, whatever it is."""

    @pytest.mark.parametrize("what", sorted(GOOD))
    def test_where_it_holds(self, what: str, handed: Case) -> None:
        GOOD[what](handed)
        assert self.theirs(handed) == self.ours(handed) == "yes"

    @pytest.mark.parametrize("what", sorted(REFUSED))
    def test_where_it_does_not(self, what: str, handed: Case) -> None:
        REFUSED[what](handed)
        assert (self.ours(handed), self.theirs(handed)) == ("no", "no")

    def ours(self, case: Case) -> str:
        try:
            verify(case.files, attestation=case.attestation, name="digits", trust_root=case.trust)
        except VetgateError:
            return "no"
        return "yes"

    def theirs(self, case: Case) -> str:
        """What the program ends with, 1 for any error."""
        try:
            return "yes" if case.verdict()["verdict"] in ("PASS", "WAIVED") else "no"
        except Exception:
            return "no"
