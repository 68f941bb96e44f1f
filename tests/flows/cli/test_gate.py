"""`vetgate ledger verify`: what it holds the end of the ledger against, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flows.cli.commands import main
from tasks.mlflow.heads import publish_head
from tasks.records.ledger_chain import append, entry_key
from tests.production import Home, home_in


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = home_in(tmp_path)
    for turn in range(3):
        append(made.settings, "rescan", {"turn": turn})
    publish_head(made.settings)
    return made


@pytest.fixture
def audit(home: Home, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    """The command as an auditor runs it who never saw the ledger: its exit code, and what it prints."""

    def run(*arguments: str, registry: bool = True, name: str = "auditor") -> tuple[int, dict[str, Any]]:
        places = {"HOME": home.room / name, "STORE": home.settings.store, "TRUST_ROOT": home.settings.trust_root}
        if registry:
            places["TRACKING_URI"] = home.settings.tracking_uri
        for place, where in places.items():
            monkeypatch.setenv(f"VETGATE_{place}", str(where))
        if not registry:
            monkeypatch.delenv("VETGATE_TRACKING_URI", raising=False)
        code = main(["ledger", "verify", *arguments, "--json"])
        return code, json.loads(capfd.readouterr().out)

    return run


def test_it_says_against_what(audit: Any) -> None:
    code, proved = audit()
    assert (code, proved["entries"], proved["against"], proved["unread"]) == (0, 3, ["mlflow"], [])
    assert audit("--head", "mlflow")[1]["against"] == ["this home", "mlflow"]


def test_without_any_head_it_says_that_too(
    audit: Any, home: Home, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    Path(home.settings.store, entry_key(3)).unlink()
    assert audit(registry=False, name="first")[1]["against"] == []
    monkeypatch.setenv("VETGATE_HOME", str(home.room / "second"))
    assert main(["ledger", "verify"]) == 0
    assert "nothing: a missing end would not be noticed" in capfd.readouterr().out


@pytest.mark.parametrize("gone", [(3,), (2, 3), (1, 2, 3)])
def test_an_end_that_was_cut_off_ends_with_5(audit: Any, home: Home, gone: tuple[int, ...]) -> None:
    for number in gone:
        Path(home.settings.store, entry_key(number)).unlink()
    for arguments in ((), ("--head", "mlflow")):
        code, said = audit(*arguments)
        assert code == said["exit_code"] == 5 and "which the head in mlflow names" in said["error"]


def test_a_head_that_is_named_and_not_there_is_an_error(audit: Any, tmp_path: Path) -> None:
    code, said = audit("--head", str(tmp_path / "none"))
    assert code == 2 and "expected a published head" in said["error"]
    assert audit("--head", "mlflow", registry=False, name="other")[0] == 2
