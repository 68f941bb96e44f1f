"""Repair one submission: which repairs are tried in which order, until the copy of one passes its own vetting."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from flows.gate.decided import Answer
from flows.params import needs, uses
from flows.vetting.examine import Vetting
from flows.vetting.result import Rejected, Repaired, Restored
from flows.vetting.seen import Seen
from tasks.vetting import steps
from tasks.vetting.basis import nothing_to_go_by, records_with
from tasks.vetting.choose import Tried, candidates, choose, clearly_good
from tasks.vetting.intake import Record
from tasks.vetting.repair import Yardstick, restore
from tasks.vetting.results import Compared, RepairFailed, RepairRecord, Result, repair_from_json
from tasks.vetting.workplace import warm
from vetgate.errors import DefenceError, NotUnderstood
from vetgate.role import source_of
from vetgate.verdict.policy import RepairPolicy
from vetgate.verdict.reasons import Code, Reason


def repair_submission(
    vetting: Vetting, seen: Seen, ruling: Answer, vet_copy: Callable[[Path], tuple[Record, Result]]
) -> Repaired | Rejected | None:
    """The first repair whose copy passes a vetting of its own, or the best whose copy did not; None if not wanted.

    The best repair is restored under <home>/repaired, measured on the test images, submitted and vetted by `vet_copy`.
    Where its copy does not pass, the next best of those tried goes the same way, then those that the policy names and
    that were not tried yet; where none passes, one that is inconclusive goes before one that failed. A blind repair of
    what did not fail takes out what no detector saw; whatever it does, its copy is a submission of its own, and the
    verdict on what was handed in stays.
    """
    policy, case = vetting.policy.repair, vetting.case
    if not _wanted(vetting, seen, ruling):
        return None
    runs, tried = _runs(vetting, seen, ruling), list[Tried]()
    copies: dict[str, Repaired] = {}
    best: RepairRecord | None = None
    directory = vetting.settings.home / "repaired" / case.manifest
    while best is None:
        chosen = choose([one for one in tried if one.method not in copies], policy)
        if chosen is None:
            if not _run_on(runs, tried, policy):
                break
            continue
        restore(vetting.settings, case, chosen, directory)
        try:
            figures = Compared.from_json(steps.re_evaluate(case, chosen, directory))
        except (DefenceError, NotUnderstood) as error:
            # on these images it is not the network that was chosen
            tried[tried.index(chosen)] = RepairFailed(chosen.method, str(error))
            continue
        copy = Repaired(Restored(chosen, directory, figures), *vet_copy(directory))
        copies[chosen.method] = copy
        best = chosen if copy.result.verdict == "PASS" else None
    if best is None and copies:
        open_still = [copy for copy in copies.values() if copy.result.verdict != "FAIL"]
        best = choose([copy.restored.chosen for copy in open_still or copies.values()], policy)
        assert best is not None
        # another one lies there, or none
        restore(vetting.settings, case, best, directory)
    if best is not None:
        unneeded = policy.methods[len(tried) :]
        tried += [Reason(Code.REPAIR_NOT_TRIED, method, figures={"good": best.method}) for method in unneeded]
    vetted = {method: copy.result for method, copy in copies.items()}
    shown = candidates(tried, best, policy, vetted)
    return Rejected(shown) if best is None else replace(copies[best.method], candidates=shown)


def _run_on(runs: Iterator[Tried], tried: list[Tried], policy: RepairPolicy) -> bool:
    """Try further repairs until one is clearly good or none is left; whether there were any."""
    before = len(tried)
    for one in runs:
        tried.append(one)
        if clearly_good(one, policy):
            break
    return len(tried) > before


def _wanted(vetting: Vetting, seen: Seen, ruling: Answer) -> bool:
    policy, decision = vetting.policy.repair, ruling.decided.verdict.decision
    # what was not understood or not opened is not run either
    can_be = seen.refusal is None and bool(vetting.case.data.splits)
    # what came from a repair is not repaired again: a supplier could otherwise keep this machine busy for ever
    given = vetting.record.submission.parent is None
    blind = policy.blind and decision in ("PASS", "INCONCLUSIVE")
    # other weights leave a path that goes around them as it is
    wired = any(record["code"] == Code.STRUCTURAL_BACKDOOR for record in ruling.decided.verdict.reason_records)
    return policy.enabled and can_be and given and not wired and (decision == "FAIL" or blind)


def _runs(vetting: Vetting, seen: Seen, ruling: Answer) -> Iterator[Tried]:
    """Every repair of the policy in its order, run when it is asked for: its record, or why it has none."""
    settings, case, params = vetting.settings, vetting.case, vetting.params
    suspects, failed = list(ruling.decided.verdict.suspects), ruling.decided.verdict.decision == "FAIL"
    inversion = params.detect.get(source_of("triggers", params.detect) or "", {})
    by = Yardstick(records_with(settings, case, seen.found, "triggers", suspects), suspects, inversion)
    for method in vetting.policy.repair.methods:
        used = uses(method)
        evidence = [] if used is None else records_with(settings, case, seen.found, used, suspects)
        skipped = nothing_to_go_by(case, method, used, evidence, needs("repair", method))
        if skipped is not None:
            yield skipped
        elif failed and not suspects and used is None:
            # what convicted it are rows that its copy no longer names: the least change would keep most accuracy
            yield Reason(Code.REPAIR_UNMEASURED, method)
        else:
            # the repaired copy is vetted next
            warm(settings)
            own = params.repair.get(method, {})
            yield repair_from_json(steps.repair(settings, case, method, own, evidence, by))
