"""Where the parts of the service are reached, from the settings and the environment."""

from __future__ import annotations

import os
import socket
from urllib.parse import urlsplit

from tasks.settings import Settings

EVERYWHERE = ("0.0.0.0", "::")
LOCAL = ("127.0.0.1", "localhost", "::1")


def reached_at(settings: Settings, port: int) -> str:
    """The URL of a part that listens here; one that listens on every address has the name of this host."""
    host = socket.gethostname() if settings.host in EVERYWHERE else settings.host
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def receiver_url(settings: Settings) -> str:
    """Where MLflow reaches the receiver."""
    return (settings.receiver_url or reached_at(settings, settings.receiver_port)).rstrip("/")


def gate_url(settings: Settings) -> str:
    """Where the gate service is reached."""
    return (settings.gate_url or reached_at(settings, settings.gate_port)).rstrip("/")


def prefect_url(settings: Settings) -> str:
    """The API of the Prefect server: PREFECT_API_URL, or the one that `vetgate up` starts."""
    return (os.environ.get("PREFECT_API_URL") or f"{reached_at(settings, settings.prefect_port)}/api").rstrip("/")


def mlflow_url(settings: Settings) -> str:
    """The MLflow server: VETGATE_TRACKING_URI if that is one, or the one that `vetgate up` starts."""
    configured = settings.tracking_uri.startswith(("http://", "https://"))
    return (settings.tracking_uri if configured else reached_at(settings, settings.mlflow_port)).rstrip("/")


def is_ours(settings: Settings, url: str, port: int) -> bool:
    """Whether `vetgate up` starts what is reached at this URL; anything elsewhere is taken as running already."""
    parts = urlsplit(url)
    return parts.port == port and parts.hostname in {*LOCAL, settings.host, socket.gethostname()}
