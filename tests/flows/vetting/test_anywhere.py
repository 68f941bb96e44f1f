"""One vetting each in the three worst places that a host has been found to be."""

from __future__ import annotations

import json
import os
import select
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import models
from tests.databases import with_fixed_seeds
from vetgate.contract import Samples

VETGATE = Path(sys.executable).with_name("vetgate")
# a user number that has no name, as OpenShift and `docker run --user` give one
UNNAMED = ("unshare", "--user", "--map-user=12345", "--map-group=12345")


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    return models.read_digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture
def dead_proxy() -> Iterator[socket.socket]:
    """A proxy that answers nobody."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def vet(
    room: Path, home: str, submission: Path, installation: dict[str, str], *before: str, **environment: str
) -> tuple[int, dict[str, Any]]:
    """Vet in `room`, with nothing of this process's environment; exit code and result."""
    place = with_fixed_seeds(room / home)
    (room / "here").mkdir()
    given = {"PATH": "/usr/bin:/bin", "VETGATE_HOME": str(place), **installation, **environment}
    line = [*before, str(VETGATE), "vet", str(submission), "--json"]
    done = subprocess.run(line, env=given, cwd=room / "here", capture_output=True)
    result: dict[str, Any] = json.loads(done.stdout or "{}")
    assert "error" not in result and result, done.stderr.decode(errors="replace")
    # nothing but the home was written to, under its own name, and every page of it is there
    assert sorted(os.listdir(room)) == sorted([home, "here", submission.name])
    assert os.listdir(room / "here") == []
    assert Path(result["report"]).is_relative_to(place) and Path(result["report"]).is_file()
    assert (place / "mlflow.db").is_file() and (place / "prefect" / "prefect.db").is_file() and result["mlflow_run"]
    return done.returncode, result


def test_in_a_home_of_any_letters_without_a_place_for_caches(
    tmp_path: Path, installation: dict[str, str], samples: Samples
) -> None:
    submission = models.honest_submission(tmp_path / "in", samples)
    home = "Müller 日本 $name{x}%(y)s ?#%41 'q\" ~"
    # /sys exists, and nothing can be made in it
    code, result = vet(tmp_path, home, submission, installation, HOME="/sys", LC_ALL="C", TZ="Asia/Kathmandu")
    assert (code, result["verdict"]) == (0, "PASS")


def test_as_a_user_number_without_a_name_or_a_home(
    tmp_path: Path, installation: dict[str, str], samples: Samples
) -> None:
    if shutil.which("unshare") is None or subprocess.run([*UNNAMED, "true"], capture_output=True).returncode:
        pytest.skip("needs user namespaces, which this host does not give")
    submission = models.honest_submission(tmp_path / "in", samples)
    code, result = vet(tmp_path, "home", submission, installation, *UNNAMED, TZ="<+1345>-13:45", LANG="nowhere.XX")
    assert (code, result["verdict"]) == (0, "PASS")


def test_behind_a_proxy_without_docstrings_or_utf_8(
    tmp_path: Path, installation: dict[str, str], samples: Samples, dead_proxy: socket.socket
) -> None:
    submission = models.honest_submission(tmp_path / "in", samples)
    proxy = f"http://127.0.0.1:{dead_proxy.getsockname()[1]}"
    proxies = dict.fromkeys(("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy"), proxy)
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    code, result = vet(tmp_path, "höme", submission, installation, PYTHONOPTIMIZE="2", **proxies, **ascii_only)
    assert (code, result["verdict"]) == (0, "PASS")
    assert select.select([dead_proxy], [], [], 0)[0] == [], "the proxy was asked"
