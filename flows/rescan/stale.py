"""Which models in production have a verdict that is out of date, and whose bytes are hashed tonight."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from flows.params import Params, load_params, needs
from flows.production.watch import READERS, Watch
from tasks.guards.fit import pins, settings_digest
from tasks.records.coverage import Coverage
from tasks.vetting.intake import Record, read_record
from tasks.vetting.prepare import prepare
from vetgate.digest import code_digest, sha256_json
from vetgate.errors import BadSubmission, NotUnderstood, VetgateError
from vetgate.formats.submission import Submission
from vetgate.verdict.calibration import load_calibration
from vetgate.verdict.policy import Policy, load_policy
from vetgate.verdict.reasons import Reason
from vetgate.verdict.staleness import Pin, Pins, outdated

# the bytes of every model are hashed once in so many nightly rescans
NIGHTS = 30


@dataclass
class Present:
    """What a verdict would be made with now, looked up once a batch."""

    seen: Watch
    policy: Policy
    params: Params
    calibration: str | None
    methods: dict[str, Pin]
    guards: str | None
    data: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, seen: Watch) -> Present:
        """What is there now under the settings."""
        calibration, params = load_calibration(seen.settings.calibration), load_params(seen.settings.params)
        methods = {name: Pin(code_digest("detect", name), given) for name, given in params.detect.items()}
        policy = load_policy(seen.settings.policy)
        wanted = {name: params.guard.get(name, {}) for name in policy.guard.methods} if policy.guard.enabled else {}
        guards = settings_digest(pins(wanted), policy.guard) if wanted else None
        return cls(seen, policy, params, calibration.id if calibration else None, methods, guards)

    @property
    def digest(self) -> str:
        """A short name of all of it, data left out."""
        methods = {name: [pin.code, dict(pin.params)] for name, pin in self.methods.items()}
        return sha256_json([self.policy.digest, self.calibration, methods, self.guards])[:16]

    def pins(self, submission: Submission) -> Pins:
        """What a verdict on this submission would be made with."""
        without = submission.training_data is None
        runs = {n: pin for n, pin in self.methods.items() if not (without and "train" in needs("detect", n))}
        return Pins(runs, self.policy.digest, self.calibration, self._data(submission), self.guards)

    def _data(self, submission: Submission) -> dict[str, Any] | None:
        wanted = submission.model_dump(include={"reference_data", "training_data", "input_shape", "classes"})
        key = sha256_json(wanted)
        if key not in self.data:
            try:
                # exactly what a vetting would read, so that the two cannot disagree
                self.data[key] = prepare(self.seen.settings, submission, self.params.data)["source"]
            except (BadSubmission, NotUnderstood):
                self.data[key] = None
        found: dict[str, Any] | None = self.data[key]
        return found


def outdated_verdicts(present: Present, covering: list[Coverage]) -> dict[str, tuple[Reason, ...] | VetgateError]:
    """By manifest, why the verdict that covers it is out of date (empty: it is not), or why that is unknown."""
    found: dict[str, tuple[Reason, ...] | VetgateError] = {}
    max_age = timedelta(days=present.policy.rescan.max_age_days)
    for coverage, record in zip(covering, _records(present.seen, covering), strict=True):
        try:
            if isinstance(record, VetgateError):
                raise record
            pins = present.pins(record.submission)
            found[coverage.manifest] = outdated(coverage.claims, pins, now=present.seen.now, max_age=max_age)
        except VetgateError as error:
            found[coverage.manifest] = error
    return found


def due_for_hashing(manifest: str, now: datetime) -> bool:
    """Whether this nightly rescan hashes the bytes of this manifest."""
    return (int(manifest[:8], 16) - now.date().toordinal()) % NIGHTS == 0


def _records(seen: Watch, covering: list[Coverage]) -> list[Record | VetgateError]:
    def read(coverage: Coverage) -> Record | VetgateError:
        try:
            return read_record(seen.store, coverage.manifest)
        except VetgateError as error:
            return error

    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(read, covering))
