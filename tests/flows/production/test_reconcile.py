from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from flows.gate.revoke import revoke
from flows.production.promote import promote
from flows.production.reconcile import reconcile
from tasks.mlflow.client import registry
from tasks.records.attestations import save_attestation
from tasks.records.ledger_chain import Entry, entries
from tasks.records.ledger_verify import verify_ledger
from tasks.records.revocations import save_revocation
from tasks.store.directory import DirectoryStore
from tests.production import NOW, Home, home_in, signed_verdict
from vetgate.errors import Removed, StoreError, WrongClock
from vetgate.trust.keys import utc_now

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return home_in(tmp_path)


def taken_back(home: Home) -> list[Entry]:
    """What the ledger, which is whole, tells of aliases that were taken back."""
    verify_ledger(home.settings)
    return [entry for entry in entries(home.store) if entry.kind in ("bypass", "demotion")]


def quiet(home: Home) -> None:
    """Doing it again finds nothing and changes nothing."""
    before, demoted = home.aliases(), len(taken_back(home))
    again = reconcile(home.settings)
    assert (again["covered"], again["taken_back"], again["recorded"]) == (again["checked"], [], 0)
    assert (home.aliases(), len(taken_back(home))) == (before, demoted)


def test_what_the_gate_promoted_stays(home: Home) -> None:
    home.promoted(b"first")
    home.promoted(b"second")
    home.promoted(b"third", alias="challenger")
    fine = {"checked": 3, "covered": 3, "grace": [], "taken_back": [], "recorded": 0, "guarded": []}
    assert reconcile(home.settings) == fine
    assert home.aliases() == {"champion": "2", "previous": "1", "challenger": "3"}
    assert taken_back(home) == []


def test_an_empty_registry_is_in_order(home: Home) -> None:
    home.decide(home.submit(b"vetted but never promoted"))
    assert reconcile(home.settings)["checked"] == 0
    assert reconcile(home.settings, "nobody")["checked"] == 0


def test_an_alias_on_unvetted_bytes_goes_back_to_what_it_was(home: Home) -> None:
    home.promoted(b"first")
    home.promoted(b"second")
    foreign = home.registered(b"trojan")
    home.point("champion", foreign)
    blob = reconcile(home.settings, "digits")
    (done,) = blob["taken_back"]
    assert (done["kind"], done["alias"], done["version"], done["to"]) == ("bypass", "champion", foreign, "2")
    assert "never promoted" in done["reason"]
    assert home.aliases() == {"champion": "2", "previous": "1"}
    (entry,) = taken_back(home)
    assert (entry.kind, dict(entry.subject)) == ("bypass", done)
    quiet(home)


def test_an_alias_that_never_stood_on_vetted_bytes_is_deleted(home: Home) -> None:
    home.point("champion", home.registered(b"trojan"))
    assert [done["to"] for done in reconcile(home.settings)["taken_back"]] == [None]
    assert home.aliases() == {}
    quiet(home)


def test_every_alias_of_every_model_is_held_against_the_gate(home: Home) -> None:
    home.promoted(b"honest", name="kept")
    for name in ("one", "two"):
        version = home.registered(b"trojan", name=name)
        home.point("champion", version, name=name)
        home.point("live", version, name=name)
    blob = reconcile(home.settings)
    assert (blob["checked"], blob["covered"], len(blob["taken_back"])) == (3, 1, 4)
    assert [home.aliases(name) for name in ("one", "two", "kept")] == [{}, {}, {"champion": "1"}]


def test_a_model_whose_name_no_gate_could_promote_is_taken_back_too(home: Home) -> None:
    for name in ("Digits", "two words", "ünlaut"):
        home.point("champion", home.registered(b"trojan", name=name), name=name)
    assert len(reconcile(home.settings)["taken_back"]) == 3
    assert reconcile(home.settings, "Digits")["checked"] == 0


