"""Prove the ledger whole: nothing missing, changed, moved or unsigned, and nothing in the store unknown to it."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from tasks.records.ledger_chain import PREFIX, Entry, check_link, entry_key, read_entry, remember, remembered, removed
from tasks.records.ledger_heads import check_head, read_head
from tasks.records.ledger_state import FILE, check_index, ledger_state
from tasks.settings import Settings
from tasks.store.base import Store
from tasks.store.key_forms import strange_objects
from tasks.store.open import open_store
from vetgate.errors import Denied
from vetgate.trust.dsse import MAX_CLOCK_SKEW
from vetgate.trust.keys import TrustRoot, read_trust_root, utc_now
from vetgate.trust.strict_json import as_time

# a gate that is at work writes the entry right after the object
SETTLE_SECONDS = 1.0
MOST_NAMED = 5


def verify_ledger(settings: Settings, heads: Mapping[str, bytes] | None = None) -> dict[str, Any]:
    """Number of entries, of each kind, and the last one's SHA-256; raises Denied with the first thing that is wrong.

    Raises Removed where something is missing, or is not as it was entered. Needs no private key. The end is held
    against what this home remembers, and against published `heads`, by where they are: `against` names them. `strange`
    names what lies in the store and is none of ours, so that nothing reads it: it takes nothing from the proof.
    """
    store, trust = open_store(settings), read_trust_root(settings.trust_root)
    objects = list(store.list("attestations/"))
    chain = _chain(store, trust, [])
    unknown = _unknown(objects, chain)
    if unknown:
        time.sleep(SETTLE_SECONDS)
        chain = _chain(store, trust, chain)
        unknown = _unknown(objects, chain)
    against = _check_end(settings, chain)
    for where, data in (heads or {}).items():
        head = read_head(data, trust)
        check_head(head, chain[head.sequence - 1] if 0 < head.sequence <= len(chain) else None, where)
    if chain and (settings.home / FILE).exists():
        check_index(ledger_state(settings), chain)
    for entry in chain:
        _check_object(store, entry)
    if unknown:
        named = ", ".join(unknown[:MOST_NAMED])
        raise Denied(
            f"expected an entry for every attestation, got none for {len(unknown)}: {named}; "
            "let the gate catch up (`vetgate sweep`), and remove what it did not sign"
        )
    if chain:
        # whoever proved it once notices when it ends earlier
        remember(settings, chain[-1])
    return {
        "entries": len(chain),
        "head": chain[-1].sha256 if chain else None,
        "kinds": dict(sorted(Counter(entry.kind for entry in chain).items())),
        "attestations": len(objects),
        "promotions": sum(1 for _ in store.list("promotions/")),
        "against": [*against, *(heads or {})],
        "strange": [*strange_objects(store), *_without_entry(store, chain)],
    }


def _chain(store: Store, trust: TrustRoot, known: list[Entry]) -> list[Entry]:
    """The entries, `known` being those read before, each signed and holding the one before it."""
    chain = list(known)
    keys = list(store.list(PREFIX))
    for sequence, key in enumerate(keys, start=1):
        if key != entry_key(sequence):
            raise removed(
                f"expected {entry_key(sequence)} in the ledger, got {key}: entries are missing, or it is none"
            )
        if sequence <= len(known):
            continue
        entry = read_entry(store, trust, sequence)
        check_link(entry, chain[-1] if chain else None)
        chain.append(entry)
    if len(keys) < len(known):
        raise removed(f"expected entry {len(known)} of the ledger, got none: it was removed; restore the ledger")
    return chain


def _check_end(settings: Settings, chain: list[Entry]) -> list[str]:
    anchor = remembered(settings)
    if anchor is not None and len(chain) < anchor[0]:
        raise removed(f"expected {anchor[0]} entries in the ledger, got {len(chain)}: its end was cut off; restore it")
    if anchor is not None and chain[anchor[0] - 1].sha256 != anchor[1]:
        raise removed(f"expected entry {anchor[0]} of the ledger as its gate left it, got another; restore the ledger")
    if chain and as_time(chain[-1].issued, "issued") > utc_now() + MAX_CLOCK_SKEW:
        raise Denied(f"expected a ledger written by now, got an entry of {chain[-1].issued}; set the clock right")
    return [] if anchor is None else ["this home"]


def _unknown(objects: list[str], chain: list[Entry]) -> list[str]:
    entered = {entry.subject.get("key") for entry in chain}
    return [key for key in objects if key not in entered]


def _without_entry(store: Store, chain: list[Entry]) -> list[str]:
    """Revocations without an entry, since they revoke nothing known, and promotions, which a crash left or others laid.

    The former are in force all the same, and the latter let nothing into production.
    """
    found = []
    for what in ("revocations", "promotions"):
        unknown = [repr(key) for key in _unknown(list(store.list(f"{what}/")), chain)]
        found += unknown[:MOST_NAMED] if len(unknown) <= MOST_NAMED else [*unknown[:MOST_NAMED], f"and more {what}"]
    return found


def _check_object(store: Store, entry: Entry) -> None:
    key = entry.subject.get("key")
    if key is None:
        return
    try:
        found = hashlib.sha256(store.read(str(key))).hexdigest()
    except KeyError:
        raise removed(f"expected {key}, which entry {entry.sequence} tells of, got none: it was removed") from None
    except Denied as error:
        raise removed(f"expected {key} as entry {entry.sequence} tells of it, got: {error}") from error
    if found != entry.subject.get("sha256"):
        raise removed(f"expected {key} as entry {entry.sequence} tells of it, got other bytes: it was changed")
