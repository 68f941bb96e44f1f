"""The question that a gate is asked: where the evidence of one run lies, and what of it could not be had."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vetgate.shape import Blob, Shaped

# the runs of a rescan: its first is from the recorded seed, and the second confirms an alarm
FIRST, SECOND = "", "second"
# the run whose seed guards are fitted with: their file tells it, and it must tell none that detectors use
GUARDING = "guards"


@dataclass(frozen=True)
class Question(Shaped):
    """What a gate is to judge.

    `evidence` holds the keys of what detectors found, `failures` why others found nothing and `failure_codes` the kinds
    of these, all by method. `run` names an independent repetition, `refused` says that the files were not understood;
    `second` confirms a rescan's alarm, and without `sign` nothing is written. `asked` says that a person asks for a
    verdict anew: otherwise one that is in the ledger stands. `guards` is the key of the record of run-time guards.
    """

    WHAT = "a question to the gate"

    manifest: str
    evidence: Mapping[str, str]
    failures: Mapping[str, str]
    reference_data: Mapping[str, Any] | None
    sandbox_level: int
    failure_codes: Mapping[str, str] | None = None
    run: str = ""
    refused: bool = False
    purpose: str = "submission"
    sign: bool = True
    second: Question | None = None
    asked: bool = False
    guards: str | None = None

    def to_json(self) -> Blob:
        """A JSON object that `from_json` reads; what is as usual of the last five is left out."""
        blob: Blob = {
            "manifest": self.manifest,
            "run": self.run,
            "evidence": dict(self.evidence),
            "failures": dict(self.failures),
            "failure_codes": dict(self.failure_codes or {}),
            "reference_data": None if self.reference_data is None else dict(self.reference_data),
            "sandbox_level": self.sandbox_level,
            "refused": self.refused,
        }
        if self.purpose != "submission":
            blob["purpose"] = self.purpose
        if not self.sign:
            blob["sign"] = False
        if self.second is not None:
            blob["second"] = self.second.to_json()
        if self.asked:
            blob["asked"] = True
        if self.guards is not None:
            blob["guards"] = self.guards
        return blob

    def only_says_what_was_found(self, manifest: str, run: str) -> bool:
        """Whether it only says what was found of this run; whoever asks adds what for."""
        found = replace(self, manifest=manifest, run=run, purpose="submission", sign=True, second=None, asked=False)
        return self == found


def examination(manifest: str, run: str, key: str) -> Blob:
    """All that the examination which a rescan asked for under this key is about, as its vetter signs it."""
    return {"manifest": manifest, "run": run, "key": key, "purpose": "rescan"}