def test_tags_copied_from_a_vetted_version_cover_nothing(home: Home) -> None:
    home.promoted(b"honest")
    from tasks.mlflow.client import registry

    with registry(home.settings) as client:
        tags = client.get_model_version("prod.digits", "1").tags
    home.point("champion", home.registered(b"trojan", **tags))
    assert [done["to"] for done in reconcile(home.settings)["taken_back"]] == ["1"]


def test_a_challenger_does_not_become_champion_by_a_bypass(home: Home) -> None:
    home.promoted(b"first")
    home.promoted(b"second", alias="challenger")
    home.point("champion", home.registered(b"trojan"))
    reconcile(home.settings)
    assert home.aliases() == {"champion": "1", "challenger": "2"}


def test_a_champion_that_came_back_is_what_a_bypass_is_put_back_to(home: Home) -> None:
    first = home.submit(b"first")
    home.decide(first)
    promote(home.settings, "digits", first)
    home.promoted(b"second")
    home.promoted(b"third")
    promote(home.settings, "digits", first)
    reconcile(home.settings)
    home.point("champion", home.registered(b"trojan"))
    reconcile(home.settings)
    assert home.aliases() == {"champion": "1", "previous": "3"}


def test_previous_goes_back_to_what_was_champion_before(home: Home) -> None:
    home.promoted(b"first")
    home.promoted(b"second")
    home.point("previous", home.registered(b"trojan"))
    reconcile(home.settings)
    assert home.aliases() == {"champion": "2", "previous": "1"}


def test_an_expired_verdict_is_a_demotion_to_the_one_before(home: Home) -> None:
    home.promoted(b"lasting")
    home.promoted(b"short", issued=NOW - timedelta(days=1), valid=timedelta(days=2))
    blob = reconcile(home.settings, now=NOW + timedelta(days=5))
    (done,) = blob["taken_back"]
    assert (done["kind"], done["to"]) == ("demotion", "1")
    assert "expired" in done["reason"]
    assert home.aliases() == {"champion": "1", "previous": "1"}


def test_when_everything_expired_nothing_stays(home: Home) -> None:
    home.promoted(b"first", valid=timedelta(days=3))
    home.promoted(b"second", valid=timedelta(days=3))
    assert len(reconcile(home.settings, now=NOW + timedelta(days=6))["taken_back"]) == 2
    assert home.aliases() == {}


ERRORS = (MemoryError(), RecursionError("too deep"), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "what nobody foresaw"))


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("error", ERRORS, ids=[type(error).__name__ for error in ERRORS])
def test_whatever_one_version_makes_fail_keeps_no_other_in_production(
    home: Home, monkeypatch: pytest.MonkeyPatch, error: Exception, named: bool
) -> None:
    manifest = home.submit(b"good", "alpha")
    home.let_in(manifest)
    home.promoted(b"good too", name="beta")
    if not named:
        with registry(home.settings) as client:
            client.delete_registered_model_alias("prod.alpha", "champion")
        home.decide(manifest, "FAIL")
    home.point("champion", home.registered(b"evil", name="beta"), name="beta")
    read = DirectoryStore.read

    def failing(store: DirectoryStore, key: str) -> bytes:
        if key == "promotions/alpha/1.json":
            raise error
        return read(store, key)

    monkeypatch.setattr(DirectoryStore, "read", failing)
    with pytest.raises(StoreError, match=f"version '1' of prod.'alpha', got {type(error).__name__}") as caught:
        reconcile(home.settings, now=None if named else utc_now() + timedelta(minutes=10))
    assert caught.value.exit_code == 2
    assert home.aliases("beta") == {"champion": "1"}


