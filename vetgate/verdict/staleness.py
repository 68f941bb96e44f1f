"""Why a verdict is out of date: what it was made with, compared with what a verdict would be made with now.

Digests are compared, nothing is run. A verdict that is out of date is still in force until it expires.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from vetgate.trust.strict_json import as_time
from vetgate.verdict.reasons import Code, Reason

# the same bytes at another commit, or read from another copy of the registry, are the same data
DATA = ("name", "sha256", "splits", "training")


@dataclass(frozen=True)
class Pin:
    """The code and the parameters of one method."""

    code: str
    params: Mapping[str, Any]


@dataclass(frozen=True)
class Pins:
    """What a verdict would be made with now; `data` is the reference data as attestations name it, or None.

    `guards` is the digest of what run-time guards would be fitted by, None where none would be.
    """

    methods: Mapping[str, Pin]
    policy: str
    calibration: str | None
    data: Mapping[str, Any] | None
    guards: str | None = None


def outdated(claims: Mapping[str, Any], pins: Pins, *, now: datetime, max_age: timedelta) -> tuple[Reason, ...]:
    """The reasons why a verified verdict is out of date; empty while it is fresh."""
    reasons: list[Reason] = []
    age = now - as_time(claims["issued"], "issued")
    if age > max_age:
        reasons.append(Reason(Code.TOO_OLD, figures={"days": age.days, "most": max_age.days}))
    reasons += _methods(claims["methods"], pins.methods)
    if claims["policy"]["sha256"] != pins.policy:
        reasons.append(Reason(Code.POLICY_CHANGED))
    if (claims["calibration"] or {}).get("id") != pins.calibration:
        reasons.append(Reason(Code.CALIBRATION_CHANGED))
    if _data(claims["reference_data"]) != _data(pins.data):
        reasons.append(Reason(Code.DATA_CHANGED))
    guards = claims.get("guards")
    # where none could be fitted then, fitting them every night would not help
    if guards is not None and guards.get("settings") != pins.guards:
        reasons.append(Reason(Code.GUARDS_CHANGED))
    return tuple(reasons)


def _methods(attested: list[Mapping[str, Any]], pins: Mapping[str, Pin]) -> list[Reason]:
    then = {method["name"]: method for method in attested}
    reasons = [Reason(Code.METHOD_ADDED, name) for name in sorted(pins.keys() - then.keys())]
    for name, method in sorted(then.items()):
        if "code" not in method:
            continue  # it gave no evidence then: nothing is known that could have changed
        if name not in pins:
            reasons.append(Reason(Code.METHOD_REMOVED, name))
        elif method["code"] != pins[name].code:
            reasons.append(Reason(Code.CODE_CHANGED, name))
        elif method["params"] != dict(pins[name].params):
            reasons.append(Reason(Code.PARAMETERS_CHANGED, name))
    return reasons


def _data(named: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not named:
        return None
    training = named.get("training_data") or {}
    return {field: named.get(field) for field in DATA} | {"training_sha256": training.get("sha256")}
