from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tasks.mlflow import client as mlflow_client
from tasks.mlflow.aliases import all_names, in_production, registered, version_of
from tasks.mlflow.answers import MOST_PAGES, OddAnswer, pages, seconds, text
from tasks.mlflow.client import is_ours, registry
from tasks.mlflow.delivery import registered_version
from tasks.mlflow.reader import read_names, read_production
from tasks.mlflow.webhooks import register_webhook
from tasks.settings import Settings
from tests.posing import Silent, posing
from vetgate.errors import StoreError

MODELS, VERSIONS = "registered-models/search", "model-versions/search"
VERSION = {"name": "prod.digits", "version": "1", "source": "s3://x/y", "current_stage": "None"}
HOOK = {"webhook_id": "w", "name": "another", "url": "https://x/", "status": "ACTIVE"} | {
    "events": [{"entity": "MODEL_VERSION", "action": "CREATED"}]
}
ALIASED = {"name": "prod.digits", "aliases": [{"alias": "champion", "version": "1"}]}


@contextmanager
def says(answers: dict[str, bytes]) -> Iterator[str]:
    """URL of what poses as MLflow's server, with one answer to each kind of question."""

    class Answers(Silent):
        def do_GET(self) -> None:
            body = answers.get(self.path.partition("?")[0].removeprefix("/api/2.0/mlflow/"), b"{}")
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with posing(Answers) as url:
        yield url


def asking(room: Path, url: str) -> Settings:
    return Settings(home=room / "home", tracking_uri=url)


def as_bytes(said: Any) -> bytes:
    return said if isinstance(said, bytes) else json.dumps(said).encode()


class TestForms:
    @pytest.mark.parametrize(
        "said",
        [[], "x", b"null", b"7", b"[" * 100_000, b"\xff\xfe", {"registered_models": "x"}, {"registered_models": ["x"]}]
        + [{"registered_models": [{"name": "prod.digits", "aliases": aliases}]} for aliases in ("abc", [7], {"a": 1})],
    )
    def test_what_has_none_is_an_error_that_names_the_registry(self, tmp_path: Path, said: Any) -> None:
        with says({MODELS: as_bytes(said)}) as url, pytest.raises(StoreError, match=url):
            read_production(asking(tmp_path, url))

    @pytest.mark.parametrize("said", [b"[]", b"7", b"[" * 100_000, b'{"registered_models": [7]}'])
    @pytest.mark.parametrize("ask", [registered, in_production, all_names])
    def test_nor_does_mlflow_end_in_what_it_trips_over(
        self, tmp_path: Path, said: bytes, ask: Callable[[Settings], object]
    ) -> None:
        with says({MODELS: said}) as url, pytest.raises(StoreError, match=url):
            ask(asking(tmp_path, url))

    @pytest.mark.parametrize(
        ("field", "odd"),
        [
            ("name", 5),
            ("version", None),
            ("version", "../../x"),
            ("version", "9" * 5000),
            ("source", 7),
            ("creation_timestamp", "abc"),
            ("creation_timestamp", 1e300),
        ],
    )
    def test_an_odd_version_keeps_nobody_from_the_others(self, tmp_path: Path, field: str, odd: object) -> None:
        listed = {"model_versions": [VERSION | {field: odd}, VERSION | {"version": "2", "current_stage": "Production"}]}
        with says({MODELS: as_bytes({"registered_models": [ALIASED]}), VERSIONS: as_bytes(listed)}) as url:
            held = read_production(asking(tmp_path, url))
        assert ("digits", "2", "Production") in [(item.name, item.version, item.stage) for item in held]

    def test_half_a_character_is_escaped(self, tmp_path: Path) -> None:
        half = b'{"registered_models": [{"name": "prod.\\ud800"}, {"name": "prod.\\u00e9"}]}'
        with says({MODELS: half}) as url:
            assert read_names(asking(tmp_path, url)) == ["'prod.\\ud800'", "prod.é"]
        assert text(b"\xff") == "b'\\xff'" and text(3) == "3" and text(None) == ""

    @pytest.mark.parametrize("moment", ["abc", None, "nan", -1, 10**400, 1e300 * 1e300, b"\xff"])
    def test_no_moment_is_long_ago(self, moment: object) -> None:
        assert seconds(moment) == 0.0 and seconds("1500") == seconds(1500) == 1.5


