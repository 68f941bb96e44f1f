"""One file under inspection: what was found in it, where in it one is, and how much may still be unpacked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from vetgate.formats.plain_text import escaped
from vetgate.scan.rules import BOMB, LIMIT, RULES, UNFINISHED, ScanRule, Severity
from vetgate.scan.source import BrokenFileError, Source

MAX_DEPTH = 8
MAX_MEMBERS = 50_000
MAX_FINDINGS = 200
MAX_EVIDENCE = 200
# what one file may unpack to, all in all: so much in any case, so many times its size, and never more than that
FREE_BYTES, MAX_RATIO, MAX_UNPACKED = 48 << 20, 20, 8 << 30
# and one stream of it: data of models do not become a hundredth of their size, zeros do
FREE_OF_STREAM, MAX_RATIO_OF_STREAM = 8 << 20, 100

# parts of files beside one, each where it begins and how long it is, by the names of the files
External = dict[str, set[tuple[int, int]]]


@dataclass(frozen=True)
class Finding:
    """One rule that a file breaks, at which member of it, and by what."""

    rule: str
    path: str
    member: str
    evidence: str

    @property
    def severity(self) -> Severity:
        return RULES[self.rule].severity


@dataclass
class Inspection:
    """The inspection of one file; `recognise` looks at bytes at a place, and is asked for every member too."""

    path: str
    recognise: Callable[[Source, Place], None]
    size: int
    findings: list[Finding] = field(default_factory=list)
    unpacked: int = 0
    external: External | None = None
    members: int = 0

    def found(self, rule: ScanRule, member: str, evidence: str) -> None:
        """Note a finding, once, unless there are too many already."""
        shown = escaped(evidence[: 4 * MAX_EVIDENCE])
        shown = shown if len(shown) <= MAX_EVIDENCE else f"{shown[: MAX_EVIDENCE - 1]}…"
        finding = Finding(rule.id, self.path, escaped(member[: 4 * MAX_EVIDENCE]), shown)
        # what makes it malicious is kept whatever fills the list
        full = len(self.findings) >= MAX_FINDINGS
        worse = finding.severity in (Severity.CRITICAL, Severity.HIGH)
        if full and (not worse or len(self.findings) >= 2 * MAX_FINDINGS):
            return
        if finding not in self.findings:
            self.findings.append(finding)

    def unpack(self, count: int, packed: int, made: int) -> None:
        """Count bytes that were unpacked, of a stream that made so many of so few; raises BrokenFileError at too many.

        Nothing more of the file is unpacked then.
        """
        self.unpacked += count
        if made > FREE_OF_STREAM + MAX_RATIO_OF_STREAM * packed:
            self.unpacked += MAX_UNPACKED
            raise BrokenFileError(BOMB, f"{packed} bytes unpack to more than {made}")
        if self.unpacked > min(FREE_BYTES + MAX_RATIO * self.size, MAX_UNPACKED):
            raise BrokenFileError(BOMB, f"{self.size} bytes unpack to more than {self.unpacked}")


@dataclass(frozen=True)
class Place:
    """Where in a file one is: the member's path, and how deep it is nested."""

    inspection: Inspection
    member: str = ""
    depth: int = 0

    @property
    def name(self) -> str:
        """The name of what is looked at."""
        return (self.member or self.inspection.path).rpartition("/")[2]

    def found(self, rule: ScanRule, evidence: str) -> None:
        """Note a finding here."""
        self.inspection.found(rule, self.member, evidence)

    def within(self, name: str) -> Place:
        """The place of a member of what is here."""
        return Place(self.inspection, f"{self.member}!{name}" if self.member else name, self.depth + 1)

    def inside(self, name: str, source: Source) -> None:
        """Inspect a member; whatever goes wrong with it is a finding, and the others are inspected all the same."""
        there = self.within(name)
        self.inspection.members += 1
        if there.depth > MAX_DEPTH:
            there.found(LIMIT, f"nested deeper than {MAX_DEPTH}")
        elif self.inspection.members > MAX_MEMBERS:
            self.found(LIMIT, f"more than {MAX_MEMBERS} members")
        else:
            there.guarded(lambda: self.inspection.recognise(source, there))

    def guarded(self, work: Callable[[], None]) -> None:
        """Do something here; an error of any kind becomes a finding."""
        try:
            work()
        except BrokenFileError as error:
            self.found(error.rule, str(error))
        except MemoryError:
            self.found(UNFINISHED, "out of memory")
        except Exception as error:
            self.found(UNFINISHED, f"{type(error).__name__}: {error}")
