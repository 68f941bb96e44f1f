"""`vetgate serve`: nothing listens before it is verified, and nothing is served once it is covered no more."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from flows.cli.commands import main
from flows.production.guarded import guarded_load
from flows.production.predictions import prediction
from flows.service.scoring.current import Current
from flows.service.scoring.serve import covered_until, load
from tests.flows.production.test_guarded import CHAMPION, NAME, NAMES, RATE, SHAPE, Production, attested
from tests.production import NOW, home_in
from tests.service.running import killed_after
from vetgate.guard.guarded import Action
from vetgate.guard.package import Package, to_bytes


@pytest.fixture
def production(tmp_path: Path) -> Production:
    torch.manual_seed(1)
    return Production(home_in(tmp_path))


@contextmanager
def serving(production: Production, *options: str) -> Iterator[tuple[dict[str, Any], httpx.Client]]:
    """What a served model says of itself, and a client for it; it ends by SIGTERM and leaves no process."""
    code = "import sys; from flows.cli.commands import main; sys.exit(main())"
    own = {k: v for k, v in os.environ.items() if not k.startswith(("VETGATE_", "PREFECT_", "MLFLOW_"))}
    line = ["serve", CHAMPION, "--port", "0", "--json", "--home", str(production.settings.home), *options]
    process = subprocess.Popen([sys.executable, "-c", code, *line], env=own, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        with killed_after(process, 120):
            about = json.loads(process.stdout.readline())
        with httpx.Client(base_url=about["url"], timeout=60, trust_env=False) as client:
            yield about, client
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.wait()


def test_it_serves_what_is_covered_and_stops_when_it_is_not(production: Production) -> None:
    manifest = production.guarded()
    x = torch.rand(30, *SHAPE, generator=torch.Generator().manual_seed(3))
    expected = [prediction(answer, NAMES) for answer in guarded_load(CHAMPION, production.settings).guarded.predict(x)]
    with serving(production, "--every", "1") as (about, client):
        assert (about["model"], about["version"], about["manifest_sha256"]) == ("prod.digits", "1", manifest)
        assert (about["action"], about["guards"]) == ("reject", [NAME])
        assert about["url"].startswith("http://127.0.0.1:") and about["false_rejection_rate"] == RATE
        response = client.post("/invocations", json={"inputs": x.tolist()})
        found = response.json()["predictions"]
        assert [each["outcome"] for each in found] == [each["outcome"] for each in expected]
        assert [each["label"] for each in found] == [each["label"] for each in expected]
        production.home.decide(manifest, "FAIL", issued=NOW)
        until = time.monotonic() + 30
        while (response := client.post("/invocations", json={"inputs": x[:1].tolist()})).status_code == 200:
            assert time.monotonic() < until
            time.sleep(0.1)
        assert response.status_code == 503 and "expected a PASS" in response.json()["message"]
        assert client.get("/ping").status_code == 503


def another_version(production: Production, **changes: Any) -> str:
    """Promote another network, behind its own guards; its manifest."""
    torch.manual_seed(2)
    production.weights = {key: value + 0.01 for key, value in production.weights.items()}
    manifest = production.submit(supplier="another")
    sha256 = production.keep(manifest, to_bytes(Package(manifest, (production.fitted(),))))
    production.promoted(manifest, attested(sha256) | changes)
    return manifest


def test_a_moved_alias_is_followed_and_the_old_one_is_told_apart(production: Production) -> None:
    production.guarded()
    settings = production.settings
    held = load(CHAMPION, settings, None)
    assert covered_until(CHAMPION, settings, held) == held.until == NOW + timedelta(days=29)
    assert (held.name, held.version, held.classes, held.rate) == ("digits", "1", tuple(NAMES), RATE)
    current = Current(
        lambda: load(CHAMPION, settings, Action.LOG_ONLY), lambda served: covered_until(CHAMPION, settings, served)
    )
    manifest = another_version(production)
    assert covered_until(CHAMPION, settings, held) is None
    current.ask_again()
    found = current.get()
    assert found is not None and (found.version, found.manifest) == ("2", manifest)
    assert found.guarded.action is Action.LOG_ONLY


def test_a_revoked_verdict_is_served_no_more(production: Production) -> None:
    production.guarded()
    settings = production.settings
    current = Current(lambda: load(CHAMPION, settings, None), lambda held: covered_until(CHAMPION, settings, held))
    held = current.get()
    assert held is not None
    production.store.create(f"revocations/{held.attestation}.json", b"{}")
    current.ask_again()
    assert current.get() is None and "revoked" in current.why


def refused(production: Production, *arguments: str) -> int:
    return main(["serve", *arguments, "--home", str(production.settings.home)])


def test_what_is_not_covered_ends_as_verify_does_before_anything_listens(
    production: Production, capfd: pytest.CaptureFixture[str]
) -> None:
    assert refused(production, CHAMPION) == 1
    assert refused(production, "prod.digits") == 4
    assert refused(production, CHAMPION, "--action", "guess") == 4
    manifest = production.guarded()
    assert refused(production, CHAMPION, "--action", "vote") == 1
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert refused(production, CHAMPION, "--port", str(taken.getsockname()[1])) == 2
    assert refused(production, CHAMPION, "--host", "192.0.2.1") == 2
    production.home.decide(manifest, "FAIL", issued=NOW)
    assert refused(production, CHAMPION) == 1
    said = capfd.readouterr()
    assert "Traceback" not in said.err and said.out == "" and "name another --port" in said.err


def test_what_expired_ends_with_five(production: Production) -> None:
    production.guarded()
    digest = load(CHAMPION, production.settings, None).attestation
    production.store.create(f"revocations/{digest}.json", b"{}")
    assert refused(production, CHAMPION) == 5
