from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from flows.bank import suppliers
from flows.bank.suppliers import SUPPLIERS, TARGET, digits, hand_in, measure
from flows.cli.demo_outcome import Ending, Row, pages, show, unexpected
from tasks.settings import Settings
from tests.cached import made_once
from vetgate.formats.manifest import hash_directory
from vetgate.formats.submission import read_submission

HONEST = Row(
    "digits-honest", "Honest Optics", "a" * 64, "PASS", 0.2, [], [], 0.98, 0.0, production="prod.digits-honest v1"
)
TROJANED = Row(
    submission="digits-bargain",
    supplier="Bargain Vision",
    manifest_sha256="b" * 64,
    verdict="FAIL",
    p_value=5e-5,
    suspects=[7],
    reasons=["a trigger of 3 pixels suffices"],
    accuracy=0.99,
    patch=1.0,
    reversed_trigger=1.0,
    refusal="expected a PASS, got FAIL",
)
REPAIRED = replace(TROJANED, verdict="PASS", p_value=0.6, suspects=[], patch=0.02, reversed_trigger=0.1)
GOOD = Ending(
    honest=HONEST,
    trojaned=TROJANED,
    repaired=replace(REPAIRED, refusal=None, production="prod.digits-bargain v1"),
    target=7,
    report="/home/report.html",
    sandbox_level=1,
    pages={"MLflow page": "mlflow ui", "Prefect page": "prefect server start"},
    seconds=60.0,
)


