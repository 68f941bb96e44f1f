from __future__ import annotations

import multiprocessing
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.processes import in_processes
from vetgate.errors import BadSubmission, Denied, StoreError
from vetgate.trust.keys import (
    APPROVER,
    GATE,
    SUBMITTER,
    VETTER,
    load_key,
    load_or_create_key,
    load_or_create_vetter,
    new_key,
    raw_public,
    read_public,
    read_trust_root,
    trust_key,
)

NOW = datetime(2026, 11, 23, 9, 30, tzinfo=UTC)
YEAR = timedelta(days=365)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A trust root with the gate's key in it."""
    load_or_create_key(tmp_path / "gate.ed25519", tmp_path / "trust.json", now=NOW)
    return tmp_path / "trust.json"


def test_a_new_key_is_its_owner_s_only_and_its_public_half_lies_beside_it(tmp_path: Path) -> None:
    key = new_key(tmp_path / "people" / "alice")
    path = tmp_path / "people" / "alice"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert raw_public(load_key(path)) == raw_public(key) == read_public(path.with_name("alice.pub"))
    with pytest.raises(BadSubmission, match="which is there"):
        new_key(path)
    assert raw_public(load_key(path)) == raw_public(key)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_key_that_others_could_read_is_refused(tmp_path: Path, mode: int) -> None:
    new_key(tmp_path / "alice")
    (tmp_path / "alice").chmod(mode)
    with pytest.raises(Denied, match="owner only"):
        load_key(tmp_path / "alice")


def test_what_is_no_public_key_is_a_usage_error(tmp_path: Path) -> None:
    new_key(tmp_path / "alice")
    (tmp_path / "text").write_text("hello")
    for wrong in ("alice", "text", "none"):
        with pytest.raises(BadSubmission):
            read_public(tmp_path / wrong)
    with pytest.raises(StoreError, match="expected to read"):
        load_key(tmp_path / "none")


def test_a_trusted_key_has_a_role_and_a_window_and_the_others_stay(root: Path) -> None:
    raw = raw_public(Ed25519PrivateKey.generate())
    before = read_trust_root(root).keys
    key = trust_key(root, raw, APPROVER, now=NOW, valid=YEAR)
    assert read_trust_root(root).keys == (*before, key)
    assert (key.role, key.not_before, key.not_after) == (APPROVER, NOW, NOW + YEAR)
    assert stat.S_IMODE(root.stat().st_mode) == 0o644


def test_a_key_may_get_more_days_but_never_another_role(root: Path) -> None:
    raw = raw_public(Ed25519PrivateKey.generate())
    trust_key(root, raw, SUBMITTER, now=NOW, valid=YEAR)
    later = trust_key(root, raw, SUBMITTER, now=NOW + YEAR, valid=YEAR)
    assert (later.not_before, later.not_after) == (NOW, NOW + 2 * YEAR)
    assert len(read_trust_root(root).keys) == 2
    for role in (GATE, APPROVER):
        with pytest.raises(Denied, match=f"as submitter, got {role}"):
            trust_key(root, raw, role, now=NOW, valid=YEAR)
    with pytest.raises(BadSubmission, match="one of the roles"):
        trust_key(root, raw, "admin", now=NOW, valid=YEAR)


def test_a_vetter_s_key_is_made_and_trusted_once(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "vetter.ed25519"
    made = load_or_create_vetter(path, root, now=NOW)
    (_, key) = read_trust_root(root).keys
    assert (key.raw, key.role, key.not_before) == (raw_public(made), VETTER, NOW)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert raw_public(load_or_create_vetter(path, root, now=NOW + YEAR)) == raw_public(made)
    assert read_trust_root(root).keys[1:] == (key,)


def test_a_vetter_s_key_that_was_taken_out_of_the_trust_root_stays_out(root: Path, tmp_path: Path) -> None:
    path, before = tmp_path / "vetter.ed25519", root.read_bytes()
    made = load_or_create_vetter(path, root, now=NOW)
    root.write_bytes(before)
    assert raw_public(load_or_create_vetter(path, root, now=NOW)) == raw_public(made)
    assert root.read_bytes() == before


def test_of_processes_that_make_a_vetter_s_key_at_once_all_get_the_same_and_it_is_trusted(
    root: Path, tmp_path: Path
) -> None:
    def make(_: int) -> bytes:
        return raw_public(load_or_create_vetter(tmp_path / "vetter.ed25519", root, now=NOW))

    (raw,) = set(in_processes(6, make))
    assert raw in {key.raw for key in read_trust_root(root).keys if key.role == VETTER}


def test_without_a_trust_root_no_vetter_s_key_is_left(tmp_path: Path) -> None:
    with pytest.raises(Denied, match="expected a trust root"):
        load_or_create_vetter(tmp_path / "vetter.ed25519", tmp_path / "trust.json", now=NOW)
    assert not (tmp_path / "vetter.ed25519").exists()


def test_keys_that_are_trusted_at_once_are_all_kept(root: Path) -> None:
    fork = multiprocessing.get_context("fork")
    start = fork.Barrier(8)

    def add() -> None:
        start.wait()
        trust_key(root, raw_public(Ed25519PrivateKey.generate()), APPROVER, now=NOW, valid=YEAR)

    processes = [fork.Process(target=add) for _ in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert len(read_trust_root(root).keys) == 9


def test_without_a_trust_root_no_key_is_added(tmp_path: Path) -> None:
    with pytest.raises(Denied, match="expected a trust root"):
        trust_key(tmp_path / "trust.json", raw_public(Ed25519PrivateKey.generate()), APPROVER, now=NOW, valid=YEAR)