class TestPages:
    @pytest.mark.parametrize("ask", [read_production, read_names, registered, in_production])
    def test_without_end_are_an_error(self, tmp_path: Path, ask: Callable[[Settings], object]) -> None:
        endless = {MODELS: b'{"registered_models": [], "next_page_token": "x"}'}
        with says(endless) as url, pytest.raises(StoreError, match=f"{url} .*no end"):
            ask(asking(tmp_path, url))

    @pytest.mark.parametrize("hooks", [[], [HOOK], [HOOK] * 20])
    def test_nor_has_a_list_of_webhooks(self, tmp_path: Path, hooks: list[dict[str, Any]]) -> None:
        endless = as_bytes({"webhooks": hooks, "next_page_token": "x"})
        with says({"webhooks": endless}) as url, pytest.raises(StoreError, match=f"{url} .*no end"):
            register_webhook(asking(tmp_path, url), "vetgate", "https://gate/mlflow", ["model_version.created"])

    def test_also_when_each_has_a_token_of_its_own(self) -> None:
        with pytest.raises(OddAnswer, match="no end"):
            list(pages(lambda token: ([], f"{token}x")))
        assert len(list(pages(lambda token: (token, "x" * n if (n := len(token or "") + 1) < MOST_PAGES else "")))) > 9


class TestVersions:
    @pytest.mark.parametrize("other", [{"version": "2"}, {"name": "prod.other"}, {"version": "1\x00"}, {"version": ""}])
    def test_another_than_was_asked_for_is_an_error(self, tmp_path: Path, other: dict[str, str]) -> None:
        answers = {
            "model-versions/get": as_bytes({"model_version": VERSION | other}),
            "registered-models/get": as_bytes({"registered_model": ALIASED}),
        }
        with says(answers) as url:
            settings = asking(tmp_path, url)
            for alias, number in ((None, "1"), ("champion", None)):
                with pytest.raises(StoreError, match=rf"{url} .*where version 1 of prod\.digits"):
                    registered_version(settings, "prod.digits", alias, number)
            with pytest.raises(StoreError, match="where version 1"), registry(settings) as client:
                version_of(client, "digits", "1")

    @pytest.mark.parametrize("said", [b"[]", b"7", b"[" * 100_000, b'{"model_version": "x"}', b'{"model_version": 7}'])
    def test_what_mlflow_itself_trips_over_is_an_error_that_names_the_registry(
        self, tmp_path: Path, said: bytes
    ) -> None:
        with says({"model-versions/get": said}) as url, pytest.raises(StoreError, match=url):
            registered_version(asking(tmp_path, url), "prod.digits", None, "1")


class TestLoadedFrom:
    @pytest.mark.parametrize("said", [{"artifact_uri": "s3://evil"}, {"artifact_uri": ""}, {}])
    def test_what_a_server_loads_from_another_place_is_said(self, tmp_path: Path, said: dict[str, str]) -> None:
        answers = {
            MODELS: as_bytes({"registered_models": [ALIASED]}),
            VERSIONS: as_bytes({"model_versions": [VERSION]}),
            "registered-models/get": as_bytes({"registered_model": ALIASED}),
            "model-versions/get": as_bytes({"model_version": VERSION}),
            "model-versions/get-download-uri": as_bytes(said),
        }
        place = f"s3://x/y, loaded from {said.get('artifact_uri', '')!r}"
        with says(answers) as url:
            settings = asking(tmp_path, url)
            assert [item.place for item in read_production(settings)] == [place]
            assert [item.place for item in in_production(settings)] == [place]
            assert registered_version(settings, "prod.digits", "champion", None) == ("1", place)


class TestWaiting:
    def test_for_the_registry_ends_and_names_lock_and_bound(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(mlflow_client, "WAIT_SECONDS", 0.1)
        settings = asking(tmp_path, "http://127.0.0.1:9")
        settings.home.mkdir()
        with (settings.home / "registry.lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with pytest.raises(StoreError, match=r"registry\.lock within 0\.1 seconds"), registry(settings):
                pass
        with registry(settings):
            pass


class TestPlaces:
    def test_of_a_database_are_below_ours(self, tmp_path: Path) -> None:
        settings = Settings(home=tmp_path)
        ours = (tmp_path / "mlartifacts").as_uri()
        assert is_ours(settings, f"{ours}/vetgate-promotions")
        for other in (
            f"{ours}/../x",
            f"{ours}2",
            f"{ours}/%2e%2e/x",
            "mlflow-artifacts:/1",
            "s3://b/x",
            "gs://b",
            None,
        ):
            assert not is_ours(settings, other), other

    def test_of_a_server_are_those_that_it_keeps_or_has_in_s3(self, tmp_path: Path) -> None:
        settings = Settings(home=tmp_path, tracking_uri="http://mlflow:5000")
        # as `vetgate up` starts it
        assert is_ours(settings, f"{settings.artifacts}/1") and is_ours(settings, f"file://{settings.artifacts}/1")
        assert is_ours(settings, "mlflow-artifacts:/1/x") and is_ours(settings, "s3://artifacts/mlflow/1")
        for other in (
            "gs://b/x",
            "http://127.0.0.1/api/2.0/mlflow-artifacts/artifacts/x",
            "file:///etc",
            "dbfs:/x",
            "",
        ):
            assert not is_ours(settings, other), other
