"""The aliases of guarded models are where those of production are, on what the gate registered, or nowhere."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from flows.cli.commands import main
from flows.production import promote as promotion
from flows.production import reconcile as reconciliation
from flows.production.promote import promote
from flows.production.pyfunc import load_pyfunc
from flows.production.pyfunc_files import FILE, MLMODEL
from flows.production.reconcile import reconcile
from tasks import events
from tasks.guards.package_file import package_key
from tasks.mlflow.client import registry
from tasks.records import alias_moves
from tasks.records.ledger_verify import verify_ledger
from tasks.settings import Settings
from tests.alarms import told
from tests.flows.production.test_guarded import Production, attested
from tests.flows.production.test_odd_registry import written
from tests.flows.production.test_pyfunc import aliases, next_version, registered, trust
from tests.production import NOW, home_in
from vetgate.errors import Removed, StoreError
from vetgate.trust import attest
from vetgate.trust.keys import utc_now

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def production(tmp_path: Path) -> Production:
    torch.manual_seed(1)
    return Production(home_in(tmp_path))


def two_versions(production: Production) -> tuple[str, str]:
    """Promote one after the other; the manifests."""
    first = production.guarded()
    second = next_version(production)
    promote(production.settings, "digits", second)
    assert aliases(production) == {"champion": "2", "previous": "1"}
    return first, second


def fail(production: Production, manifest: str) -> None:
    production.home.decide(manifest, "FAIL", issued=utc_now() - timedelta(minutes=1))


def foreign(production: Production, tags: Mapping[str, str], model: str = "guarded.digits") -> str:
    """What whoever can write the registry can do: a version of a guarded model that names code, with these tags."""
    evil = shutil.copytree(registered(production), production.home.room / "evil")
    (evil / FILE).write_text(MLMODEL.replace("flows.production.pyfunc", "evil") + "    code: code\n")
    with registry(production.settings) as client:
        if not client.search_registered_models(f"name = '{model}'"):
            client.create_registered_model(model)
        run = client.create_run("0").info
        client.log_artifacts(run.run_id, str(evil), "model")
        made = client.create_model_version(model, f"{run.artifact_uri}/model", run.run_id, tags=dict(tags))
        return str(made.version)


def tags_of(production: Production, version: str) -> dict[str, str]:
    with registry(production.settings) as client:
        return dict(client.get_model_version("guarded.digits", version).tags)


def point(production: Production, alias: str, version: str, model: str = "guarded.digits") -> None:
    with registry(production.settings) as client:
        client.set_registered_model_alias(model, alias, version)


def quiet(production: Production) -> None:
    """Doing it again finds nothing."""
    again = reconcile(production.settings)
    assert (again["taken_back"], again["guarded"]) == ([], [])


class TestFollowing:
    """What was taken back in production goes back here, whatever happened in between."""

    def test_the_registry_fails_in_between_and_the_next_reconciliation_follows(
        self, production: Production, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _, second = two_versions(production)
        fail(production, second)

        def away(*given: Any, **more: Any) -> None:
            raise StoreError("away")

        with monkeypatch.context() as context:
            context.setattr(reconciliation, "follow_aliases", away)
            with pytest.raises(StoreError, match="away"):
                reconcile(production.settings)
        assert aliases(production, "prod.digits")["champion"] == "1" and aliases(production)["champion"] == "2"
        blob = reconcile(production.settings)
        assert blob["taken_back"] == [] and blob["recorded"] == 0
        assert [(item["alias"], item["version"], item["to"], item["bypass"]) for item in blob["guarded"]] == [
            ("champion", "2", "1", False)
        ]
        assert aliases(production)["champion"] == "1"
        quiet(production)

    def test_a_run_that_is_killed_in_between_is_followed_by_the_next(self, production: Production) -> None:
        _, second = two_versions(production)
        fail(production, second)
        # another name of the same database: a child may not use a connection that its parent has opened
        uri = f"sqlite:///{production.settings.home}/./mlflow.db"
        child = FORK.Process(target=killed, args=(production.settings.model_copy(update={"tracking_uri": uri}),))
        child.start()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        assert aliases(production, "prod.digits")["champion"] == "1" and aliases(production)["champion"] == "2"
        reconcile(production.settings, "digits")
        assert aliases(production)["champion"] == "1"
        quiet(production)

    def test_what_went_from_production_goes_here(self, production: Production) -> None:
        fail(production, production.guarded())
        reconcile(production.settings)
        assert aliases(production) == aliases(production, "prod.digits") == {}

    def test_one_model_that_cannot_be_followed_keeps_no_other(
        self, production: Production, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        two_versions(production)
        foreign(production, {}, "guarded.another")
        point(production, "champion", "1", "guarded.another")
        point(production, "champion", "1")
        from tasks.mlflow import guarded

        follow = guarded._follow

        def odd(client: Any, settings: Settings, name: str, **more: Any) -> Any:
            if name == "another":
                raise StoreError("odd")
            return follow(client, settings, name, **more)

        monkeypatch.setattr(guarded, "_follow", odd)
        with pytest.raises(StoreError, match="odd"):
            reconcile(production.settings)
        assert aliases(production)["champion"] == "2"

    def test_while_a_promotion_is_underway_an_alias_stays_and_then_it_goes(
        self, production: Production, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        production.guarded()
        second = next_version(production)
        with monkeypatch.context() as context:
            context.setattr(promotion, "register_guarded", lambda *given, **more: (_ for _ in ()).throw(OSError("x")))
            assert promote(production.settings, "digits", second)["guarded"] is None
        quiet(production)
        assert aliases(production) == {"champion": "1", "previous": "1"}
        monkeypatch.setattr(alias_moves, "UNDERWAY", timedelta(0))
        reconcile(production.settings)
        assert aliases(production) == {"previous": "1"}
        promote(production.settings, "digits", second)
        assert aliases(production) == {"champion": "2", "previous": "1"}
        quiet(production)

    def test_a_broken_ledger_moves_none_and_takes_off_what_production_lost(self, production: Production) -> None:
        two_versions(production)
        point(production, "live", "1")
        point(production, "champion", "1")
        last = sorted(Path(production.settings.store, "ledger").iterdir())[-1]
        last.unlink()
        with pytest.raises(Removed):
            reconcile(production.settings)
        assert aliases(production) == {"champion": "1", "previous": "1"}


def killed(settings: Settings) -> None:
    def die(*given: Any, **more: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    reconciliation.follow_aliases = die  # type: ignore[assignment]
    reconcile(settings)


class TestForeign:
    """No tag makes a version a form of what the gate promoted."""

    def test_a_copied_tag_is_not_followed_at_the_next_promotion(self, production: Production) -> None:
        production.guarded()
        evil = foreign(production, tags_of(production, "1"))
        promote(production.settings, "digits")
        assert aliases(production) == {"champion": "1"} and evil == "2"
        assert reconcile(production.settings)["guarded"] == [] and aliases(production) == {"champion": "1"}
        load_pyfunc(registered(production), trust(production))

    @pytest.mark.parametrize("copied", [True, False], ids=["with its tags", "with none"])
    def test_an_alias_that_somebody_put_there_is_put_back_with_an_alarm(
        self, production: Production, monkeypatch: pytest.MonkeyPatch, copied: bool
    ) -> None:
        production.guarded()
        evil = foreign(production, tags_of(production, "1") if copied else {})
        point(production, "champion", evil)
        point(production, "live", evil)
        with told(monkeypatch) as taken:
            blob = reconcile(production.settings)
        moved = {"name": "digits", "version": evil, "bypass": True, "model": "guarded.digits"}
        expected = [{**moved, "alias": "champion", "to": "1"}, {**moved, "alias": "live", "to": None}]
        assert blob["guarded"] == expected and blob["taken_back"] == []
        assert [event["payload"] for event in taken if event["event"] == events.BYPASS_DETECTED] == expected
        assert aliases(production) == {"champion": "1"}
        verify_ledger(production.settings)
        quiet(production)

    def test_the_command_ends_with_one_and_names_it(
        self, production: Production, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        production.guarded()
        point(production, "champion", foreign(production, {}))
        monkeypatch.setenv("VETGATE_HOME", str(production.settings.home))
        capfd.readouterr()
        assert main(["reconcile"]) == 1
        assert "guarded.digits@champion was version 2, put on version 1: bypass" in capfd.readouterr().out
        assert main(["reconcile"]) == 0

    def test_another_of_the_gates_own_is_put_back_too(self, production: Production) -> None:
        two_versions(production)
        point(production, "champion", "1")
        (moved,) = reconcile(production.settings)["guarded"]
        assert (moved["version"], moved["to"], moved["bypass"]) == ("1", "2", False)
        assert aliases(production) == {"champion": "2", "previous": "1"}

    def test_one_that_mlflow_loads_from_another_place_is_none(self, production: Production) -> None:
        production.guarded()
        elsewhere = (production.home.room / "evil").as_uri()
        change = "UPDATE model_versions SET storage_location = ? WHERE name = 'guarded.digits'"
        written(production.home, change, elsewhere)
        (moved,) = reconcile(production.settings)["guarded"]
        assert (moved["to"], moved["bypass"]) == (None, True) and aliases(production) == {}
        # the same promotion again makes one that is
        assert promote(production.settings, "digits")["guarded"]["version"] == "2"
        assert aliases(production) == {"champion": "2"}

    def test_a_model_that_no_gate_could_promote_has_no_alias(self, production: Production) -> None:
        production.guarded()
        foreign(production, tags_of(production, "1"), "guarded.Digits")
        point(production, "champion", "1", "guarded.Digits")
        assert [item["model"] for item in reconcile(production.settings)["guarded"]] == ["guarded.Digits"]
        assert aliases(production, "guarded.Digits") == {} and aliases(production) == {"champion": "1"}


def test_of_two_verdicts_on_the_same_bytes_the_later_is_followed(production: Production) -> None:
    manifest = production.guarded()
    (key,) = production.store.list(f"guards/{manifest}/")
    sha256 = Path(key).stem
    assert key == package_key(manifest, sha256)
    digest = production.home.decide(manifest, guards=attested(sha256), issued=NOW - timedelta(hours=1))
    # a verdict that was not promoted by changes nothing
    quiet(production)
    assert promote(production.settings, "digits", manifest)["guarded"]["version"] == "2"
    assert aliases(production) == {"champion": "2"} and aliases(production, "prod.digits") == {"champion": "1"}
    found = load_pyfunc(registered(production), trust(production))
    assert found.until == NOW + timedelta(days=30, hours=-1) and digest[:16] in registered(production).name
    with registry(production.settings) as client:
        # the first one's files again, under a later number
        first = client.get_model_version("guarded.digits", "1")
        again = client.create_model_version("guarded.digits", first.source, first.run_id, tags=dict(first.tags))
    point(production, "champion", str(again.version))
    (moved,) = reconcile(production.settings)["guarded"]
    assert (moved["version"], moved["to"], moved["bypass"]) == ("3", "2", False)
    assert (
        attest.digest(attest.read_envelope((registered(production) / "data/attestation.json").read_bytes())) == digest
    )
