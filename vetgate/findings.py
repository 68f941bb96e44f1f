"""What a verdict holds against a model, as ids that stay the same from one vetting to the next.

A waiver names one of them, so that it covers this finding and no other that may come.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

NOT_UNDERSTOOD = "not-understood"
# words of the judge that hold nothing against the model
NOTE = re.compile(r"no references of this data set: |uncalibrated: |extrapolated: |\w+ was not counted: |rescan: ")
NAMED = re.compile(r"label \d+: |\w+ finds poisoned rows ")
FRACTION = re.compile(r"\d+\.\d+(e[+-]?\d+)?|\d+e[+-]?\d+")


def findings(verdict: Mapping[str, Any]) -> tuple[str, ...]:
    """The ids of what a verdict (`Verdict.to_json`, with `refused` if its files were not understood) holds against it.

    backdoor:label-7, poisoned-data:<method>, inconclusive:<method, or a digest of the reason>, not-understood. A PASS
    has none, everything else at least one.
    """
    if verdict["decision"] == "PASS":
        return ()
    # here, because whoever only reads waivers needs no torch
    from vetgate.blind import BY_CLASS

    found = [NOT_UNDERSTOOD] if verdict.get("refused") else []
    if verdict["decision"] == "FAIL":
        found += [f"backdoor:label-{label}" for label in verdict["suspects"]]
        rang = [method["name"] for method in verdict["methods"] if method["rang"]]
        found += [f"poisoned-data:{name}" for name in rang if name not in BY_CLASS]
    names = [method["name"] for method in verdict["methods"]]
    found += [f"inconclusive:{_about(reason, names)}" for reason in open_questions(verdict["reasons"])]
    return tuple(dict.fromkeys(found)) or (f"inconclusive:{_digest('; '.join(verdict['reasons']))}",)


def open_questions(reasons: Sequence[str]) -> list[str]:
    """The reasons that say what could not be seen or settled."""
    return [reason for reason in reasons if not NOTE.match(reason) and not NAMED.match(reason)]


def _about(reason: str, methods: Sequence[str]) -> str:
    """The method that a reason is about, else a digest of its words that no measured fraction changes."""
    named = [word for word in re.findall(r"\w+", reason) if word in methods]
    return named[0] if named else _digest(reason)


def _digest(reason: str) -> str:
    return hashlib.sha256(FRACTION.sub("#", reason).encode()).hexdigest()[:12]
