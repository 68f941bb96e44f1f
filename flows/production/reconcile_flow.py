"""Reconciliation as a flow of the gate's pool: every few minutes for everything, and woken for one model."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.production.reconcile import reconcile
from tasks.settings import load_settings


@flow(name="reconcile", flow_run_name="reconcile-{name}", persist_result=True, result_serializer="json")
def reconcile_flow(name: str | None = None) -> dict[str, Any]:
    """Take back what no verdict covers, of prod.<name> or of everything; taking something back fails no run."""
    return reconcile(load_settings(), name)
