"""Decide: from the keys of evidence to a signed verdict, by the rules of a first vetting or of a rescan."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from flows.gate.decided import Answer, Confirmation, Decided
from flows.gate.guards import attested_guards
from flows.gate.issue import SigningContext, issue, newest_verified, signing_context, waived_predicate, waivers_on
from flows.gate.judged import NOT_SIGNED, Judged, decided_of, judged_of, methods_of, second_of
from flows.gate.question import FIRST, Question
from flows.gate.standing import decided_before
from tasks.records.ledger_chain import append
from tasks.records.ledger_entries import catch_up
from tasks.settings import Settings
from vetgate import shape
from vetgate.digest import canonical_json
from vetgate.errors import BadSubmission, Denied, StoreError
from vetgate.shape import Blob
from vetgate.trust import attest
from vetgate.trust.guard_claims import AttestedGuards
from vetgate.trust.keys import utc_now
from vetgate.trust.strict_json import as_time
from vetgate.trust.waivers import Waived
from vetgate.verdict.findings import findings
from vetgate.verdict.judge import Decision, rescanned
from vetgate.verdict.reasons import Code, Reason
from vetgate.verdict.wording import render

# a gate that died after it had signed is asked again
ASKED_AGAIN = timedelta(hours=1)


@dataclass(frozen=True)
class Ruling:
    """One decision and what is signed of it: `demote_after` for a rescan's FAIL, `covering` where it is waived.

    `guards` are those that the model is served with, which have no part in the decision.
    """

    context: SigningContext
    judged: Judged
    decided: Decided
    separated: bool
    demote_after: datetime | None = None
    covering: Waived | None = None
    guards: AttestedGuards | None = None

    @property
    def verdict(self) -> str:
        """The verdict of the attestation."""
        return "WAIVED" if self.covering else self.decided.verdict.decision


def decide(settings: Settings, question: Question, *, separated: bool = False) -> Answer:
    """Judge the evidence that a question names, keep and sign the verdict; its record, with its attestation's key.

    What the ledger has decided stands, unless a person asks anew; raises Revoked where that was revoked.
    What is not signed has the attestation None; a rescan that alone raises an alarm also has `wants_second`.
    """
    context = signing_context(settings, question.manifest)
    _check_runs(question)
    purpose, signed = question.purpose, question.sign
    if purpose not in ("submission", "rescan"):
        raise BadSubmission(f"expected the purpose submission or rescan, got {purpose!r:.80}")
    if signed:
        catch_up(settings, context.record.id)
        if purpose == "submission" and not question.asked and (before := decided_before(context)) is not None:
            return before
    judged = judged_of(context, question)
    if purpose == "rescan":
        return _rescan(context, judged, signed, separated)
    decided = decided_of(context, judged, purpose)
    ruling = Ruling(context, judged, decided, separated, covering=_covering(context, decided))
    return Answer(decided, _sign(ruling) if signed else None)


def _rescan(context: SigningContext, judged: Judged, signed: bool, separated: bool) -> Answer:
    """Renewed by a PASS, or by waivers; taken back by two FAILs; left as it is by everything else."""
    alarm = context.policy.rescan.false_alarm_rate
    before = _passed_before(context) if signed else {}
    _check_believed(judged)
    judged = replace(judged, verdict=rescanned(judged.verdict, alarm))
    decided, decision = decided_of(context, judged, "rescan"), judged.verdict.decision
    ruling = Ruling(context, judged, decided, separated, covering=_covering(context, decided))
    if decision is Decision.FAIL and ruling.covering is None:
        if judged.question.second is None:
            return Answer(decided, wants_second=True)
        second = second_of(context, judged.question, judged.question.second)
        _check_believed(second)
        second = replace(second, verdict=rescanned(second.verdict, alarm))
        decided, decision = decided_of(context, judged, "rescan", second), second.verdict.decision
        if decision is not Decision.FAIL and decided.second is not None:
            decided, decision = _unsettled(decided, decided.second), Decision.INCONCLUSIVE
        ruling = replace(ruling, decided=decided, demote_after=_demote_after(context, before))
    if not signed:
        return Answer(decided)
    if decision is Decision.INCONCLUSIVE and ruling.covering is None:
        append(
            context.settings,
            "rescan",
            {
                "manifest": decided.manifest,
                "name": decided.name,
                "run": decided.run,
                "decision": decision.value,
                "reasons": list(decided.verdict.reasons),
                "reason_records": [dict(record) for record in decided.verdict.reason_records],
            },
        )
        return Answer(decided)
    return Answer(decided, _sign(ruling))


def _check_runs(question: Question) -> None:
    """Raise BadSubmission for runs that nobody means: a verdict is renewed from its own seed, and confirmed once."""
    second = question.second
    if question.purpose == "rescan" and question.sign and question.run != FIRST:
        raise BadSubmission(f"expected the first run of a rescan, got {question.run!r:.80}; ask with flows.rescan")
    if second is not None and not second.only_says_what_was_found(question.manifest, second.run):
        raise BadSubmission(f"expected a second run on {question.manifest}, got something else; ask with flows.rescan")


def _check_believed(judged: Judged) -> None:
    """Raise StoreError where evidence is not believed: that must not keep a rescan's alarm away."""
    doubted = [name for name, code in (judged.question.failure_codes or {}).items() if code == NOT_SIGNED]
    if doubted:
        said = judged.question.failures[doubted[0]]
        raise StoreError(f"expected evidence of {', '.join(doubted)} that a vetter signed, got another ({said})")


