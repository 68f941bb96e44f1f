"""A rescan in one process, for an installation without a service."""

from __future__ import annotations

from flows.gate.question import Question
from flows.rescan.nightly import rescan
from flows.vetting import local
from tasks.settings import Settings
from tasks.vetting.workplace import cool
from vetgate.shape import Blob


def rescan_locally(settings: Settings, name: str | None = None) -> Blob:
    """A batch whose models are examined here, one after the other; nothing is started while nothing is out of date."""
    try:
        return rescan(settings, examine_locally, name)
    finally:
        cool()


def examine_locally(settings: Settings, manifest: str, run: str) -> Question:
    """Examine in this process, with a Prefect server of its own where none is named."""
    ready = local.start_all(settings)
    ready()
    # after the server is known, which Prefect reads when it is imported
    from flows.vetting.examine import examine

    return examine(settings, manifest, run)
