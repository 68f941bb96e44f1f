"""Generated pages are complete and up to date; the site builds strictly and loads nothing from elsewhere."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from pydantic import BaseModel, Field

from docs import commands, decision_index, policy_keys
from flows.cli.commands import app
from vetgate.shipped import ROOT
from vetgate.verdict.policy import Policy

NAMED = re.search(r"^PAGES := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
PAGES = NAMED[1].split() if NAMED else []
LOADED = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//", re.IGNORECASE)


def test_every_generator_is_run_by_make() -> None:
    made = {path.stem for path in (ROOT / "docs").glob("*.py")} - {"generated"}
    assert made == set(PAGES)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_what_the_code_says_and_a_stale_one_is_noticed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = importlib.import_module(f"docs.{name}")
    assert page.main(["--check"]) == 0, "run `make docs`"
    text = page.PAGE.read_text()
    monkeypatch.setattr(page, "PAGE", tmp_path / page.PAGE.name)
    if name != "decision_index":
        page.PAGE.write_text(text.replace("Generated", "generated"))
        assert page.main(["--check"]) == 1 and "stale" in capsys.readouterr().err


def test_every_command_is_listed_with_what_it_takes() -> None:
    text = commands.PAGE.read_text()
    found = dict(commands.walk(typer.main.get_command(app), ""))
    assert {"vet", "data add", "ledger verify", "keys new"} <= set(found)
    for name, command in found.items():
        own = text.split(f"\n## {name}\n")[1].split("\n## ")[0]
        assert command.help and command.help.split()[0] in own
        for parameter in command.params:
            assert parameter.help, f"{name}: {parameter.name} is not described"
            assert (
                parameter.opts[0] if parameter.param_type_name == "option" else "`" + str(parameter.metavar or "")
            ) in own


def test_exit_codes_are_said_of_commands_that_exist() -> None:
    assert set(commands.ENDS) <= set(dict(commands.walk(typer.main.get_command(app), "")))


def test_every_key_of_the_policy_is_described() -> None:
    text = policy_keys.PAGE.read_text()
    for key in Policy.model_fields:
        assert f"| `{key}` | " in text
    assert "| `repair.max_attack_success` | " in text


def test_a_key_without_a_description_is_an_error() -> None:
    class Bare(BaseModel):
        there: int = Field(1)
        """Described."""
        bare: int = 2

    rows = policy_keys.rows(Bare, "")
    assert next(rows) == "| `there` | Described. | integer | `1` |"
    with pytest.raises(KeyError, match="bare"):
        next(rows)


def test_every_decision_says_context_decision_consequences_and_what_was_rejected() -> None:
    pages = sorted(decision_index.PAGE.parent.glob("[0-9]*.md"))
    assert pages
    for page in pages:
        headings = re.findall(r"^## (.+)$", page.read_text(), re.MULTILINE)
        assert headings == ["Context", "Decision", "Consequences", "Rejected"], page.name


def test_the_site_builds_strictly_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    built = list((tmp_path / "site").rglob("*.html"))
    assert len(built) > 20
    for page in built:
        assert not LOADED.search(page.read_text()), page
    assert "def white_corner" in re.sub("<[^>]+>", "", (tmp_path / "site" / "extend" / "detector.html").read_text())
    assert not list((tmp_path / "site").rglob("*.py"))
