"""What the gate refused, for the ledger and as events."""

from __future__ import annotations

import logging

from tasks import events
from tasks.records.ledger import append
from tasks.settings import Settings
from vetgate.errors import Denied, VetgateError


def enter_denial(settings: Settings, name: str, alias: str, submission: str | None, error: Denied) -> None:
    """Enter a refusal and tell of it; one that cannot be entered, because the gate trusts no key, is only logged."""
    said = {"name": name, "alias": alias, "submission": submission, "reason": str(error), "exit_code": error.exit_code}
    try:
        append(settings, "denial", said)
    except VetgateError as other:
        logging.getLogger(__name__).warning("the refusal of %s could not be entered: %s", name, other)
    events.emit(events.PROMOTION_DENIED, f"promotion.{name}", said)
