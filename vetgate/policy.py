"""The policy: which methods must have run, how often a clean model may ring, what a repair may cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, Field, PositiveInt, ValidationError

from vetgate.digest import sha256_json
from vetgate.errors import BadPolicy

Share = Annotated[float, Field(ge=0, le=1)]
SHIPPED = Path(__file__).parent.parent / "infra" / "policies" / "default.yaml"


class RepairPolicy(BaseModel, frozen=True, extra="forbid"):
    """What may be repaired and at what price; shares of held-out images."""

    enabled: bool = True
    blind: bool = False
    methods: tuple[str, ...] = ("neural_cleanse_unlearning",)
    max_accuracy_loss: Share = 0.02
    max_attack_success: Share = 0.05


class Policy(BaseModel, frozen=True, extra="forbid"):
    """Everything a verdict depends on besides the evidence and the calibration."""

    name: str
    required: tuple[str, ...] = Field(min_length=1)
    required_with_training_data: tuple[str, ...] = ()
    false_alarm_rate: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    allow_uncalibrated: bool = False
    sandbox_level: dict[str, Annotated[int, Field(ge=1, le=4)]] = Field(
        default_factory=lambda: {"onnx": 1, "safetensors": 1}
    )
    promote_formats: tuple[str, ...] = ("safetensors", "onnx")
    repair: RepairPolicy = RepairPolicy()
    valid_days: PositiveInt = 30
    timeout_seconds: PositiveInt = 900
    memory_bytes: PositiveInt = 6 * 2**30

    @property
    def digest(self) -> str:
        """SHA-256 in hex of the policy's canonical JSON."""
        return sha256_json(self.model_dump(mode="json"))


def load_policy(path: Path | None = None) -> Policy:
    """The policy in a YAML file, by default the shipped one; raises BadPolicy."""
    where = path or SHIPPED
    try:
        return Policy.model_validate(yaml.safe_load(where.read_text()))
    except OSError as error:
        raise BadPolicy(f"expected a policy file at {where}, got {error.strerror}; set VETGATE_POLICY") from error
    except (ValidationError, yaml.YAMLError) as error:
        raise BadPolicy(f"{where} is not a valid policy: {error}; see infra/policies/default.yaml") from error
