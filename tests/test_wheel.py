"""The wheel carries everything that commands read, and works where no checkout is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from vetgate.shipped import ROOT

MINUTE = 60
BUILD = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
SHARE = BUILD["hooks"]["custom"]["share"]
# what every command but the service's reads at its start, then one call in the sandbox
LOOK = """
import json, sys
from pathlib import Path
import flows, tasks, vetgate
from flows.bank.networks import members, plan
from flows.params import load_params
from tasks.sandbox.host import Sandbox, available_level
from tasks.settings import load_settings
from vetgate import shipped
from vetgate.verdict.calibration import load_calibration
from vetgate.errors import StoreError
from vetgate.verdict.policy import load_policy

settings = load_settings()
scratch = Path("scratch")
scratch.mkdir()
with Sandbox(scratch=scratch, ops=Path(sys.argv[1])) as sandbox:
    inside = sandbox.call("where", {})
try:
    shipped.need_checkout("this")
    refused = ""
except StoreError as error:
    refused = str(error)
calibration = load_calibration(settings.calibration)
print(json.dumps({
    "files": [package.__file__ for package in (flows, tasks, vetgate)],
    "policy": load_policy(settings.policy).name,
    "detectors": list(load_params(settings.params).detect),
    "references": len(calibration.bank.references),
    "stale": calibration.stale,
    "members": len(members()),
    "sets": sorted(plan().sets),
    "deployments": shipped.DEPLOYMENTS.is_file(),
    "inside": inside,
    "level": [sandbox.level, available_level()],
    "refused": refused,
}))
"""
WHERE = """
import vetgate


def where(payload, progress):
    return {"file": vetgate.__file__}


OPS = {"where": where}
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    line = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    run([*line, str(folder), str(ROOT)], folder)
    return next(folder.glob("*.whl"))


def run(line: list[str], where: Path, seconds: float = 2 * MINUTE, **environment: str) -> str:
    """What a command prints, run in a directory that is not the checkout, without our variables."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("VETGATE_", "PREFECT_", "MLFLOW_", "PYTHON"))}
    done = subprocess.run(
        line,
        cwd=where,
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=seconds,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def files_in(source: str) -> set[Path]:
    """The files of a path of the checkout, relative to it."""
    path = ROOT / source
    found = {path} if path.is_file() else {p for p in path.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    return {p.relative_to(ROOT) for p in found}


def test_the_wheel_holds_the_packages_and_what_they_read_and_nothing_else(wheel: Path) -> None:
    expected = {str(p) for package in BUILD["packages"] for p in files_in(package)}
    expected |= {f"vetgate/share/{p}" for path in SHARE for p in files_in(path)}
    with zipfile.ZipFile(wheel) as packed:
        held = {name for name in packed.namelist() if ".dist-info/" not in name}
    assert held == expected
    assert {
        "tasks/report/page.html.j2",
        "vetgate/share/params.yaml",
        "vetgate/share/infra/policies/default.yaml",
    } <= held


def test_a_wheel_far_from_the_checkout_reads_what_it_brought(wheel: Path, tmp_path: Path) -> None:
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(site)
    ops = tmp_path / "ops.py"
    ops.write_text(WHERE)
    seen = json.loads(run([sys.executable, "-P", "-c", LOOK, str(ops)], empty, PYTHONPATH=str(site)))
    assert all(Path(file).is_relative_to(site) for file in [*seen["files"], seen["inside"]["file"]])
    assert seen["level"][0] == seen["level"][1]
    assert seen["policy"] and seen["detectors"] and seen["deployments"]
    assert seen["stale"] == [] and seen["references"] >= 19
    assert seen["members"] > 100 and "digits" in seen["sets"]
    assert seen["refused"].startswith("this writes into a checkout")
    assert "promote" in run([sys.executable, "-P", "-m", "flows", "--help"], empty, PYTHONPATH=str(site))


@pytest.mark.long
@pytest.mark.timeout(40 * MINUTE)
def test_installed_into_an_empty_environment_the_demo_and_the_benchmark_run(wheel: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    run([sys.executable, "-m", "venv", str(tmp_path / "venv")], empty)
    binaries = tmp_path / "venv" / "bin"
    lock = str(ROOT / "constraints.txt")
    install = [str(binaries / "python"), "-m", "pip", "install", "--quiet", "--constraint", lock]
    run([*install, str(wheel)], empty, 20 * MINUTE)
    found = json.loads(run([str(binaries / "vetgate"), "demo", "--json"], empty, 10 * MINUTE))
    assert found["unexpected"] == [] and found["repaired"]["verdict"] == "PASS"
    run([str(binaries / "vetgate"), "bench"], empty, 5 * MINUTE)
    assert (empty / ".vetgate" / "benchmark" / "benchmark.md").is_file()
