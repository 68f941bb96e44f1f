from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tasks.mlflow.client import registry
from tasks.mlflow.heads import (
    EXPERIMENT,
    MLFLOW,
    TAG,
    check_end,
    heads_found,
    publish_head,
    published_head,
    whole_ledger,
)
from tasks.records.ledger_chain import append, entry_key
from tasks.records.ledger_heads import KEY
from tasks.settings import Settings
from tests.databases import with_registry
from vetgate.digest import canonical_json
from vetgate.errors import Removed, StoreError
from vetgate.trust.statements import HEAD, sign_statement


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=with_registry(tmp_path / "home"))


def elsewhere(settings: Settings) -> Settings:
    kept = {name: getattr(settings, name) for name in ("store", "trust_root", "tracking_uri")}
    return Settings(home=settings.home.parent / "serving", **kept)


@contextmanager
def server(always: bytes | None = None) -> Iterator[tuple[str, dict[str, str]]]:
    """What the gate asks of an MLflow server, with the tags that it keeps."""
    tags: dict[str, str] = {}

    class Answers(BaseHTTPRequestHandler):
        def answer(self, code: int, said: dict[str, Any]) -> None:
            self.send(code, json.dumps(said).encode())

        def send(self, code: int, body: bytes) -> None:
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            if always is not None:
                return self.send(200, always)
            if "made" not in tags or EXPERIMENT not in self.path:
                return self.answer(404, {"error_code": "RESOURCE_DOES_NOT_EXIST"})
            listed = [{"key": key, "value": value} for key, value in tags.items()]
            stage = "deleted" if "deleted" in tags else "active"
            return self.answer(200, {"experiment": {"experiment_id": "7", "lifecycle_stage": stage, "tags": listed}})

        def do_POST(self) -> None:
            said = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if urlsplit(self.path).path.endswith("/create"):
                tags["made"] = said["name"]
                return self.answer(200, {"experiment_id": "7"})
            assert said["experiment_id"] == "7"
            if urlsplit(self.path).path.endswith("/restore"):
                del tags["deleted"]
                return self.answer(200, {})
            tags[said["key"]] = said["value"]
            return self.answer(200, {})

        def log_message(self, *said: object) -> None:
            """Nothing is printed."""

    made = HTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{made.server_port}", tags
    finally:
        made.shutdown()
        thread.join()
        made.server_close()


def test_a_database_keeps_the_newest_and_whoever_never_saw_the_ledger_notices_its_end(settings: Settings) -> None:
    assert published_head(settings) is None
    for turn in range(3):
        append(settings, "rescan", {"turn": turn})
        publish_head(settings)
    assert whole_ledger(elsewhere(settings)).end == 3
    Path(settings.store, entry_key(3)).unlink()
    new = elsewhere(settings).model_copy(update={"home": settings.home.parent / "new"})
    with pytest.raises(Removed, match="which the head in mlflow names"):
        whole_ledger(new)


def test_a_server_is_told_without_mlflow(settings: Settings) -> None:
    with server() as (uri, tags):
        gate = settings.model_copy(update={"tracking_uri": uri})
        for turn in range(2):
            append(gate, "rescan", {"turn": turn})
            publish_head(gate, quickly=True)
            assert published_head(gate) == tags[TAG].encode()
        first = tags[TAG]
        publish_head(gate, quickly=True)
        assert tags[TAG] == first and whole_ledger(gate).end == 2
        Path(settings.store, entry_key(2)).unlink()
        with pytest.raises(Removed):
            whole_ledger(elsewhere(gate))


def strangers_head() -> str:
    said = {"sequence": 9, "sha256": "0" * 64, "issued": "2026-01-01T00:00:00Z"}
    return canonical_json(sign_statement(HEAD, said, Ed25519PrivateKey.generate())).decode()


NO_HEADS = pytest.mark.parametrize("tag", ["garbage", "{}", "[" * 4000, strangers_head()])


@NO_HEADS
def test_a_head_that_no_gate_signed_counts_as_none_is_told_of_and_mended(
    settings: Settings, tag: str, caplog: pytest.LogCaptureFixture
) -> None:
    append(settings, "rescan", {})
    publish_head(settings)
    with registry(settings) as client:
        where = client.get_experiment_by_name(EXPERIMENT).experiment_id
        client.set_experiment_tag(where, TAG, tag)
    assert whole_ledger(settings).end == 1
    assert "the head in mlflow, experiment vetgate-ledger" in caplog.text
    heads, unread = heads_found(settings, None)
    assert heads == {} and "experiment vetgate-ledger" in unread[0]
    with pytest.raises(StoreError, match="experiment vetgate-ledger"):
        heads_found(settings, MLFLOW)
    publish_head(settings)
    assert [*heads_found(settings, None)[0]] == [MLFLOW]


def test_an_experiment_that_was_deleted_is_restored(settings: Settings) -> None:
    append(settings, "rescan", {})
    publish_head(settings)
    with registry(settings) as client:
        where = client.get_experiment_by_name(EXPERIMENT).experiment_id
        client.set_experiment_tag(where, TAG, "garbage")
        client.delete_experiment(where)
    publish_head(settings)
    assert [*heads_found(settings, None)[0]] == [MLFLOW]


