"""What a scan found, as one JSON object and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from vetgate.scan.rules import RULES
from vetgate.scan.scanned import Outcome, ScannedFile, finding_json
from vetgate.shape import Blob

EXIT_CODES = {Outcome.CLEAN: 0, Outcome.MALICIOUS: 1, Outcome.INCONCLUSIVE: 3}


def exit_code(scanned: Sequence[ScannedFile]) -> int:
    """1 if a file is malicious, 3 if one is inconclusive or there is none, else 0."""
    outcomes = {file.outcome for file in scanned} or {Outcome.INCONCLUSIVE}
    return EXIT_CODES[next(o for o in (Outcome.MALICIOUS, Outcome.INCONCLUSIVE, Outcome.CLEAN) if o in outcomes)]


def as_blob(scanned: Sequence[ScannedFile]) -> Blob:
    """The outcome of the whole, how many files are what, each file, and the findings of all of them."""
    code = exit_code(scanned)
    counts: dict[str, Any] = {outcome.value: sum(file.outcome is outcome for file in scanned) for outcome in Outcome}
    return {
        "outcome": next(outcome.value for outcome, its in EXIT_CODES.items() if its == code),
        "exit_code": code,
        "counts": counts,
        "files": [
            {"path": f.path, "size": f.size, "sha256": f.sha256, "outcome": f.outcome.value} for f in scanned
        ],
        "findings": [finding_json(finding) for file in scanned for finding in file.findings],
    }  # fmt: skip


def show_scan(console: Console, scanned: Sequence[ScannedFile]) -> None:
    """Print the findings, what to do about each rule, and the counts."""
    findings = [finding for file in scanned for finding in file.findings]
    if findings:
        table = Table("severity", "rule", "where", "evidence", box=None)
        for finding in findings:
            where = f"{finding.path}!{finding.member}" if finding.member else finding.path
            table.add_row(finding.severity.value, f"{finding.rule} {RULES[finding.rule].name}", where, finding.evidence)
        console.print(table)
        for rule in (RULES[id] for id in sorted({finding.rule for finding in findings})):
            console.print(f"{rule.id}: {rule.text} {rule.help}", soft_wrap=True)
    counts = [f"{sum(file.outcome is outcome for file in scanned)} {outcome.value}" for outcome in Outcome]
    console.print(f"{len(scanned)} files: {', '.join(counts)}")
