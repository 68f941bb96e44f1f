"""What the documentation shows works as it stands there."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance import Twins, checks_for, one_thread, twins
from vetgate.contract import DETECTORS, REPAIRS, Axis, Evidence, Method
from vetgate.inversion import attack_success
from vetgate.probe import accuracy
from vetgate.shipped import ROOT

__all__ = ["one_thread", "twins"]

EXAMPLES = ROOT / "docs" / "examples"
# a copy of the project in which the example is a detector like the others
LOOK = """
import json
import docs.methods
import vetgate.detect
from flows.params import load_params
from vetgate.contract import DETECTORS
from vetgate.digest import code_digest

print(json.dumps({
    "registered": "white_corner" in DETECTORS,
    "params": load_params().detect["white_corner"],
    "page": docs.methods.section(DETECTORS["white_corner"]),
    "digest": code_digest("detect", "white_corner"),
}))
"""


def blocks(page: str) -> list[str]:
    """The shell commands of a page, in its order."""
    return re.findall(r"^```sh\n(.*?)^```$", (ROOT / "docs" / page).read_text(), re.MULTILINE | re.DOTALL)


def register(name: str) -> None:
    """Run an example's file, as importing it from its place in vetgate would."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


@pytest.fixture
def white_corner() -> Iterator[Method]:
    register("white_corner")
    yield DETECTORS.pop("white_corner")


@pytest.fixture
def plain_unlearning() -> Iterator[Method]:
    register("plain_unlearning")
    yield REPAIRS.pop("plain_unlearning")


def test_the_detector_keeps_every_promise(white_corner: Method, twins: Twins) -> None:
    checks = checks_for(white_corner)
    assert len(checks) > 5
    for check in checks:
        check(white_corner, twins)


def test_the_detector_finds_the_white_square_in_the_corner(white_corner: Method, twins: Twins) -> None:
    trojaned, clean = white_corner(twins.trojaned), white_corner(twins.clean)
    assert trojaned.flagged.nonzero().flatten().tolist() == [twins.trigger.target]
    assert not clean.flagged.any()


def test_the_repair_removes_the_backdoor_and_keeps_the_accuracy(plain_unlearning: Method, twins: Twins) -> None:
    subject, test = twins.trojaned, twins.test
    found = Evidence(
        statistic=1.0,
        scores=twins.test.x.new_zeros(subject.classes),
        cutoff=1.0,
        triggers=(twins.trigger,),
        axis=Axis.CLASS,
    )
    repaired = plain_unlearning(subject, found).model
    assert attack_success(subject.model, test.x, test.y, twins.trigger) > 0.9
    assert attack_success(repaired, test.x, test.y, twins.trigger) < 0.1
    assert accuracy(repaired, test.x, test.y) > accuracy(subject.model, test.x, test.y) - 0.03


def test_a_file_and_a_section_are_all_that_a_detector_takes(tmp_path: Path) -> None:
    for package in ("vetgate", "tasks", "flows", "docs", "infra/policies", "infra/calibration"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(EXAMPLES / "white_corner.py", tmp_path / "vetgate" / "detect" / "white_corner.py")
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text() + "\nwhite_corner: {size: 2}\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    line = [sys.executable, "-P", "-c", LOOK]
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["registered"] and seen["params"] == {"size": 2, "alarm": 0.5}
    assert "Blind to: Everything but white squares in corners." in seen["page"] and len(seen["digest"]) == 64


@pytest.mark.long
def test_the_tutorial_goes_from_the_model_to_production(tmp_path: Path) -> None:
    commands = blocks("tutorial.md")
    assert len(commands) == 6
    shutil.copyfile(EXAMPLES / "own_model.py", tmp_path / "own_model.py")
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("VETGATE_", "PREFECT_", "MLFLOW_"))}
    environment = inherited | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONWARNINGS": "ignore",
    }
    line = ["bash", "-euo", "pipefail", "-c", "\n".join(commands)]
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "may be promoted" in done.stdout and "prod.my-digits" in done.stdout
    report = next(line for line in done.stdout.splitlines() if line.endswith(".html"))
    assert Path(report.split()[-1]).is_file()
    assert float(re.findall(r"accuracy ([0-9.]+)", done.stdout)[-1]) > 0.95
