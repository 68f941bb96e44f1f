"""The bytes of a run come from the run's own place: no link, no LoggedModel and no server's answer leads elsewhere."""

from __future__ import annotations

import gzip
import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from flows.production.promote import promote
from flows.production.reconcile import reconcile
from flows.production.serving import deliver
from flows.vetting.submitted import take_version
from tasks.mlflow import artifacts
from tasks.mlflow.aliases import rehash
from tasks.mlflow.artifacts import fetch_place, place_of
from tasks.mlflow.client import registry
from tasks.records.promotions import promotion_of
from tasks.settings import Settings, location
from tests.posing import Silent, posing
from tests.production import Home, home_in, submission_at
from vetgate.errors import Altered, NotUnderstood, StoreError
from vetgate.trust.keys import read_trust_root

SECRET = b"a secret of this host"
PLACE = "mlflow-artifacts:/1/run/artifacts/model"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return home_in(tmp_path)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    folder = tmp_path / "keys"
    folder.mkdir()
    (folder / "submission").mkdir()
    for place in (folder, folder / "submission"):
        (place / "README").write_bytes(SECRET)
    return folder


def supplied(home: Home, inside: str = "submission") -> tuple[str, str, Path]:
    """A version of thirdparty.digits as a supplier registers it; with its run and where that keeps its artifacts."""
    given = submission_at(home.room / "given", b"weights")
    with registry(home.settings) as client:
        where = client.create_experiment("suppliers", artifact_location=f"file://{home.settings.artifacts}/suppliers")
        run = client.create_run(where).info
        client.log_artifacts(run.run_id, str(given), inside)
        client.create_registered_model("thirdparty.digits")
        version = client.create_model_version("thirdparty.digits", f"{run.artifact_uri}/{inside}", run.run_id).version
    return str(version), run.run_id, Path(location(run.artifact_uri))


def a_file(there: Path, secret: Path) -> None:
    (there / "submission" / "README").symlink_to(secret / "README")


def the_folder(there: Path, secret: Path) -> None:
    (there / "submission").rename(there / "aside")
    (there / "submission").symlink_to(secret)


def the_run(there: Path, secret: Path) -> None:
    there.rename(there.with_name("aside"))
    there.symlink_to(secret)


@pytest.mark.parametrize("lead_away", [a_file, the_folder, the_run])
def test_a_link_among_artifacts_is_refused_and_noted(
    home: Home, secret: Path, lead_away: Callable[[Path, Path], None]
) -> None:
    version, _, there = supplied(home)
    lead_away(there, secret)
    assert "expected" in take_version(home.settings, "thirdparty.digits", version)["refused"]
    assert [key for key in home.store.list("quarantine/") if home.store.read(key) == SECRET] == []


@pytest.mark.parametrize("kind", ["size", "names"])
def test_what_is_too_much_is_not_copied(home: Home, kind: str) -> None:
    _, run_id, there = supplied(home)
    with (there / "submission" / ("extra.bin" if kind == "names" else "model.onnx")).open(
        "r+b" if kind == "size" else "wb"
    ) as file:
        file.truncate(1 << 42)
    with registry(home.settings) as client, pytest.raises(Altered if kind == "names" else NotUnderstood):
        place = f"{place_of(client, run_id)}/submission"
        names = ["model.onnx", "submission.yaml"] if kind == "names" else None
        fetch_place(home.settings, place, home.room / "out", names, most=1000)
    assert not (home.room / "out").exists()


