"""A delivery is taken when our MLflow signed it, lately, and once; everything else is refused."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tasks.mlflow.client import registry
from tasks.mlflow.webhooks import (
    MAX_BODY_BYTES,
    WINDOW_SECONDS,
    Deliveries,
    Forged,
    Refused,
    Replayed,
    TooLarge,
    register_webhook,
    signature,
)
from tasks.secret_file import secret_at
from tasks.settings import Settings
from tests.databases import with_registry
from vetgate.errors import StoreError

SECRET = "a secret of more than sixteen characters"
NOW = 1_800_000_000
BODY = json.dumps({"entity": "model_version", "action": "created", "data": {"name": "thirdparty.x"}}).encode()


def headers(
    body: bytes = BODY, *, identity: str = "delivery-1", sent: int = NOW, secret: str = SECRET
) -> dict[str, str]:
    return {
        "x-mlflow-delivery-id": identity,
        "x-mlflow-timestamp": str(sent),
        "x-mlflow-signature": signature(secret, identity, str(sent), body),
    }


@pytest.fixture
def at(tmp_path: Path) -> Callable[[int], Deliveries]:
    """The receiver as it is at a moment, its memory the same however often it is made."""
    return lambda now: Deliveries(SECRET, tmp_path / "seen.db", clock=lambda: now)


def test_the_signature_is_the_one_that_mlflow_makes():
    from mlflow.webhooks.delivery import _generate_hmac_signature

    assert signature(SECRET, "an-id", "1800000000", BODY) == _generate_hmac_signature(
        SECRET, "an-id", "1800000000", BODY.decode()
    )


def test_a_signed_delivery_is_taken_once_also_after_a_restart(at):
    at(NOW).take(headers(), BODY)

    for receiver in (at(NOW), at(NOW + WINDOW_SECONDS)):
        with pytest.raises(Replayed):
            receiver.take(headers(), BODY)
    at(NOW).take(headers(identity="delivery-2"), BODY)


@pytest.mark.parametrize(
    "wrong",
    [
        {"x-mlflow-signature": signature("another secret of our own", "delivery-1", str(NOW), BODY)},
        {"x-mlflow-signature": ""},
        {"x-mlflow-signature": "v1,é"},
        {"x-mlflow-delivery-id": "delivery-2"},
        {"x-mlflow-timestamp": str(NOW + 1)},
        {"x-mlflow-timestamp": "yesterday"},
        {"x-mlflow-delivery-id": ""},
        {"x-mlflow-delivery-id": "x" * 1000},
    ],
)
def test_what_our_mlflow_did_not_sign_is_forged_and_no_error_tells_the_secret(at, wrong):
    with pytest.raises(Forged) as refused:
        at(NOW).take(headers() | wrong, BODY)

    assert refused.value.status == 401 and SECRET not in str(refused.value)
    assert signature(SECRET, "delivery-1", str(NOW), BODY) not in str(refused.value)
    at(NOW).take(headers(), BODY)


def test_another_body_under_the_same_signature_is_forged(at):
    with pytest.raises(Forged):
        at(NOW).take(headers(), BODY + b" ")


@pytest.mark.parametrize("sent", [NOW - WINDOW_SECONDS - 1, NOW + WINDOW_SECONDS + 1])
def test_a_delivery_that_is_not_of_now_is_refused(at, sent):
    with pytest.raises(Refused) as refused:
        at(NOW).take(headers(sent=sent), BODY)

    assert refused.value.status == 400 and not isinstance(refused.value, Forged | Replayed)


@pytest.mark.parametrize("sent", [NOW - WINDOW_SECONDS, NOW + WINDOW_SECONDS])
def test_a_delivery_of_the_edge_of_the_window_is_taken_and_remembered_as_long_as_it_could_come_again(at, sent):
    at(NOW).take(headers(sent=sent), BODY)

    for later in range(NOW, sent + WINDOW_SECONDS + 1, 60):
        with pytest.raises(Replayed):
            at(later).take(headers(sent=sent), BODY)
    with pytest.raises(Refused):
        at(sent + WINDOW_SECONDS + 1).take(headers(sent=sent), BODY)


def test_what_is_too_large_is_refused_before_it_is_hashed(at):
    body = b" " * (MAX_BODY_BYTES + 1)

    with pytest.raises(TooLarge) as refused:
        at(NOW).take(headers(body), body)
    assert refused.value.status == 413


def test_the_memory_holds_no_more_than_the_window(at, tmp_path):
    for n in range(50):
        at(NOW + 100 * n).take(headers(identity=f"delivery-{n}", sent=NOW + 100 * n), BODY)

    with closing(sqlite3.connect(tmp_path / "seen.db")) as database:
        rows = database.execute("SELECT count(*) FROM seen").fetchone()[0]
    assert 0 < rows <= WINDOW_SECONDS // 100 + 2


def test_nothing_is_taken_that_cannot_be_remembered(at, tmp_path):
    receiver = at(NOW)
    (tmp_path / "seen.db").unlink()
    (tmp_path / "seen.db").mkdir()

    with pytest.raises(StoreError):
        receiver.take(headers(), BODY)


def test_a_secret_is_made_once_for_its_owner_alone(tmp_path):
    path = tmp_path / "keys" / "webhook.secret"

    made = secret_at(path)
    assert secret_at(path) == made and len(made) >= 32 and path.stat().st_mode & 0o777 == 0o600
    assert secret_at(tmp_path / "keys" / "another") != made
    assert [entry.name for entry in path.parent.iterdir() if entry.name.startswith(".")] == []


def test_a_secret_that_is_none_is_refused_without_being_told(tmp_path):
    (tmp_path / "short").write_text("secret")

    with pytest.raises(StoreError) as refused:
        secret_at(tmp_path / "short")
    assert "secret" not in str(refused.value).replace(str(tmp_path), "")
    with pytest.raises(StoreError):
        secret_at(Path("/dev/null/withheld"))


URL, EVENTS = "http://127.0.0.1:8480/mlflow", ["model_version.created"]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("MLFLOW_WEBHOOK_ALLOWED_SCHEMES", "http,https")
    monkeypatch.setenv("MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS", "true")
    return Settings(home=with_registry(tmp_path / "home"))


def hooks(settings):
    """URL, events, state and secret of each webhook that MLflow has under our name."""
    with registry(settings) as client:
        found = [hook for hook in client.list_webhooks() if hook.name == "vetgate"]
    return [(hook.url, len(hook.events), hook.status.is_active(), hook.secret) for hook in found]


def test_mlflow_has_one_webhook_of_a_name_with_our_secret(settings):
    assert register_webhook(settings, "vetgate", URL, EVENTS)
    assert not register_webhook(settings, "vetgate", URL, EVENTS)
    assert hooks(settings) == [(URL, 1, True, secret_at(settings.webhook_secret))]


@pytest.mark.parametrize(
    ("change", "shows"),
    [
        ({"secret": "another's"}, False),
        ({"secret": "another's", "description": "vetgate"}, True),
        ({"secret": "another's", "url": "http://127.0.0.1:1/"}, True),
        ({"status": "DISABLED"}, True),
    ],
)
def test_what_another_changed_is_set_right_and_the_secret_whether_or_not_it_shows(settings, change, shows):
    register_webhook(settings, "vetgate", URL, EVENTS)
    with registry(settings) as client:
        client.update_webhook(client.list_webhooks()[0].webhook_id, **change)
    assert register_webhook(settings, "vetgate", URL, EVENTS) is shows
    assert hooks(settings) == [(URL, 1, True, secret_at(settings.webhook_secret))]


def test_one_too_many_is_deleted(settings):
    from mlflow.entities.webhook import WebhookEvent

    with registry(settings) as client:
        for _ in range(3):
            client.create_webhook("vetgate", URL, [WebhookEvent("model_version", "created")], secret="another's")
    assert register_webhook(settings, "vetgate", URL, EVENTS)
    assert hooks(settings) == [(URL, 1, True, secret_at(settings.webhook_secret))]
