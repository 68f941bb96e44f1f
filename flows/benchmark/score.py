"""Score the bank: every member's verdict by a calibration that did not see it, one row a member.

A calibration that did not see a member leaves out the reference with its seed, which shares its rows and its weights;
members that are held back are in none. Rows are made from what git holds, so that this needs no weights and takes a
minute or two.
"""

from __future__ import annotations

from collections.abc import Iterator

from flows.bank.calibrate import of_the_bank
from flows.bank.files import Files, verdict
from flows.bank.networks import OPEN, Member
from vetgate.digest import sha256_json
from vetgate.role import source_of
from vetgate.shape import Blob
from vetgate.verdict.calibration import Bank, Calibration
from vetgate.verdict.judge import Verdict
from vetgate.verdict.policy import Policy, load_policy


def rows(files: Files, group: str = OPEN, rate: float | None = None) -> Iterator[Blob]:
    """A row for each member of a group that was inspected, under the shipped policy, or one of another rate."""
    whole, policy = Calibration(of_the_bank(files), "bank"), policy_at(rate)
    for name, member in files.members.items():
        if name in files.evidence and files.group(name) == group:
            yield row(files, member, without(whole, member, files.cards[name]), policy)


def policy_at(rate: float | None) -> Policy:
    """The shipped policy, with another rate of false alarms if one is given."""
    return load_policy() if rate is None else load_policy().model_copy(update={"false_alarm_rate": rate})


def row(files: Files, member: Member, calibration: Calibration, policy: Policy) -> Blob:
    """What a member is, what was measured of it, and the verdicts on it: of the model alone, with its training set, and
    of the model alone as a graph that no reference is like.
    """
    card, given = files.cards[member.name], files.evidence[member.name]
    found: Blob = {
        "name": member.name,
        "data": member.data,
        "attack": member.attack if "form" not in card else _form(member.attack, card["form"]),
        "architecture": member.architecture,
        "accuracy": card["accuracy"],
        "attack_success": card.get("attack_success"),
        "target": card.get("target"),
        "kind": files.kind(member.name),
        "fold": int(sha256_json([member.data, card["trained_with_seed"]])[:8], 16) % 5,
        "seconds": {m: s["seconds"] for m, s in given.items() if "seconds" in s},
        "image_gradients": {m: s["image_gradients"] for m, s in given.items() if "image_gradients" in s},
        "index": given.get(source_of("triggers") or "", {}).get("details", {}).get("anomaly_index"),
    }
    model_only = files.seen(member.name, policy.required)
    found["model"] = _ruled(verdict(model_only, calibration, policy, card, files), card)
    graph = {**card, "architecture": None}
    found["unlike"] = _ruled(verdict(model_only, calibration, policy, graph, files), card)
    by_data = files.seen(member.name, policy.required_with_training_data)
    if by_data:
        found["with_data"] = _ruled(verdict([*model_only, *by_data], calibration, policy, card, files), card)
    judged = {*policy.required, *policy.required_with_training_data}
    for extra in files.seen(member.name, sorted(set(given) - judged)):
        # measured by itself, beside a verdict in which it has no part
        beside = _ruled(verdict([*model_only, extra], calibration, policy, card, files), card)["methods"]
        for view in found.keys() & {"model", "with_data"}:
            found[view]["methods"] |= {name: p for name, p in beside.items() if name == extra.method}
    return found


def _ruled(found: Verdict, card: Blob) -> Blob:
    about = found.calibration or {}
    return {
        "decision": found.decision.value,
        "p_value": found.p_value,
        "suspects": list(found.suspects),
        "right": card.get("target") in found.suspects,
        "references": about.get("references"),
        "methods": {m.name: m.p_value for m in found.methods if m.p_value is not None},
    }


def without(whole: Calibration, member: Member, card: Blob) -> Calibration:
    """A calibration that did not see a member, nor the reference that shares its seed."""
    left = tuple(
        r
        for r in whole.bank.references
        if (r.data, r.seed) not in {(member.data, member.seed), (member.data, card["trained_with_seed"])}
    )
    if len(left) == len(whole.bank.references):
        return whole
    return Calibration(Bank(methods=whole.bank.methods, references=left), whole.id)


def _form(attack: str, form: str) -> str:
    return {"one": attack, "next": f"{attack}, all to all", "several": f"{attack}, several targets"}.get(form, attack)