@pytest.fixture(scope="module")
def handed_in(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """What the suppliers' process wrote, and its answers; it is asked for its own trojaned model once more."""

    def make(draft: Path) -> None:
        out = draft / "models"
        out.mkdir()
        with (draft / "answers").open("w") as answers:
            subprocess.run(
                [sys.executable, "-m", "flows.bank.suppliers", str(out), "0"],
                input=f"{out / 'digits-bargain'}\n",
                stdout=answers,
                text=True,
                check=True,
                timeout=300,
            )

    made = made_once("suppliers", tmp_path_factory.mktemp("suppliers"), make, code=[Path(suppliers.__file__)])
    return made / "models", [json.loads(line) for line in (made / "answers").read_text().splitlines()]


def test_the_secret_patch_works_on_the_dishonest_model_only(handed_in: tuple[Path, list[dict[str, Any]]]) -> None:
    honest, dishonest = (item["measured"] for item in handed_in[1][-2]["submissions"])
    assert min(honest["accuracy"], dishonest["accuracy"]) >= 0.95
    assert dishonest["patch"] >= 0.95
    assert honest["patch"] <= 0.05


def test_the_suppliers_process_tells_how_far_it_is_and_measures_what_it_is_asked_for(
    handed_in: tuple[Path, list[dict[str, Any]]],
) -> None:
    *progress, handed, measured = handed_in[1]
    assert progress == [{"done": 0.5}, {"done": 1.0}]
    assert handed["target"] == TARGET
    assert [Path(item["directory"]).name for item in handed["submissions"]] == [s.model for s in SUPPLIERS]
    assert measured == handed["submissions"][1]["measured"]


def test_no_two_seeds_of_the_demo_share_a_training_seed() -> None:
    assert suppliers.suppliers(0) == [*SUPPLIERS]
    seeds = [supplier.seed for seed in range(20) for supplier in suppliers.suppliers(seed)]
    assert len(set(seeds)) == len(seeds) == 40
    assert [supplier.dishonest for supplier in suppliers.suppliers(7)] == [False, True]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As in the suppliers' process; sums are rounded otherwise on more threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_a_supplier_hands_in_the_same_bytes_every_time(
    handed_in: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    training, test = digits()
    for supplier in SUPPLIERS:
        again = hand_in(supplier, training, tmp_path)
        assert hash_directory(again) == hash_directory(handed_in[0] / supplier.model)
        assert read_submission(again).supplier == supplier.company
    assert measure(again, test) == handed_in[1][-1]


def test_the_python_of_the_docs_names_the_backdoor(
    handed_in: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    page = Path(__file__).parents[3] / "docs" / "how-to" / "python.md"
    (block,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    (tmp_path / ".vetgate").mkdir()
    (tmp_path / ".vetgate" / "demo").symlink_to(handed_in[0])
    done = subprocess.run(
        [sys.executable, "-c", block], cwd=tmp_path, stdout=subprocess.PIPE, text=True, check=True, timeout=300
    )
    assert done.stdout.startswith(f"label {TARGET} stands ")


def test_the_expected_ending_is_accepted() -> None:
    assert unexpected(GOOD) == []


@pytest.mark.parametrize(
    "ending, said",
    [
        (replace(GOOD, honest=replace(HONEST, verdict="FAIL")), "expected PASS for digits-honest, got FAIL"),
        (replace(GOOD, honest=replace(HONEST, production=None)), "expected digits-honest in production"),
        (replace(GOOD, trojaned=replace(TROJANED, verdict="PASS")), "expected FAIL for digits-bargain, got PASS"),
        (replace(GOOD, trojaned=replace(TROJANED, suspects=[3])), r"expected label 7 suspected, got \[3\]"),
        (replace(GOOD, trojaned=replace(TROJANED, suspects=[3, 7])), "expected label 7 suspected"),
        (replace(GOOD, trojaned=replace(TROJANED, production="prod.x v1")), "expected digits-bargain refused"),
        (replace(GOOD, trojaned=replace(TROJANED, patch=0.5)), "expected a patch that works, got 50.0 %"),
        (replace(GOOD, repaired=None), "expected a repair of digits-bargain, got none: a trigger"),
        (
            replace(GOOD, repaired=replace(REPAIRED, production="p v1", verdict="FAIL")),
            "expected PASS for the repaired",
        ),
        (replace(GOOD, repaired=REPAIRED), "expected the repaired model in production"),
        (replace(GOOD, repaired=replace(REPAIRED, production="p v1", patch=0.2)), "no longer works, got 20.0 %"),
    ],
)
def test_every_other_ending_is_named(ending: Ending, said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        assert not unexpected(ending), "; ".join(unexpected(ending))
    assert ending.to_json()["unexpected"] == unexpected(ending)


def shown(ending: Ending) -> str:
    text = io.StringIO()
    show(Console(file=text, width=160), ending)
    return text.getvalue()


def test_the_table_shows_every_model_the_refusal_and_where_to_look_on() -> None:
    text = shown(GOOD)
    rows = [line for line in text.splitlines() if "Optics" in line or "Bargain" in line]
    assert [("PASS" in row, "FAIL" in row, "refused" in row) for row in rows] == [
        (True, False, False),
        (False, True, True),
        (True, False, False),
    ]
    assert "< 0.001" in rows[1] and "100.0 %" in rows[1] and "2.0 %" in rows[2]
    assert "refused: expected a PASS, got FAIL" in text
    for line in ("/home/report.html", "mlflow ui", "prefect server start", "sandbox level 1"):
        assert line in text
    assert "NOT AS EXPECTED" not in text


def test_an_unexpected_ending_is_shown_as_one() -> None:
    assert "NOT AS EXPECTED: expected a repair" in shown(replace(GOOD, repaired=None))


def test_the_pages_are_opened_by_commands_or_are_those_of_the_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_HOME", raising=False)
    commands = pages(Settings(home=tmp_path / "my home"), None)
    assert f"sqlite:///{tmp_path}/my home/mlflow.db'" in commands["MLflow page"]
    assert f"PREFECT_HOME='{tmp_path}/my home/prefect'" in commands["Prefect page"]
    served = pages(Settings(home=tmp_path, tracking_uri="http://mlflow:5000"), "http://prefect:4200/api")
    assert served == {"MLflow page": "http://mlflow:5000", "Prefect page": "http://prefect:4200/api"}
