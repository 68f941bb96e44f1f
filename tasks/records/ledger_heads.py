"""The published head: how far the ledger goes, signed by the gate and kept where who writes the store cannot write.

Whoever never saw the ledger before holds it against that: an end that was cut off is then noticed by everybody.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tasks.records.ledger_chain import Entry, entry_at, gate_key, removed
from tasks.records.ledger_state import LedgerState
from tasks.settings import Settings, location
from tasks.store.open import open_store
from vetgate.digest import canonical_json
from vetgate.errors import Denied, StoreError
from vetgate.trust import dsse
from vetgate.trust.keys import GATE, TrustRoot
from vetgate.trust.named_file import read_named
from vetgate.trust.statements import HEAD, claimed, sign_statement, verify_statement
from vetgate.trust.strict_json import as_object, as_sha256, as_time
from vetgate.verdict.policy import load_policy

KEY = "ledger-head.json"
ELSE = "or, where another store publishes its head there, give each store a registry and places of its own"


@dataclass(frozen=True)
class Head:
    """The last entry of the ledger when it was published: its number and its SHA-256."""

    sequence: int
    sha256: str


def signed_head(state: LedgerState) -> bytes | None:
    """The head of the ledger as it is now, signed by the gate; None for one without entries. Raises Denied."""
    last = entry_at(state.store, state.trust, state.end)
    if last is None:
        return None
    said = {"sequence": last.sequence, "sha256": last.sha256, "issued": last.issued}
    return canonical_json(sign_statement(HEAD, said, gate_key(state.settings)[0]))


def read_head(data: bytes, trust: TrustRoot) -> Head:
    """What a published head says; raises Denied for one that no gate signed."""
    envelope = dsse.read_envelope(data)
    # an old one outlives its key's window, as an entry does
    issued = as_time(claimed(HEAD, envelope)["issued"], "issued")
    said = as_object(
        verify_statement(envelope, trust, HEAD, {GATE}, issued).predicate, {"sequence", "sha256", "issued"}, "a head"
    )
    if not isinstance(said["sequence"], int):
        raise Denied(f"expected the number of an entry, got {said['sequence']!r:.80}; publish the head again")
    return Head(said["sequence"], as_sha256(said["sha256"], "sha256"))


def newer(state: LedgerState, data: bytes, published: bytes | None, where: str) -> bool:
    """Whether a head goes further than what is published somewhere; what no gate signed is replaced.

    Raises Removed, with an alarm, where the ledger does not hold the entry of which the published one tells: it was cut
    off and went on from there, and a newer head would hide that.
    """
    if published is None:
        return True
    try:
        before = read_head(published, state.trust)
    except Denied:
        return True
    check_head(before, entry_at(state.store, state.trust, before.sequence), where)
    return read_head(data, state.trust).sequence > before.sequence


def check_head(head: Head, entry: Entry | None, where: str) -> None:
    """Raise Removed, with an alarm, unless the ledger has this entry at the head that is published somewhere."""
    if entry is None:
        raise removed(
            f"expected entry {head.sequence} of the ledger, which the head in {where} names, got none: its end was cut "
            f"off; restore it, {ELSE}"
        )
    if entry.sha256 != head.sha256:
        raise removed(
            f"expected entry {head.sequence} of the ledger as the head in {where} says, got another; restore the "
            f"ledger, {ELSE}"
        )


def held_against(state: LedgerState, data: bytes | None, where: str) -> LedgerState:
    """The state, if the ledger goes as far as a head that was published before it was read; raises Removed, Denied."""
    if data is not None:
        head = read_head(data, state.trust)
        check_head(head, entry_at(state.store, state.trust, head.sequence), where)
    return state


def publish_where_named(state: LedgerState, data: bytes) -> None:
    """Write a signed head to the locations that the policy names; raises StoreError, and Removed as `newer` does."""
    for where in load_policy(state.settings.policy).ledger.heads:
        store = open_store(where, endpoint=state.settings.s3_endpoint)
        if store.create(KEY, data):
            continue
        published, etag = store.read_tagged(KEY)
        if newer(state, data, published, where):
            store.replace(KEY, data, if_match=etag)


def head_at(settings: Settings, where: str) -> bytes | None:
    """The head in a file, or below a directory or s3:// location; None where there is none. Raises StoreError."""
    try:
        path = Path(location(where))
    except ValueError as error:
        raise StoreError(str(error)) from error
    try:
        if path.is_file():
            return read_named(path)
        return open_store(where, endpoint=settings.s3_endpoint).read(KEY)
    except KeyError:
        return None
    except OSError as error:
        raise StoreError(f"expected to read the head in {where}, got {error.strerror}; name its file") from error
