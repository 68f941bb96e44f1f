from __future__ import annotations

import uuid
from pathlib import Path

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tasks.records.ledger_chain import append, entry_key
from tasks.records.ledger_heads import (
    KEY,
    Head,
    head_at,
    held_against,
    newer,
    publish_where_named,
    read_head,
    signed_head,
)
from tasks.records.ledger_state import ledger_state
from tasks.records.ledger_verify import verify_ledger
from tasks.settings import Settings
from tasks.store.open import open_store
from vetgate.digest import canonical_json
from vetgate.errors import Denied, Removed, StoreError
from vetgate.trust.keys import read_trust_root
from vetgate.trust.statements import HEAD, sign_statement


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


def entered(settings: Settings, count: int = 3) -> bytes:
    for turn in range(count):
        append(settings, "rescan", {"turn": turn})
    data = signed_head(ledger_state(settings))
    assert data is not None
    return data


def stranger(settings: Settings) -> Settings:
    """A host that never saw the ledger."""
    home = settings.home.parent / uuid.uuid4().hex
    return Settings(home=home, store=settings.store, trust_root=settings.trust_root)


def cut(settings: Settings, *numbers: int) -> None:
    for number in numbers:
        Path(settings.store, entry_key(number)).unlink()


def test_a_head_says_how_far_the_ledger_goes_and_is_the_gates(settings: Settings) -> None:
    data = entered(settings)
    state = ledger_state(settings)
    assert read_head(data, state.trust).sequence == state.end == 3
    assert held_against(state, data, "a place") is state
    proved = verify_ledger(stranger(settings), {"a place": data})
    assert (proved["against"], proved["head"]) == (["a place"], read_head(data, state.trust).sha256)


def test_there_is_none_without_entries(settings: Settings) -> None:
    assert signed_head(ledger_state(settings)) is None


@pytest.mark.parametrize("gone", [(3,), (2, 3), (1, 2, 3)])
def test_an_end_that_was_cut_off_is_seen_by_whoever_has_the_head(settings: Settings, gone: tuple[int, ...]) -> None:
    data = entered(settings)
    cut(settings, *gone)
    assert verify_ledger(stranger(settings))["against"] == []
    for found in (
        lambda: verify_ledger(stranger(settings), {"a place": data}),
        lambda: held_against(ledger_state(stranger(settings)), data, "a place"),
    ):
        with pytest.raises(Removed, match="expected entry 3 of the ledger, which the head in a place names") as caught:
            found()
        assert caught.value.exit_code == 5


def test_who_proved_it_once_needs_no_head(settings: Settings) -> None:
    entered(settings)
    auditor = stranger(settings)
    assert verify_ledger(auditor)["against"] == [] and verify_ledger(auditor)["against"] == ["this home"]
    cut(settings, 3)
    with pytest.raises(Removed, match="expected 3 entries"):
        verify_ledger(auditor)


def test_a_ledger_that_was_written_anew_is_not_the_one_of_the_head(settings: Settings) -> None:
    data = entered(settings)
    cut(settings, 3)
    (settings.home / "ledger-head.json").unlink()
    (settings.home / "ledger-state.db").unlink()
    append(settings, "denial", {"turn": "other"})
    append(settings, "denial", {"turn": "another"})
    with pytest.raises(Removed, match="as the head in a place says, got another"):
        verify_ledger(stranger(settings), {"a place": data})
    with pytest.raises(Removed, match="as the head in a place says, got another"):
        held_against(ledger_state(settings), data, "a place")


@pytest.mark.parametrize(
    "said",
    [
        {"sequence": 1, "sha256": "a" * 64, "issued": "2026-01-01T00:00:00Z"},
        {"sequence": "3", "sha256": "a" * 64, "issued": "2026-01-01T00:00:00Z"},
        {"sequence": 3, "issued": "2026-01-01T00:00:00Z"},
    ],
)
def test_what_no_gate_signed_is_no_head(settings: Settings, said: dict[str, object]) -> None:
    entered(settings)
    forged = canonical_json(sign_statement(HEAD, said, Ed25519PrivateKey.generate()))
    for data in (forged, b"{}", b"", open_store(settings).read(entry_key(3))):
        with pytest.raises(Denied):
            verify_ledger(stranger(settings), {"a place": data})
        with pytest.raises(Denied):
            held_against(ledger_state(settings), data, "a place")


