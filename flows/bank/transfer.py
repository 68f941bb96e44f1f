"""How far a calibration carries over: each data set, and each architecture, judged by references of the others."""

from __future__ import annotations

from collections.abc import Callable

from flows.bank.files import Files
from flows.bank.verdict import verdict
from vetgate.verdict.calibration import Bank, Calibration, Left, Reference
from vetgate.verdict.policy import load_policy


def transfer(bank: Bank, files: Files) -> Bank:
    """The bank with the alarms at the policy's rate of clean models whose kind is left out of the references."""
    return bank.model_copy(
        update={
            "transfer": {
                "data": _each(bank, files, lambda r: r.data),
                "architecture": _each(bank, files, lambda r: r.architecture),
            }
        }
    )


def _each(bank: Bank, files: Files, kind: Callable[[Reference], str]) -> dict[str, Left]:
    found = {}
    by_place = {(c["data"], c["seed"]): name for name, c in files.cards.items() if c["attack"] == "clean"}
    policy = load_policy()
    for left in sorted({kind(r) for r in bank.references}):
        rest = tuple(r for r in bank.references if kind(r) != left)
        if not rest:
            continue
        calibration, alarms = Calibration(bank.model_copy(update={"references": rest}), "left out"), 0
        subjects = [by_place[r.data, r.seed] for r in bank.references if kind(r) == left]
        for name in subjects:
            ruled = verdict(files.seen(name, policy.required), calibration, policy, files.cards[name], files)
            # a verdict that could not be given is no sign of calm
            alarms += ruled.p_value is None or ruled.p_value <= policy.false_alarm_rate
        found[left] = Left(models=len(subjects), alarms=alarms)
    return found
