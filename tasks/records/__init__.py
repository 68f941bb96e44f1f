"""Signed records in the store, and the ledger that says in which order they were made."""