def test_one_is_replaced_by_a_later_one_only(settings: Settings) -> None:
    old = entered(settings)
    new = entered(settings, 1)
    state = ledger_state(settings)
    assert all(newer(state, new, before, "a place") for before in (old, None, b"garbage"))
    assert not newer(state, old, new, "a place") and not newer(state, new, new, "a place")


@pytest.mark.parametrize("more", [0, 1, 5])
def test_none_is_replaced_by_one_of_a_ledger_that_was_cut_off_and_went_on(settings: Settings, more: int) -> None:
    before = entered(settings)
    cut(settings, 3)
    # another home of the gate that had not seen the end
    other = settings.model_copy(update={"home": settings.home.parent / "other"})
    for turn in range(more):
        append(other, "rescan", {"another": turn})
    after = signed_head(ledger_state(other))
    assert after is not None
    with pytest.raises(Removed, match="entry 3 of the ledger"):
        newer(ledger_state(other), after, before, "a place")


class TestWhereThePolicyNames:
    def named(self, settings: Settings, *where: str) -> Settings:
        policy = settings.home.parent / "policy.yaml"
        policy.write_text(yaml.safe_dump({"name": "p", "required": ["abs"], "ledger": {"heads": list(where)}}))
        return settings.model_copy(update={"policy": policy})

    def test_it_is_kept_up_to_date_at_each_and_read_as_file_or_directory(
        self, settings: Settings, tmp_path: Path
    ) -> None:
        first, second = tmp_path / "first", tmp_path / "second"
        named = self.named(settings, first.as_uri(), str(second))
        for end in (2, 4):
            data = entered(named, 2)
            publish_where_named(ledger_state(named), data)
            for where in (first.as_uri(), str(second), str(second / KEY), (first / KEY).as_uri()):
                data = head_at(named, where)
                assert data is not None
                head = read_head(data, read_trust_root(settings.trust_root))
                assert head == Head(end, ledger_head(settings))

    def test_what_contradicts_it_does_not_replace_it(self, settings: Settings, tmp_path: Path) -> None:
        named = self.named(settings, (tmp_path / "first").as_uri())
        before = entered(named)
        publish_where_named(ledger_state(named), before)
        cut(named, 3)
        other = named.model_copy(update={"home": tmp_path / "other"})
        after = entered(other)
        with pytest.raises(Removed, match="as the head in"):
            publish_where_named(ledger_state(other), after)
        assert head_at(named, str(tmp_path / "first")) == before

    def test_it_is_kept_in_every_kind_of_store(
        self, settings: Settings, store: object, request: pytest.FixtureRequest
    ) -> None:
        where = store.url("x").removesuffix("/x")  # type: ignore[attr-defined]
        endpoint = request.getfixturevalue("s3_endpoint") if where.startswith("s3://") else None
        named = self.named(settings, where).model_copy(update={"s3_endpoint": endpoint})
        data = entered(named)
        publish_where_named(ledger_state(named), data)
        publish_where_named(ledger_state(named), data)
        assert head_at(named, where) == data

    def test_where_there_is_none_there_is_none_and_what_is_no_place_is_an_error(
        self, settings: Settings, tmp_path: Path
    ) -> None:
        assert head_at(settings, str(tmp_path / "nothing")) is None
        with pytest.raises(StoreError):
            head_at(settings, "ftp://somewhere")


def ledger_head(settings: Settings) -> str:
    found = verify_ledger(settings)["head"]
    assert isinstance(found, str)
    return found


@pytest.mark.parametrize("entries", [1, 2, 4])
def test_one_of_another_store_is_said_to_be_that(settings: Settings, tmp_path: Path, entries: int) -> None:
    for where, number in (
        (settings, 2),
        (other := settings.model_copy(update={"store": str(tmp_path / "b")}), entries),
    ):
        for _ in range(number):
            append(where, "rescan", {})
    published = signed_head(ledger_state(settings))
    with pytest.raises(Removed, match="where another store publishes its head there, give each store a registry"):
        held_against(ledger_state(other), published, "a place")
