"""The verdict on a member of the bank, as a vetting would give it by a calibration."""

from __future__ import annotations

from collections.abc import Sequence

from flows.bank.files import Files
from vetgate.contract import Evidence
from vetgate.shape import Blob
from vetgate.verdict.calibration import Calibration
from vetgate.verdict.judge import Verdict, judge
from vetgate.verdict.policy import Policy


def verdict(seen: Sequence[Evidence], calibration: Calibration, policy: Policy, card: Blob, files: Files) -> Verdict:
    """The verdict of a policy on the evidence of one member."""
    return judge(
        seen,
        policy,
        calibration,
        classes=files.images[card["data"]][1],
        data_sha256=card["data_sha256"],
        with_training_data=any(e.method in policy.required_with_training_data for e in seen),
        sandbox_level=max(policy.sandbox_level.values(), default=1),
        format="safetensors",
    )
