"""MLflow's webhooks: whether a delivery is from our MLflow, fresh and new, and the order to send them.

A delivery says that something happened, never what is true: the receiver reads the facts from the registry.
"""

from __future__ import annotations

import base64
import hmac
import re
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.mlflow.answers import pages
from tasks.mlflow.client import registry
from tasks.secret_file import secret_at
from tasks.settings import Settings
from vetgate.errors import StoreError, VetgateError

if TYPE_CHECKING:
    from mlflow.entities.webhook import Webhook
    from mlflow.tracking import MlflowClient

WINDOW_SECONDS = 300
MAX_BODY_BYTES = 1 << 20
ID_HEADER, TIMESTAMP_HEADER, SIGNATURE_HEADER = "x-mlflow-delivery-id", "x-mlflow-timestamp", "x-mlflow-signature"
IDENTITY = re.compile(r"[A-Za-z0-9_-]{1,128}")
MOMENT = re.compile(r"[0-9]{1,12}")

VERSION_CREATED = "model_version.created"
ALIAS_CREATED, ALIAS_DELETED = "model_version_alias.created", "model_version_alias.deleted"


class Refused(VetgateError):
    """A delivery is not taken; `status` is the HTTP status that says so."""

    code = "webhook-refused"
    status = 400


class Forged(Refused):
    """It is not signed with the secret that MLflow was given."""

    code = "webhook-forged"
    status = 401


class Replayed(Refused):
    """It was taken before."""

    code = "webhook-replayed"
    status = 409


class TooLarge(Refused):
    """Its body is larger than any delivery."""

    code = "webhook-too-large"
    status = 413


def signature(secret: str, identity: str, moment: str, body: bytes) -> str:
    """What MLflow puts into the header of a delivery."""
    digest = hmac.digest(secret.encode(), f"{identity}.{moment}.".encode() + body, "sha256")
    return f"v1,{base64.b64encode(digest).decode()}"


class Deliveries:
    """The deliveries that one receiver has taken within the window, kept in a file that outlives it."""

    def __init__(self, secret: str, seen: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._secret, self._seen, self._clock = secret, seen, clock
        try:
            seen.parent.mkdir(parents=True, exist_ok=True)
            with closing(self._open()) as database:
                database.execute("CREATE TABLE IF NOT EXISTS seen (id TEXT PRIMARY KEY, until REAL) WITHOUT ROWID")
                database.execute("CREATE INDEX IF NOT EXISTS by_time ON seen (until)")
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"expected to write {seen}, got {error}; set VETGATE_HOME or free space") from error

    def take(self, headers: Mapping[str, str], body: bytes) -> None:
        """Take a delivery, once; raises Forged, Refused when its time is wrong, Replayed or TooLarge."""
        if len(body) > MAX_BODY_BYTES:
            raise TooLarge(f"expected at most {MAX_BODY_BYTES} bytes, got {len(body)}")
        identity, moment = headers.get(ID_HEADER, ""), headers.get(TIMESTAMP_HEADER, "")
        if not (IDENTITY.fullmatch(identity) and MOMENT.fullmatch(moment)):
            raise Forged("expected a delivery of MLflow with its id and time, got another; see its webhook's secret")
        wanted = signature(self._secret, identity, moment, body).encode()
        if not hmac.compare_digest(headers.get(SIGNATURE_HEADER, "").encode(), wanted):
            raise Forged("expected the signature of our MLflow, got none or another; see its webhook's secret")
        now, sent = self._clock(), int(moment)
        if abs(now - sent) > WINDOW_SECONDS:
            raise Refused(f"expected a delivery of the last {WINDOW_SECONDS} s, got one {now - sent:.0f} s old")
        self._note(identity, now, sent)

    def _note(self, identity: str, now: float, sent: int) -> None:
        try:
            with closing(self._open()) as database:
                # what is older is refused for its age
                database.execute("DELETE FROM seen WHERE until < ?", (now,))
                row = (identity, sent + WINDOW_SECONDS + 1)
                new = database.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", row).rowcount
        except sqlite3.Error as error:
            raise StoreError(f"expected to write {self._seen}, got {error}; free space") from error
        if not new:
            raise Replayed(f"expected a new delivery, got {identity} again")

    def _open(self) -> sqlite3.Connection:
        # no isolation level: each statement is a transaction, and is on the disk when it returns
        return sqlite3.connect(self._seen, timeout=30, isolation_level=None)


def register_webhook(settings: Settings, name: str, url: str, events: Sequence[str]) -> bool:
    """Have MLflow send `events` to `url`, signed with the installation's secret; whether anything looked otherwise.

    However often it is called, MLflow has one webhook of this name. Its secret, which cannot be read back and which
    whoever writes the registry can exchange, is set each time. Raises StoreError.
    """
    from mlflow.entities.webhook import WebhookEvent

    wanted = {WebhookEvent(*event.split(".")) for event in events}
    secret = secret_at(settings.webhook_secret)
    # for people, who cannot read the secret there
    about = f"vetgate; secret {hmac.digest(secret.encode(), name.encode(), 'sha256').hex()[:16]}"
    with registry(settings) as client:
        found = [hook for hook in _webhooks(client) if hook.name == name]
        for extra in found[1:]:
            client.delete_webhook(extra.webhook_id)
        if not found:
            client.create_webhook(name, url, list(wanted), description=about, secret=secret)
            return True
        hook = found[0]
        client.update_webhook(
            hook.webhook_id, url=url, events=list(wanted), description=about, secret=secret, status="ACTIVE"
        )
    same = hook.url == url and set(hook.events) == wanted and hook.description == about and hook.status.is_active()
    return not same or len(found) > 1


def _webhooks(client: MlflowClient) -> list[Webhook]:
    def page(token: str | None) -> tuple[Any, str | None]:
        found = client.list_webhooks(max_results=100, page_token=token)
        return found, found.token

    return [hook for found in pages(page) for hook in found]
