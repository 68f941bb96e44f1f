"""Have MLflow send its webhooks to the receiver and to the gate, whenever it comes up, and again should it forget.

The gate does this for both: it may change the registry anyway, and the receiver, which strangers reach, may not.
"""

from __future__ import annotations

import logging
import threading
import time

from flows.service.urls import gate_url, receiver_url
from tasks.mlflow.webhooks import ALIAS_CREATED, ALIAS_DELETED, VERSION_CREATED, register_webhook
from tasks.settings import Settings
from vetgate.errors import VetgateError

# what is as it should be costs a listing, and the secret, which cannot be read back, is set again
RETRY_SECONDS, CHECK_SECONDS = 1.0, 60.0
logger = logging.getLogger("vetgate.service")


class Webhooks(threading.Thread):
    """Registers the webhooks; `registered` says which of them MLflow was last seen to have."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(name="webhooks", daemon=True)
        self._settings = settings
        self._wanted = {
            "vetgate-receiver": (f"{receiver_url(settings)}/mlflow", (VERSION_CREATED,)),
            "vetgate-gate": (f"{gate_url(settings)}/mlflow", (ALIAS_CREATED, ALIAS_DELETED)),
        }
        self.registered = dict.fromkeys(self._wanted, False)

    def run(self) -> None:
        if not self._settings.tracking_uri.startswith(("http://", "https://")):
            logger.warning("no MLflow server is configured: sweep and reconcile do what webhooks would wake")
            return
        while True:
            time.sleep(CHECK_SECONDS if self._register() else RETRY_SECONDS)

    def _register(self) -> bool:
        try:
            # its client waits long for a server that does not answer, and holds the registry meanwhile
            if not _reachable(self._settings.tracking_uri):
                return False
            for name, (url, events) in self._wanted.items():
                if register_webhook(self._settings, name, url, events):
                    logger.info("MLflow sends %s to %s", ", ".join(events), url)
                self.registered[name] = True
        except VetgateError as error:
            logger.warning("no webhooks yet: %s", error)
            return False
        return True


def _reachable(tracking_uri: str) -> bool:
    import httpx

    try:
        return httpx.get(f"{tracking_uri.rstrip('/')}/health", timeout=5, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False
