"""The receiver, in the intake zone: MLflow's signed webhook about a new model wakes a flow, and nothing else.

It holds no key of the gate, opens no model and cannot write to the registry. `python -m flows.service.receiver` serves
it.
"""

from __future__ import annotations

import re
import sys

from starlette.applications import Starlette

from flows.service.http.endpoints import deliveries_to, service
from flows.service.http.serving import serve
from tasks import events
from tasks.environment import settle
from tasks.mlflow.submitted import MODEL
from tasks.mlflow.vettings import MANIFEST_TAG
from tasks.mlflow.webhooks import VERSION_CREATED, Deliveries
from tasks.program import ended
from tasks.secret_file import secret_at
from tasks.settings import Settings, load_settings
from vetgate.shape import Blob

VERSION = re.compile(r"[1-9][0-9]{0,8}")


def receiver(settings: Settings) -> Starlette:
    """The application: POST /mlflow, GET /health."""
    seen = Deliveries(secret_at(settings.webhook_secret), settings.home / "webhooks" / "receiver.db")
    return service({"/mlflow": deliveries_to(seen, handle)})


def handle(event: str, data: Blob) -> None:
    """Wake the flow that takes a new version of thirdparty.<name> in; whatever else MLflow tells is ignored."""
    model, version, tags = str(data.get("name")), str(data.get("version")), data.get("tags")
    # each vetting registers what came in: one that only claims to be is found by the sweep, which asks the facts
    own = isinstance(tags, dict) and MANIFEST_TAG in tags
    if event == VERSION_CREATED and MODEL.fullmatch(model) and VERSION.fullmatch(version) and not own:
        what = {"model": model, "version": version}
        events.emit(events.VERSION_REGISTERED, f"version.{model}.{version}", what, once=f"{model}/{version}")


def main() -> None:
    """Serve it where the settings say."""
    settle()
    settings = load_settings()
    serve(receiver(settings), settings.host, settings.receiver_port)


if __name__ == "__main__":
    sys.exit(ended(main))
