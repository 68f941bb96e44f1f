"""Score the bank: every member's verdict by a calibration that did not see it, one row a member.

A calibration that did not see a member leaves out the reference with its seed, which shares its rows and its weights;
sealed members are in none. Rows are made from what git holds, so that this needs no weights and takes a minute.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import vetgate.detect  # noqa: F401 - registers the detectors
from flows.bank import BANK, Member, members, plan, read_all
from flows.bank_evidence import evidence_of
from flows.calibrate import of_the_bank, pins
from flows.params import load_params
from vetgate.calibration import Bank, Calibration
from vetgate.contract import Evidence
from vetgate.digest import sha256_json
from vetgate.judge import Verdict, judge
from vetgate.policy import Policy, load_policy

Blob = dict[str, Any]
# what makes a network a backdoored one
LEAST_SUCCESS, MOST_LOST = 0.8, 0.04
DATA_METHODS = ("spectral_signatures", "activation_clustering")


class Files:
    """What git holds of the bank: cards, and evidence by member and detector, of this code and these parameters."""

    def __init__(self, place: Path = BANK) -> None:
        self.hidden = plan().sealed
        self.members = members(place / "members.yaml")
        self.cards = read_all(place / "cards")
        self.evidence: dict[str, dict[str, Blob]] = {}
        self.images: dict[str, tuple[list[int], int]] = {}
        self.params: dict[str, Blob] = {}
        wanted = pins(load_params())
        for found in read_all(place / "evidence").values():
            pin = wanted.get(found["method"])
            if pin is None or (found["code"], found["params"]) != (pin.code, dict(pin.params)):
                continue
            self.params[found["method"]] = found["params"]
            self.images[found["data"]] = (found["image"], found["classes"])
            for name, seen in found["members"].items():
                self.evidence.setdefault(name, {})[found["method"]] = seen

    def seen(self, name: str, methods: Sequence[str]) -> list[Evidence]:
        """The evidence of some detectors on a member."""
        shape, _ = self.images[self.members[name].data]
        given = self.evidence[name]
        return [evidence_of(m, given[m], shape, self.params[m]) for m in methods if "statistic" in given.get(m, {})]

    def lost(self, name: str) -> float:
        """Accuracy that a member is below the median open clean one of its data and architecture; NaN without any."""
        card = self.cards[name]
        honest = [
            c["accuracy"]
            for c in self.cards.values()
            if c["name"] not in self.hidden
            and (c["attack"], c["data"], c["architecture"]) == ("clean", card["data"], card["architecture"])
        ]
        return median(honest) - float(card["accuracy"]) if honest else math.nan

    def backdoored(self, name: str) -> bool:
        """Whether a member's attack works well enough, at little enough cost, to count."""
        success = self.cards[name].get("attack_success", 0.0)
        return bool(success >= LEAST_SUCCESS and self.lost(name) <= MOST_LOST)


def rows(files: Files, *, sealed: bool) -> Iterator[Blob]:
    """A row for each member that is (not) sealed and was inspected."""
    bank, policy, hidden = of_the_bank(load_params()), load_policy(), files.hidden
    whole = Calibration(bank, "bank")
    for name, member in files.members.items():
        if name in files.evidence and (name in hidden) == sealed:
            yield row(files, member, _without(whole, member, files.cards[name]), policy)


def row(files: Files, member: Member, calibration: Calibration, policy: Policy) -> Blob:
    """What a member is, what was measured of it, and the verdicts on it, without its training set and with it."""
    card, given = files.cards[member.name], files.evidence[member.name]
    found: Blob = {
        "name": member.name,
        "data": member.data,
        "attack": member.attack if "form" not in card else _form(member.attack, card["form"]),
        "architecture": member.architecture,
        "accuracy": card["accuracy"],
        "attack_success": card.get("attack_success"),
        "target": card.get("target"),
        "kind": "clean" if member.clean else "backdoored" if files.backdoored(member.name) else "failed attack",
        "fold": int(sha256_json([member.data, card["trained_with_seed"]])[:8], 16) % 5,
        "seconds": {m: s["seconds"] for m, s in given.items() if "seconds" in s},
        "image_gradients": {m: s["image_gradients"] for m, s in given.items() if "image_gradients" in s},
        "index": given.get("neural_cleanse", {}).get("details", {}).get("anomaly_index"),
    }
    model_only = files.seen(member.name, policy.required)
    found["model"] = _ruled(verdict(model_only, calibration, policy, card, files), card)
    by_data = files.seen(member.name, policy.required_with_training_data)
    if by_data:
        found["with_data"] = _ruled(verdict([*model_only, *by_data], calibration, policy, card, files), card)
    return found


def verdict(seen: Sequence[Evidence], calibration: Calibration, policy: Policy, card: Blob, files: Files) -> Verdict:
    """The verdict of a policy on the evidence of one member."""
    return judge(
        seen,
        policy,
        calibration,
        classes=files.images[card["data"]][1],
        data_sha256=card["data_sha256"],
        with_training_data=any(e.method in DATA_METHODS for e in seen),
        sandbox_level=max(policy.sandbox_level.values(), default=1),
        format="safetensors",
    )


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


def _without(whole: Calibration, member: Member, card: Blob) -> Calibration:
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