class TestAWrongClock:
    @pytest.mark.parametrize("off", [-timedelta(minutes=10), -timedelta(hours=6), timedelta(days=60)])
    def test_takes_nothing_back(self, home: Home, off: timedelta) -> None:
        home.promoted(b"first")
        home.promoted(b"other", "signs")
        with pytest.raises(WrongClock, match="set it right"):
            reconcile(home.settings, now=utc_now() + off)
        assert home.aliases() == home.aliases("signs") == {"champion": "1"}
        assert reconcile(home.settings)["taken_back"] == []

    def test_that_is_behind_leaves_even_a_bypass_to_the_next_run(self, home: Home) -> None:
        home.promoted(b"first")
        home.point("champion", home.registered(b"trojan"))
        with pytest.raises(WrongClock):
            reconcile(home.settings, now=utc_now() - timedelta(hours=1))
        assert home.aliases() == {"champion": "2"}
        assert len(reconcile(home.settings)["taken_back"]) == 1
        assert home.aliases() == {"champion": "1"}

    @pytest.mark.parametrize("ahead", [29.5, 31, 44])
    def test_that_only_expiry_bears_out_demotes_nothing(self, home: Home, ahead: float) -> None:
        home.promoted(b"first")
        home.promoted(b"other", "signs", alias="challenger")
        for _ in range(2):
            with pytest.raises(StoreError, match="clock within 7 days of the ledger's last entry"):
                reconcile(home.settings, now=utc_now() + timedelta(days=ahead))
        assert (home.aliases(), home.aliases("signs")) == ({"champion": "1"}, {"challenger": "1"})
        assert reconcile(home.settings)["covered"] == 2

    def test_that_is_in_doubt_keeps_no_bypass_and_nothing_revoked(self, home: Home) -> None:
        home.promoted(b"first")
        revoked = home.submit(b"other", "signs")
        digest = home.decide(revoked, valid=timedelta(days=90))
        promote(home.settings, "signs", revoked)
        save_revocation(home.store, digest, "a test", None, NOW)
        home.point("challenger", home.registered(b"trojan"))
        with pytest.raises(StoreError, match="; 2 were taken back"):
            reconcile(home.settings, now=utc_now() + timedelta(days=40))
        assert (home.aliases(), home.aliases("signs")) == ({"champion": "1"}, {})

    def test_of_a_gate_that_signed_ahead_is_no_fault_of_the_version(self, home: Home) -> None:
        home.promoted(b"first")
        manifest = home.submit(b"second")
        home.decide(manifest)
        promote(home.settings, "digits", manifest)
        # not entered yet: the ledger does not say how late it is
        later = signed_verdict(home.settings, manifest, "FAIL", issued=NOW + timedelta(hours=3))
        save_attestation(home.store, manifest, later)
        with pytest.raises(StoreError, match="issued by now"):
            reconcile(home.settings)
        assert home.aliases()["champion"] == "2"


def test_a_revoked_verdict_is_a_demotion(home: Home) -> None:
    home.promoted(b"first")
    second = home.submit(b"second")
    digest = home.decide(second)
    promote(home.settings, "digits", second)
    save_revocation(home.store, digest, "a test", None, NOW)
    (done,) = reconcile(home.settings)["taken_back"]
    assert (done["kind"], done["to"], home.aliases()["champion"]) == ("demotion", "1", "1")


def failed_in_rescan(home: Home, grace: timedelta) -> str:
    """A champion with one before it, which a rescan failed; its version."""
    home.promoted(b"first")
    manifest = home.submit(b"second")
    home.decide(manifest, issued=NOW - timedelta(days=2))
    version = promote(home.settings, "digits", manifest)["version"]
    home.decide(manifest, "FAIL", issued=NOW, purpose="rescan", demote_after=NOW + grace)
    return str(version)


def test_a_fail_is_carried_out_when_its_grace_is_over_and_not_before(home: Home) -> None:
    version = failed_in_rescan(home, timedelta(hours=2))
    early = reconcile(home.settings, now=NOW + timedelta(hours=1))
    until = (NOW + timedelta(hours=2)).isoformat()
    assert early["grace"] == [{"name": "digits", "version": version, "until": until}]
    assert (early["taken_back"], home.aliases()["champion"]) == ([], version)
    (done,) = reconcile(home.settings, now=NOW + timedelta(hours=2))["taken_back"]
    assert (done["kind"], done["version"], done["to"]) == ("demotion", version, "1")
    assert home.aliases() == {"champion": "1", "previous": "1"}


