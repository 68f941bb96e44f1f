"""What starts often stays light: modules on the host, and commands, that import no torch, orchestrator or data library.

All of them run in one process, one after another: what is heavy and loaded after one was loaded by it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "onnxruntime", "prefect", "mlflow", "dvc", "boto3", "sklearn"}
COMMAND = "from flows.cli.commands import main; assert main({}) == {}"
NO_ATTESTATION = ["verify", "given", "--attestation", "none.json", "--name", "digits-honest"]
CASES = {
    "the names of architectures": "import vetgate.architectures",
    "formats on the host": "import vetgate.formats.submission, vetgate.formats.manifest, vetgate.formats.inspect",
    "code digests": "import vetgate.digest as d; d.code_digest('detect', 'neural_cleanse')",
    "the sandbox's host": "import tasks.sandbox.host",
    "data and reports": "import tasks.data.reference, tasks.report.page",
    "vetgate --help": COMMAND.format(["--help"], 0),
    "vetgate status": COMMAND.format(["status"], 0),
    "vetgate submit": COMMAND.format(["submit", "given"], 0),
    "vetgate rejected": COMMAND.format(["rejected"], 0),
    "vetgate scan": COMMAND.format(["scan", "given"], 0),
    "vetgate verify": COMMAND.format(NO_ATTESTATION, 1),
    "the gate's own process": "import flows.gate.decide",
    # the flow engine goes by the environment that it finds when it is imported
    "a vetting in this process": "import flows.vetting.local",
    "canaries": "import flows.rescan.canaries",
    "serving and verifying": "import flows.production.serving, flows.production.verify",
    "the receiver": (
        "from flows.service.receiver import receiver; from tasks.settings import load_settings; "
        "receiver(load_settings())"
    ),
}
RUNNER = """
import json, os, sys
heavy, cases = json.loads(sys.stdin.readline()), json.loads(sys.stdin.readline())
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
for name, code in cases:
    try:
        exec(code, {})
        failed = None
    except BaseException as error:
        failed = repr(error)
    print(json.dumps({"name": name, "failed": failed, "loaded": sorted(set(heavy) & set(sys.modules))}), file=answers)
"""


@pytest.fixture(scope="module")
def after(tmp_path_factory: pytest.TempPathFactory, honest: Path) -> dict[str, dict[str, Any]]:
    """How each case went and what was loaded after it, by name."""
    room = tmp_path_factory.mktemp("light")
    (room / "given").symlink_to(honest)
    own = {k: v for k, v in os.environ.items() if not k.startswith(("VETGATE_", "PREFECT_", "MLFLOW_"))}
    own |= {"VETGATE_HOME": str(room / "home"), "VETGATE_GATE_KEY": "/dev/null/withheld", "PYTHONPATH": str(ROOT)}
    # the last one shows that what is heavy would be seen
    cases = [*CASES.items(), ("torch", "import torch")]
    asked = f"{json.dumps(sorted(HEAVY))}\n{json.dumps(cases)}\n"
    done = subprocess.run(
        [sys.executable, "-c", RUNNER], env=own, cwd=room, input=asked, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return {answer["name"]: answer | {"err": done.stderr} for answer in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("name", CASES)
def test_it_stays_light(name: str, after: dict[str, dict[str, Any]]) -> None:
    assert after[name]["failed"] is None, after[name]
    assert after[name]["loaded"] == [], after[name]


def test_what_is_heavy_is_seen(after: dict[str, dict[str, Any]]) -> None:
    assert after["torch"]["failed"] is None and "torch" in after["torch"]["loaded"]
