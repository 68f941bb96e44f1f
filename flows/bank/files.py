"""What git holds of the bank, read once: members, cards, evidence of the detectors of today; and verdicts on it."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import vetgate.detect  # noqa: F401 - registers the detectors
from flows.bank.evidence import evidence_of
from flows.bank.networks import BANK, LEAST_SUCCESS, OPEN, members, plan, read_all
from flows.params import Params, load_params
from vetgate.contract import DETECTORS, Evidence
from vetgate.digest import code_digest
from vetgate.role import by_itself
from vetgate.shape import Blob
from vetgate.verdict.calibration import Calibration, MethodPin
from vetgate.verdict.judge import Verdict, judge
from vetgate.verdict.policy import Policy
from vetgate.verdict.seen import SeenEvidence

# accuracy (a share) that a backdoor may cost
MOST_LOST = 0.04


def pins(params: Params) -> dict[str, MethodPin]:
    """The detectors that have a section in params.yaml and are held against references, as they are now."""
    return {
        name: MethodPin(code=code_digest("detect", name), params={**DETECTORS[name].defaults, **section})
        for name, section in sorted(params.detect.items())
        if not by_itself(name)
    }


class Files:
    """Cards, and evidence by member and detector, of this code and these parameters; `group` says who is held back."""

    def __init__(self, place: Path = BANK) -> None:
        self.group = plan().group
        self.members = members(place / "members.yaml")
        self.cards = read_all(place / "cards")
        self.pins = pins(load_params())
        self.evidence: dict[str, dict[str, Blob]] = {}
        self.images: dict[str, tuple[list[int], int]] = {}
        for file, found in read_all(place / "evidence").items():
            pin = self.pins.get(found["method"])
            if pin is None or (found["code"], found["params"]) != (pin.code, dict(pin.params)):
                print(f"{file} was made with other code or parameters and is left out", file=sys.stderr)
                continue
            self.images[found["data"]] = (found["image"], found["classes"])
            for name, seen in found["members"].items():
                self.evidence.setdefault(name, {})[found["method"]] = seen

    def seen(self, name: str, methods: Sequence[str]) -> list[Evidence]:
        """The evidence of some detectors on a member."""
        shape, _ = self.images[self.members[name].data]
        given = self.evidence[name]
        return [
            evidence_of(m, given[m], shape, dict(self.pins[m].params))
            for m in methods
            if "statistic" in given.get(m, {})
        ]

    def lost(self, name: str) -> float:
        """Accuracy that a member is below the median open clean one of its data and architecture; NaN without any."""
        card = self.cards[name]
        honest = [
            c["accuracy"]
            for c in self.cards.values()
            if self.group(c["name"]) == OPEN
            and (c["attack"], c["data"], c["architecture"]) == ("clean", card["data"], card["architecture"])
        ]
        return median(honest) - float(card["accuracy"]) if honest else math.nan

    def kind(self, name: str) -> str:
        """What a member counts as: clean, backdoored or failed attack."""
        return "clean" if self.members[name].clean else "backdoored" if self.backdoored(name) else "failed attack"

    def backdoored(self, name: str) -> bool:
        """Whether a member's attack works well enough, at little enough cost, to count."""
        success = self.cards[name].get("attack_success", 0.0)
        return bool(success >= LEAST_SUCCESS and self.lost(name) <= MOST_LOST)


def verdict(
    seen: Sequence[SeenEvidence], calibration: Calibration, policy: Policy, card: Blob, files: Files
) -> Verdict:
    """The verdict on one member's evidence, as a vetting would give it by a calibration.

    With None for the architecture of its card it is that on the network as a graph that no reference is like.
    """
    image, classes = files.images[card["data"]]
    return verdict_beside(
        seen, calibration, policy, card["data_sha256"], image=image, classes=classes, architecture=card["architecture"]
    )


def verdict_beside(
    seen: Sequence[SeenEvidence],
    calibration: Calibration,
    policy: Policy,
    data_sha256: str,
    *,
    image: Sequence[int],
    classes: int,
    architecture: str | None,
) -> Verdict:
    """The verdict on a network of which nothing but a detector's evidence is in question."""
    return judge(
        seen,
        policy.on_references,
        calibration,
        classes=classes,
        data_sha256=data_sha256,
        with_training_data=any(e.method in policy.required_with_training_data for e in seen),
        sandbox_level=max(policy.sandbox_level.values(), default=1),
        format="safetensors",
        input_shape=image,
        architecture=architecture,
    )