def test_nothing_is_put_back_to_a_version_in_its_grace(home: Home) -> None:
    version = failed_in_rescan(home, timedelta(hours=2))
    home.point("champion", home.registered(b"trojan"))
    reconcile(home.settings)
    assert home.aliases()["champion"] == "1" != version


@pytest.mark.parametrize("verdict", ["FAIL", "INCONCLUSIVE"])
def test_a_later_verdict_of_the_gate_s_own_is_a_demotion_not_a_bypass(home: Home, verdict: str) -> None:
    manifest = home.submit(b"weights")
    home.decide(manifest)
    promote(home.settings, "digits", manifest)
    home.decide(manifest, verdict, issued=NOW)
    assert [done["kind"] for done in reconcile(home.settings)["taken_back"]] == ["demotion"]


def test_a_verdict_that_was_altered_or_removed_is_taken_back(home: Home) -> None:
    for altered in (True, False):
        home.promoted(b"weights" if altered else b"others", name="digits" if altered else "other")
        key = max(home.store.list("attestations/"), key=lambda key: Path(home.settings.store, key).stat().st_mtime)
        path = Path(home.settings.store, key)
        envelope = json.loads(path.read_bytes())
        path.chmod(0o644)
        path.write_text(json.dumps(envelope | {"payload": envelope["payload"][:-8] + "AAAAAAA="}))
        if not altered:
            path.unlink()
        (done,) = reconcile(home.settings)["taken_back"]
        assert (done["kind"] == "demotion" and "which entry" in done["reason"]) or "tells of it" in done["reason"]


def test_an_alias_that_was_moved_meanwhile_is_left_alone(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.promoted(b"first")
    home.point("champion", home.registered(b"trojan"))
    import flows.production.reconcile

    found = flows.production.reconcile.take_back

    def late(*given: Any, **asked: Any) -> Any:
        home.point("champion", "1")
        return found(*given, **asked)

    # the moment between asking and writing, in which another process repairs it
    monkeypatch.setattr(flows.production.reconcile, "take_back", late)
    assert reconcile(home.settings)["taken_back"] == []
    assert home.aliases() == {"champion": "1"}
    assert taken_back(home) == []


def test_an_outage_takes_nothing_back(home: Home) -> None:
    home.promoted(b"first")
    home.point("live", home.registered(b"trojan"))
    away = {
        "the registry": home.settings.model_copy(update={"tracking_uri": "http://127.0.0.1:9"}),
        "the store": home.settings.model_copy(update={"store": "s3://nowhere", "s3_endpoint": "http://127.0.0.1:9"}),
        "the public keys": home.settings.model_copy(update={"trust_root": home.room / "unmounted"}),
    }
    for what, settings in away.items():
        with pytest.raises(StoreError) as caught:
            reconcile(settings)
        assert caught.value.exit_code == 2, what
    home.settings.trust_root.unlink()
    with pytest.raises(StoreError):
        reconcile(home.settings)
    assert home.aliases() == {"champion": "1", "live": "2"}


def test_a_ledger_that_was_cut_keeps_nothing_in_production_and_is_an_error(home: Home) -> None:
    home.promoted(b"first")
    home.point("live", home.registered(b"trojan"))
    last = sorted(Path(home.settings.store, "ledger").iterdir())[-1]
    content = last.read_bytes()
    last.unlink()
    with pytest.raises(Removed, match="its end was cut off") as caught:
        reconcile(home.settings)
    assert caught.value.exit_code == 5
    assert home.aliases() == {"champion": "1"}
    last.write_bytes(content)
    assert reconcile(home.settings)["recorded"] == 1
    assert [entry.subject["alias"] for entry in taken_back(home)] == ["live"]


@pytest.mark.parametrize("step", ["append", "take_back", "write_whole"])
def test_killed_before_or_after_any_write_it_is_taken_back_and_told_of_once(home: Home, step: str) -> None:
    home.promoted(b"first")
    home.point("champion", home.registered(b"trojan"))
    for when in ("before", "after"):
        child = FORK.Process(target=die, args=(step, when, lambda: reconcile(home.settings)))
        child.start()
        child.join()
        assert child.exitcode == -signal.SIGKILL
    reconcile(home.settings)
    assert home.aliases() == {"champion": "1"}
    assert [entry.subject["to"] for entry in taken_back(home)] == ["1"]
    quiet(home)


def die(step: str, when: str, work: Callable[[], object]) -> None:
    """Work until just before or after the first call of a step of taking back, and be killed there."""
    import flows.production.reconcile
    import tasks.mlflow.demote

    owner = flows.production.reconcile if step == "take_back" else tasks.mlflow.demote
    real = getattr(owner, step)

    def last(*given: Any, **asked: Any) -> Any:
        if when == "after":
            real(*given, **asked)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, step, last)
    work()


