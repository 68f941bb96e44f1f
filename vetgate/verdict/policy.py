"""The policy: which methods must have run, how often a clean model may ring, what a repair may cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, Field, NonNegativeFloat, NonNegativeInt, PositiveInt, ValidationError

from vetgate import shipped
from vetgate.digest import sha256_json
from vetgate.errors import BadPolicy
from vetgate.formats.readers import formats
from vetgate.role import mends

Share = Annotated[float, Field(ge=0, le=1)]
SHIPPED = shipped.POLICY


class RepairPolicy(BaseModel, frozen=True, extra="forbid"):
    """What may be repaired and at what price; shares of held-out images."""

    enabled: bool = True
    blind: bool = False
    methods: tuple[str, ...] = Field(default_factory=lambda: tuple(sorted(mends())))
    max_accuracy_loss: Share = 0.02
    max_attack_success: Share = 0.05


class PromotionPolicy(BaseModel, frozen=True, extra="forbid"):
    """What promotion demands besides a PASS, and whether a PASS is promoted without anybody asking."""

    automatic: Literal["champion", "challenger"] | None = None
    approvals: NonNegativeInt = 0


class WaiverPolicy(BaseModel, frozen=True, extra="forbid"):
    """How a finding may be let pass: with so many approvals of distinct approvers, none of them the submitter."""

    allowed: bool = True
    approvals: PositiveInt = 2
    max_days: PositiveInt = 30


class RescanPolicy(BaseModel, frozen=True, extra="forbid"):
    """When what is in production is vetted again, and what a FAIL in two independent runs does."""

    false_alarm_rate: Annotated[float, Field(gt=0, lt=0.5)] = 0.005
    max_age_days: PositiveInt = 20
    grace_hours: NonNegativeFloat = 0.0
    canaries: bool = True


class Policy(BaseModel, frozen=True, extra="forbid"):
    """Everything a verdict depends on besides the evidence and the calibration."""

    name: str
    required: tuple[str, ...] = Field(min_length=1)
    required_with_training_data: tuple[str, ...] = ()
    false_alarm_rate: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    allow_uncalibrated: bool = False
    sandbox_level: dict[str, Annotated[int, Field(ge=1, le=4)]] = Field(
        default_factory=lambda: dict.fromkeys(formats(), 1)
    )
    promote_formats: tuple[str, ...] = Field(default_factory=lambda: tuple(sorted(formats(), reverse=True)))
    repair: RepairPolicy = RepairPolicy()
    promotion: PromotionPolicy = PromotionPolicy()
    waivers: WaiverPolicy = WaiverPolicy()
    rescan: RescanPolicy = RescanPolicy()
    max_attempts: PositiveInt = 5
    spread: Literal["process", "dask"] = "process"
    valid_days: PositiveInt = 30
    timeout_seconds: PositiveInt = 900
    memory_bytes: PositiveInt = 6 * 2**30

    @property
    def digest(self) -> str:
        """SHA-256 in hex of the policy's canonical JSON, without `spread`: where work is done changes no result."""
        return sha256_json(self.model_dump(mode="json", exclude={"spread"}))


def load_policy(path: Path | None = None) -> Policy:
    """The policy in a YAML file, by default the shipped one; raises BadPolicy."""
    where = path or SHIPPED
    try:
        return Policy.model_validate(yaml.safe_load(where.read_text()))
    except OSError as error:
        raise BadPolicy(f"expected a policy file at {where}, got {error.strerror}; set VETGATE_POLICY") from error
    except (ValidationError, yaml.YAMLError) as error:
        raise BadPolicy(f"{where} is not a valid policy: {error}; see {SHIPPED}") from error
