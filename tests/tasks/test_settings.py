from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from tasks.settings import load_settings
from vetgate.errors import BadSubmission


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HOME", "STORE", "TRACKING_URI", "DATA_REMOTE", "S3_ENDPOINT", "GATE_KEY", "TRUST_ROOT", "POLICY"):
        monkeypatch.delenv(f"VETGATE_{name}", raising=False)
    monkeypatch.chdir(tmp_path)


def test_everything_lies_under_dot_vetgate_in_the_working_directory(tmp_path: Path) -> None:
    home = tmp_path / ".vetgate"
    settings = load_settings()
    assert settings.home == home
    assert settings.store == settings.store_url == str(home / "store")
    assert settings.data_remote == str(home / "data-remote")
    assert settings.tracking_uri == f"sqlite:///{home}/mlflow.db"
    assert settings.artifacts == str(home / "mlartifacts")
    assert settings.gate_key == home / "keys" / "gate.ed25519"
    assert settings.trust_root == home / "keys" / "trust.json"
    assert settings.policy is None
    assert not home.exists()


def test_a_relative_home_stays_where_it_was_when_the_directory_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VETGATE_HOME", "state")
    settings = load_settings()
    monkeypatch.chdir("/")
    assert settings.home == tmp_path / "state"
    assert settings.trust_root == tmp_path / "state" / "keys" / "trust.json"


def test_the_environment_names_other_places_and_empty_means_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VETGATE_STORE", "s3://bucket/prefix/")
    monkeypatch.setenv("VETGATE_DATA_REMOTE", "file:///data%20sets")
    monkeypatch.setenv("VETGATE_TRACKING_URI", "")
    settings = load_settings(home=Path("/elsewhere"))
    assert settings.store == "s3://bucket/prefix"
    assert settings.data_remote == "/data sets"
    assert settings.tracking_uri == "sqlite:////elsewhere/mlflow.db"


def test_settings_survive_json_and_cannot_be_changed() -> None:
    settings = load_settings()
    assert type(settings).model_validate_json(settings.model_dump_json()) == settings
    with pytest.raises(ValidationError):
        settings.home = Path("/")  # type: ignore[misc]


@pytest.mark.parametrize(
    ("variable", "value"),
    [("STORE", "http://host/x"), ("STORE", "s3://"), ("DATA_REMOTE", "file://host/x"), ("S3_ENDPOINT", "host:9000")],
)
def test_a_wrong_value_is_a_usage_error_that_names_its_variable(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"VETGATE_{variable}", value)
    with pytest.raises(BadSubmission, match=f"VETGATE_{variable}: .*expected"):
        load_settings()
    with pytest.raises(BadSubmission, match="VETGATE_HOM:"):
        load_settings(hom="typo")
