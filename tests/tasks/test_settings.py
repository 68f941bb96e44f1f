from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from tasks.settings import load_settings
from vetgate.errors import BadSubmission, StoreError


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


@pytest.mark.parametrize("variable", ["HOME", "STORE", "TRUST_ROOT"])
def test_a_relative_place_in_a_directory_that_is_gone_is_an_error(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    monkeypatch.setenv("VETGATE_HOME", str(tmp_path))
    monkeypatch.setenv(f"VETGATE_{variable}", "here")
    assert load_settings()
    gone.rmdir()
    with pytest.raises(StoreError, match="got one that is gone; change to another, or set VETGATE_HOME"):
        load_settings()
    monkeypatch.setenv(f"VETGATE_{variable}", str(tmp_path / "there"))
    assert load_settings()


def test_a_home_of_a_user_that_there_is_not_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VETGATE_HOME", "~no-such-user/vetgate")
    with pytest.raises(BadSubmission, match=r"VETGATE_HOME: .*expected the path of a user that there is"):
        load_settings()
