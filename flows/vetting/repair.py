"""Repair one submission: which repairs are tried in which order, and what becomes of the one that is chosen."""

from __future__ import annotations

from flows.gate.decided import Answer
from flows.params import needs, uses
from flows.vetting.examine import Seen, Vetting
from flows.vetting.result import Rejected, Restored
from tasks.vetting import steps
from tasks.vetting.basis import nothing_to_go_by, records_with
from tasks.vetting.choose import Tried, candidates, choose, clearly_good
from tasks.vetting.repair import Yardstick, restore
from tasks.vetting.results import Compared, RepairFailed, repair_from_json
from tasks.vetting.workplace import warm
from vetgate.errors import DefenceError
from vetgate.role import source_of
from vetgate.verdict.reasons import Code, Reason


def repair_submission(vetting: Vetting, seen: Seen, ruling: Answer) -> Restored | Rejected | None:
    """The chosen repair, restored under <home>/repaired and measured on the test images; None if none is wanted.

    A blind repair of what did not fail takes out what no detector saw; whatever it does, its copy is a submission of
    its own, and the verdict on what was handed in stays.
    """
    policy, settings, case = vetting.policy.repair, vetting.settings, vetting.case
    if not _wanted(vetting, seen, ruling):
        return None
    tried = _tried(vetting, seen, ruling)
    directory = settings.home / "repaired" / case.manifest
    while (chosen := choose(tried, policy)) is not None:
        restore(settings, case, chosen, directory)
        try:
            figures = Compared.from_json(steps.re_evaluate(case, chosen, directory))
        except DefenceError as error:
            # on these images it is not the network that was chosen
            tried[tried.index(chosen)] = RepairFailed(chosen.method, str(error))
        else:
            return Restored(chosen, directory, figures, candidates(tried, chosen, policy))
    return Rejected(candidates(tried, None, policy))


def _wanted(vetting: Vetting, seen: Seen, ruling: Answer) -> bool:
    policy, decision = vetting.policy.repair, ruling.decided.verdict.decision
    # what was not understood or not opened is not run either
    can_be = seen.refusal is None and bool(vetting.case.data.splits)
    # what came from a repair is not repaired again: a supplier could otherwise keep this machine busy for ever
    given = vetting.record.submission.parent is None
    blind = policy.blind and decision in ("PASS", "INCONCLUSIVE")
    return policy.enabled and can_be and given and (decision == "FAIL" or blind)


def _tried(vetting: Vetting, seen: Seen, ruling: Answer) -> list[Tried]:
    """Every repair of the policy in its order, until one is clearly good: its record, or why it has none."""
    settings, case, params = vetting.settings, vetting.case, vetting.params
    suspects = list(ruling.decided.verdict.suspects)
    inversion = params.detect.get(source_of("triggers", params.detect) or "", {})
    by = Yardstick(records_with(settings, case, seen.found, "triggers", suspects), suspects, inversion)
    tried: list[Tried] = []
    good: str | None = None
    for method in vetting.policy.repair.methods:
        if good is not None:
            tried.append(Reason(Code.REPAIR_NOT_TRIED, method, figures={"good": good}))
            continue
        used = uses(method)
        evidence = [] if used is None else records_with(settings, case, seen.found, used, suspects)
        skipped = nothing_to_go_by(case, method, used, evidence, needs("repair", method))
        if skipped is not None:
            tried.append(skipped)
        else:
            # the repaired copy is vetted next
            warm(settings)
            own = params.repair.get(method, {})
            one = repair_from_json(steps.repair(settings, case, method, own, evidence, by))
            tried.append(one)
            good = method if clearly_good(one, vetting.policy.repair) else None
    return tried
