"""Pickles one after another, as a file or a member holds them, up to the last byte."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vetgate.scan.inspection import Place
from vetgate.scan.pickles.machine import MAX_OPCODES, Machine
from vetgate.scan.pickles.nodes import Storage
from vetgate.scan.rules import HIDDEN_BYTES, LIMIT, ScanRule, Severity
from vetgate.scan.source import BrokenFileError, Part, Source

MAX_PICKLES = 1000
PROBED_OPCODES = 20_000
JUNK = 1 << 16


@dataclass
class Probed:
    """How far bytes of whatever kind can be read as pickles, one after another."""

    calls: int = 0
    imports: int = 0
    dangerous: bool = False
    end: int | None = None
    read: int = 0
    findings: list[ScanRule] = field(default_factory=list)

    @property
    def runs(self) -> bool:
        """Whether a loader would come to a call, or to the import of what is known to run code."""
        return self.calls > 0 or self.dangerous


@dataclass
class Pickled:
    """A pickle that was read: what it leaves, its storages, and where it ends."""

    value: Any
    storages: dict[str, Storage]
    end: int
    opcodes: int


def probe(source: Source, *, most: int = MAX_PICKLES) -> Probed:
    """Read bytes as so many pickles from their first on, as loaders do that do not look at what they are given."""
    probed = Probed()

    def found(rule: ScanRule, evidence: str) -> None:
        probed.findings.append(rule)
        probed.dangerous |= rule.severity is Severity.CRITICAL

    start = count = 0
    while start < source.size and probed.read < PROBED_OPCODES and count < most:
        count += 1
        machine = Machine(source, start, found, most=PROBED_OPCODES - probed.read)
        try:
            machine.run()
            probed.end = start = machine.cursor.at
        except BrokenFileError:
            start = source.size
        probed.calls += machine.calls
        probed.imports += machine.imports
        probed.read += machine.read
    return probed


def read_pickle(source: Source, at: Place, start: int = 0, *, most: int = MAX_OPCODES, script: bool = False) -> Pickled:
    """Read one pickle from `start` on; raises BrokenFileError where it cannot be read to its STOP."""
    machine = Machine(source, start, at.found, most=most, script=script)
    value = machine.run()
    return Pickled(value, machine.storages, machine.cursor.at, machine.read)


def read_pickles(source: Source, at: Place, start: int = 0) -> None:
    """Read pickles up to the last byte; what follows them and is none is a finding, and is inspected too."""
    left = MAX_OPCODES
    for count in range(MAX_PICKLES + 1):
        if start == source.size and count:
            return
        if count and not _goes_on(source, start):
            at.found(HIDDEN_BYTES, f"{source.size - start} bytes after the end of a pickle, at byte {start}")
            at.inside(f"(bytes {start} to {source.size})", Part(source, start, source.size - start))
            return
        pickled = read_pickle(source, at, start, most=left)
        start, left = pickled.end, left - pickled.opcodes
    at.found(LIMIT, f"more than {MAX_PICKLES} pickles")


def _goes_on(source: Source, start: int) -> bool:
    rest = probe(Part(source, start, source.size - start), most=1)
    return rest.end is not None or rest.runs
