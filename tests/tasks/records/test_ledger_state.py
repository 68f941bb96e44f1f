from __future__ import annotations

import gc
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tasks.records.ledger_chain import append, entries, entry_key
from tasks.records.ledger_state import LedgerState, check_index, ledger_state
from tasks.settings import Settings
from tasks.store.open import open_store
from tests.alarms import told
from tests.processes import in_processes
from vetgate.digest import canonical_json
from vetgate.errors import Removed, StoreError
from vetgate.trust.dsse import read_envelope
from vetgate.trust.keys import raw_public, trust_key, utc_now
from vetgate.trust.statements import LEDGER, claimed, sign_statement
from vetgate.trust.strict_json import as_time

A, B = "a" * 64, "b" * 64


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


def elsewhere(settings: Settings, name: str) -> Settings:
    """A host that has the public keys and never saw the store."""
    return Settings(home=settings.home.parent / name, store=settings.store, trust_root=settings.trust_root)


def verdict(settings: Settings, manifest: str, number: int) -> None:
    key = f"attestations/{manifest}/{number}.json"
    said = {"key": key, "sha256": f"{number:064}", "manifest": manifest, "attestation": f"{number + 100:064}"}
    said |= {"name": "digits", "verdict": "PASS", "expires": "2027-01-01T00:00:00Z"}
    append(settings, "verdict", said, once=key)


def moved(settings: Settings, version: str, old: str | None, alias: str = "champion", name: str = "digits") -> None:
    append(settings, "promotion", promoted(version, name) | {"alias": alias, "old": old})


def promoted(version: str, name: str = "digits") -> dict[str, str]:
    """What every entry of a promotion says."""
    said = {"name": name, "version": version, "manifest": A, "attestation": "d" * 64}
    return said | {"key": f"promotions/{name}/{version}.json", "sha256": "e" * 64}


def gone(settings: Settings, number: int) -> None:
    Path(settings.store, entry_key(number)).unlink()


def test_of_several_verdicts_the_last_in_the_ledger_counts_whoever_asks(settings: Settings) -> None:
    for number, manifest in enumerate((A, B, A, A, B), start=1):
        verdict(settings, manifest, number)
    for where in (settings, elsewhere(settings, "serving")):
        state = ledger_state(where)
        found = state.verdict(A)
        assert found is not None and (found.sequence, found.key) == (4, f"attestations/{A}/4.json")
        assert (found.sha256, found.digest) == (f"{4:064}", f"{104:064}")
        assert state.verdict(B).sequence == 5 == state.end  # type: ignore[union-attr]
        assert state.verdict("c" * 64) is None
        assert (state.entered(f"attestations/{A}/1.json"), state.entered("another")) == (1, None)


def test_what_is_entered_later_is_seen_by_a_home_that_has_read_before(settings: Settings) -> None:
    verdict(settings, A, 1)
    serving = elsewhere(settings, "serving")
    assert ledger_state(serving).revocation("e" * 64) is None
    said = {"key": "revocations/e.json", "sha256": "1" * 64, "digest": "e" * 64, "reason": "a test", "by": None}
    append(settings, "revocation", said, once=str(said["key"]))
    found = ledger_state(serving).revocation("e" * 64)
    assert found is not None and (found.sequence, found.key) == (2, "revocations/e.json")


class TestMoves:
    def test_the_newest_move_of_each_alias_is_told(self, settings: Settings) -> None:
        moved(settings, "1", None)
        moved(settings, "2", None, alias="challenger")
        moved(settings, "1", None, name="other")
        state = ledger_state(settings)
        assert newest_move(state) == (1, "promotion", "1", None)
        assert newest_move(state, "challenger") == (2, "promotion", "2", None)
        assert newest_move(state, name="other") == (3, "promotion", "1", None)
        assert state.move("digits", "previous") is state.move("digits", "staging") is state.move("none", "x") is None

    def test_a_new_champion_puts_the_old_one_under_previous(self, settings: Settings) -> None:
        moved(settings, "1", None)
        moved(settings, "2", "1")
        moved(settings, "3", "2", alias="challenger")
        state = ledger_state(settings)
        assert newest_move(state) == (2, "promotion", "2", "1")
        assert newest_move(state, "previous") == (2, "promotion", "1", None)
        moved(settings, "2", "2")
        assert newest_move(ledger_state(settings), "previous") == (2, "promotion", "1", None)

    @pytest.mark.parametrize("kind", ["demotion", "bypass"])
    @pytest.mark.parametrize("to", ["1", None])
    def test_what_is_taken_back_stands_where_it_was_put(self, settings: Settings, kind: str, to: str | None) -> None:
        moved(settings, "1", None)
        moved(settings, "2", "1")
        append(settings, kind, {"name": "digits", "alias": "champion", "version": "2", "to": to})
        assert newest_move(ledger_state(settings)) == (3, kind, to, "2")

    def test_a_version_that_was_removed_or_a_stage_that_was_ended_moves_no_alias(self, settings: Settings) -> None:
        moved(settings, "1", None)
        for stage in ("Production", None):
            said = {"name": "digits", "version": "1", "alias": None, "stage": stage, "to": None}
            append(settings, "bypass", said)
        assert newest_move(ledger_state(settings)) == (1, "promotion", "1", None)

    def test_a_promotion_that_moved_no_alias_is_no_move(self, settings: Settings) -> None:
        moved(settings, "1", None)
        append(settings, "promotion", promoted("2"))
        state = ledger_state(settings)
        assert newest_move(state) == (1, "promotion", "1", None)
        assert [state.promoted("digits", version) for version in "123"] == [A, A, None]


