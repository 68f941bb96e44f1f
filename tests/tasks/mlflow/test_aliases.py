from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tasks.mlflow import reader as registry_reader
from tasks.mlflow.aliases import Registered, all_names, check_bytes, in_production, rehash, source_of, untampered
from tasks.mlflow.client import registry
from tasks.mlflow.reader import read_names, read_production
from tasks.records.promotions import Promotion, promotion_of
from tasks.settings import location
from tasks.vetting.intake import read_record
from tests.production import Home, home_in
from vetgate.errors import Denied, StoreError
from vetgate.trust.keys import read_trust_root


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return home_in(tmp_path)


def promotion(home: Home, version: str = "1", name: str = "digits") -> Promotion:
    found = promotion_of(home.store, read_trust_root(home.settings.trust_root), name, version)
    assert found is not None
    return found


def copy_in_run(home: Home, version: str = "1") -> Path:
    """The file that MLflow keeps of a promoted version."""
    return Path(location(promotion(home, version).source), "model.onnx")


def overwrite(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)


def test_every_alias_is_found_with_its_version_and_source(home: Home) -> None:
    home.promoted(b"one")
    home.promoted(b"two")
    home.promoted(b"other", name="other", alias="challenger")
    home.registered(b"without an alias", name="third")
    first, second = (promotion(home, version).source for version in "12")
    assert [replace(item, created=0.0) for item in in_production(home.settings)] == [
        Registered("digits", "1", first, ("previous",)),
        Registered("digits", "2", second, ("champion",)),
        Registered("other", "1", promotion(home, name="other").source, ("challenger",)),
    ]
    assert in_production(home.settings, "other") == in_production(home.settings)[2:]
    assert in_production(home.settings, "nobody") == []


def test_a_reader_sees_the_same_without_mlflow(home: Home) -> None:
    assert read_production(home.settings) == in_production(home.settings) == []
    for weights in (b"one", b"two", b"three"):
        home.promoted(weights)
    home.promoted(b"other", name="other", alias="challenger")
    home.registered(b"another prefix", name="third")
    with registry(home.settings) as client:
        client.create_registered_model("PROD.digits")
        client.create_model_version("PROD.digits", client.get_model_version("prod.digits", "1").source)
        client.set_registered_model_alias("PROD.digits", "champion", "1")
        client.set_registered_model_alias("prod.digits", "gone", "1")
        client.delete_model_version("prod.digits", "1")
        client.set_registered_model_alias("prod.other", "its", "1")
    assert read_production(home.settings) == in_production(home.settings)
    assert len(in_production(home.settings)) >= 3
    assert sorted(read_names(home.settings)) == sorted(all_names(home.settings))
    assert {"PROD.digits", "prod.other", "prod.third"} <= set(read_names(home.settings))


def test_tables_that_it_does_not_know_are_left_to_mlflow(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.promoted(b"one")
    held = in_production(home.settings)
    monkeypatch.setattr(registry_reader, "ALIASES", "SELECT name, alias, version FROM aliases_of_another_version")
    monkeypatch.setattr(registry_reader, "NAMES", "SELECT name FROM models_of_another_version")
    assert read_production(home.settings) == held and read_names(home.settings) == ["prod.digits"]
    monkeypatch.undo()
    monkeypatch.setenv("MLFLOW_TRACKING_AUTH", "a plugin")
    assert read_production(home.settings) == held


def test_two_aliases_of_one_version_are_one_holding(home: Home) -> None:
    home.promoted(b"one")
    home.point("challenger", "1")
    (held,) = in_production(home.settings)
    assert (held.version, held.aliases) == ("1", ("challenger", "champion"))


def test_models_outside_production_are_not_looked_at(home: Home) -> None:
    with registry(home.settings) as client:
        for model in ("thirdparty.digits", "PROD.digits", "production.digits", "a.prod.digits"):
            client.create_registered_model(model)
            client.create_model_version(model, source="s3://anywhere")
            client.set_registered_model_alias(model, "champion", "1")
    assert in_production(home.settings) == []


def test_many_models_are_read_in_pages(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.mlflow.listing.MODELS", 2)
    monkeypatch.setattr("tasks.mlflow.listing.VERSIONS", 3)
    with registry(home.settings) as client:
        for number in range(5):
            client.create_registered_model(f"prod.m{number}")
            for version in range(2):
                client.create_model_version(f"prod.m{number}", source=f"s3://bucket/{number}/{version}")
            client.set_registered_model_alias(f"prod.m{number}", "champion", "1")
    found = in_production(home.settings)
    assert [(held.name, held.source) for held in found] == [(f"m{n}", f"s3://bucket/{n}/0") for n in range(5)]


def test_a_version_that_is_gone_has_no_source(home: Home) -> None:
    home.promoted(b"one")
    assert source_of(home.settings, "digits", "1") == promotion(home).source
    assert source_of(home.settings, "digits", "2") is None
    assert source_of(home.settings, "nobody", "1") is None


def test_a_registry_that_does_not_answer_is_an_error(home: Home) -> None:
    away = home.settings.model_copy(update={"tracking_uri": "http://127.0.0.1:9"})
    with pytest.raises(StoreError, match="to answer"):
        in_production(away)


def test_the_promoted_bytes_are_hashed_where_they_lie_and_in_the_store(home: Home) -> None:
    home.promoted(b"honest")
    size = sum(entry.size for entry in read_record(home.store, promotion(home).manifest).manifest.files)
    assert check_bytes(home.settings, promotion(home)) == 2 * size


@pytest.mark.parametrize("where", ["run", "store"])
def test_altered_bytes_are_denied(home: Home, where: str) -> None:
    home.promoted(b"honest")
    held = promotion(home)
    vetted = Path(home.settings.store, "vetted", held.manifest, "model.onnx")
    path = copy_in_run(home) if where == "run" else vetted
    overwrite(path, b"trojan")
    with pytest.raises(Denied, match=r"got others in model\.onnx"):
        check_bytes(home.settings, held)
    overwrite(path, b"honest")
    path.with_name("extra.bin").write_bytes(b"more")
    with pytest.raises(Denied, match=r"got others: .*extra\.bin"):
        check_bytes(home.settings, held)
    path.with_name("extra.bin").unlink()
    assert check_bytes(home.settings, held) > 0


def test_bytes_that_are_not_there_at_all_are_an_outage(home: Home) -> None:
    home.promoted(b"honest")
    held = promotion(home)
    shutil.rmtree(copy_in_run(home).parent)
    with pytest.raises(StoreError, match="no file at all"):
        check_bytes(home.settings, held)


def test_what_was_found_altered_is_hashed_at_every_question_until_it_is_restored(home: Home) -> None:
    home.promoted(b"honest")
    held, path = promotion(home), copy_in_run(home)
    overwrite(path, b"trojan")
    untampered(home.settings, home.store, held)  # before the first reader
    with pytest.raises(Denied):
        rehash(home.settings, home.store, held)
    with pytest.raises(Denied):
        untampered(home.settings, home.store, held)
    overwrite(path, b"honest")
    untampered(home.settings, home.store, held)
