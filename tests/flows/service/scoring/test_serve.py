"""`vetgate serve`: nothing listens before it is verified, and nothing is served once it is covered no more."""

from __future__ import annotations

import socket
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from flows.cli.commands import main
from flows.production.guarded import guarded_load
from flows.production.predictions import prediction
from flows.production.reconcile import reconcile
from flows.service.scoring.current import Current
from flows.service.scoring.serve import covered_until, load
from tasks.guards.fit import pins
from tests.flows.production.test_guarded import CHAMPION, NAME, NAMES, RATE, SHAPE, Production, attested
from tests.flows.service.scoring.running import serving
from tests.guarding import VOTER
from tests.production import NOW, home_in
from vetgate.contract import Param, Samples, Subject
from vetgate.guard.guarded import Action, fit_guards
from vetgate.guard.package import Package, to_bytes
from vetgate.trust.keys import utc_now


@pytest.fixture
def production(tmp_path: Path) -> Production:
    torch.manual_seed(1)
    return Production(home_in(tmp_path))


def test_it_serves_what_is_covered_and_stops_when_it_is_not(production: Production) -> None:
    manifest = production.guarded()
    x = torch.rand(30, *SHAPE, generator=torch.Generator().manual_seed(3))
    expected = [prediction(answer, NAMES) for answer in guarded_load(CHAMPION, production.settings).guarded.predict(x)]
    with serving(CHAMPION, production.settings.home, "--every", "1") as (about, client):
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


def test_a_vote_is_served_where_it_is_asked_for_and_a_split_one_abstains(production: Production) -> None:
    x = torch.rand(200, *SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        # so that random weights tell images apart
        [*_, last] = production.weights
        production.weights[last] -= production.model()(x).mean(0)
        model = production.model()
        clean = Samples(x, model(x).argmax(1))
    subject = Subject(model=model, layer="", classes=len(NAMES), clean=clean[:100])
    wanted: dict[str, dict[str, Param]] = {VOTER: {"steps": 0, "budget": 0.1, "votes": 64}}
    fitted, failed = fit_guards(subject, clean[100:], wanted, rate=RATE, seed=0)
    assert not failed
    manifest = production.submit()
    sha256 = production.keep(manifest, to_bytes(Package(manifest, fitted)))
    chosen = [{"name": VOTER, "rate": RATE, "code": pins(wanted)[VOTER]["code"]}]
    production.promoted(manifest, attested(sha256, chosen=chosen))
    given = torch.rand(60, *SHAPE, generator=torch.Generator().manual_seed(3))
    held = guarded_load(CHAMPION, production.settings, action=Action.VOTE).guarded
    expected = [prediction(answer, NAMES) for answer in held.predict(given)]
    outcomes = Counter(each["outcome"] for each in expected)
    assert set(outcomes) == {"accept", "abstain"}
    with serving(CHAMPION, production.settings.home, "--action", "vote") as (about, client):
        assert (about["action"], about["guards"]) == ("vote", [VOTER])
        found = client.post("/invocations", json={"inputs": given.tolist()}).json()["predictions"]
        assert [(each["outcome"], each["label"]) for each in found] == [(e["outcome"], e["label"]) for e in expected]
        counted = client.get("/metrics").text
    for outcome, count in outcomes.items():
        assert f'vetgate_images_total{{outcome="{outcome}"}} {count}.0' in counted


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


def test_a_demoted_version_is_served_no_more_though_the_one_before_it_cannot_be_loaded(production: Production) -> None:
    first = production.guarded()
    second = another_version(production)
    settings = production.settings
    current = Current(lambda: load(CHAMPION, settings, None), lambda held: covered_until(CHAMPION, settings, held))
    (key,) = production.store.list(f"guards/{first}/")
    package = Path(settings.store, key)
    package.rename(package.with_suffix(".aside"))
    production.home.decide(second, "FAIL", issued=utc_now() - timedelta(minutes=1))
    (done,) = reconcile(settings)["taken_back"]
    assert (done["version"], done["to"]) == ("2", "1")
    current.ask_again()
    assert current.get() is None and f"expected the guards of {first}" in current.why
    package.with_suffix(".aside").rename(package)
    current.ask_again()
    found = current.get()
    assert found is not None and found.manifest == first


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
