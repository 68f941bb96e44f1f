from __future__ import annotations

import base64
import hashlib
import json
import multiprocessing
import sqlite3
import uuid
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tasks.records import ledger_entries
from tasks.records.attestations import save_attestation
from tasks.records.ledger_chain import START, append, entries, entry_key, head, signing_time
from tasks.records.ledger_entries import catch_up, note
from tasks.records.ledger_state import TABLES, LedgerState, ledger_state
from tasks.records.ledger_verify import verify_ledger
from tasks.records.promotions import promotion_key, save_promotion
from tasks.settings import Settings
from tasks.store.base import Store
from tasks.store.open import open_store
from tests.processes import in_processes
from vetgate.digest import canonical_json
from vetgate.errors import Denied, WrongClock
from vetgate.trust import attest, dsse
from vetgate.trust.keys import (
    SUBMITTER,
    key_id,
    load_or_create_key,
    new_key,
    raw_public,
    read_trust_root,
    trust_key,
    utc_now,
)
from vetgate.trust.statements import LEDGER, WAIVER, claimed, sign_statement
from vetgate.trust.strict_json import as_time, time_text

FORK = multiprocessing.get_context("fork")
NOW = utc_now().replace(microsecond=0)
MANIFEST = "a" * 64


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


def key_of(settings: Settings) -> Ed25519PrivateKey:
    return load_or_create_key(settings.gate_key, settings.trust_root, now=NOW - timedelta(days=1))


def attested(settings: Settings, verdict: str = "PASS", days: int = 0, key: Ed25519PrivateKey | None = None) -> str:
    """A verdict in the store that the ledger does not know of, on other bytes each day; its key."""
    trusted, manifest = key_of(settings), f"{days:064x}" if days else MANIFEST
    predicate = attest.verdict_predicate(
        name="digits",
        verdict=verdict,
        issued=NOW - timedelta(days=days),
        valid=timedelta(days=30),
        policy={"name": "default", "sha256": "d" * 64},
        methods=[],
        reference_data=None,
        calibration=None,
        sandbox_level=1,
    ) | {"after": ledger_state(settings).last}
    envelope = attest.sign(attest.statement({"model.onnx": "b" * 64}, manifest, predicate), key or trusted)
    return save_attestation(open_store(settings), manifest, envelope)


def promoted(settings: Settings, version: str = "1") -> str:
    """A promotion in the store that the ledger does not know of, by a verdict that it knows; its key."""
    if (verdict := ledger_state(settings).verdict(MANIFEST)) is None:
        note(settings, attested(settings))
        verdict = ledger_state(settings).verdict(MANIFEST)
    assert verdict is not None
    key = key_of(settings)
    save_promotion(
        open_store(settings),
        read_trust_root(settings.trust_root),
        key,
        name="digits",
        version=version,
        manifest=MANIFEST,
        files={"model.onnx": "b" * 64},
        source="file:///somewhere",
        run_id="r",
        attestation=verdict.digest,
        now=NOW,
    )
    return promotion_key("digits", version)


def entered_as(settings: Settings, key: str) -> dict[str, str]:
    """What the entry of a promotion says."""
    _, name, file = key.split("/")
    sha256 = hashlib.sha256(open_store(settings).read(key)).hexdigest()
    told = {"name": name, "version": file.removesuffix(".json"), "manifest": MANIFEST, "attestation": "c" * 64}
    return {**told, "key": key, "sha256": sha256}


def stored(settings: Settings, key: str) -> Path:
    return Path(settings.store, key)


def overwrite(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)


def broken(settings: Settings, reason: str, code: int = 1) -> None:
    with pytest.raises(Denied, match=reason) as caught:
        verify_ledger(settings)
    assert caught.value.exit_code == code


def test_each_entry_holds_the_one_before_and_the_ledger_is_proved_whole(settings: Settings) -> None:
    made = [append(settings, "rescan", {"turn": turn}) for turn in range(5)]
    assert [entry.sequence for entry in made] == [1, 2, 3, 4, 5]
    assert [entry.previous for entry in made] == [START, *(entry.sha256 for entry in made[:-1])]
    assert list(entries(open_store(settings))) == made
    proved = verify_ledger(settings)
    assert (proved["entries"], proved["head"], proved["kinds"]) == (5, made[-1].sha256, {"rescan": 5})
    assert proved["against"] == ["this home"]


