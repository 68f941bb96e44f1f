"""Records of rescans in the store, each signed by the gate: what a stranger lays beside them is not shown as one."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

from tasks.records.ledger_chain import gate_key
from tasks.settings import Settings
from tasks.store.base import Store
from vetgate.digest import canonical_json
from vetgate.errors import Denied
from vetgate.shape import Blob
from vetgate.trust import dsse
from vetgate.trust.keys import GATE, TrustRoot, utc_now
from vetgate.trust.statements import RESCAN, sign_statement, verify_statement
from vetgate.trust.strict_json import time_text

# of objects that no gate signed so many are passed over before nothing is looked for any more
MOST = 64


def record_key(batch: str) -> str:
    """Where the record of a batch is kept."""
    return f"rescans/{batch}.json"


def save_rescan(settings: Settings, store: Store, record: Blob) -> bool:
    """Sign what a batch (`record["batch"]`) came to and keep it; False where another object lies in its place."""
    key, _ = gate_key(settings)
    envelope = sign_statement(RESCAN, {"issued": time_text(utc_now()), "record": record}, key)
    return store.create(record_key(record["batch"]), canonical_json(envelope))


def read_rescan(store: Store, trust: TrustRoot, key: str) -> Blob:
    """The record under a key; raises Denied unless the gate signed it for this batch, KeyError where there is none."""
    signed = verify_statement(dsse.read_envelope(store.read(key)), trust, RESCAN, {GATE}, utc_now())
    record = signed.predicate.get("record")
    if not isinstance(record, dict) or record_key(str(record.get("batch"))) != key:
        raise Denied(f"expected at {key} the record of this batch, got that of another; remove it")
    return record


def last_rescan(store: Store, trust: TrustRoot, wrong: Callable[[str], object]) -> Blob | None:
    """The record of the newest batch, or None; `wrong` is told of what lies there and is none."""
    for key in islice(sorted(store.list("rescans/"), key=_order, reverse=True), MOST):
        try:
            return read_rescan(store, trust, key)
        except (Denied, KeyError) as error:
            wrong(f"{key}: {error}")
    return None


def _order(key: str) -> tuple[str, int]:
    # a day and the number of its batch, whose tenth comes after the ninth
    day, _, number = key.removesuffix(".json").rpartition("-")
    return day, int(number)
