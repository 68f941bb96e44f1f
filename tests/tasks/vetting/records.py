"""Records of repairs with given figures, for tests of what is made of them."""

from __future__ import annotations

from typing import Any

from tasks.vetting.results import Measured, RepairRecord, RepairTriggers, TriggerSize, Validated
from vetgate.verdict.accuracy_loss import AccuracyLoss

TRIGGER = {"mask": {}, "pattern": {}, "target": 3}


def repaired(
    method: str = "unlearn",
    *,
    accuracy: Any = 0.97,
    loss: AccuracyLoss | None = None,
    success: Any = 0.02,
    natural: Any = 0.0,
    triggers: bool = True,
    changed: dict[str, float] | None = None,
) -> RepairRecord:
    """A record of a model of 98 % accuracy and full attack success, and of what its repair left."""
    found = (TRIGGER,) if triggers else ()
    return RepairRecord(
        about={},
        key="cd" * 32,
        method=method,
        changed=changed or {},
        seconds=2.5,
        files={},
        triggers=RepairTriggers(found, found * 2, (TriggerSize(3, 4.0, 11.0),) if triggers else ()),
        validate=Validated(
            before=Measured(0.98, 1.0, 0.0) if triggers else Measured(0.98, None, None),
            after=Measured(accuracy, success, 0.91) if triggers else Measured(accuracy, None, None),
            lost=loss or AccuracyLoss(0.01, 0.005, 400),
            found=0.01 if triggers else None,
            anew=success if triggers else None,
            natural=natural,
        ),
    )
