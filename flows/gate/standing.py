"""What was decided stands: whoever asks in passing is answered with it, and evidence of another day changes nothing."""

from __future__ import annotations

from flows.gate.decided import Answer, Decided
from flows.gate.issue import SigningContext, check_not_taken_back, newest_verified
from tasks.records.ledger_state import ledger_state
from vetgate.errors import Denied, StoreError
from vetgate.shape import Blob
from vetgate.trust.strict_json import parse


def decided_before(context: SigningContext) -> Answer | None:
    """The decision of the newest verdict on these bytes, as the gate kept it; None where there is no verdict.

    Raises Revoked where that verdict was revoked, Denied where what was kept of it is not what it states.
    """
    check_not_taken_back(ledger_state(context.settings), context.record.id)
    found = newest_verified(context)
    if found is None:
        return None
    newest, stated = found
    key = f"verdicts/{context.record.id}/{stated.get('decision')}.json"
    try:
        said = parse(context.store.read(key), key)
        decided = Decided.from_json({name: value for name, value in said.items() if name != "decided_at"})
        if _stated(decided, stated) != (stated.get("decision"), stated.get("methods"), stated.get("reasons")):
            raise Denied("another")
    except (AttributeError, Denied, KeyError, StoreError) as error:
        got = "none" if isinstance(error, KeyError) else str(error)
        raise Denied(
            f"expected in {key} the decision that {newest.key} states, got {got:.300}; run `vetgate vet` on it to "
            "have it vetted anew"
        ) from error
    return Answer(decided, newest.key)


def _stated(decided: Decided, stated: Blob) -> tuple[str, list[Blob], list[str]]:
    """What a verdict on this decision states of it: its key does not cover the words, which are signed all the same."""
    failures = {method.name: method.failure for method in decided.verdict.methods}
    methods = [{**method, "failure": failures.get(method["name"], "")} for method in stated.get("methods") or ()]
    reasons = [*decided.verdict.reasons, *(stated.get("reasons") or ())[len(decided.verdict.reasons) :]]
    return decided.key, methods, reasons
