"""The job that makes the buckets believes an S3 server only after it has tried it."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from tasks.store.open import open_store
from tests.infra.known import ROOT

NAMES = ("--store", "the-store", "--reference", "the-reference", "--artifacts", "the-artifacts")
Environ = dict[str, Any]


@pytest.fixture(scope="module")
def buckets() -> ModuleType:
    """The job as a module."""
    spec = importlib.util.spec_from_file_location("buckets", ROOT / "infra" / "compose" / "buckets.py")
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@contextmanager
def server(change: Callable[[Environ], None] = lambda environ: None) -> Iterator[str]:
    """An S3 server that sees requests as `change` leaves them; its endpoint."""
    backend = DomainDispatcherApplication(create_backend_app)

    def application(environ: Environ, start_response: Any) -> Any:
        change(environ)
        return backend(environ, start_response)

    listening = make_server("127.0.0.1", 0, application, threaded=True)
    thread = threading.Thread(target=listening.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.server_port}"
    finally:
        listening.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in {
        "AWS_ACCESS_KEY_ID": "k",
        "AWS_SECRET_ACCESS_KEY": "s",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(key, value)


@pytest.fixture(autouse=True)
def _emptied() -> Iterator[None]:
    yield
    from moto.s3.models import s3_backends

    s3_backends.reset()


def test_buckets_are_made_once_and_can_be_written(buckets: ModuleType, monkeypatch: pytest.MonkeyPatch):
    with server() as endpoint:
        monkeypatch.setenv("VETGATE_S3_ENDPOINT", endpoint)
        assert buckets.main(list(NAMES)) == 0
        store = open_store("s3://the-store", endpoint=endpoint)
        assert store.create("submissions/a.json", b"1")
        assert buckets.main(list(NAMES)) == 0
        assert store.read("submissions/a.json") == b"1"
        s3 = buckets.client(endpoint)
        for name in ("the-store", "the-reference", "the-artifacts"):
            assert s3.get_bucket_versioning(Bucket=name)["Status"] == "Enabled"
        assert s3.get_object_lock_configuration(Bucket="the-store")["ObjectLockConfiguration"]["ObjectLockEnabled"]


@pytest.mark.parametrize("header", ["HTTP_IF_NONE_MATCH", "HTTP_IF_MATCH"])
def test_a_server_that_does_not_honour_a_condition_is_refused(
    header: str, buckets: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    with server(lambda environ: environ.pop(header, None)) as endpoint:
        monkeypatch.setenv("VETGATE_S3_ENDPOINT", endpoint)
        assert buckets.main(list(NAMES)) == 2
    assert "got a yes; use another S3 server" in capsys.readouterr().err


def test_a_bucket_that_was_made_without_object_lock_is_refused(
    buckets: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    with server() as endpoint:
        monkeypatch.setenv("VETGATE_S3_ENDPOINT", endpoint)
        buckets.client(endpoint).create_bucket(Bucket="the-store")
        assert buckets.main(list(NAMES)) == 2
    assert "object lock" in capsys.readouterr().err


def test_a_server_that_is_not_there_is_an_error(buckets: ModuleType, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VETGATE_S3_ENDPOINT", "http://127.0.0.1:9")
    assert buckets.main(list(NAMES)) == 2
