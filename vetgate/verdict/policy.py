"""The policy: which methods must have run, how often a clean model may raise an alarm, what a repair may cost.

The text below a key describes it in docs/reference/policy.md.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import BaseModel, Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from vetgate import shipped
from vetgate.digest import sha256_json
from vetgate.errors import BadPolicy
from vetgate.formats.readers import formats, written_formats
from vetgate.role import by_itself, guard_roles, repair_roles
from vetgate.trust.named_file import read_named

Share = Annotated[float, Field(ge=0, le=1)]
SHIPPED = shipped.POLICY


@cache
def _shipped_guards() -> tuple[str, ...]:
    return tuple(yaml.safe_load(SHIPPED.read_text("utf-8"))["guard"]["methods"])


class RepairPolicy(BaseModel, frozen=True, extra="forbid"):
    """What may be repaired and at what price; shares of held-out images."""

    enabled: bool = True
    """Whether a model that fails is repaired on a copy."""
    blind: bool = False
    """Whether models that pass or are inconclusive are repaired as well, for `vetgate promote --hardened`."""
    methods: tuple[str, ...] = Field(default_factory=lambda: tuple(sorted(repair_roles())))
    """The repairs to try, in this order, cheap ones first: none is tried after one that is clearly good."""
    max_accuracy_loss: Share = 0.02
    """How much accuracy a repair may cost: it is refused when the images establish, at 95 %, that it cost more."""
    max_attack_success: Share = 0.05
    """How often reversed triggers may still succeed, beyond what equally small ones do by nature, a fifth at most."""


class GuardPolicy(BaseModel, frozen=True, extra="forbid"):
    """Which run-time guards a vetting fits for serving the model; no verdict depends on them."""

    enabled: bool = True
    """Whether guards are fitted at all."""
    methods: tuple[str, ...] = Field(default_factory=_shipped_guards)
    """The guards to fit, in this order; each more leaves the others less of the rate. Left out: those shipped."""
    false_rejection_rate: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """The share of clean inputs that all of them together may reject."""
    max_slowdown: Annotated[float, Field(ge=1)] = 200.0
    """How many times the processor time of the bare network a prediction with the guard may take, in batches of 64."""
    action: Literal["reject", "log-only", "vote"] = "reject"
    """What becomes of an input that a guard rejects, unless who serves the model says otherwise."""

    @model_validator(mode="after")
    def _known(self) -> Self:
        known = guard_roles()
        unknown = [name for name in self.methods if name not in known]
        if unknown or len(set(self.methods)) != len(self.methods):
            raise ValueError(f"expected each of the guards {', '.join(known)} once at most, got {list(self.methods)}")
        if self.enabled and self.action == "vote" and not any(known[name].votes for name in self.methods):
            raise ValueError(f"expected a guard that votes for the action vote, got {list(self.methods)}; name one")
        return self


class StructurePolicy(BaseModel, frozen=True, extra="forbid"):
    """What a fault in the wiring of a network does where nothing proves that it is a backdoor."""

    unconfirmed: Literal["inconclusive", "note"] = "inconclusive"
    """Whether it leaves the verdict open, or is only told. One that is confirmed fails the model in any case."""


class PromotionPolicy(BaseModel, frozen=True, extra="forbid"):
    """What promotion demands besides a PASS, and whether a PASS is promoted by itself."""

    automatic: Literal["champion", "challenger"] | None = None
    """The alias that a PASS is given without being asked for; null: none is."""
    approvals: NonNegativeInt = 0
    """How many distinct approvers must have signed, none of them the submitter."""


class WaiverPolicy(BaseModel, frozen=True, extra="forbid"):
    """How a finding may be let pass: with so many approvals of distinct approvers, none of them the submitter."""

    allowed: bool = True
    """Whether findings can be waived at all."""
    approvals: PositiveInt = 2
    """How many distinct approvers must have signed, none of them the submitter."""
    max_days: PositiveInt = 30
    """For how many days at most."""


class RescanPolicy(BaseModel, frozen=True, extra="forbid"):
    """When what is in production is vetted again, and what a FAIL in two independent runs does."""

    false_alarm_rate: Annotated[float, Field(gt=0, lt=0.5)] = 0.005
    """The share of clean models that one run may fail; a model is demoted when two independent runs do."""
    max_age_days: PositiveInt = 20
    """The age at which a verdict is stale and the model is vetted again."""
    grace_hours: NonNegativeFloat = 0.0
    """How long a model that failed its rescan may stay in production."""
    canaries: bool = True
    """Whether a known clean and a known backdoored model run with each batch and must come out right."""


class LedgerPolicy(BaseModel, frozen=True, extra="forbid"):
    """Where the end of the ledger is told of, and how a wrong clock is noticed; no verdict depends on it."""

    heads: tuple[str, ...] = ()
    """Directories or s3:// locations besides MLflow where the gate publishes the signed end of the ledger."""
    max_quiet_days: PositiveInt = 45
    """How long the ledger may have been without an entry before the gate takes its clock for wrong and refuses to sign,
    where its store has no clock of its own."""


