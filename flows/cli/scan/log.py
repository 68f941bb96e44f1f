"""What a scan found, as SARIF 2.1.0: a result for each finding, with its rule, and file and member as its place."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any

from flows.cli.sarif import invocation_of, location, log_of, taxa_of
from vetgate.scan.inspection import Finding
from vetgate.scan.rules import RULES
from vetgate.scan.scanned import ScannedFile

SORTED = [RULES[id] for id in sorted(RULES)]
ENDS = {0: "clean", 1: "malicious", 3: "inconclusive"}


def scan_log(scanned: Sequence[ScannedFile], code: int) -> dict[str, Any]:
    """The log of one scan that ended with `code`."""
    results = [_result(file, finding) for file in scanned for finding in file.findings]
    return log_of(SORTED, results, invocation_of(code, ENDS[code], ""))


def _result(file: ScannedFile, finding: Finding) -> dict[str, Any]:
    rule = RULES[finding.rule]
    about = "\0".join((finding.path, finding.member, finding.rule, finding.evidence))
    prints = {"finding/v1": hashlib.sha256(os.fsencode(about)).hexdigest()}
    if file.sha256 is not None:
        prints["sha256/v1"] = file.sha256
    return {
        "ruleId": rule.id,
        "ruleIndex": SORTED.index(rule),
        "level": rule.level,
        "kind": "fail",
        "message": {"text": f"{rule.text} {finding.evidence}".strip()},
        "locations": [location(finding.path, finding.member)],
        "taxa": taxa_of(rule, SORTED),
        "partialFingerprints": prints,
        "properties": {"severity": rule.severity.value},
    }
