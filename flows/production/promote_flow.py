"""Promotion as a flow of the gate's pool: woken by a verdict, it reads everything else from the store."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.production.automatic import promote_if_due
from tasks.settings import load_settings
from vetgate.errors import Denied


@flow(name="promote", flow_run_name="promote-{manifest_sha256}", persist_result=True, result_serializer="json")
def promote_flow(manifest_sha256: str) -> dict[str, Any]:
    """Promote a submission that passed, if the policy promotes by itself; a refusal is an outcome, no crash."""
    try:
        return promote_if_due(load_settings(), manifest_sha256) or {"promoted": False}
    except Denied as error:
        return {"promoted": False, "refused": str(error)}
