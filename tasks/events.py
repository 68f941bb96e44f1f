"""Events on the Prefect server: hints that wake things up. None is ever needed: `sweep` finds what they missed."""

from __future__ import annotations

import base64
import logging
import os
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from vetgate.formats.plain_text import escaped

SECONDS = 5.0
NAMESPACE = uuid.UUID("6f0a3c0e-8f3e-5d0b-9f0c-2f1b6a1d7c11")

SUBMISSION_ACCEPTED = "vetgate.submission.accepted"
VERSION_REGISTERED = "vetgate.version.registered"
VERDICT_ISSUED = "vetgate.verdict.issued"
PROMOTION_GRANTED = "vetgate.promotion.granted"
PROMOTION_DENIED = "vetgate.promotion.denied"
MODEL_DEMOTED = "vetgate.model.demoted"
BYPASS_DETECTED = "vetgate.gate.bypass_detected"
BYPASS_REPEATED = "vetgate.gate.bypass_repeated"
LEDGER_BROKEN = "vetgate.ledger.broken"
REJECTIONS_ROSE = "vetgate.guard.rejections_rose"


def verdict_issued(manifest_sha256: str, verdict: str, *, once: str, automatic: bool) -> bool:
    """Tell of a verdict; `automatic` is whether the policy promotes what passed, which is all that a trigger asks."""
    payload = {"manifest_sha256": manifest_sha256, "verdict": verdict}
    due = "due" if automatic and verdict == "PASS" else "not due"
    return emit(VERDICT_ISSUED, f"verdict.{manifest_sha256}", payload, once=once, labels={"vetgate.promotion": due})


def emit(
    event: str,
    resource: str,
    payload: Mapping[str, Any],
    *,
    once: str | None = None,
    labels: Mapping[str, str] | None = None,
) -> bool:
    """Send one event about `vetgate.<resource>`; whether the server took it. Never raises.

    The server takes each `once` a single time, so that a step done again starts nothing twice. Triggers match the
    resource's `labels` before anything is started.
    """
    server = os.environ.get("PREFECT_API_URL")
    if not server:
        return False
    import httpx

    # what is sent twice with one id is one event
    identity = uuid.uuid5(NAMESPACE, f"{event} {resource} {once}") if once is not None else uuid.uuid4()
    body = {
        "id": str(identity),
        "occurred": datetime.now(UTC).isoformat(),
        "event": event,
        "resource": {"prefect.resource.id": f"vetgate.{escaped(resource)}", **(labels or {})},
        "payload": {key: escaped(value) if isinstance(value, str) else value for key, value in payload.items()},
    }
    login = os.environ.get("PREFECT_API_AUTH_STRING")
    headers = {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"} if login else {}
    try:
        httpx.post(f"{server}/events", json=[body], headers=headers, timeout=SECONDS).raise_for_status()
    except httpx.HTTPError as error:
        logging.getLogger(__name__).warning("event %s was not taken: %s; sweep will find it", event, error)
        return False
    return True