class Policy(BaseModel, frozen=True, extra="forbid"):
    """Everything a verdict depends on besides the evidence and the calibration."""

    name: str
    """What verdicts call the policy."""
    required: tuple[str, ...] = Field(min_length=1)
    """Detectors that must have run; without one of them a verdict is INCONCLUSIVE."""
    required_with_training_data: tuple[str, ...] = ()
    """Detectors that must have run as well where the supplier gave its training data."""
    false_alarm_rate: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """The share of clean models that the whole verdict may fail."""
    not_counted: Literal["note", "inconclusive"] = "note"
    """Whether a required detector that ran and could not count, since no reference is like the model, is only told, or
    leaves the verdict open."""
    allow_uncalibrated: bool = False
    """Whether a simulated null may stand in where there is no calibration; the verdict then says so."""
    sandbox_level: dict[str, Annotated[int, Field(ge=0, le=4)]] = Field(
        default_factory=lambda: dict.fromkeys(formats(), 1)
    )
    """The least sandbox for each format: 0 is limits, 1 a filter of system calls besides, 2 bubblewrap besides."""
    promote_formats: tuple[str, ...] = Field(default_factory=written_formats)
    """Formats that may enter production."""
    structure: StructurePolicy = StructurePolicy()
    """What a fault in the wiring does."""
    least_skill: Annotated[float, Field(ge=0, lt=1)] = 0.25
    """How far from guessing (0) to always right (1) a model must come on trusted images, or nothing is said of it."""
    repair: RepairPolicy = RepairPolicy()
    """What may be repaired, and at what price."""
    guard: GuardPolicy = Field(default_factory=GuardPolicy)
    """Which run-time guards are fitted for serving."""
    promotion: PromotionPolicy = PromotionPolicy()
    """What promotion demands besides a PASS."""
    waivers: WaiverPolicy = WaiverPolicy()
    """How a finding may be let pass."""
    rescan: RescanPolicy = RescanPolicy()
    """When what is in production is vetted again."""
    ledger: LedgerPolicy = LedgerPolicy()
    """Where the end of the ledger is told of."""
    max_attempts: PositiveInt = 5
    """How often a vetting may die before it ends INCONCLUSIVE."""
    spread: Literal["process", "dask"] = "process"
    """Where methods and labels are computed; no result depends on it."""
    valid_days: PositiveInt = 30
    """How long a verdict is valid."""
    timeout_seconds: PositiveInt = 900
    """How long one method may run."""
    memory_bytes: PositiveInt = 6 * 2**30
    """How much memory one method may hold, with all that it starts; of address space it gets twice that."""

    @property
    def on_references(self) -> Policy:
        """What it demands of networks that are references, on which nothing runs that needs none."""
        return self.model_copy(update={"required": tuple(name for name in self.required if not by_itself(name))})

    @property
    def digest(self) -> str:
        """SHA-256 in hex of the canonical JSON, without `spread`, `ledger` and `guard`, which change no verdict."""
        return sha256_json(self.model_dump(mode="json", exclude={"spread", "ledger", "guard"}))


def load_policy(path: Path | None = None) -> Policy:
    """The policy in a YAML file, by default the shipped one; raises BadPolicy."""
    where = path or SHIPPED
    try:
        return Policy.model_validate(yaml.safe_load(read_named(where).decode()))
    except OSError as error:
        raise BadPolicy(f"expected a policy file at {where}, got {error.strerror}; set VETGATE_POLICY") from error
    except (ValueError, yaml.YAMLError) as error:
        raise BadPolicy(f"{where} is not a valid policy: {error}; see {SHIPPED}") from error
