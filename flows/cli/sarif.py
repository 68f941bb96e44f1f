"""What a verification found, as SARIF 2.1.0 for code scanning: one rule for each way of being refused."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote

from vetgate.errors import (
    Altered,
    BadSignature,
    Denied,
    NotPassed,
    NotUnderstood,
    OtherName,
    Removed,
    Revoked,
    Stale,
)
from vetgate.formats.plain_text import escaped

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
EXIT_CODES = {
    0: "verified",
    1: "denied",
    2: "error: store, registry or disk",
    3: "a file that is not understood",
    4: "usage",
    5: "stale, expired or revoked",
}


class Ruled(Protocol):
    """What a log says of a rule, whatever it is about."""

    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def help(self) -> str: ...
    @property
    def taxa(self) -> tuple[str, ...]: ...
    @property
    def level(self) -> str: ...


@dataclass(frozen=True)
class Rule:
    """One way of being refused: errors of this kind, with its ids in ATLAS 5.6.1 and CWE."""

    id: str
    name: str
    text: str
    help: str
    kind: type[Exception]
    taxa: tuple[str, ...] = ()
    level: str = "error"


# the first that fits: what is more special comes first
RULES = (
    Rule("VET003", "Revoked", "The verdict on these bytes was revoked.", "Vet again, or serve an earlier version.",
         Revoked, ("CWE-294", "AML.T0010.003")),
    Rule("VET010", "Removed", "What the ledger tells of is gone, or changed.", "Restore it, and find out who did it.",
         Removed, ("CWE-345", "AML.T0109")),
    Rule("VET002", "Expired", "No verdict on these bytes is in force any more.", "Vet again.",
         Stale, ("CWE-294", "AML.T0010.003")),
    Rule("VET004", "Altered", "The bytes are not those that were attested.", "Restore the vetted bytes or vet these.",
         Altered, ("CWE-345", "CWE-367", "AML.T0109")),
    Rule("VET005", "OtherName", "The attestation is for a model of another name.", "Vet it under this name.",
         OtherName, ("CWE-294", "AML.T0074")),
    Rule("VET006", "BadSignature", "No trusted gate key signed this.", "Have the gate decide, and fetch it again.",
         BadSignature, ("CWE-347", "AML.T0010.003")),
    Rule("VET007", "FailedVetting", "The gate signed a verdict that is no PASS.", "Do not use this model.",
         NotPassed, ("AML.T0018.000", "AML.T0018.001", "AML.T0058")),
    Rule("VET001", "NotAttested", "No promotion and attestation cover this.", "Have it vetted and promoted.",
         Denied, ("CWE-345", "AML.T0010.003")),
    Rule("VET008", "NotUnderstood", "A file was not understood to its last byte.", "Hand in a supported format.",
         NotUnderstood, ("CWE-502", "AML.T0011.000", "AML.T0076")),
    Rule("VET009", "NotVerified", "It could not be verified.", "Correct what the message names, and try again.",
         Exception),
)  # fmt: skip
TAXONOMIES = {
    "ATLAS": ("MITRE", "5.6.1", "Adversarial Threat Landscape for Artificial-Intelligence Systems"),
    "CWE": ("MITRE", None, "Common Weakness Enumeration"),
}


@dataclass(frozen=True)
class Checked:
    """One verification: of what, which bytes if that is known, and the error and exit code that it ended with."""

    target: str
    manifest: str | None
    seconds: float
    error: Exception | None = None
    exit_code: int = 0

    @property
    def rule(self) -> Rule | None:
        """The rule that the error falls under; None when all is well."""
        return None if self.error is None else rule_of(self.error)

    @property
    def message(self) -> str:
        """What the error says, on one line."""
        return escaped(str(self.error))


def rule_of(error: Exception) -> Rule:
    """The first rule that the error fits; the exit code never depends on it."""
    return next(r for r in RULES if isinstance(error, r.kind))


def sarif_log(checked: Checked) -> dict[str, Any]:
    """The log of one verification; no results means that it went well."""
    rules = sorted(RULES, key=lambda rule: rule.id)
    results = [] if checked.rule is None else [_result(checked, checked.rule, rules.index(checked.rule), rules)]
    return log_of(rules, results, _invocation(checked))


def log_of(rules: Sequence[Ruled], results: list[dict[str, Any]], invocation: dict[str, Any]) -> dict[str, Any]:
    """The log of one run by these rules, which are all of error level unless they say otherwise."""
    driver = {
        "name": "vetgate",
        "semanticVersion": importlib.metadata.version("vetgate"),
        "rules": [_described(rule, rules) for rule in rules],
        "supportedTaxonomies": [{"name": name, "index": i} for i, name in enumerate(TAXONOMIES)],
    }
    run = {
        "tool": {"driver": driver},
        "taxonomies": [_taxonomy(name, rules) for name in TAXONOMIES],
        "invocations": [invocation],
        "results": results,
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def taxa_of(rule: Ruled, rules: Sequence[Ruled]) -> list[dict[str, Any]]:
    """The taxa of a rule, as a result refers to them in the log of these rules."""
    return [_taxon(taxon, rules) for taxon in rule.taxa]


def location(path: str, member: str = "") -> dict[str, Any]:
    """A place: a file, and the member of it, if it is one."""
    whole = escaped(f"{path}!{member}" if member else path)
    return {
        "physicalLocation": {"artifactLocation": {"uri": quote(os.fsencode(path), safe="/:@")}},
        "logicalLocations": [{"fullyQualifiedName": whole, "kind": "member" if member else "module"}],
    }


def invocation_of(code: int, description: str, message: str) -> dict[str, Any]:
    """How a run ended; only errors and wrong usage are no execution."""
    reached = code not in (2, 4)
    return {
        "executionSuccessful": reached,
        "exitCode": code,
        "exitCodeDescription": description,
        "toolExecutionNotifications": [] if reached else [{"level": "error", "message": {"text": message}}],
    }


def _described(rule: Ruled, rules: Sequence[Ruled]) -> dict[str, Any]:
    return {
        "id": rule.id,
        "name": rule.name,
        "shortDescription": {"text": rule.text},
        "help": {"text": rule.help},
        "defaultConfiguration": {"level": rule.level},
        "relationships": [{"target": taxon, "kinds": ["relevant"]} for taxon in taxa_of(rule, rules)],
    }


def _result(checked: Checked, rule: Rule, index: int, rules: Sequence[Rule]) -> dict[str, Any]:
    prints = {"target/v1": hashlib.sha256(os.fsencode(checked.target)).hexdigest()}
    if checked.manifest is not None:
        prints["manifest/v1"] = checked.manifest
    return {
        "ruleId": rule.id,
        "ruleIndex": index,
        "level": rule.level,
        "kind": "fail",
        "message": {"text": checked.message or rule.text},
        "locations": [location(checked.target)],
        "taxa": taxa_of(rule, rules),
        "partialFingerprints": prints,
    }


def _invocation(checked: Checked) -> dict[str, Any]:
    return invocation_of(checked.exit_code, EXIT_CODES.get(checked.exit_code, "error"), checked.message)


def _taxonomy(name: str, rules: Sequence[Ruled]) -> dict[str, Any]:
    organization, version, text = TAXONOMIES[name]
    taxonomy: dict[str, Any] = {
        "name": name,
        "organization": organization,
        "shortDescription": {"text": text},
        "taxa": [{"id": _number(taxon)} for taxon in _taxa(name, rules)],
    }
    return taxonomy if version is None else taxonomy | {"version": version}


def _taxon(taxon: str, rules: Sequence[Ruled]) -> dict[str, Any]:
    name = _taxonomy_of(taxon)
    where = {"name": name, "index": list(TAXONOMIES).index(name)}
    return {"id": _number(taxon), "index": _taxa(name, rules).index(taxon), "toolComponent": where}


def _taxa(name: str, rules: Sequence[Ruled]) -> list[str]:
    return sorted({taxon for rule in rules for taxon in rule.taxa if _taxonomy_of(taxon) == name})


def _taxonomy_of(taxon: str) -> str:
    return "CWE" if taxon.startswith("CWE-") else "ATLAS"


def _number(taxon: str) -> str:
    return taxon.removeprefix("CWE-")