def test_an_entry_is_an_envelope_that_the_gate_signed(settings: Settings) -> None:
    entry = append(settings, "denial", {"name": "digits"})
    envelope = dsse.read_envelope(open_store(settings).read(entry_key(1)))
    payload, key = dsse.signed_payload(envelope, read_trust_root(settings.trust_root), {"gate"})
    assert json.loads(payload)["predicate"] == claimed(LEDGER, envelope)
    said = claimed(LEDGER, envelope)["subject"]
    assert said == {"name": "digits", "begun": said["begun"]} == dict(entry.subject)
    assert key.role == "gate"


def test_an_empty_ledger_is_whole(settings: Settings) -> None:
    key_of(settings)
    assert verify_ledger(settings)["entries"] == 0
    assert head(settings) == 0


def test_every_kind_of_store_holds_it(store: Store, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    endpoint = request.getfixturevalue("s3_endpoint") if store.url("x").startswith("s3://") else None
    where = store.url("x").removesuffix("/x").removeprefix("file://")
    settings = Settings(home=tmp_path / "home", store=where, s3_endpoint=endpoint)
    for turn in range(3):
        append(settings, "rescan", {"turn": turn})
    note(settings, attested(settings))
    assert verify_ledger(settings)["entries"] == 4


def test_one_entry_costs_the_same_however_long_the_ledger_is(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.store.directory import DirectoryStore

    read: list[str] = []
    really = DirectoryStore.read

    def counting(self: DirectoryStore, key: str) -> bytes:
        read.append(key)
        return really(self, key)

    monkeypatch.setattr(DirectoryStore, "read", counting)
    costs = []
    for turn in range(30):
        read.clear()
        append(settings, "rescan", {"turn": turn})
        costs.append(len(read))
    assert costs[5] == costs[-1] <= 3


def test_two_processes_that_append_at_once_share_one_chain(settings: Settings, tmp_path: Path) -> None:
    key_of(settings)
    # another host has its own memory of the end, and the same store and key
    elsewhere = Settings(
        home=tmp_path / "elsewhere",
        store=settings.store,
        gate_key=settings.gate_key,
        trust_root=settings.trust_root,
    )
    start = FORK.Barrier(4)

    def work(where: Settings, who: int) -> None:
        start.wait()
        for turn in range(10):
            append(where, "rescan", {"who": who, "turn": turn})

    processes = [FORK.Process(target=work, args=((settings, elsewhere)[who % 2], who)) for who in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    for where in (settings, elsewhere):
        assert verify_ledger(where)["entries"] == 40
    said = [(entry.subject["who"], entry.subject["turn"]) for entry in entries(open_store(settings))]
    assert len(set(said)) == 40
    assert [turn for who, turn in said if who == 0] == list(range(10))


def test_what_is_entered_once_is_entered_once_by_several_at_once_too(settings: Settings) -> None:
    key = attested(settings)
    assert set(in_processes(4, lambda _: note(settings, key).sequence)) == {1}
    assert verify_ledger(settings)["entries"] == 1


def test_one_that_another_process_entered_meanwhile_is_not_held_against_itself(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, before = attested(settings), ledger_state(settings)
    first = note(settings, key)
    # as it is seen by one that another overtakes after its first question
    told, answers = LedgerState.entered, iter([None])
    monkeypatch.setattr(LedgerState, "entered", lambda self, key: next(answers, told(self, key)))
    monkeypatch.setattr(ledger_entries, "ledger_state", lambda settings: before)
    assert note(settings, key) == first


def three(settings: Settings) -> None:
    for turn in range(3):
        append(settings, "rescan", {"turn": turn})


def test_a_gap_is_found(settings: Settings) -> None:
    three(settings)
    stored(settings, entry_key(2)).unlink()
    broken(settings, r"expected ledger/000000000002.json in the ledger, got ledger/000000000003.json", 5)


def test_a_first_entry_that_was_removed_is_found(settings: Settings) -> None:
    three(settings)
    stored(settings, entry_key(1)).unlink()
    broken(settings, "entries are missing", 5)


def test_a_changed_entry_is_found(settings: Settings) -> None:
    three(settings)
    envelope = json.loads(open_store(settings).read(entry_key(2)))
    other = sign_statement(LEDGER, claimed(LEDGER, envelope) | {"subject": {"turn": 7}}, Ed25519PrivateKey.generate())
    overwrite(stored(settings, entry_key(2)), canonical_json(envelope | {"payload": other["payload"]}))
    broken(settings, "altered")


def test_a_changed_entry_that_the_gate_s_own_key_signed_is_found(settings: Settings) -> None:
    three(settings)
    for last in (2, 3):
        said = claimed(LEDGER, json.loads(open_store(settings).read(entry_key(last)))) | {"subject": {"turn": 7}}
        overwrite(stored(settings, entry_key(last)), canonical_json(sign_statement(LEDGER, said, key_of(settings))))
        broken(settings, "to hold the one before")


def test_reordered_entries_are_found(settings: Settings) -> None:
    three(settings)
    second, third = (stored(settings, entry_key(n)).read_bytes() for n in (2, 3))
    overwrite(stored(settings, entry_key(2)), third)
    overwrite(stored(settings, entry_key(3)), second)
    broken(settings, "reordered")


@pytest.mark.parametrize("signatures", [lambda s: [], lambda s: [{**s[0], "keyid": "0" * 64}], lambda s: s * 2])
def test_an_entry_that_the_gate_did_not_sign_is_found(
    settings: Settings, signatures: Callable[[list[Any]], list[Any]]
) -> None:
    three(settings)
    envelope = json.loads(open_store(settings).read(entry_key(3)))
    forged = envelope | {"signatures": signatures(envelope["signatures"])}
    overwrite(stored(settings, entry_key(3)), canonical_json(forged))
    broken(settings, "signature")


def test_an_entry_that_another_key_signed_is_found_and_nothing_is_built_on_it(settings: Settings) -> None:
    three(settings)
    said = claimed(LEDGER, json.loads(open_store(settings).read(entry_key(3)))) | {"sequence": 4}
    forged = sign_statement(LEDGER, said, Ed25519PrivateKey.generate())
    open_store(settings).create(entry_key(4), canonical_json(forged))
    broken(settings, "key of the trust root")
    with pytest.raises(Denied, match="key of the trust root"):
        append(settings, "rescan", {})


def test_what_is_no_entry_is_named_and_takes_nothing_from_the_proof(settings: Settings) -> None:
    three(settings)
    open_store(settings).create("ledger/readme.txt", b"hello")
    proved = verify_ledger(settings)
    assert (proved["entries"], proved["strange"]) == (3, ["'ledger/readme.txt'"])
    open_store(settings).create("ledger/000000000009.json", b"hello")
    broken(settings, r"got ledger/000000000009.json", 5)


def test_a_tail_that_was_cut_off_is_found_by_the_gate_that_wrote_it(settings: Settings, tmp_path: Path) -> None:
    three(settings)
    stored(settings, entry_key(3)).unlink()
    broken(settings, "its end was cut off", 5)
    with pytest.raises(Denied, match="it was removed"):
        append(settings, "rescan", {})
    # a caller that has no memory of it can only see that what is there is whole
    auditor = Settings(home=tmp_path / "auditor", store=settings.store, trust_root=settings.trust_root)
    assert verify_ledger(auditor)["against"] == []


def test_a_tail_that_was_written_anew_is_found(settings: Settings) -> None:
    three(settings)
    said = claimed(LEDGER, json.loads(open_store(settings).read(entry_key(3)))) | {"kind": "denial"}
    overwrite(stored(settings, entry_key(3)), canonical_json(sign_statement(LEDGER, said, key_of(settings))))
    broken(settings, "as its gate left it", 5)
    with pytest.raises(Denied, match="as this gate left it"):
        append(settings, "rescan", {})


def test_an_object_without_an_entry_is_found_until_the_gate_catches_up(settings: Settings) -> None:
    key_of(settings)
    append(settings, "rescan", {})
    key = attested(settings)
    before = head(settings)
    broken(settings, f"got none for 1: {key}")
    (entry,) = catch_up(settings)
    assert entry.subject["key"] == key
    assert verify_ledger(settings)["entries"] == before + 1
    assert catch_up(settings) == [] and note(settings, key) == entry


def test_catching_up_of_one_submission_leaves_the_others(settings: Settings) -> None:
    key_of(settings)
    append(settings, "rescan", {})
    first, second = attested(settings), attested(settings, days=1)
    assert [entry.subject["key"] for entry in catch_up(settings, f"{1:064x}")] == [second]
    assert [entry.subject["key"] for entry in catch_up(settings)] == [first]


def test_a_promotion_without_an_entry_lets_nothing_in_and_is_named(settings: Settings) -> None:
    """Signed by a gate that was killed, or by one for another store: promoting is what enters it, and nothing else."""
    key = promoted(settings)
    assert catch_up(settings) == [] and ledger_state(settings).promoted("digits", "1") is None
    with pytest.raises(KeyError):
        note(settings, key)
    assert verify_ledger(settings)["strange"] == [repr(key)]


def test_what_is_entered_is_not_entered_again_whoever_says_what_in_the_store(settings: Settings) -> None:
    key, other = attested(settings, "FAIL"), attested(settings, "FAIL", days=1)
    # once, such a mark had the gate believe that an object was entered
    open_store(settings).create(f"ledger-index/{other}", b"{}")
    assert note(settings, key).sequence == 1
    assert [entry.subject["key"] for entry in catch_up(settings)] == [other]
    assert catch_up(settings) == [] and note(settings, key).sequence == 1
    assert verify_ledger(settings)["entries"] == 2


def test_noting_costs_the_same_however_long_the_ledger_is(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.store.directory import DirectoryStore

    keys = [attested(settings, "FAIL", days=days) for days in range(25)]
    touched: list[str] = []
    for kind in ("read", "list"):
        really = getattr(DirectoryStore, kind)
        monkeypatch.setattr(
            DirectoryStore,
            kind,
            lambda self, key, *told, really=really: (touched.append(key), really(self, key, *told))[1],
        )
    costs = []
    for key in keys:
        touched.clear()
        note(settings, key)
        costs.append(len(touched))
    assert costs[3] == costs[-1] <= 10
    assert verify_ledger(settings)["entries"] == 25


@pytest.mark.parametrize("spoil", ["lose", "garbage", "another"])
def test_an_index_that_is_lost_or_spoilt_is_made_anew_and_nothing_entered_twice(
    settings: Settings, tmp_path: Path, spoil: str
) -> None:
    keys = [attested(settings, "FAIL", days=days) for days in range(3)]
    for key in keys:
        note(settings, key)
    index = settings.home / "ledger-state.db"
    for file in settings.home.glob("ledger-state.db*"):
        file.unlink()
    if spoil == "garbage":
        index.write_bytes(b"no database" * 500)
    if spoil == "another":
        # of a ledger with as many entries, which say something else
        other = Settings(home=tmp_path / "other")
        for days in range(3):
            note(other, attested(other, days=days))
        with (
            closing(sqlite3.connect(other.home / "ledger-state.db")) as made,
            closing(sqlite3.connect(index)) as target,
        ):
            for table in TABLES:
                made.execute(f"UPDATE {table} SET store = ?", (settings.store,))
            made.commit()
            made.backup(target)
    for key in keys:
        assert note(settings, key).once == key
    assert verify_ledger(settings)["entries"] == 3


def test_an_entry_that_another_gate_made_since_is_found(settings: Settings, tmp_path: Path) -> None:
    first, second = attested(settings, "FAIL"), attested(settings, "FAIL", days=1)
    note(settings, first)
    elsewhere = Settings(
        home=tmp_path / "elsewhere", store=settings.store, gate_key=settings.gate_key, trust_root=settings.trust_root
    )
    note(elsewhere, second)
    assert note(settings, second).sequence == 2
    assert verify_ledger(settings)["entries"] == 2


def test_a_ledger_that_was_tampered_with_is_not_indexed(settings: Settings, tmp_path: Path) -> None:
    three(settings)
    said = claimed(LEDGER, json.loads(open_store(settings).read(entry_key(2)))) | {"once": "forged"}
    overwrite(
        stored(settings, entry_key(2)), canonical_json(sign_statement(LEDGER, said, Ed25519PrivateKey.generate()))
    )
    with pytest.raises(Denied, match="key of the trust root"):
        note(settings, attested(settings))


def test_what_the_gate_did_not_sign_gets_no_entry_and_is_found(settings: Settings) -> None:
    key = attested(settings, key=Ed25519PrivateKey.generate())
    assert catch_up(settings) == []
    with pytest.raises(Denied, match="trust root"):
        note(settings, key)
    broken(settings, f"got none for 1: {key}")


@pytest.mark.parametrize("make", [attested, promoted])
def test_an_object_that_was_removed_or_changed_after_its_entry_is_found(
    settings: Settings, make: Callable[[Settings], str]
) -> None:
    key = make(settings)
    if make is attested:
        note(settings, key)
    else:
        append(settings, "promotion", entered_as(settings, key), once=key)
    data = stored(settings, key).read_bytes()
    overwrite(stored(settings, key), data + b" ")
    broken(settings, "it was changed", 5)
    stored(settings, key).unlink()
    broken(settings, "it was removed", 5)


def test_a_revocation_that_is_deleted_again_is_found(settings: Settings) -> None:
    from tasks.records.revocations import save_revocation

    verdict = attested(settings)
    note(settings, verdict)
    key = save_revocation(open_store(settings), verdict[-69:-5], "a test", None, NOW)
    entry = note(settings, key)
    assert (entry.subject["reason"], entry.subject["by"]) == ("a test", None)
    stored(settings, key).unlink()
    broken(settings, "it was removed", 5)


@pytest.mark.parametrize("name", ["hello", "b" * 64, "B" * 64])
@pytest.mark.parametrize("content", [b"junk", b"{}", b'{"reason": "because"}'])
def test_a_strangers_revocation_of_nothing_is_not_entered(settings: Settings, name: str, content: bytes) -> None:
    note(settings, attested(settings))
    key = f"revocations/{name}.json"
    open_store(settings).create(key, content)
    assert catch_up(settings) == []
    assert verify_ledger(settings)["strange"] == [repr(key)]
    stored(settings, key).unlink()
    assert (verify_ledger(settings)["entries"], verify_ledger(settings)["strange"]) == (1, [])


def test_an_unsigned_revocation_of_a_known_verdict_is_entered_whatever_it_holds(settings: Settings) -> None:
    verdict = attested(settings)
    note(settings, verdict)
    open_store(settings).create(f"revocations/{verdict[-69:-5]}.json", b"junk")
    assert [entry.kind for entry in catch_up(settings)] == ["revocation"]
    assert verify_ledger(settings)["strange"] == []


def test_a_key_that_the_trust_root_does_not_hold_enters_nothing(settings: Settings, tmp_path: Path) -> None:
    key_of(settings)
    load_or_create_key(tmp_path / "other", tmp_path / "trust.json", now=NOW)
    stranger = settings.model_copy(update={"gate_key": tmp_path / "other"})
    with pytest.raises(Denied, match="key of the trust root"):
        append(stranger, "rescan", {})
    assert list(entries(open_store(settings))) == []


def test_only_the_kinds_there_are_can_be_entered(settings: Settings) -> None:
    with pytest.raises(ValueError, match="expected one of verdict"):
        append(settings, "gossip", {})


class TestClock:
    """What a wrong clock would date wrongly is not signed: exit 2, and the ledger stays as it was."""

    def at(self, monkeypatch: pytest.MonkeyPatch, ahead: timedelta) -> None:
        monkeypatch.setattr("tasks.records.ledger_chain.utc_now", lambda: utc_now() + ahead)

    def refused(self, settings: Settings, reason: str) -> None:
        before = len(list(entries(open_store(settings))))
        with pytest.raises(WrongClock, match=reason) as caught:
            append(settings, "rescan", {})
        assert caught.value.exit_code == 2
        assert len(list(entries(open_store(settings)))) == before

    @pytest.mark.parametrize("behind", [timedelta(minutes=6), timedelta(hours=2), timedelta(days=800)])
    def test_one_that_runs_before_the_last_entry(
        self, settings: Settings, behind: timedelta, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        last = append(settings, "rescan", {})
        self.at(monkeypatch, -behind)
        self.refused(settings, f"expected a clock after the ledger's last entry, of {last.issued}")

    def test_one_that_is_a_little_behind_is_overtaken(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        last = append(settings, "rescan", {})
        self.at(monkeypatch, -timedelta(minutes=4))
        assert append(settings, "rescan", {}).issued == last.issued
        assert signing_time(settings, utc_now() - timedelta(minutes=4)) == as_time(last.issued, "it")

    @pytest.mark.parametrize("days", [46, 400, 40000])
    def test_one_that_is_far_ahead(self, settings: Settings, days: int, monkeypatch: pytest.MonkeyPatch) -> None:
        append(settings, "rescan", {})
        self.at(monkeypatch, timedelta(days=days))
        self.refused(settings, "expected a clock within 45 days of the ledger's last entry")
        with pytest.raises(WrongClock):
            signing_time(settings, utc_now() + timedelta(days=days))

    def test_a_host_that_was_off_for_a_month_goes_on(self, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        append(settings, "rescan", {})
        self.at(monkeypatch, timedelta(days=40))
        assert append(settings, "rescan", {}).sequence == 2

    def test_the_policy_says_how_long_it_may_have_been(
        self, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for days, fine in ((3, False), (100, True)):
            policy = tmp_path / "policy.yaml"
            policy.write_text(f"name: p\nrequired: [abs]\nledger: {{max_quiet_days: {days}}}\n")
            named = settings.model_copy(update={"policy": policy})
            monkeypatch.undo()
            append(settings, "rescan", {})
            self.at(monkeypatch, timedelta(days=9))
            if fine:
                append(named, "rescan", {})
            else:
                self.refused(named, "within 3 days")

    @pytest.mark.parametrize("ahead", [timedelta(minutes=9), -timedelta(minutes=9), timedelta(days=3)])
    def test_one_that_the_clock_of_the_store_contradicts(
        self, tmp_path: Path, s3_endpoint: str, ahead: timedelta, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        where = f"s3://vetgate/{uuid.uuid4().hex}"
        settings = Settings(home=tmp_path / "home", store=where, s3_endpoint=s3_endpoint)
        key_of(settings)
        self.at(monkeypatch, ahead)
        self.refused(settings, "expected the clock of the store")
        monkeypatch.undo()
        assert append(settings, "rescan", {}).sequence == 1

    def test_a_directory_has_no_clock_of_its_own_and_an_endpoint_tells_the_time(
        self, settings: Settings, store: Store
    ) -> None:
        list(store.list(""))
        theirs = store.clock()
        assert theirs is None if store.url("x").startswith("file") else abs(theirs - utc_now()) < timedelta(minutes=1)


class TestWhatCannotBeEntered:
    """What a stranger lays into the store is passed over where no entry can hold it: the ledger stays readable."""

    @pytest.mark.parametrize("reason", ["x" * 7_000_000, "\ud800", "\x1b[31m" * 500])
    def test_a_revocation_is_entered_with_a_brief_reason_in_plain_text(self, settings: Settings, reason: str) -> None:
        key = attested(settings)
        note(settings, key)
        digest = key.removesuffix(".json")[-64:]
        laid = {"digest": digest, "reason": reason, "issued": "2026-01-01T00:00:00Z"}
        open_store(settings).create(f"revocations/{digest}.json", json.dumps(laid).encode())
        (entry,) = catch_up(settings)
        assert len(entry.subject["reason"]) <= 1000 and "\x1b" not in entry.subject["reason"]
        assert verify_ledger(settings)["entries"] == 2 and ledger_state(settings).revocation(digest) is not None

    @pytest.mark.parametrize("reason", ["r" * 6_290_600, "\ud800", "\udfff words"])
    def test_a_waiver_that_no_entry_can_hold_is_passed_over(self, settings: Settings, reason: str) -> None:
        note(settings, attested(settings))
        key = new_key(settings.home / "sam")
        now = utc_now()
        trust_key(settings.trust_root, raw_public(key), SUBMITTER, now=now, valid=timedelta(days=2))
        said = {
            "manifest": "c" * 64,
            "finding": "x",
            "reason": "R",
            "requested_by": key_id(key),
            "issued": time_text(now),
            "expires": time_text(now + timedelta(days=1)),
        }
        # as its own program would sign it: ours refuses to
        payload = dsse.statement_in(sign_statement(WAIVER, said, key))
        text = json.dumps(payload, sort_keys=True, separators=(",", ":")).replace('"R"', json.dumps(reason)).encode()
        envelope = {
            "payloadType": dsse.PAYLOAD_TYPE,
            "payload": base64.b64encode(text).decode(),
            "signatures": [
                {
                    "keyid": key_id(key),
                    "sig": base64.b64encode(key.sign(dsse.pre_authentication(dsse.PAYLOAD_TYPE, text))).decode(),
                }
            ],
        }
        place = f"waivers/{'c' * 64}/{dsse.digest(envelope)}.json"
        assert open_store(settings).create(place, json.dumps(envelope, separators=(",", ":")).encode())
        assert catch_up(settings) == []
        append(settings, "rescan", {})
        assert ledger_state(settings).end == 2