def test_a_server_restores_it_too(settings: Settings) -> None:
    with server() as (uri, tags):
        gate = settings.model_copy(update={"tracking_uri": uri})
        append(gate, "rescan", {})
        publish_head(gate)
        tags.update({"deleted": "", TAG: "garbage"})
        publish_head(gate)
        assert "deleted" not in tags and whole_ledger(gate).end == 1 and tags[TAG] != "garbage"


@pytest.mark.parametrize(
    "said",
    [b"[]", b'"x"', b"null", b"[" * 100_000, b"\xff\xfe", b'{"experiment": "x"}', b'{"experiment": {"tags": "abc"}}'],
)
def test_an_answer_of_no_form_is_an_error_that_names_the_registry(settings: Settings, said: bytes) -> None:
    append(settings, "rescan", {})
    with server(said) as (uri, _), pytest.raises(StoreError, match=f"the registry at {uri} .*vetgate-ledger"):
        published_head(settings.model_copy(update={"tracking_uri": uri}))


@pytest.mark.parametrize("value", [b"7", b'{"a": 1}', b'"\\ud800"', b"null"])
def test_a_head_that_is_no_text_counts_as_none(settings: Settings, value: bytes) -> None:
    append(settings, "rescan", {})
    said = b'{"experiment": {"tags": [{}, {"key": "%s", "value": %s}]}}' % (TAG.encode(), value)
    with server(said) as (uri, _):
        assert whole_ledger(settings.model_copy(update={"tracking_uri": uri})).end == 1


def test_a_registry_that_is_away_keeps_the_gate_from_nothing_and_whoever_asks_from_knowing(settings: Settings) -> None:
    away = settings.model_copy(update={"tracking_uri": "http://127.0.0.1:9"})
    append(away, "rescan", {})
    publish_head(away)
    with pytest.raises(StoreError) as caught:
        whole_ledger(away)
    assert caught.value.exit_code == 2
    heads, unread = heads_found(away, None)
    assert heads == {} and len(unread) == 1


def test_the_heads_that_are_found_are_named_by_where_they_are(settings: Settings, tmp_path: Path) -> None:
    append(settings, "rescan", {})
    policy = tmp_path / "policy.yaml"
    policy.write_text(f"name: p\nrequired: [abs]\nledger: {{heads: ['{tmp_path / 'heads'}']}}\n")
    named = settings.model_copy(update={"policy": policy})
    assert heads_found(named, None) == ({}, [])
    publish_head(named)
    heads, unread = heads_found(named, None)
    assert [*heads] == [MLFLOW, str(tmp_path / "heads")] and unread == []
    assert [*heads_found(named, MLFLOW)[0]] == [MLFLOW]
    with pytest.raises(StoreError, match="got none"):
        heads_found(named, str(tmp_path / "none"))


class TestWhereThePolicyNames:
    """A head of another owner shows an end that was cut off to whoever loads, promotes or reconciles."""

    @pytest.fixture
    def named(self, settings: Settings, tmp_path: Path) -> Settings:
        """Three entries; MLflow's head tells of two of them, those of the policy's places of all."""
        policy = tmp_path / "policy.yaml"
        places = json.dumps([str(tmp_path / "one"), str(tmp_path / "two")])
        policy.write_text(f"name: p\nrequired: [abs]\nledger: {{heads: {places}}}\n")
        named = settings.model_copy(update={"policy": policy})
        for turn in range(3):
            append(named, "rescan", {"turn": turn})
            publish_head(named if turn == 2 else settings, quickly=turn == 2)
        return named

    def new(self, named: Settings) -> Settings:
        """A host that never saw the ledger, with this policy."""
        return elsewhere(named).model_copy(update={"policy": named.policy})

    @pytest.mark.parametrize("left", [("one", "two"), ("one",), ("two",)])
    def test_an_end_that_was_cut_off_is_noticed(self, named: Settings, tmp_path: Path, left: tuple[str, ...]) -> None:
        for gone in {"one", "two"} - set(left):
            (tmp_path / gone / KEY).unlink()
        assert whole_ledger(self.new(named)).end == 3
        Path(named.store, entry_key(3)).unlink()
        new = self.new(named).model_copy(update={"home": tmp_path / "new"})
        with pytest.raises(Removed, match=f"which the head in {tmp_path / left[0]} names"):
            whole_ledger(new)
        with pytest.raises(Removed):
            check_end(new)

    @pytest.mark.parametrize("head", [None, b"garbage", b"{}"])
    def test_one_that_says_nothing_keeps_nobody_from_loading_and_is_told_of(
        self, named: Settings, tmp_path: Path, head: bytes | None, caplog: pytest.LogCaptureFixture
    ) -> None:
        file = tmp_path / "one" / KEY
        file.unlink()
        if head is None:
            file.parent.joinpath(".partial").rmdir()
            file.parent.rmdir()
            file.parent.write_bytes(b"no directory")
        else:
            file.write_bytes(head)
        assert whole_ledger(self.new(named)).end == 3
        assert str(tmp_path / "one") in caplog.text
        Path(named.store, entry_key(3)).unlink()
        with pytest.raises(Removed, match=str(tmp_path / "two")):
            whole_ledger(self.new(named).model_copy(update={"home": tmp_path / "new"}))
