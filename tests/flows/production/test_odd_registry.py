"""What a writer of MLflow's registry puts there neither stays in production, nor stops the gate or leads it away."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
import yaml

from flows.cli.status import at_a_glance
from flows.production.automatic import promote_all_due
from flows.production.promote import promote
from flows.production.reconcile import reconcile
from flows.production.serving import deliver
from tasks.mlflow.aliases import check_bytes, in_production
from tasks.mlflow.client import registry
from tasks.mlflow.heads import EXPERIMENT, TAG
from tasks.mlflow.promoted import PROMOTIONS
from tasks.mlflow.reader import read_production
from tasks.records.promotions import promotion_of
from tasks.settings import location
from tasks.vetting.intake import fetch, read_record
from tests.production import Home, home_in
from vetgate.errors import Altered, Denied, StoreError
from vetgate.trust.keys import read_trust_root, utc_now

ELSEWHERE = ["gs://bucket/x", "http://127.0.0.1:9/api/2.0/mlflow-artifacts/artifacts/x", "ftp://127.0.0.1:9/x"]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return home_in(tmp_path)


def written(home: Home, statement: str, *values: object) -> None:
    """What only a writer of the database can do."""
    with closing(sqlite3.connect(home.settings.home / "mlflow.db")) as database, database:
        database.execute("PRAGMA foreign_keys=OFF")
        database.execute(statement, values)


def numbers(home: Home) -> set[str]:
    with registry(home.settings) as client:
        return {str(version.version) for version in client.search_model_versions("name = 'prod.digits'")}


def claimed(home: Home, manifest: str, place: str, *, files: Path | None = None) -> str:
    """A version that says it is a submission, whose run keeps its artifacts somewhere else; its source."""
    with registry(home.settings) as client:
        run = client.create_run(client.create_experiment("another's", artifact_location=place)).info
        if files is not None:
            client.log_artifacts(run.run_id, str(files), "model")
        client.create_registered_model("prod.digits")
        source = f"{run.artifact_uri}/model"
        client.create_model_version("prod.digits", source, run.run_id, tags={"vet.manifest_sha256": manifest})
    return source


class TestHeads:
    @pytest.mark.parametrize("tag", ["garbage", "{}", "[" * 3000])
    @pytest.mark.parametrize("deleted", [False, True])
    def test_garbage_keeps_nothing_in_production(self, home: Home, tag: str, deleted: bool) -> None:
        home.promoted(b"good")
        with registry(home.settings) as client:
            where = client.get_experiment_by_name(EXPERIMENT).experiment_id
            client.set_experiment_tag(where, TAG, tag)
            if deleted:
                client.delete_experiment(where)
        home.point("champion", home.registered(b"evil"))
        assert reconcile(home.settings)["taken_back"][0]["to"] == "1"
        with registry(home.settings) as client:
            found = client.get_experiment_by_name(EXPERIMENT)
            assert found.lifecycle_stage == "active" and found.tags[TAG] != tag
        assert deliver("models:/prod.digits@champion", home.settings).version == "1"


class TestNames:
    @pytest.mark.parametrize("name", ["..", ".", "a\nb", "a\x1b[31mb", "a\\b", "\u202eabc", "a\x00b"])
    def test_what_no_gate_can_promote_is_taken_back_at_once(self, home: Home, name: str) -> None:
        home.promoted(b"good")
        home.point("champion", home.registered(b"evil", name=name), name=name)
        evil = home.registered(b"evil")
        home.point("champion", evil)
        done = reconcile(home.settings)["taken_back"]
        assert {(item["name"], item["alias"]) for item in done} == {(name, "champion"), ("digits", "champion")}
        assert home.aliases(name) == {} and home.aliases() == {"champion": "1"}
        later = reconcile(home.settings, now=utc_now() + timedelta(minutes=10))["taken_back"]
        assert {(item["name"], item["version"]) for item in later} == {(name, "1"), ("digits", evil)}


class TestRows:
    @pytest.mark.parametrize("moment", [int(2.2e14), 10**18, -(10**18), 0, b"\xff"])
    def test_no_creation_time_hides_a_version(self, home: Home, moment: object) -> None:
        home.promoted(b"good")
        evil = home.registered(b"evil")
        written(home, "UPDATE model_versions SET creation_time = ? WHERE version = ?", moment, int(evil))
        assert at_a_glance(home.settings)["errors"] == {}
        reconcile(home.settings, now=utc_now() + timedelta(minutes=10))
        assert numbers(home) == {"1"}

    @pytest.mark.parametrize("alias", [b"\xff\x00\xfe", "", "x\x1b[31m\n"])
    def test_an_alias_that_mlflow_itself_cannot_delete_keeps_no_other_and_is_named(
        self, home: Home, alias: object
    ) -> None:
        home.promoted(b"good")
        evil = home.registered(b"evil")
        home.point("champion", evil)
        home.point("zeta", evil)
        insert = "INSERT INTO registered_model_aliases(name, alias, version, workspace) VALUES(?, ?, ?, 'default')"
        written(home, insert, "prod.digits", alias, int(evil))
        shown = at_a_glance(home.settings)
        assert shown["errors"] == {} and len(shown["production"]) == 3
        for _ in range(2):
            with pytest.raises(StoreError, match=r"take back alias .* of version 2 of prod\.'digits'"):
                reconcile(home.settings)
        left = home.aliases()
        assert left.pop("champion") == "1" and "zeta" not in left and len(left) == 1
        assert deliver("models:/prod.digits@champion", home.settings).version == "1"

    @pytest.mark.parametrize("number", [0, 10**12, 2**63 - 1])
    def test_no_number_hides_a_version(self, home: Home, number: int) -> None:
        home.promoted(b"good")
        written(home, "UPDATE model_versions SET version = ? WHERE version = ?", number, int(home.registered(b"evil")))
        reconcile(home.settings, now=utc_now() + timedelta(minutes=10))
        assert numbers(home) == {"1"}


class TestLoadedFrom:
    """The database has a column of its own for where MLflow loads a version from, beside the source that it shows."""

    def led(self, home: Home, where: str, version: str) -> None:
        """Lead MLflow away from the source of a version, or write down what says no more than the source."""
        places = {"elsewhere": (home.room / "evil").as_uri(), "another": "s3://evil/model", "none": None, "empty": ""}
        written(home, "UPDATE model_versions SET storage_location = ? WHERE version = ?", places[where], int(version))

    @pytest.mark.parametrize("where", ["elsewhere", "another"])
    def test_another_place_than_the_source_serves_nothing_and_is_taken_back(self, home: Home, where: str) -> None:
        home.promoted(b"first")
        home.promoted(b"second")
        self.led(home, where, "2")
        assert read_production(home.settings) == in_production(home.settings)
        assert [item["covered"] for item in at_a_glance(home.settings)["production"]] == [True, False]
        for uri in ("models:/prod.digits@champion", "models:/prod.digits/2"):
            with pytest.raises(Denied, match="loaded from"):
                deliver(uri, home.settings)
        (done,) = reconcile(home.settings)["taken_back"]
        assert (done["kind"], done["version"], done["to"]) == ("bypass", "2", "1") and "loaded from" in done["reason"]
        # then its number resolves to it and nothing else does
        (done,) = reconcile(home.settings)["taken_back"]
        assert (done["kind"], done["version"], done["alias"]) == ("bypass", "2", None)
        assert deliver("models:/prod.digits@champion", home.settings).version == "1" and numbers(home) == {"1"}

    @pytest.mark.parametrize("where", ["elsewhere", "another"])
    def test_an_alias_does_not_go_back_there_nor_is_it_promoted_again(self, home: Home, where: str) -> None:
        manifest = home.submit(b"good")
        home.let_in(manifest)
        home.point("champion", home.registered(b"evil"))
        self.led(home, where, "1")
        (done,) = reconcile(home.settings)["taken_back"][:1]
        assert (done["version"], done["to"]) == ("2", None) and home.aliases() == {}
        assert promote(home.settings, "digits", manifest)["version"] == "3"
        assert deliver("models:/prod.digits@champion", home.settings).version == "3"

    @pytest.mark.parametrize("where", ["none", "empty"])
    def test_no_place_of_its_own_is_the_source(self, home: Home, where: str) -> None:
        home.promoted(b"good")
        self.led(home, where, "1")
        assert read_production(home.settings) == in_production(home.settings)
        assert reconcile(home.settings)["covered"] == 1
        assert deliver("models:/prod.digits@champion", home.settings).version == "1"


class TestPlaces:
    @pytest.mark.parametrize("place", ELSEWHERE)
    def test_a_version_elsewhere_is_passed_over(self, home: Home, place: str) -> None:
        manifest = home.submit(b"good")
        source = claimed(home, manifest, place)
        home.decide(manifest)
        granted = promote(home.settings, "digits")
        assert granted["version"] == "2" and granted["source"] != source

    def test_so_is_one_with_the_exact_bytes(self, home: Home) -> None:
        manifest = home.submit(b"good")
        files = home.room / "fetched"
        fetch(home.store, read_record(home.store, manifest), files)
        theirs = home.room / "theirs"
        source = claimed(home, manifest, theirs.as_uri(), files=files)
        home.decide(manifest)
        granted = promote(home.settings, "digits")
        assert granted["source"] != source and location(granted["source"]).startswith(home.settings.artifacts)

    @pytest.mark.parametrize("place", [*ELSEWHERE, "file:///somewhere/else"])
    def test_our_own_experiment_made_elsewhere_is_named(self, home: Home, place: str) -> None:
        with registry(home.settings) as client:
            client.create_experiment(PROMOTIONS, artifact_location=place)
        manifest = home.submit(b"good")
        home.decide(manifest)
        with pytest.raises(StoreError, match=f"experiment {PROMOTIONS} .*got '{place}'; rename"):
            promote(home.settings, "digits")

    @pytest.mark.parametrize("place", ELSEWHERE)
    def test_a_run_that_was_led_away_is_not_followed(self, home: Home, place: str) -> None:
        home.promoted(b"good")
        trust = read_trust_root(home.settings.trust_root)
        promotion = promotion_of(home.store, trust, "digits", "1")
        assert promotion is not None
        written(home, "UPDATE runs SET artifact_uri = ?", place)
        with pytest.raises(Altered, match=f"got '{place}/model'"):
            check_bytes(home.settings, promotion)
        assert home.let_in(promotion.manifest) == "2"
        assert deliver("models:/prod.digits@champion", home.settings).version == "2"

    def test_one_that_was_deleted_is_restored(self, home: Home) -> None:
        home.promoted(b"good")
        with registry(home.settings) as client:
            client.delete_experiment(client.get_experiment_by_name(PROMOTIONS).experiment_id)
        assert home.promoted(b"another") == "2"

    def test_what_is_wrong_with_one_name_keeps_no_other_out(self, tmp_path: Path) -> None:
        policy = tmp_path / "policy.yaml"
        policy.write_text(yaml.safe_dump({"name": "p", "required": ["abs"], "promotion": {"automatic": "champion"}}))
        room = tmp_path / "room"
        room.mkdir()
        home = home_in(room, policy=policy)
        home.registered(b"evil", name="alpha")
        # a number that none can follow
        written(home, "UPDATE model_versions SET version = ?", 2**63 - 1)
        for name in ("alpha", "beta"):
            home.decide(home.submit(name.encode(), name))
        errors: list[str] = []
        done = promote_all_due(home.settings, errors.append)
        assert [item.get("name") for item in done if "refused" not in item] == ["beta"]
        assert len(errors) + sum("refused" in item for item in done) == 1
        assert home.aliases("beta") == {"champion": "1"}
