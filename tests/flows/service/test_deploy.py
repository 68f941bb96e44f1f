"""What prefect.yaml deploys: every trigger waits for an event that is sent, and hands over what its flow takes."""

from __future__ import annotations

import inspect
from importlib import import_module

import pytest

from flows.service.deploy import TRIGGERS, entries
from tasks import events
from vetgate.shape import Blob

SENT = {value for value in vars(events).values() if isinstance(value, str) and value.startswith("vetgate.")}
TRIGGERED = [(entry, trigger) for entry in entries() for trigger in entry.get("triggers", [])]


def named(case: object) -> str:
    return str(case.get("name")) if isinstance(case, dict) else "-"


@pytest.mark.parametrize(("entry", "trigger"), TRIGGERED, ids=named)
def test_a_trigger_waits_for_what_is_sent_and_hands_over_what_the_flow_takes(entry: Blob, trigger: Blob) -> None:
    (made,) = TRIGGERS.validate_python([trigger])
    assert set(trigger["expect"]) <= SENT and made.name == trigger["name"]
    module, _, function = entry["entrypoint"].partition(".py:")
    flow = getattr(import_module(module.replace("/", ".")), function)
    taken = set(inspect.signature(flow.fn).parameters)
    assert {*trigger["parameters"], *entry.get("parameters", {})} <= taken


def test_a_rise_of_rejections_starts_a_rescan_of_the_one_name() -> None:
    (entry,) = (e for e, trigger in TRIGGERED if events.REJECTIONS_ROSE in trigger["expect"])
    (trigger,) = entry["triggers"]
    assert entry["entrypoint"] == "flows/rescan/nightly_flow.py:rescan_flow"
    assert trigger["parameters"] == {"name": "{{ event.payload.name }}"} and entry["parameters"] == {"name": None}