def test_two_at_once_take_back_and_tell_once(home: Home) -> None:
    home.promoted(b"first")
    home.point("champion", home.registered(b"trojan"))
    children = [FORK.Process(target=reconcile, args=(home.settings,)) for _ in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * 4
    assert home.aliases() == {"champion": "1"}
    assert len(taken_back(home)) == 1


def test_the_command_says_what_it_found_by_its_exit_code(
    home: Home, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from flows.cli.watch import app

    def run(*arguments: str) -> tuple[int, dict[str, Any]]:
        code = app(["reconcile", *arguments, "--json"], standalone_mode=False)
        return code, json.loads(capfd.readouterr().out)

    monkeypatch.setenv("VETGATE_HOME", str(home.settings.home))
    home.promoted(b"first")
    capfd.readouterr()
    fine = {"checked": 1, "covered": 1, "grace": [], "taken_back": [], "recorded": 0, "guarded": []}
    assert run() == (0, fine)
    home.point("champion", home.registered(b"trojan"))
    capfd.readouterr()
    code, blob = run("digits")
    assert (code, blob["taken_back"][0]["model"], blob["recorded"]) == (1, "prod.digits", 1)
    monkeypatch.setenv("VETGATE_TRACKING_URI", "http://127.0.0.1:9")
    assert run()[0] == 2


class TestWhatWasDeleted:
    """What the ledger tells of and the store lacks: the version goes, and comes back by nothing that is deleted."""

    def deleted(self, home: Home, *keys: str) -> None:
        for key in keys:
            Path(home.settings.store, key).unlink()

    @pytest.mark.parametrize("verdict", ["FAIL", "INCONCLUSIVE"])
    def test_a_newest_verdict(self, home: Home, verdict: str) -> None:
        home.promoted(b"first")
        manifest = home.submit(b"second")
        home.let_in(manifest)
        before = set(home.store.list("attestations/"))
        home.decide(manifest, verdict, issued=NOW)
        self.deleted(home, *set(home.store.list("attestations/")) - before)
        (done,) = [item for item in reconcile(home.settings)["taken_back"] if item["alias"] == "champion"]
        assert (done["kind"], done["to"]) == ("demotion", "1")
        assert home.aliases()["champion"] == "1"
        with pytest.raises(Removed, match="tells of, got none"):
            promote(home.settings, "digits", manifest)
        assert reconcile(home.settings)["taken_back"] == []

    def test_a_revocation(self, home: Home) -> None:
        manifest = home.submit(b"first")
        home.let_in(manifest)
        revoke(home.settings, manifest[:12], "a test")
        self.deleted(home, *home.store.list("revocations/"))
        (done,) = reconcile(home.settings)["taken_back"]
        assert done["kind"] == "demotion" and "revokes it, got none" in done["reason"]
        assert home.aliases() == {}

    def test_a_promotion(self, home: Home) -> None:
        home.promoted(b"first")
        home.promoted(b"second")
        self.deleted(home, "promotions/digits/2.json")
        assert reconcile(home.settings)["taken_back"][0]["version"] == "2"
        assert home.aliases()["champion"] == "1"
