"""What a writer of the registry has MLflow leave out of its lists is seen all the same, and shown again on prod.*."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from flows.cli.status import at_a_glance
from flows.production.promote import promote
from flows.production.reconcile import reconcile
from flows.production.serving import deliver
from tasks.mlflow.aliases import all_names, in_production, registered, tagged_as_prompts
from tasks.mlflow.client import registry
from tasks.mlflow.listing import IS_PROMPT
from tasks.mlflow.reader import read_names, read_production
from tasks.mlflow.submitted import unknown_versions
from tasks.mlflow.vettings import versions
from tasks.records.ledger_chain import entries
from tests.production import Home, home_in
from vetgate.errors import Denied
from vetgate.trust.keys import utc_now

LATER = timedelta(minutes=6)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return home_in(tmp_path)


def tag_model(home: Home, model: str, value: str = "true") -> None:
    with registry(home.settings) as client:
        client.set_registered_model_tag(model, IS_PROMPT, value)


def tag_version(home: Home, model: str, version: str, value: str = "true") -> None:
    with registry(home.settings) as client:
        client.set_model_version_tag(model, version, IS_PROMPT, value)


def tag_first(home: Home, model: str) -> None:
    tag_version(home, model, "1")


def tag_last(home: Home, model: str) -> None:
    with registry(home.settings) as client:
        found = client.search_model_versions(f"name = '{model}'")
    tag_version(home, model, max((str(version.version) for version in found), key=int))


def tag_a_deleted_one(home: Home, model: str) -> None:
    """MLflow keeps the tags of a version that is deleted, and takes them off no more."""
    with registry(home.settings) as client:
        made = str(client.create_model_version(model, "s3://anywhere").version)
        client.set_model_version_tag(model, made, IS_PROMPT, "true")
        client.delete_model_version(model, made)


def tag_all(home: Home, model: str) -> None:
    tag_last(home, model)
    tag_first(home, model)
    tag_model(home, model)


Hide = Callable[[Home, str], None]
hidden = pytest.mark.parametrize("hide", [tag_model, tag_first, tag_last, tag_a_deleted_one, tag_all])


def kinds(home: Home) -> list[str]:
    return [entry.kind for entry in entries(home.store) if entry.kind in ("bypass", "demotion")]


class TestReconciliation:
    @hidden
    def test_an_alias_on_what_no_gate_promoted_goes_back(self, home: Home, hide: Hide) -> None:
        home.promoted(b"good")
        home.point("champion", home.registered(b"evil"))
        hide(home, "prod.digits")
        done = reconcile(home.settings)["taken_back"]
        assert ("champion", "2", "1") in [(item["alias"], item["version"], item["to"]) for item in done]
        assert home.aliases() == {"champion": "1"} and tagged_as_prompts(home.settings) == []
        assert len(kinds(home)) == len(done)
        assert reconcile(home.settings)["taken_back"] == []

    @hidden
    def test_so_does_one_that_is_asked_for_alone(self, home: Home, hide: Hide) -> None:
        home.promoted(b"good")
        home.point("champion", home.registered(b"evil"))
        hide(home, "prod.digits")
        reconcile(home.settings, "digits")
        assert home.aliases() == {"champion": "1"} and tagged_as_prompts(home.settings) == []

    @hidden
    def test_what_is_as_the_gate_left_it_stays(self, home: Home, hide: Hide) -> None:
        home.promoted(b"good")
        home.promoted(b"better", alias="challenger")
        hide(home, "prod.digits")
        done = reconcile(home.settings)["taken_back"]
        assert {(item["alias"], item["stage"], item["kind"]) for item in done} <= {(None, None, "bypass")}
        assert home.aliases() == {"champion": "1", "challenger": "2"}
        assert deliver("models:/prod.digits@champion", home.settings).version == "1"

    @hidden
    def test_a_verdict_that_ended_ends(self, home: Home, hide: Hide) -> None:
        manifest = home.submit(b"was good")
        home.let_in(manifest)
        home.decide(manifest, "FAIL")
        hide(home, "prod.digits")
        reconcile(home.settings)
        assert home.aliases() == {}

    @hidden
    def test_a_stage_is_ended_and_the_version_removed(self, home: Home, hide: Hide) -> None:
        home.promoted(b"good")
        evil = home.registered(b"evil")
        with registry(home.settings) as client:
            client.transition_model_version_stage("prod.digits", evil, "Production")
        hide(home, "prod.digits")
        reconcile(home.settings, now=utc_now() + LATER)
        reconcile(home.settings, now=utc_now() + LATER)
        assert [(item.version, item.stage) for item in registered(home.settings)] == [("1", None)]

    @pytest.mark.parametrize("value", ["true", "TRUE", "1"])
    def test_the_tag_is_taken_off_whatever_it_says(self, home: Home, value: str) -> None:
        home.promoted(b"good")
        tag_model(home, "prod.digits", value)
        tag_version(home, "prod.digits", "1", value)
        done = reconcile(home.settings)["taken_back"]
        assert [(item["version"], item["tag"]) for item in done] == [("", IS_PROMPT), ("1", IS_PROMPT)]
        assert kinds(home) == ["bypass", "bypass"] and tagged_as_prompts(home.settings) == []

    def test_others_prompts_are_left_alone(self, home: Home) -> None:
        with registry(home.settings) as client:
            client.register_prompt("greeting", "hello")
        assert reconcile(home.settings)["taken_back"] == []
        with registry(home.settings) as client:
            assert client.load_prompt("greeting", version=1).template == "hello"


class TestLooking:
    @hidden
    def test_everything_that_has_a_name_is_seen(self, home: Home, hide: Hide) -> None:
        home.promoted(b"good")
        home.registered(b"between")
        home.point("live", home.registered(b"evil"))
        held = in_production(home.settings)
        hide(home, "prod.digits")
        assert in_production(home.settings) == read_production(home.settings) == held != []
        assert in_production(home.settings, "digits") == held
        assert {item.version for item in registered(home.settings)} == {"1", "2", "3"}
        assert all_names(home.settings) == read_names(home.settings) == ["prod.digits"]
        shown = at_a_glance(home.settings)
        assert shown["errors"] == {} and [item["covered"] for item in shown["production"]] == [True, False]


class TestNames:
    @hidden
    def test_beside_a_hidden_model_that_reads_like_it_nothing_is_promoted(self, home: Home, hide: Hide) -> None:
        home.registered(b"evil", name="Digits")
        hide(home, "prod.Digits")
        with pytest.raises(Denied, match=r"beside 'prod\.Digits'"):
            home.promoted(b"good")

    @hidden
    def test_promoting_again_finds_the_version_that_there_is(self, home: Home, hide: Hide) -> None:
        manifest = home.submit(b"good")
        home.let_in(manifest)
        hide(home, "prod.digits")
        assert promote(home.settings, "digits", manifest)["version"] == "1"
        with registry(home.settings) as client:
            assert [str(version.version) for version in versions(client, "prod.digits", manifest)] == ["1"]

    def test_a_name_that_a_prompt_has_taken_is_taken_back(self, home: Home) -> None:
        with registry(home.settings) as client:
            client.register_prompt("prod.digits", "hello")
        version = home.promoted(b"good")
        assert deliver("models:/prod.digits@champion", home.settings).version == version
        reconcile(home.settings, now=utc_now() + LATER)
        assert [item.version for item in registered(home.settings)] == [version]
        assert tagged_as_prompts(home.settings) == []


class TestSweep:
    @hidden
    def test_versions_of_suppliers_are_found(self, home: Home, hide: Hide) -> None:
        with registry(home.settings) as client:
            client.create_registered_model("thirdparty.rival")
            for _ in range(3):
                client.create_model_version("thirdparty.rival", "s3://anywhere")
        hide(home, "thirdparty.rival")
        assert {item.version for item in unknown_versions(home.settings)} == {"1", "2", "3"}
