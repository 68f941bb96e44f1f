"""A password in a setting is in nothing that a command says or leaves in its home, whatever goes wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows.cli.service import _announce
from tests.flows.conftest import Command
from vetgate.errors import StoreError

SECRET = "s3cretpw"
SERVER = f"http://user:{SECRET}@127.0.0.1:9"
QUICK = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "VETGATE_REMOTE_SECONDS": "1", "VETGATE_START_SECONDS": "1"}
KEYS = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_MAX_ATTEMPTS": "1"}
SETTINGS: dict[str, dict[str, str]] = {
    "tracking server": {"VETGATE_TRACKING_URI": SERVER},
    "tracking server, by MLflow": {"VETGATE_TRACKING_URI": SERVER, "MLFLOW_WORKSPACE": "default"},
    "tracking server of no scheme": {"VETGATE_TRACKING_URI": SERVER.replace("http", "htp")},
    # MLflow itself asks a database that does not answer for a quarter of an hour
    "database of no kind": {"VETGATE_TRACKING_URI": f"postgresql+none://user:{SECRET}@127.0.0.1:9/mlflow"},
    "database by a parameter": {"VETGATE_TRACKING_URI": f"sql://127.0.0.1:9/mlflow?user=u&password={SECRET}"},
    "store": {"VETGATE_STORE": "s3://bucket", "VETGATE_S3_ENDPOINT": SERVER, **KEYS},
    "store of no scheme": {"VETGATE_STORE": f"ftp://user:{SECRET}@host"},
    "endpoint of no scheme": {"VETGATE_S3_ENDPOINT": f"ftp://user:{SECRET}@host"},
    "proxy": {"VETGATE_TRACKING_URI": "http://tracking.invalid", "HTTP_PROXY": SERVER, "NO_PROXY": "x"},
}
COMMANDS = (
    ("status",),
    ("status", "--json"),
    ("reconcile", "--json"),
    ("ledger", "verify"),
    ("verify", "models:/prod.digits@champion", "--json"),
)


@pytest.mark.parametrize("what", sorted(SETTINGS))
def test_no_command_tells_it(vetgate: Command, tmp_path: Path, what: str) -> None:
    said = {}
    for command in COMMANDS:
        done = vetgate(*command, VETGATE_HOME=tmp_path / "home", **QUICK, **SETTINGS[what])
        said[command] = done.out + done.err
    assert any(said.values())
    assert not [(command, text) for command, text in said.items() if SECRET in text]
    left = [file for file in (tmp_path / "home").rglob("*") if file.is_file() and SECRET.encode() in file.read_bytes()]
    assert not left


def test_an_error_that_no_command_foresaw_does_not_tell_it(alone: Command, tmp_path: Path) -> None:
    prelude = f"""
import flows.cli.status
def at_a_glance(settings):
    raise RuntimeError("no answer of {SERVER}")
flows.cli.status.at_a_glance = at_a_glance
"""
    done = alone("status", "--json", prelude=prelude, VETGATE_HOME=tmp_path)
    (log,) = (tmp_path / "logs").iterdir()
    assert done.code == 2 and "***@127" in done.out and "***@127" in log.read_text()
    assert SECRET not in done.out + done.err + log.read_text()


@pytest.mark.parametrize("as_json", [False, True])
def test_the_service_announces_itself_without_it(as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("PREFECT_API_URL", "VETGATE_HOME", "VETGATE_TRACKING_URI", "VETGATE_GATE_URL")
    parts = dict.fromkeys(("prefect", "mlflow", "receiver", "gate", "store"), SERVER)
    _announce({**parts, "seconds": 1.0, "environment": dict.fromkeys(names, SERVER)}, as_json=as_json)
    said = capsys.readouterr().out
    assert said.count("***@127.0.0.1:9") == 9 and SECRET not in said


def test_as_json_it_is_still_one_object() -> None:
    from flows.cli.console import json_text

    blob = {"a": [SERVER, "b@c"], f"{SERVER}/x": {"d": str(StoreError(SERVER))}, 'e"://f:g': 'h"@i'}
    assert json.loads(json_text(blob))["a"] == ["http://***@127.0.0.1:9", "b@c"]
