"""The attested bytes come from S3 and from a registry's server as they do from disk, or not at all."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from flows.production.serving import deliver
from tasks.mlflow import delivery
from tasks.mlflow.aliases import all_names, in_production
from tasks.mlflow.client import registry
from tasks.mlflow.delivery import read_bounded
from tasks.mlflow.listing import IS_PROMPT
from tasks.mlflow.reader import read_names, read_production
from tasks.settings import Settings
from tests.databases import with_registry
from tests.flows.production.test_serving import CHAMPION, Production, weights
from vetgate.errors import Altered, Denied, StoreError


def refused(production: Production, reason: str) -> None:
    with pytest.raises(Denied, match=reason) as caught:
        deliver(CHAMPION, production.settings)
    assert caught.value.exit_code == 1


@pytest.fixture
def on_s3(tmp_path: Path, s3_endpoint: str) -> Production:
    where = f"s3://vetgate/{uuid.uuid4().hex}"
    settings = Settings(home=with_registry(tmp_path / "home"), store=where, s3_endpoint=s3_endpoint)
    return Production(settings, tmp_path)


def test_on_s3_the_vetted_copy_itself_is_delivered_or_refused(on_s3: Production, s3_endpoint: str) -> None:
    manifest = on_s3.promoted(1)
    delivered = deliver(CHAMPION, on_s3.settings)
    assert delivered.members["model.safetensors"] == weights(1)
    assert delivered.coverage.promotion.source == on_s3.store.url(f"vetted/{manifest}")

    objects: Any = boto3.resource("s3", endpoint_url=s3_endpoint).Bucket("vetgate")
    home = f"{on_s3.settings.store.removeprefix('s3://vetgate/')}/vetted/{manifest}"
    objects.put_object(Key=f"{home}/model.safetensors", Body=weights(2))
    refused(on_s3, r"changed: model\.safetensors")
    objects.put_object(Key=f"{home}/model.safetensors", Body=weights(1))
    objects.put_object(Key=f"{home}/extra", Body=b"")
    refused(on_s3, "got others: extra")
    objects.Object(f"{home}/extra").delete()
    assert deliver(CHAMPION, on_s3.settings).members == delivered.members
    objects.Object(f"{home}/model.safetensors").delete()
    refused(on_s3, r"got others: model\.safetensors")


def test_an_object_that_vanishes_between_listing_and_reading_is_an_error(
    on_s3: Production, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = on_s3.promoted(1)
    objects: Any = boto3.resource("s3", endpoint_url=s3_endpoint).Bucket("vetgate")
    home = f"{on_s3.settings.store.removeprefix('s3://vetgate/')}/vetted/{manifest}"
    check_files = delivery.check_files

    def vanishing(*asked: Any) -> None:
        check_files(*asked)
        objects.Object(f"{home}/model.safetensors").delete()

    monkeypatch.setattr(delivery, "check_files", vanishing)
    with pytest.raises(StoreError, match="another process removed it"):
        deliver(CHAMPION, on_s3.settings)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """URL of an MLflow server that hands out artifacts itself; they lie in tmp_path/artifacts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    database = with_registry(tmp_path / "server") / "mlflow.db"
    line = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    line += ["--backend-store-uri", f"sqlite:///{database}"]
    line += ["--artifacts-destination", (tmp_path / "artifacts").as_uri()]
    log = (tmp_path / "server.log").open("wb")
    # its runner of jobs is two more processes of that size
    quiet = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    process = subprocess.Popen(line, env=quiet, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait_for(f"http://127.0.0.1:{port}", process)
        yield f"http://127.0.0.1:{port}"
    finally:
        _end(process)
        log.close()


@pytest.mark.slow
def test_bytes_that_the_registry_s_server_hands_out_are_delivered_or_refused(tmp_path: Path, server: str) -> None:
    settings = Settings(home=tmp_path / "home", tracking_uri=server)
    production = Production(settings, tmp_path)
    production.promoted(1)
    delivered = deliver(CHAMPION, settings)
    assert delivered.coverage.promotion.source.startswith("mlflow-artifacts:")
    assert read_production(settings) == in_production(settings) != []
    assert delivered.members["model.safetensors"] == weights(1)
    held = in_production(settings)
    with registry(settings) as client:
        client.set_registered_model_tag(f"prod.{held[0].name}", IS_PROMPT, "true")
        client.set_model_version_tag(f"prod.{held[0].name}", "1", IS_PROMPT, "true")
    assert read_production(settings) == in_production(settings) == held
    assert read_names(settings) == all_names(settings) != []
    assert deliver(CHAMPION, settings).version == "1"

    (file,) = (tmp_path / "artifacts").rglob("model.safetensors")
    file.write_bytes(weights(2))
    refused(production, r"changed: model\.safetensors")
    with file.open("wb") as sparse:
        sparse.truncate(delivery.MAX_BYTES + 1)
    refused(production, r"got \d{10} bytes at mlflow-artifacts:")
    file.unlink()
    refused(production, r"got others: model\.safetensors")


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 180
    while time.monotonic() < until and process.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise AssertionError("the registry's server did not start")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the server and the workers it started, which are its session."""
    with_children = os.getpgid(process.pid)
    os.killpg(with_children, signal.SIGTERM)
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        os.killpg(with_children, signal.SIGKILL)
        process.wait()


def linked(folder: Path) -> None:
    (folder / "elsewhere").write_bytes(b"12345678")
    (folder / "model").symlink_to(folder / "elsewhere")


@pytest.mark.parametrize(
    ("put", "error"),
    [
        (linked, OSError),
        (lambda folder: os.mkfifo(folder / "model"), Altered),
        (lambda folder: (folder / "model").write_bytes(b"123456789"), Altered),
        (lambda folder: (folder / "model").mkdir(), OSError),
    ],
    ids=["a link to the very bytes", "a pipe that nobody writes to", "a byte too many", "a folder"],
)
def test_only_a_plain_file_of_the_size_is_read(
    tmp_path: Path, put: Callable[[Path], object], error: type[Exception]
) -> None:
    put(tmp_path)
    with pytest.raises(error):
        read_bounded(tmp_path / "model", 8)
    (tmp_path / "plain").write_bytes(b"12345678")
    assert read_bounded(tmp_path / "plain", 8) == b"12345678"