def newest_move(
    state: LedgerState, alias: str = "champion", name: str = "digits"
) -> tuple[int, str, str | None, str | None]:
    move = state.move(name, alias)
    assert move is not None
    return move.sequence, move.kind, move.version, move.before


def test_without_a_ledger_there_is_nothing_and_no_key_is_needed(settings: Settings) -> None:
    state = ledger_state(settings)
    assert state.end == 0 and state.verdict(A) is None


def test_asking_again_costs_the_same_however_long_the_ledger_is(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.store.directory import DirectoryStore

    read: list[str] = []
    really = DirectoryStore.read
    monkeypatch.setattr(DirectoryStore, "read", lambda self, key: (read.append(key), really(self, key))[1])
    costs = []
    for number in range(1, 40):
        verdict(settings, A, number)
        ledger_state(settings)
        read.clear()
        ledger_state(settings)
        costs.append(len(read))
    assert costs[3] == costs[-1] <= 2


def test_several_threads_ask_one_state_and_several_processes_read_at_once(settings: Settings) -> None:
    for number in range(1, 41):
        verdict(settings, f"{number:064}", number)
    serving = elsewhere(settings, "serving")

    def work(_: int) -> list[int]:
        state = ledger_state(serving)
        with ThreadPoolExecutor(8) as pool:
            found = pool.map(lambda number: state.verdict(f"{number:064}"), range(1, 41))
            return [told.sequence for told in found if told is not None]

    assert in_processes(3, work) == [list(range(1, 41))] * 3


@pytest.mark.parametrize("before", [b"", b"no database at all, and longer than the header of one is: it begins anew"])
def test_processes_that_make_the_file_at_the_same_moment_wait_for_each_other(settings: Settings, before: bytes) -> None:
    """SQLite does not wait for who turns a new file to another journal: about one round in fifty failed by that."""
    verdict(settings, A, 1)
    for turn in range(25):
        serving = elsewhere(settings, f"serving-{turn}")
        serving.home.mkdir(exist_ok=True)
        (serving.home / "ledger-state.db").write_bytes(before)
        assert in_processes(4, lambda _, serving=serving: ledger_state(serving).last["sequence"]) == [1] * 4


def denied(settings: Settings) -> None:
    append(settings, "denial", {"name": "digits", "alias": "champion", "submission": None, "reason": "a test"})


def taken_back(settings: Settings) -> None:
    said = {"key": "revocations/e.json", "sha256": "1" * 64, "digest": f"{101:064}", "reason": "a test", "by": None}
    append(settings, "revocation", said, once=str(said["key"]))


class TestIndex:
    """The file of a home is believed only while it is as it was left."""

    def restored(self, settings: Settings, between: Callable[[], object], part: str) -> Settings:
        """A home whose index is a backup's, beside what a killed process had not written into it, or vice versa."""
        index, wal = settings.home / "ledger-state.db", settings.home / "ledger-state.db-wal"
        ledger_state(settings)
        gc.collect()
        before, home = index.read_bytes(), elsewhere(settings, f"restored-{part}")

        def unwritten() -> bytes:
            """What an entry more leaves in the log beside the file."""
            with closing(sqlite3.connect(index)) as held:
                # whoever reads keeps what is written from going into the file itself
                held.execute("BEGIN").execute("SELECT * FROM verdicts").fetchall()
                denied(settings)
                ledger_state(settings)
                found = wal.read_bytes()
            gc.collect()
            return found

        early = unwritten()
        between()
        ledger_state(settings)
        gc.collect()
        late = unwritten()
        assert early and late and not wal.exists()
        home.home.mkdir()
        (home.home / index.name).write_bytes(before if part == "file" else index.read_bytes())
        (home.home / wal.name).write_bytes(late if part == "file" else early)
        return home

    @pytest.mark.parametrize("part", ["file", "wal"])
    @pytest.mark.parametrize("verdicts", [1, 2, 120])
    def test_of_two_moments_is_read_anew(self, settings: Settings, verdicts: int, part: str) -> None:
        verdict(settings, A, 1)

        def between() -> None:
            for number in range(2, 2 + verdicts):
                verdict(settings, f"{number:064}" if number % 2 else A, number)
            taken_back(settings)
            moved(settings, "2", None)

        home = self.restored(settings, between, part)
        for where in (home, settings):
            state = ledger_state(where)
            told, move = state.verdict(A), state.move("digits", "champion")
            assert told is not None and told.digest == f"{100 + 2 * ((verdicts + 1) // 2):064}"
            assert move is not None and move.version == "2" and state.revocation(f"{101:064}") is not None
            check_index(state, list(entries(state.store)))

    @pytest.mark.parametrize(
        "change",
        [
            "UPDATE verdicts SET verdict = 'WAIVED'",
            "UPDATE moves SET version = '7'",
            "UPDATE once SET name = 'another' WHERE sequence = 1",
        ],
    )
    def test_that_says_other_than_the_ledger_is_found_by_who_proves_it(self, settings: Settings, change: str) -> None:
        verdict(settings, A, 1)
        moved(settings, "1", None)
        chain = list(entries(open_store(settings)))
        check_index(ledger_state(settings), chain[:1])
        with closing(sqlite3.connect(settings.home / "ledger-state.db")) as index:
            index.execute(change)
            index.commit()
        with pytest.raises(StoreError, match="remove that file"):
            check_index(ledger_state(settings), chain)

    def test_is_summed_up_once_while_nothing_is_written(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from tasks.records import ledger_state as module

        verdict(settings, A, 1)
        ledger_state(settings)
        gc.collect()
        summed: list[str] = []
        really = module._sums
        monkeypatch.setattr(module, "_sums", lambda *given: (summed.append(""), really(*given))[1])
        for _ in range(3):
            ledger_state(settings)
            gc.collect()
        assert len(summed) == 1


def test_a_ledger_is_named_by_its_first_entry(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ledger_state(settings).id == "0" * 64
    verdict(settings, A, 1)
    first, other = ledger_state(settings).id, settings.model_copy(update={"store": str(tmp_path / "other")})
    began = next(entries(open_store(settings)))
    assert first == began.sha256
    verdict(settings, B, 2)
    assert ledger_state(settings).id == first == ledger_state(elsewhere(settings, "serving")).id
    # also where both begin with the same in the same second
    monkeypatch.setattr("tasks.records.ledger_chain.utc_now", lambda: as_time(began.issued, "issued"))
    verdict(other, A, 1)
    assert next(entries(open_store(other))).issued == began.issued
    assert ledger_state(other).id not in (first, "0" * 64)


class TestRefused:
    """A ledger that is not whole: exit 5, and an alarm."""

    def refused(self, settings: Settings, reason: str) -> None:
        with pytest.raises(Removed, match=reason) as caught:
            ledger_state(settings)
        assert caught.value.exit_code == 5

    @pytest.mark.parametrize("cut", [1, 2, 5])
    @pytest.mark.parametrize("lost", [(), ("ledger-head.json",), ("ledger-state.db",)])
    def test_an_end_that_was_cut_off_by_whoever_had_read_it(
        self, settings: Settings, cut: int, lost: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for number in range(1, 6):
            verdict(settings, A, number)
        serving = elsewhere(settings, "serving")
        for where in (settings, serving):
            ledger_state(where)
            for name in lost:
                (where.home / name).unlink()
        for number in range(6 - cut, 6):
            gone(settings, number)
        with told(monkeypatch) as alarms:
            self.refused(settings, "expected (entry )?5")
            self.refused(serving, "expected (entry )?5")
        assert [alarm["event"] for alarm in alarms] == ["vetgate.ledger.broken"] * 2

    @pytest.mark.parametrize("number", [1, 3, 4])
    def test_an_entry_in_between_that_a_home_sees_for_the_first_time(self, settings: Settings, number: int) -> None:
        for turn in range(1, 6):
            verdict(settings, A, turn)
        gone(settings, number)
        self.refused(elsewhere(settings, "serving"), f"expected entry {number} of the ledger, got none")

    @pytest.mark.parametrize("kind", ["forged", "swapped", "nonsense"])
    def test_an_entry_that_is_not_the_gates(self, settings: Settings, kind: str) -> None:
        for turn in range(1, 4):
            verdict(settings, A, turn)
        store, path = open_store(settings), Path(settings.store, entry_key(3))
        said = claimed(LEDGER, read_envelope(store.read(entry_key(3)))) | {"subject": {}}
        found = {
            "forged": canonical_json(sign_statement(LEDGER, said, Ed25519PrivateKey.generate())),
            "swapped": store.read(entry_key(2)),
            "nonsense": b"no entry",
        }[kind]
        path.chmod(0o644)
        path.write_bytes(found)
        self.refused(elsewhere(settings, "serving"), "expected")

    def test_what_a_key_signed_that_is_no_longer_trusted(self, settings: Settings, tmp_path: Path) -> None:
        for turn in range(1, 4):
            verdict(settings, A, turn)
        serving = elsewhere(settings, "serving").model_copy(update={"trust_root": tmp_path / "trust.json"})
        serving.trust_root.write_bytes(settings.trust_root.read_bytes())
        assert ledger_state(serving).end == 3
        other = raw_public(Ed25519PrivateKey.generate())
        fresh = trust_key(serving.trust_root, other, "gate", now=utc_now(), valid=timedelta(days=9))
        assert ledger_state(serving).end == 3
        serving.trust_root.write_bytes(canonical_json({"keys": [fresh.to_json()], "revoked": []}))
        self.refused(serving, "trust root")
