"""Promotion without being asked: what is due is promoted, whatever a stranger says was promoted before."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from flows.production.automatic import promote_all_due
from flows.production.promote import promote
from tasks.mlflow.client import registry
from tasks.records import alias_moves
from tasks.records.ledger_verify import verify_ledger
from tests.flows.production.test_guarded import Production
from tests.flows.production.test_promote import die_after
from tests.flows.production.test_pyfunc import next_version
from tests.production import Home, home_in
from vetgate.digest import canonical_json
from vetgate.trust.keys import load_key, utc_now
from vetgate.trust.statements import PROMOTION, sign_statement
from vetgate.trust.strict_json import time_text


@pytest.fixture
def home(tmp_path: Path) -> Home:
    policy = tmp_path / "policy.yaml"
    policy.write_text("name: automatic\nrequired: [neural_cleanse]\npromotion: {automatic: champion}\n")
    return home_in(tmp_path, policy=policy)


def test_what_passed_is_promoted_once_and_nothing_older_after_it(home: Home) -> None:
    older, newer = home.submit(b"older"), home.submit(b"newer")
    if older > newer:  # of one second, the order is that of the names
        older, newer = newer, older
    home.decide(newer)
    assert [done["manifest_sha256"] for done in promote_all_due(home.settings)] == [newer]
    home.decide(older)
    assert promote_all_due(home.settings) == [] and home.aliases() == {"champion": "1"}


@pytest.mark.parametrize("signer", ["a stranger", "the gate's key of another store", "nobody"])
def test_a_promotion_that_the_ledger_does_not_know_holds_no_model_up(home: Home, signer: str) -> None:
    due = home.submit(b"due")
    home.decide(due)
    other = home.submit(b"submitted later")
    laid = other if other > due else due
    key = load_key(home.settings.gate_key) if signer.startswith("the gate") else Ed25519PrivateKey.generate()
    said = {"issued": time_text(utc_now()), "name": "digits", "version": "9", "manifest": laid}
    envelope = sign_statement(PROMOTION, said, key)
    if signer == "nobody":
        envelope = {**envelope, "signatures": [{"keyid": "", "sig": "AAAA"}]}
    home.store.create("promotions/digits/9.json", canonical_json(envelope))
    assert [done["manifest_sha256"] for done in promote_all_due(home.settings)] == [due]
    assert home.aliases() == {"champion": "1"}


STEPS = ("ledger entered", "alias set", "guarded files logged", "guarded version registered", "guarded aliases set")


@pytest.mark.parametrize("step", STEPS)
def test_what_was_killed_on_its_way_into_production_is_gone_on_with(
    home: Home, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    torch.manual_seed(1)
    manifest = next_version(Production(home))
    # another name of the same database: a child may not use a connection that its parent has opened
    uri = f"sqlite:///{home.settings.home}/./mlflow.db"
    child = home.settings.model_copy(update={"tracking_uri": uri})
    die_after(step, lambda on_step: promote(child, "digits", manifest, on_step=on_step))
    # it may still be at work
    assert promote_all_due(home.settings) == []
    monkeypatch.setattr(alias_moves, "UNDERWAY", timedelta(0))
    (done,) = promote_all_due(home.settings)
    assert (done["version"], done["guarded"]["version"], done["guarded_error"]) == ("1", "1", None)
    with registry(home.settings) as client:
        for model in ("prod.digits", "guarded.digits"):
            assert str(client.get_registered_model(model).aliases["champion"]) == "1"
    verify_ledger(home.settings)
    assert promote_all_due(home.settings) == []
