"""The ledger of every decision, in the store: signed entries in a hash chain that can be proved whole."""

from __future__ import annotations

from tasks.records.ledger_chain import KINDS, Entry, append, entries, gate_key, head
from tasks.records.ledger_entries import catch_up, note, note_move
from tasks.records.ledger_verify import verify_ledger

__all__ = ["KINDS", "Entry", "append", "catch_up", "entries", "gate_key", "head", "note", "note_move", "verify_ledger"]
