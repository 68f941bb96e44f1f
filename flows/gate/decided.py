"""What a gate decided: the record that it keeps under its digest, and its answer with the attestation's key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vetgate.digest import sha256_json
from vetgate.shape import Blob, Number, Shaped
from vetgate.verdict.stated import StatedVerdict


@dataclass(frozen=True)
class PolicyPin(Shaped):
    """The policy that a decision was made under."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Confirmation(Shaped):
    """The independent run that a rescan's FAIL was held against."""

    run: str
    decision: str
    p_value: Number | None
    suspects: tuple[int, ...]
    evidence: Mapping[str, str]
    failures: Mapping[str, str]


@dataclass(frozen=True)
class Decided(Shaped):
    """The record of one decision: of whom, the verdict, and everything that it rests on."""

    WHAT = "the record of a decision"

    manifest: str
    name: str
    verdict: StatedVerdict
    evidence: Mapping[str, str]
    failures: Mapping[str, str]
    policy: PolicyPin
    reference_data: Mapping[str, Any] | None
    sandbox_level: int
    purpose: str
    run: str
    refused: bool
    second: Confirmation | None

    @property
    def key(self) -> str:
        """The digest of the decision: of what it rests on, not of the words for it."""
        blob = super().to_json()
        verdict = {name: value for name, value in blob["verdict"].items() if name != "reasons"}
        verdict["methods"] = [{**method, "failure": method["failure"] is not None} for method in verdict["methods"]]
        return sha256_json({**blob, "verdict": verdict})

    def to_json(self) -> Blob:
        """A JSON object with the record's key."""
        return {**super().to_json(), "key": self.key}

    @classmethod
    def from_json(cls, blob: object) -> Decided:
        """The record that `to_json` wrote; raises StoreError for anything else."""
        given = {k: v for k, v in blob.items() if k != "key"} if isinstance(blob, dict) else blob
        return super().from_json(given)


@dataclass(frozen=True)
class Answer:
    """What a gate answers: its decision and what it signed; a rescan that alone raised an alarm wants a second run."""

    decided: Decided
    attestation: str | None = None
    wants_second: bool = False

    def to_json(self) -> Blob:
        """A JSON object, one level deep; `wants_second` is left out where it is not so."""
        blob = {**self.decided.to_json(), "attestation": self.attestation}
        return {**blob, "wants_second": True} if self.wants_second else blob

    @classmethod
    def from_json(cls, blob: object) -> Answer:
        """The answer that `to_json` wrote; raises StoreError for anything else."""
        given = blob if isinstance(blob, dict) else {}
        said = {name: value for name, value in given.items() if name in ("attestation", "wants_second")}
        signed = _Signed.from_json(said)
        decided = Decided.from_json({name: value for name, value in given.items() if name not in said})
        return cls(decided, signed.attestation, signed.wants_second)


@dataclass(frozen=True)
class _Signed(Shaped):
    """What an answer says beside the decision."""

    WHAT = "an answer of the gate"

    attestation: str | None
    wants_second: bool = False
