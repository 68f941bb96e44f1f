"""What a scan says of a file: its digest, what was found, and so whether it is clean, malicious or inconclusive."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from vetgate.scan.inspection import External, Finding
from vetgate.scan.rules import RULES, Severity


class Outcome(StrEnum):
    """What a file is, by the worst that was found in it."""

    CLEAN = "clean"
    MALICIOUS = "malicious"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True)
class ScannedFile:
    """One file that was scanned; `sha256` is None where it could not be read to its end.

    `external` is where in files beside it its tensors lie, if it says so plainly of all that are not in itself.
    """

    path: str
    size: int
    sha256: str | None
    findings: tuple[Finding, ...]
    external: External = field(default_factory=dict)

    @property
    def outcome(self) -> Outcome:
        return outcome_of(self.findings) if self.findings or self.sha256 else Outcome.INCONCLUSIVE

    def to_json(self) -> dict[str, Any]:
        """A JSON object: the file, its outcome, and each finding with its rule's severity, remedy and ids."""
        findings = [finding_json(finding) for finding in self.findings]
        return {"path": self.path, "size": self.size, "sha256": self.sha256, "outcome": self.outcome.value} | {
            "findings": findings,
            "external": {name: sorted(parts) for name, parts in self.external.items()},
        }

    @classmethod
    def from_json(cls, path: str, blob: Any) -> ScannedFile:
        """The file `path` as `to_json` wrote of it; raises ValueError for anything else."""
        sha256, size = blob["sha256"], blob["size"]
        if (sha256 is not None and not re.fullmatch("[0-9a-f]{64}", sha256)) or type(size) is not int:
            raise ValueError("no digest or size")
        made = []
        for given in blob["findings"]:
            rule, member, evidence = given["rule"], given["member"], given["evidence"]
            if rule not in RULES or not isinstance(member, str) or not isinstance(evidence, str):
                raise ValueError("no finding")
            made.append(Finding(rule, path, member, evidence))
        return cls(path, size, sha256, tuple(made), external_of(blob["external"]))


def external_of(blob: Any) -> External:
    """Parts of files from JSON; raises ValueError or TypeError for anything else."""
    if not isinstance(blob, dict):
        raise ValueError("no parts of files")
    parts = {name: {(start, size) for start, size in given} for name, given in blob.items()}
    if not all(type(n) is int and n >= 0 for each in parts.values() for part in each for n in part):
        raise ValueError("no part of a file")
    return parts


def outcome_of(findings: Iterable[Finding]) -> Outcome:
    """The outcome that findings make: malicious, if one is critical or high; inconclusive, if one is medium."""
    severities = {finding.severity for finding in findings}
    if severities & {Severity.CRITICAL, Severity.HIGH}:
        return Outcome.MALICIOUS
    return Outcome.INCONCLUSIVE if Severity.MEDIUM in severities else Outcome.CLEAN


def finding_json(finding: Finding) -> dict[str, Any]:
    """A JSON object of a finding and of what its rule says."""
    rule = RULES[finding.rule]
    return {
        "rule": rule.id,
        "name": rule.name,
        "severity": rule.severity.value,
        "path": finding.path,
        "member": finding.member,
        "evidence": finding.evidence,
        "remedy": rule.help,
        "taxa": list(rule.taxa),
    }
