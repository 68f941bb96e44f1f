"""What the gate attests of run-time guards: what a trusted vetter signed for this model, under this policy and code.

No verdict depends on them. What is not believed is not attested, and said in the gate's log.
"""

from __future__ import annotations

import logging

from flows.gate.issue import SigningContext
from flows.gate.question import GUARDING, Question
from tasks.guards.fit import pins, settings_digest
from tasks.vetting import signed_results
from tasks.vetting.inspect import bound
from tasks.vetting.intake import seed_of
from tasks.vetting.results import GuardRecord
from vetgate.errors import Denied, StoreError
from vetgate.trust.guard_claims import AttestedGuard, AttestedGuards
from vetgate.trust.statements import GUARDS
from vetgate.trust.strict_json import as_sha256

logger = logging.getLogger(__name__)


def attested_guards(context: SigningContext, question: Question) -> AttestedGuards | None:
    """The guards that a question names, None where it names none, none was chosen, or they are not believed."""
    if question.guards is None or not context.policy.guard.enabled:
        return None
    try:
        return _believed(context, question, question.guards)
    except Denied as error:
        logger.warning("the guards of %s are not attested: %s", context.record.id, error)
        return None


def _believed(context: SigningContext, question: Question, key: str) -> AttestedGuards | None:
    record, policy = context.record, context.policy.guard
    signed = signed_results.read(context.store, context.trust, GUARDS, record.id, None, key)
    if signed is None:
        raise Denied(f"expected guards in the store under {key:.200}, got none; vet again")
    try:
        found = GuardRecord.from_json(signed.found)
        made_with = signed.about["guards"]
        expected = {
            "manifest": record.id,
            "guards": pins({name: made_with[name]["params"] for name in policy.methods}),
            "rate": policy.false_rejection_rate,
            "max_slowdown": policy.max_slowdown,
            "data": bound(question.reference_data or {}),
            "run": GUARDING,
            "seed_commitment": seed_of(context.settings, record, GUARDING).commitment,
        }
        rates = {one.name: one.rate for one in found.guards if one.chosen and one.rate is not None}
        chosen = tuple(AttestedGuard(name, rate, made_with[name]["code"]) for name, rate in rates.items())
    except (AttributeError, KeyError, StoreError, TypeError) as error:
        raise Denied(f"expected the record of this policy's guards, got {error!r:.300}; vet again") from error
    given = {name: signed.about.get(name) for name in expected}
    if given != expected:
        raise Denied(f"expected guards made with {expected}, got {given}; vet again")
    if found.package is None:
        return None
    if not chosen or sum(rates.values()) > policy.false_rejection_rate * (1 + 1e-9):
        raise Denied(f"expected guards that reject {policy.false_rejection_rate} together, got {rates}; vet again")
    as_sha256(found.package, "package")
    settings = settings_digest(made_with, policy)
    return AttestedGuards(found.package, chosen, policy.false_rejection_rate, policy.action, signed.vetter, settings)
