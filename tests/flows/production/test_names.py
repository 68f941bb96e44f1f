"""Every name by which MLflow finds a version of prod.*: the gate's own doing, or taken back."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from flows.production.promote import promote
from flows.production.reconcile import reconcile
from flows.production.serving import deliver
from tasks.mlflow.aliases import TAMPERED, registered
from tasks.mlflow.client import registry
from tasks.records.alias_moves import UNDERWAY
from tasks.records.ledger_chain import Entry, entries
from tasks.records.ledger_verify import verify_ledger
from tasks.records.promotions import promotion_of
from tasks.settings import location
from tests.production import NOW, Home, home_in
from vetgate.errors import BadSubmission, Denied, StoreError
from vetgate.trust.keys import read_trust_root, utc_now

LATER = timedelta(minutes=6)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return home_in(tmp_path)


def versions(home: Home, name: str = "digits") -> list[str]:
    return [item.version for item in registered(home.settings, name)]


def latest(home: Home, name: str = "digits") -> str | None:
    """What models:/prod.<name>/latest resolves to, for whoever asks MLflow alone."""
    return max(versions(home, name), key=int, default=None)


def stages(home: Home, name: str = "digits") -> dict[str, str | None]:
    return {item.version: item.stage for item in registered(home.settings, name)}


def stage(home: Home, version: str, into: str, name: str = "digits") -> None:
    with registry(home.settings) as client:
        client.transition_model_version_stage(f"prod.{name}", version, into)


def taken_back(home: Home, **later: Any) -> list[tuple[str, str, str | None, str | None, str | None]]:
    """Kind, version, alias, stage and successor of what a reconciliation takes back, as the ledger has it, too."""
    before = len(told(home))
    done = reconcile(home.settings, **later)["taken_back"]
    assert [dict(entry.subject) for entry in told(home)[before:]] == done
    return [(item["kind"], item["version"], item["alias"], item["stage"], item["to"]) for item in done]


def told(home: Home) -> list[Entry]:
    verify_ledger(home.settings)
    return [entry for entry in entries(home.store) if entry.kind in ("bypass", "demotion")]


def refused(home: Home, uri: str) -> None:
    with pytest.raises(Denied, match="where the gate last put it"):
        deliver(uri, home.settings)


class TestAliases:
    def test_one_set_back_to_an_older_vetted_version_serves_nothing_and_goes_forward_again(self, home: Home) -> None:
        home.promoted(b"old")
        home.promoted(b"new")
        home.point("champion", "1")
        refused(home, "models:/prod.digits@champion")
        assert taken_back(home) == [("bypass", "1", "champion", None, "2")]
        assert deliver("models:/prod.digits@champion", home.settings).version == "2"
        assert taken_back(home) == []

    @pytest.mark.parametrize("alias", ["production", "challenger", "live"])
    def test_one_that_was_never_promoted_serves_nothing_and_is_deleted(self, home: Home, alias: str) -> None:
        home.promoted(b"vetted")
        home.point(alias, "1")
        refused(home, f"models:/prod.digits@{alias}")
        assert taken_back(home) == [("bypass", "1", alias, None, None)]
        assert home.aliases() == {"champion": "1"}

    def test_the_previous_champion_is_where_the_promotion_left_it(self, home: Home) -> None:
        for weights in (b"first", b"second", b"third"):
            home.promoted(weights)
        assert deliver("models:/prod.digits@previous", home.settings).version == "2"
        home.point("previous", "1")
        refused(home, "models:/prod.digits@previous")
        assert taken_back(home) == [("bypass", "1", "previous", None, "2")]

    def test_one_that_the_gate_put_back_is_its_own_doing(self, home: Home) -> None:
        home.promoted(b"lasting")
        home.promoted(b"short", issued=NOW - timedelta(days=1), valid=timedelta(days=2))
        late = NOW + timedelta(days=5)
        assert taken_back(home, now=late) == [("demotion", "2", "champion", None, "1")]
        assert deliver("models:/prod.digits@champion", home.settings, now=late).version == "1"

    def test_a_move_that_was_just_entered_may_still_be_under_way(self, home: Home) -> None:
        home.promoted(b"old")
        second = home.submit(b"new")
        home.decide(second)

        def die(step: str) -> None:
            if step == "ledger entered":
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            promote(home.settings, "digits", second, on_step=die)
        assert home.aliases()["champion"] == "1"
        assert deliver("models:/prod.digits@champion", home.settings).version == "1"
        assert taken_back(home) == []
        assert taken_back(home, now=utc_now() + UNDERWAY) == [("bypass", "1", "champion", None, "2")]

    def test_of_a_model_that_was_renamed_none_is_left(self, home: Home) -> None:
        home.promoted(b"vetted")
        with registry(home.settings) as client:
            client.rename_registered_model("prod.digits", "prod.signs")
        with pytest.raises(Denied, match="never promoted"):
            deliver("models:/prod.signs@champion", home.settings)
        assert taken_back(home) == [("bypass", "1", "champion", None, None)]


class TestStages:
    @pytest.mark.parametrize("into", ["Production", "Staging", "Archived"])
    def test_every_stage_is_ended_on_what_was_vetted_and_on_what_was_not(self, home: Home, into: str) -> None:
        home.promoted(b"vetted")
        foreign = home.registered(b"trojan")
        for version in ("1", foreign):
            stage(home, version, into)
        assert reconcile(home.settings)["checked"] == 2
        assert stages(home) == {"1": None, foreign: None}
        assert [(e.kind, e.subject["stage"]) for e in told(home)] == [("bypass", into)] * 2
        assert home.aliases() == {"champion": "1"}
        assert taken_back(home) == []

    def test_serving_knows_no_stage_and_no_latest(self, home: Home) -> None:
        home.promoted(b"vetted")
        stage(home, "1", "Production")
        for name in ("Production", "production", "None", "latest", "Latest"):
            with pytest.raises(BadSubmission):
                deliver(f"models:/prod.digits/{name}", home.settings)

    def test_one_whose_process_was_killed_before_the_ledger_knew_is_told_of(
        self, home: Home, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stage(home, home.registered(b"trojan"), "Production")
        import flows.production.reconcile

        def dies(settings: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(flows.production.reconcile, "settle", dies)
        with pytest.raises(KeyboardInterrupt):
            reconcile(home.settings)
        monkeypatch.undo()
        assert (stages(home), told(home)) == ({"1": None}, [])
        assert reconcile(home.settings)["recorded"] == 1
        assert [entry.subject["stage"] for entry in told(home)] == ["Production"]


class TestNumbers:
    def test_a_version_that_was_never_promoted_is_removed_when_it_had_time_to_be(self, home: Home) -> None:
        home.promoted(b"vetted")
        foreign = home.registered(b"trojan")
        assert (taken_back(home), latest(home)) == ([], foreign)
        assert taken_back(home, now=utc_now() + LATER) == [("bypass", foreign, None, None, None)]
        assert (versions(home), latest(home)) == (["1"], "1")
        assert home.aliases() == {"champion": "1"}

    def test_of_a_model_that_no_gate_could_promote_every_version_is_removed(self, home: Home) -> None:
        home.promoted(b"vetted")
        for name in ("Digits", "two words"):
            home.registered(b"trojan", name=name)
        assert len(taken_back(home, now=utc_now() + LATER)) == 2
        assert [item.name for item in registered(home.settings)] == ["digits"]

    def test_one_whose_verdict_ended_is_removed_after_its_aliases(self, home: Home) -> None:
        home.promoted(b"lasting")
        home.promoted(b"short", issued=NOW - timedelta(days=1), valid=timedelta(days=2))
        late = NOW + timedelta(days=5)
        assert taken_back(home, now=late) == [("demotion", "2", "champion", None, "1")]
        assert taken_back(home, now=late) == [("demotion", "2", None, None, None)]
        assert (versions(home), latest(home)) == (["1"], "1")

    @pytest.mark.parametrize("verdict", ["FAIL", "INCONCLUSIVE"])
    def test_one_that_failed_since_is_removed(self, home: Home, verdict: str) -> None:
        home.promoted(b"first")
        second = home.submit(b"second")
        home.decide(second)
        promote(home.settings, "digits", second)
        home.decide(second, verdict, issued=NOW)
        assert taken_back(home) == [("demotion", "2", "champion", None, "1")]
        assert taken_back(home, now=utc_now() + LATER) == [("demotion", "2", None, None, None)]
        assert latest(home) == "1"

    def test_what_was_removed_comes_back_by_promotion_under_a_new_number(self, home: Home) -> None:
        manifest = home.submit(b"weights")
        home.decide(manifest)
        promote(home.settings, "digits", manifest)
        home.decide(manifest, "FAIL", issued=NOW - timedelta(hours=2))
        taken_back(home)
        taken_back(home, now=utc_now() + LATER)
        assert versions(home) == []
        home.decide(manifest, issued=NOW)
        assert promote(home.settings, "digits", manifest)["version"] == "2"
        assert deliver("models:/prod.digits@champion", home.settings).version == "2"
        assert taken_back(home) == []

    def test_one_whose_bytes_were_found_altered_is_removed_though_its_verdict_holds(self, home: Home) -> None:
        home.promoted(b"first")
        home.promoted(b"second")
        promotion = promotion_of(home.store, read_trust_root(home.settings.trust_root), "digits", "1")
        assert promotion is not None
        with registry(home.settings) as client:
            client.delete_registered_model_alias("prod.digits", "previous")
        file = Path(location(promotion.source), "model.onnx")
        file.chmod(0o644)
        file.write_bytes(b"trojan")
        assert taken_back(home) == []
        home.store.create(f"{TAMPERED}digits/1.json", b"{}")
        assert taken_back(home) == [("bypass", "1", None, None, None)]

    def test_an_outage_removes_nothing(self, home: Home) -> None:
        home.registered(b"trojan")
        away = home.settings.model_copy(update={"store": "s3://nowhere", "s3_endpoint": "http://127.0.0.1:9"})
        with pytest.raises(StoreError):
            reconcile(away, now=utc_now() + LATER)
        assert versions(home) == ["1"]
