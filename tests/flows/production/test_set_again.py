"""Who sets again at once what was taken back keeps nothing out of the ledger, and no reconciliation ends well."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from flows.production.promote import promote
from flows.production.reconcile import reconcile
from flows.production.serving import deliver
from tasks.mlflow.client import registry
from tasks.mlflow.demote import BYPASS, settle, take_back
from tasks.mlflow.listing import IS_PROMPT
from tasks.records.ledger_chain import Entry, entries
from tasks.records.ledger_state import ledger_state
from tasks.records.ledger_verify import verify_ledger
from tests.alarms import told
from tests.production import Home, home_in
from vetgate.errors import Denied, StoreError

# what a loop through MLflow's API does, with no moment between
AGAIN = {
    "alias": """CREATE TRIGGER again AFTER UPDATE ON registered_model_aliases WHEN new.version != 2 BEGIN
        UPDATE registered_model_aliases SET version = 2 WHERE name = new.name AND alias = new.alias; END""",
    "stage": """CREATE TRIGGER again AFTER UPDATE ON model_versions WHEN new.current_stage = 'None' BEGIN
        UPDATE model_versions SET current_stage = 'Production' WHERE name = new.name AND version = new.version; END""",
    "tag": """CREATE TRIGGER again AFTER DELETE ON registered_model_tags BEGIN
        INSERT INTO registered_model_tags(name, key, value, workspace)
        VALUES(old.name, old.key, old.value, old.workspace); END""",
}
kinds = pytest.mark.parametrize("what", list(AGAIN))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = home_in(tmp_path)
    made.promoted(b"good")
    made.registered(b"evil")
    return made


def does(home: Home, what: str) -> None:
    """What is to be taken back."""
    with registry(home.settings) as client:
        if what == "alias":
            client.set_registered_model_alias("prod.digits", "champion", "2")
        elif what == "stage":
            client.transition_model_version_stage("prod.digits", "2", "Production")
        else:
            client.set_registered_model_tag("prod.digits", IS_PROMPT, "true")


def asked(home: Home, statement: str) -> None:
    with closing(sqlite3.connect(home.settings.home / "mlflow.db")) as database, database:
        database.execute(statement)


def entered(home: Home) -> list[Entry]:
    verify_ledger(home.settings)
    return [entry for entry in entries(home.store) if entry.kind in ("bypass", "demotion")]


def subjects(home: Home) -> list[tuple[Any, ...]]:
    return [tuple(entry.subject[field] for field in ("alias", "stage", "tag", "to")) for entry in entered(home)]


SEEN = {"alias": ("champion", None, None, "1"), "stage": (None, "Production", None, None)} | {
    "tag": (None, None, IS_PROMPT, None)
}


@kinds
def test_it_is_entered_once_a_day_and_is_an_error_and_an_alarm_each_time(
    home: Home, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    does(home, what)
    asked(home, AGAIN[what])
    with told(monkeypatch) as alarms:
        for _ in range(2):
            with pytest.raises(StoreError, match=f"expected {what} .*prod.'digits' to be gone, got it again") as caught:
                reconcile(home.settings)
            assert caught.value.exit_code == 2
    days = len({str(entry.issued)[:10] for entry in entered(home)})
    assert days and subjects(home) == [SEEN[what]] * days
    seen = [alarm["event"] for alarm in alarms]
    assert seen.count("vetgate.gate.bypass_repeated") == 2 and seen.count("vetgate.gate.bypass_detected") == 2
    asked(home, "DROP TRIGGER again")
    assert len(reconcile(home.settings)["taken_back"]) == 1
    assert subjects(home) == [SEEN[what]] * (days + 1)
    assert reconcile(home.settings)["taken_back"] == []


@kinds
def test_what_a_killed_run_noted_and_left_standing_is_entered(
    home: Home, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    does(home, what)
    asked(home, AGAIN[what])
    found = {"alias": {"alias": "champion", "to": "1"}, "stage": {"stage": "Production"}, "tag": {"tag": IS_PROMPT}}
    version = "" if what == "tag" else "2"
    take_back(home.settings, "digits", version, kind=BYPASS, reason="a test", **found[what])
    assert len(settle(home.settings)) == 1 and subjects(home) == [SEEN[what]]
    assert settle(home.settings) == [] and list((home.settings.home / "demotions").glob("*.json")) == []


def test_one_name_that_is_set_again_keeps_no_other_and_serves_nothing(home: Home) -> None:
    home.promoted(b"other", name="other")
    home.point("champion", home.registered(b"evil too", name="other"), name="other")
    does(home, "alias")
    asked(home, AGAIN["alias"].replace("WHEN", "WHEN new.name = 'prod.digits' AND"))
    with pytest.raises(StoreError, match="got 1 errors"):
        reconcile(home.settings)
    assert home.aliases("other") == {"champion": "1"} and home.aliases() == {"champion": "2"}
    with pytest.raises(Denied):
        deliver("models:/prod.digits@champion", home.settings)
    move = ledger_state(home.settings).move("digits", "champion")
    assert move is not None and move.version == "1"
    asked(home, "DROP TRIGGER again")
    assert promote(home.settings, "digits")["version"] == "1" and home.aliases()["champion"] == "1"


def test_what_holds_is_entered_each_time(home: Home) -> None:
    for _ in range(3):
        does(home, "alias")
        assert len(reconcile(home.settings)["taken_back"]) == 1
    assert subjects(home) == [SEEN["alias"]] * 3
