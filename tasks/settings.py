"""Where everything lies: one frozen object read from `VETGATE_*` variables, every path in it absolute.

Secrets are not here: boto3, MLflow and Prefect read their own variables from the environment.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, Field, PositiveInt, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from tasks.sqlite import sqlite_url
from vetgate.errors import BadSubmission, StoreError


def _absolute(path: Path) -> Path:
    try:
        whole = Path(path.expanduser().absolute())
    except RuntimeError as error:
        raise ValueError(f"expected the path of a user that there is, got {str(path)!r}; write it out") from error
    # URLs, JSON and DVC's files hold paths as text, a line each
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in str(whole)):
        raise ValueError(f"expected a path of UTF-8 text on one line, got {str(whole)!r}; use another directory")
    return whole


def location(url: str) -> str:
    """An s3:// URL as it is, a file:// URL or a plain path as an absolute path."""
    parts = urlsplit(url)
    if parts.scheme == "s3":
        if not parts.netloc:
            raise ValueError(f"expected s3://bucket/prefix, got {url!r}; name a bucket")
        return url.rstrip("/")
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise ValueError(f"expected file:///absolute/path, got {url!r}; write three slashes")
        return str(_absolute(Path(unquote(parts.path))))
    if "://" in url:
        raise ValueError(f"expected a path, file:///… or s3://bucket/prefix, got {url!r}; use one of these")
    return str(_absolute(Path(url)))


def _endpoint(url: str | None) -> str | None:
    if url is not None and urlsplit(url).scheme not in ("http", "https"):
        raise ValueError(f"expected http://host:port or https://…, got {url!r}; write the scheme")
    return url


Port = Annotated[int, Field(ge=1, le=65535)]
AbsolutePath = Annotated[Path, AfterValidator(_absolute)]
Location = Annotated[str, AfterValidator(location)]


def _under_home(*parts: str) -> Any:
    return Field(default_factory=lambda data: data["home"].joinpath(*parts))


def _location_under_home(name: str) -> Any:
    return Field(default_factory=lambda data: str(data["home"] / name))


class Settings(BaseSettings):
    """The installation's places; each field is set by the variable VETGATE_<FIELD>, or lies under `home`."""

    model_config = SettingsConfigDict(env_prefix="VETGATE_", env_ignore_empty=True, frozen=True, extra="forbid")

    home: AbsolutePath = Field(default=Path(".vetgate"), validate_default=True)
    store: Location = _location_under_home("store")
    data_remote: Location = _location_under_home("data-remote")
    s3_endpoint: Annotated[str | None, AfterValidator(_endpoint)] = None
    tracking_uri: str = Field(default_factory=lambda data: sqlite_url(data["home"] / "mlflow.db"))
    artifacts: Location = _location_under_home("mlartifacts")
    policy: AbsolutePath | None = None
    calibration: AbsolutePath | None = None
    params: AbsolutePath | None = None
    gate_url: Annotated[str | None, AfterValidator(_endpoint)] = None
    receiver_url: Annotated[str | None, AfterValidator(_endpoint)] = None
    gate_key: AbsolutePath = _under_home("keys", "gate.ed25519")
    gate_token: AbsolutePath = _under_home("keys", "gate.token")
    webhook_secret: AbsolutePath = _under_home("keys", "webhook.secret")
    submitter_key: AbsolutePath | None = None
    vetter_key: AbsolutePath = _under_home("keys", "vetter.ed25519")
    seed_secret: AbsolutePath = _under_home("keys", "seed.secret")
    trust_root: AbsolutePath = _under_home("keys", "trust.json")
    lease_seconds: Annotated[int, Field(ge=1, le=24 * 3600)] = 120
    start_seconds: PositiveInt = 300
    remote_seconds: PositiveInt = 60
    threads: PositiveInt = 2
    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:\d{1,3})?)$")] = "cpu"
    host: str = "127.0.0.1"
    prefect_port: Port = 4200
    mlflow_port: Port = 5000
    receiver_port: Port = 8480
    gate_port: Port = 8481
    s3_command: str | None = None
    dask_scheduler: str | None = None

    @property
    def store_url(self) -> str:
        """What `tasks.store.open.open_store` opens: a path or s3://bucket/prefix."""
        return self.store


def load_settings(**values: Any) -> Settings:
    """The settings from the environment, `values` going first; raises BadSubmission (usage) on a wrong one.

    Raises StoreError where a path is relative and the working directory is gone.
    """
    try:
        return Settings(**values)
    except ValidationError as error:
        # a wrong home also fails every default that lies under it
        own = [e for e in error.errors() if e["type"] != "default_factory_not_called"]
        wrong = "; ".join(f"VETGATE_{'_'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in own)
        raise BadSubmission(f"expected valid settings, got {wrong}; correct the variable or unset it") from error
    except FileNotFoundError as error:
        raise StoreError(
            "expected a working directory for paths that are not absolute, got one that is gone; change to another, "
            "or set VETGATE_HOME to an absolute path"
        ) from error
