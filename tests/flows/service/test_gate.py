"""The gate over HTTP says what the gate's own process says; and receiver and gate service refuse what they must."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from starlette.applications import Starlette

from flows.gate.client import LocalGate, RemoteGate, decision, gate
from flows.gate.question import Question
from flows.service.gate import MAX_REQUEST_BYTES, Reconciler
from flows.service.receiver import receiver
from tasks.mlflow.webhooks import MAX_BODY_BYTES, signature
from tasks.secret_file import secret_at
from tasks.settings import Settings, load_settings
from tasks.store.open import open_store
from tasks.vetting.intake import take
from tests.service.running import free_ports
from vetgate.errors import BadSubmission, StoreError
from vetgate.verdict.policy import load_policy

DELIVERY = {"entity": "model_version", "action": "created", "data": {"name": "thirdparty.x", "version": "1"}}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Settings of a home whose gate is a running service."""
    home, port = tmp_path_factory.mktemp("gate"), free_ports(1)[0]
    own = {k: v for k, v in os.environ.items() if not k.startswith(("VETGATE_", "PREFECT_", "MLFLOW_"))}
    own |= {"VETGATE_HOME": str(home), "VETGATE_GATE_PORT": str(port)}
    with (home / "log").open("wb") as log:
        service = subprocess.Popen([sys.executable, "-m", "flows.service.gate"], env=own, stdout=log, stderr=log)
    try:
        until = time.monotonic() + 120
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).raise_for_status()
                break
            except httpx.TransportError:
                assert service.poll() is None and time.monotonic() < until, (home / "log").read_text()
                time.sleep(0.2)
        yield Settings(home=home, gate_port=port, gate_url=f"http://127.0.0.1:{port}")
    finally:
        service.terminate()
        service.wait(30)


def request(settings: Settings, directory: Path, why: str) -> dict[str, Any]:
    """A question about a submission on which nothing could be found out."""
    record = take(settings, directory)
    failures = dict.fromkeys(load_policy().required, why)
    asked = {"manifest": record.id, "evidence": {}, "failures": failures}
    return asked | {"reference_data": None, "sandbox_level": 2, "refused": False}


def test_the_service_decides_as_the_gates_own_process_does(served: Settings, honest: Path) -> None:
    asked = request(served, honest, "nothing ran")
    local = LocalGate(served.model_copy(update={"gate_url": None}))

    try:
        remote, own = gate(served).ask(asked), local.ask(asked)
    finally:
        local.close()
    assert isinstance(gate(served), RemoteGate)
    same = ("verdict", "key", "manifest")
    assert {k: remote[k] for k in same} == {k: own[k] for k in same}
    assert remote["verdict"]["decision"] == "INCONCLUSIVE"
    assert open_store(served).exists(remote["attestation"])


def test_an_error_of_the_service_is_the_error_of_the_gate(served: Settings) -> None:
    with pytest.raises(BadSubmission, match="expected a submitted model"):
        decision(served, Question("0" * 64, {}, {}, None, 2))


def test_a_caller_without_the_token_is_not_answered(served: Settings) -> None:
    assert served.gate_url is not None
    with pytest.raises(StoreError, match="token"):
        RemoteGate(served.gate_url, "another token").ask({})
    for header in ({}, {"Authorization": f"Basic {secret_at(served.gate_token)}"}, {"Authorization": "Bearer another"}):
        answer = httpx.post(f"{served.gate_url}/decide", json={}, headers=header)
        assert answer.status_code == 401 and secret_at(served.gate_token) not in answer.text
    assert served.gate_token.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("body", "status"), [(b"[]", 400), (b"{", 400), (b" " * (MAX_REQUEST_BYTES + 1), 413)])
def test_what_is_no_question_is_refused(served: Settings, body: bytes, status: int) -> None:
    header = {"Authorization": f"Bearer {secret_at(served.gate_token)}"}

    assert httpx.post(f"{served.gate_url}/decide", content=body, headers=header).status_code == status


def test_a_gate_that_does_not_answer_is_an_error_that_names_it() -> None:
    url = f"http://127.0.0.1:{free_ports(1)[0]}"

    with pytest.raises(StoreError, match=url):
        RemoteGate(url, "a token", patience=0.5).ask({})


def test_a_vetting_that_is_withheld_the_key_still_gets_its_decision(served: Settings, honest: Path) -> None:
    withheld = served.model_copy(update={"gate_key": Path("/dev/null/withheld")})

    assert gate(withheld).ask(request(withheld, honest, "nothing ran again"))["attestation"]


def test_a_name_that_is_told_of_again_and_again_is_reconciled_once_more_and_an_error_ends_nothing() -> None:
    seen: list[str] = []
    begun, go_on = threading.Event(), threading.Event()

    def reconcile(name: str) -> None:
        seen.append(name)
        begun.set()
        assert go_on.wait(10)
        raise RuntimeError("the registry is away")

    reconciler = Reconciler(reconcile)
    reconciler.start()
    reconciler.notify("x")
    assert begun.wait(10)
    for _ in range(100):
        reconciler.notify("x")
        reconciler.notify("y")
    go_on.set()
    until = time.monotonic() + 10
    while len(seen) < 3 and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.1)
    assert seen == ["x", "x", "y"]


def test_the_receiver_answers_as_each_delivery_deserves(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    application = receiver(settings)
    secret, now = secret_at(settings.webhook_secret), str(int(time.time()))

    def deliver(identity: str, body: bytes, *, signed: str = secret, sent: str = now) -> int:
        headers = {
            "X-MLflow-Delivery-Id": identity,
            "X-MLflow-Timestamp": sent,
            "X-MLflow-Signature": signature(signed, identity, sent, body),
        }
        return ask(application, "POST", "/mlflow", content=body, headers=headers).status_code

    body = json.dumps(DELIVERY).encode()
    assert deliver("one", body) == 204 and deliver("one", body) == 409
    assert deliver("two", body, signed="a secret that is not ours") == 401
    assert deliver("three", body, sent=str(int(now) - 301)) == 400
    assert deliver("four", b" " * (MAX_BODY_BYTES + 1)) == 413
    for number, ignored in enumerate((b"", b"[]", b'{"entity": 1, "action": 2, "data": {}}', b"{" * 100_000)):
        assert deliver(f"ignored-{number}", ignored) == 204
    assert ask(application, "POST", "/mlflow", content=body).status_code == 401
    assert ask(application, "GET", "/mlflow").status_code == 405
    assert ask(application, "GET", "/health").json() == {"status": "ok"}


def ask(application: Starlette, method: str, path: str, **what: Any) -> httpx.Response:
    async def asking() -> httpx.Response:
        transport = httpx.ASGITransport(application)
        async with httpx.AsyncClient(transport=transport, base_url="http://receiver") as client:
            return await client.request(method, path, **what)

    return anyio.run(asking)


def test_the_receiver_makes_no_key_of_the_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VETGATE_HOME", str(tmp_path))
    monkeypatch.setenv("VETGATE_GATE_KEY", "/dev/null/withheld")
    receiver(load_settings())

    assert sorted(path.name for path in (tmp_path / "keys").iterdir()) == ["webhook.secret"]
