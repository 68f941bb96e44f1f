"""Write docs/reference/scan-rules.md and a page a rule: `python -m docs.scan_rules`; --check as in docs.methods."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from docs.generated import settle
from vetgate.scan.rules import RULES, ScanRule, Severity

PAGE = Path(__file__).parent / "reference" / "scan-rules.md"
HEAD = """# What a scan finds

Generated from the code by `make docs`; do not edit.

`vetgate scan` ends with 1 if a finding is critical or high, else with 3 if one is medium, else with 0. How it is used:
[Scan files in CI](../how-to/scan-files-in-ci.md).

| rule | severity | what was found |
| --- | --- | --- |
"""
MEANS = {
    Severity.CRITICAL: "critical: the file is malicious, exit code 1",
    Severity.HIGH: "high: the file is malicious, exit code 1",
    Severity.MEDIUM: "medium: the file is inconclusive, exit code 3",
    Severity.LOW: "low: a note, which changes no exit code",
}
TAXA = {
    "CWE": "[{id}](https://cwe.mitre.org/data/definitions/{number}.html)",
    "AML": "[{id}](https://atlas.mitre.org/techniques/{id})",
}


def render() -> str:
    """The page that lists them."""
    rows = [f"| [{r.id} {r.name}](scan-rules/{r.id}.md) | {r.severity.value} | {r.text} |\n" for r in _sorted()]
    return HEAD + "".join(rows)


def rule_page(rule: ScanRule) -> str:
    """The page of one rule."""
    taxa = ", ".join(TAXA[t[:3]].format(id=t, number=t.removeprefix("CWE-")) for t in rule.taxa)
    head = f"# {rule.id} {rule.name}\n\nGenerated from the code by `make docs`; do not edit.\n\n"
    return head + (
        f"{rule.text}\n\n{rule.why}\n\n"
        f"- Severity: {MEANS[rule.severity]}\n- What to do: {rule.help}\n- In MITRE ATLAS 5.6.1 and CWE: {taxa}\n"
    )


def pages() -> dict[Path, str]:
    """Every page and its text."""
    folder = PAGE.parent / "scan-rules"
    return {PAGE: render()} | {folder / f"{rule.id}.md": rule_page(rule) for rule in _sorted()}


def _sorted() -> list[ScanRule]:
    return [RULES[id] for id in sorted(RULES)]


def main(arguments: Sequence[str]) -> int:
    """Write the pages, or with --check say whether they are up to date."""
    (PAGE.parent / "scan-rules").mkdir(exist_ok=True)
    made = pages()
    gone = {page for page in (PAGE.parent / "scan-rules").glob("*.md") if page not in made}
    if "--check" not in arguments:
        for page in gone:
            page.unlink()
    stale = [settle(page, text, arguments) for page, text in made.items()]
    return int(any(stale) or ("--check" in arguments and bool(gone)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