def _unsettled(decided: Decided, second: Confirmation) -> Decided:
    """The record of a FAIL that an independent run did not confirm."""
    reason, verdict = Reason(Code.SECOND_RUN_DIFFERS, figures={"decision": second.decision}), decided.verdict
    changed = replace(
        verdict,
        decision="INCONCLUSIVE",
        reasons=(*verdict.reasons, render(reason)),
        reason_records=(*verdict.reason_records, reason.to_json()),
    )
    return replace(decided, verdict=changed)


def _findings(decided: Decided) -> tuple[str, ...]:
    return findings({**decided.verdict.to_json(), "refused": decided.refused})


def _covering(context: SigningContext, decided: Decided) -> Waived | None:
    try:
        return waivers_on(context, _findings(decided))
    except Denied:
        return None


def _passed_before(context: SigningContext) -> Blob:
    """The claims of the verdict that a rescan renews; raises Denied when there is none.

    A rescan raises an alarm less often than a first vetting, so a model must have passed that one.
    """
    found = newest_verified(context)
    if found is None or not (found[1]["verdict"] in attest.ADMITTED or found[1].get("demote_after")):
        got = "no verdict" if found is None else f"a {found[1]['verdict']}"
        raise Denied(
            f"expected {context.record.id} to have passed before its rescan, got {got}; vet it as a submission"
        )
    return found[1]


def _demote_after(context: SigningContext, before: Blob) -> datetime:
    """When a model that failed must go; a second FAIL does not give it more time."""
    until = utc_now() + timedelta(hours=context.policy.rescan.grace_hours)
    given = before.get("demote_after")
    return until if given is None else min(until, as_time(given, "demote_after"))


def _sign(ruling: Ruling) -> str:
    """Keep the decision and sign it; the key of its attestation, the earlier one's if it was signed already."""
    ruling = replace(ruling, guards=attested_guards(ruling.context, ruling.judged.question))
    if (signed := _signed_already(ruling)) is not None:
        return signed
    decided, context = ruling.decided, ruling.context
    dated = {**decided.to_json(), "decided_at": datetime.now(UTC).isoformat(timespec="microseconds")}
    context.store.create(f"verdicts/{context.record.id}/{decided.key}.json", canonical_json(dated))
    asked = ruling.judged.question.asked and decided.purpose == "submission"
    return issue(context, lambda now, previous: _predicate(ruling, now, previous), asked=asked)


def _predicate(ruling: Ruling, now: datetime, previous: str | None) -> Blob:
    decided, context, verdict = ruling.decided, ruling.context, ruling.decided.verdict
    made = attest.verdict_predicate(
        name=context.record.submission.name,
        verdict=verdict.decision,
        issued=now,
        valid=timedelta(days=context.policy.valid_days),
        policy=shape.to_json(decided.policy),
        methods=methods_of(ruling.judged, decided),
        reference_data=decided.reference_data,
        calibration=verdict.calibration,
        sandbox_level=decided.sandbox_level,
        reasons=verdict.reasons,
        reason_records=verdict.reason_records,
        p_value=verdict.p_value,
        suspects=verdict.suspects,
        previous=previous,
        duties_separated=ruling.separated,
        supplier=context.record.submission.supplier,
        parent=context.record.submission.parent,
        submitted=context.record.submission.submitted,
        findings=_findings(decided),
        purpose=decided.purpose,
        run=decided.run,
        second=shape.to_json(decided.second),
        demote_after=ruling.demote_after,
        decision=decided.key,
        guards=shape.to_json(ruling.guards),
    )
    return waived_predicate(made, ruling.covering) if ruling.covering else made


def _signed_already(ruling: Ruling) -> str | None:
    """The newest attestation, if it is of exactly this decision and still in force."""
    try:
        found = newest_verified(ruling.context)
    except Denied:
        return None
    if found is None:
        return None
    newest, stated = found
    waivers = [waiver.to_json() for waiver in ruling.covering.waivers] if ruling.covering else []
    if (stated.get("decision"), stated["verdict"], stated.get("waivers"), stated.get("guards")) != (
        ruling.decided.key,
        ruling.verdict,
        waivers,
        shape.to_json(ruling.guards),
    ):
        return None
    issued, expires = (as_time(stated[field], field) for field in ("issued", "expires"))
    lasting = expires if ruling.decided.purpose == "submission" else min(expires, issued + ASKED_AGAIN)
    return newest.key if utc_now() < lasting else None
