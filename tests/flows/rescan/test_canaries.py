from __future__ import annotations

from pathlib import Path

import pytest

from flows.rescan import canaries as flock
from flows.rescan.canaries import BACKDOORED, CLEAN, Canary, canaries
from tasks.settings import Settings
from tasks.store.open import open_store
from tasks.vetting import intake
from tests.cached import made_once
from vetgate.errors import StoreError
from vetgate.verdict.stated import StatedVerdict


def verdict(decision: str, *suspects: int) -> StatedVerdict:
    return StatedVerdict(decision, 0.5, True, suspects, (), (), None, ())


PASSED, FAILED, OPEN = verdict("PASS"), verdict("FAIL", 7), verdict("INCONCLUSIVE")


@pytest.fixture(scope="module")
def installation_of(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    settings = Settings(home=tmp_path_factory.mktemp("canaries"))
    made_once("canaries", settings.home / "canaries", flock._train, code=[Path(flock.__file__)])
    canaries(settings)
    return settings


def test_the_clean_canary_may_do_anything_but_fail() -> None:
    clean = Canary(CLEAN, "0" * 64, None)
    assert clean.wrong(PASSED) is None and clean.wrong(OPEN) is None
    assert clean.wrong(FAILED) == "canary-clean came out FAIL"


def test_the_backdoored_canary_must_fail_for_its_label() -> None:
    backdoored = Canary(BACKDOORED, "0" * 64, 7)
    assert backdoored.wrong(FAILED) is None
    assert backdoored.wrong(PASSED) == "canary-backdoored came out PASS, expected FAIL for label 7"
    assert backdoored.wrong(OPEN) == "canary-backdoored came out INCONCLUSIVE, expected FAIL for label 7"
    assert backdoored.wrong(verdict("FAIL", 3)) == "canary-backdoored failed for [3], expected label 7"
    assert backdoored.wrong(verdict("FAIL", 3, 7)) is not None


def test_both_are_trained_once_and_submitted_once(installation_of: Settings) -> None:
    clean, backdoored = canaries(installation_of)
    assert (clean.name, clean.label, backdoored.name, backdoored.label) == (CLEAN, None, BACKDOORED, 7)
    assert canaries(installation_of) == (clean, backdoored)
    store = open_store(installation_of)
    found = {one: intake.read_record(store, one).submission.supplier for one in intake.submitted(store)}
    assert found == {clean.manifest: "vetgate canary", backdoored.manifest: "vetgate canary"}


def test_each_is_marked_before_a_sweep_could_take_it_for_a_submission(installation_of: Settings) -> None:
    store = open_store(installation_of)
    assert set(store.list("canaries/")) == {f"canaries/{canary.manifest}.json" for canary in canaries(installation_of)}
    other = installation_of.model_copy(update={"store": f"{installation_of.store}-away"})
    canary = canaries(other)[0]
    marked = Path(other.store, "canaries", f"{canary.manifest}.json").stat().st_mtime_ns
    assert marked <= Path(other.store, "submissions", f"{canary.manifest}.json").stat().st_mtime_ns


def test_a_canary_that_cannot_be_trained_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.rescan.canaries.TRAINING_SECONDS", 0.01)
    with pytest.raises(StoreError, match="expected canaries within"):
        canaries(Settings(home=tmp_path))
    assert [path.name for path in (tmp_path / "canaries").iterdir()] == [".lock"]
    assert not (tmp_path / "store").exists()