class TestLoggedModels:
    """MLflow adds to a run's artifacts what a LoggedModel of the run holds, and lets that win."""

    @pytest.fixture(autouse=True)
    def found_by_mlflow(self, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", home.settings.tracking_uri)

    @pytest.mark.parametrize("holds", ["nothing", "the same name", "another name"])
    def test_take_no_part_in_a_version_in_production(self, home: Home, holds: str) -> None:
        home.promoted(b"good")
        trust = read_trust_root(home.settings.trust_root)
        promotion = promotion_of(home.store, trust, "digits", "1")
        assert promotion is not None
        with registry(home.settings) as client:
            experiment = client.get_run(promotion.run_id).info.experiment_id
            model = client.create_logged_model(experiment, name="model", source_run_id=promotion.run_id)
            if holds != "nothing":
                evil = home.room / "evil"
                evil.mkdir()
                (evil / ("model.onnx" if holds == "the same name" else "other.bin")).write_bytes(b"evil")
                client.log_model_artifacts(model.model_id, str(evil))
        assert rehash(home.settings, home.store, promotion) > 0
        assert reconcile(home.settings)["covered"] == 1
        assert promote(home.settings, "digits")["version"] == "1"
        assert deliver("models:/prod.digits@champion", home.settings).members["model.onnx"] == b"good"

    @pytest.mark.parametrize("inside", ["submission", "keys/submission", "README"])
    def test_bring_nothing_into_quarantine(self, home: Home, secret: Path, inside: str) -> None:
        version, run_id, _ = supplied(home, inside)
        with registry(home.settings) as client:
            experiment = client.get_run(run_id).info.experiment_id
            model = client.create_logged_model(experiment, name=inside.partition("/")[0], source_run_id=run_id)
        with closing(sqlite3.connect(home.settings.home / "mlflow.db")) as database, database:
            statement = "UPDATE logged_models SET artifact_location = ? WHERE model_id = ?"
            database.execute(statement, (secret.as_uri(), model.model_id))
        taken = take_version(home.settings, "thirdparty.digits", version)["manifest_sha256"]
        held = {key.rpartition("/")[2]: home.store.read(key) for key in home.store.list(f"quarantine/{taken}/")}
        assert held.keys() == {"model.onnx", "submission.yaml"} and held["model.onnx"] == b"weights"


Answer = tuple[int, dict[str, str], Iterator[bytes]]


@contextmanager
def handing_out(file: Callable[[], Answer], size: int = 4) -> Iterator[str]:
    """URL of what poses as MLflow's server, and lists one file of a size that it says."""

    class Answers(Silent):
        def do_GET(self) -> None:
            listing = {"files": [{"path": "model.onnx", "is_dir": False, "file_size": size}]}
            listed: Answer = (200, {}, iter([json.dumps(listing).encode()]))
            status, headers, parts = file() if self.path.endswith("model.onnx") else listed
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            try:
                for part in parts:
                    self.wfile.write(part)
            except ConnectionError:
                return

    with posing(Answers) as url:
        yield url


def asked(room: Path, url: str) -> Path:
    settings = Settings(home=room / "home", tracking_uri=url)
    with registry(settings):
        return fetch_place(settings, PLACE, room / "out", ["model.onnx"], most=1 << 20)


def endless() -> Iterator[bytes]:
    while True:
        yield bytes(1 << 16)


def dripping() -> Iterator[bytes]:
    while True:
        time.sleep(0.02)
        yield b"x"


class TestServer:
    def test_hands_out_what_it_promised(self, tmp_path: Path) -> None:
        with handing_out(lambda: (200, {}, iter([b"we", b"ll"]))) as url:
            assert (asked(tmp_path, url) / "model.onnx").read_bytes() == b"well"

    @pytest.mark.parametrize(
        ("answer", "said"),
        [
            (lambda: (200, {}, endless()), "more than 4 bytes"),
            (lambda: (200, {"Content-Encoding": "gzip"}, iter([gzip.compress(bytes(1 << 20))])), "encoded as 'gzip'"),
            (lambda: (302, {"Location": "http://127.0.0.1:9/secret"}, iter([])), "got 302"),
            (lambda: (200, {"Content-Length": "4"}, iter([b"we"])), "IncompleteRead"),
        ],
    )
    def test_that_answers_otherwise_is_an_error_that_names_it(
        self, tmp_path: Path, answer: Callable[[], Answer], said: str
    ) -> None:
        with handing_out(answer) as url, pytest.raises(StoreError, match=f"{url} .*{said}"):
            asked(tmp_path, url)
        assert sum(file.stat().st_size for file in (tmp_path / "out").iterdir()) <= 4

    def test_that_sends_a_byte_at_a_time_is_given_up(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(artifacts, "MOST_SECONDS", 0.2)
        with (
            handing_out(lambda: (200, {}, dripping()), size=1 << 19) as url,
            pytest.raises(StoreError, match=r"0\.2 seconds"),
        ):
            asked(tmp_path, url)

    def test_whose_files_are_too_large_is_asked_for_none(self, tmp_path: Path) -> None:
        with handing_out(lambda: (200, {}, endless()), size=1 << 40) as url, pytest.raises(Altered, match=str(1 << 40)):
            asked(tmp_path, url)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("place", ["mlflow-artifacts://127.0.0.1:9/1/model", "file:///etc", "gs://bucket/x"])
    def test_no_other_place_is_asked(self, tmp_path: Path, place: str) -> None:
        settings = Settings(home=tmp_path / "home", tracking_uri="http://127.0.0.1:10")
        with pytest.raises(StoreError, match="expected artifacts of this installation"):
            fetch_place(settings, place, tmp_path / "out")


def test_artifacts_in_s3_are_bounded_too(tmp_path: Path, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.store.s3 import S3Store

    # opening a registry sets it for the process
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", s3_endpoint)
    settings = Settings(home=tmp_path, artifacts="s3://vetgate/in-s3", s3_endpoint=s3_endpoint)
    store = S3Store("vetgate", "in-s3/1/run/artifacts", endpoint_url=s3_endpoint)
    store.create("model/model.onnx", b"well")
    place = "s3://vetgate/in-s3/1/run/artifacts/model"
    assert (fetch_place(settings, place, tmp_path / "one") / "model.onnx").read_bytes() == b"well"
    with pytest.raises(NotUnderstood, match="at most 3 bytes"):
        fetch_place(settings, place, tmp_path / "two", most=3)
    with pytest.raises(Altered, match=r"others: model\.onnx, other"):
        fetch_place(settings, place, tmp_path / "three", ["other"])
    with pytest.raises(StoreError, match="no file at all"):
        fetch_place(settings, f"{place}2", tmp_path / "four", ["model.onnx"])
