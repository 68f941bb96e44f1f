"""A guarded model is what was vetted behind the guards that were attested, or nothing."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from flows.production.guarded import guarded_load
from flows.production.promote import promote
from tasks.guards.fit import pins
from tasks.guards.package_file import package_key
from tasks.vetting import intake
from tests.production import Home, home_in, submission_at
from vetgate.architectures import ARCHITECTURES
from vetgate.contract import Samples, Subject
from vetgate.errors import Altered, BadSubmission, Denied, Stale, StoreError
from vetgate.guard.contract import GUARDS, Fitted
from vetgate.guard.guarded import Action, Outcome
from vetgate.guard.package import Package, to_bytes
from vetgate.trust.keys import utc_now

CHAMPION = "models:/prod.digits@champion"
SHAPE, CLASSES, RATE, NAME = (1, 8, 8), 3, 0.1, "strip"
NAMES = ["stop", "yield", "go"]
SAFETENSORS: dict[str, Any] = {"model": "model.safetensors", "format": "safetensors", "architecture": "small-cnn"}


class Production:
    """A home whose gate lets models through with the guards that a test attests."""

    def __init__(self, home: Home) -> None:
        self.home, self.settings, self.store = home, home.settings, home.store
        self.weights = ARCHITECTURES["small-cnn"](SHAPE, CLASSES).state_dict()

    def submit(self, **fields: Any) -> str:
        """Take in a network with the classes NAMES; its manifest."""
        directory = submission_at(
            self.home.room / f"submission-{len(fields)}",
            save({k: v.contiguous() for k, v in self.weights.items()}),
            **{"classes": NAMES, **SAFETENSORS, **fields},
        )
        return intake.take(self.settings, directory).id

    def model(self) -> torch.nn.Module:
        """The network that was submitted."""
        model = ARCHITECTURES["small-cnn"](SHAPE, CLASSES)
        model.load_state_dict(self.weights)
        return model.eval()

    def fitted(self, rate: float = RATE) -> Fitted:
        """STRIP, fitted to the network."""
        model = self.model()
        x = torch.rand(60, *SHAPE, generator=torch.Generator().manual_seed(0))
        subject = Subject(
            model=model, layer="", classes=CLASSES, clean=Samples(x, torch.arange(60) % CLASSES), train=None
        )
        guard = GUARDS[NAME]
        return guard.with_cut(guard.fit(subject, overlays=4), subject.model, x, rate=rate)

    def keep(self, manifest: str, data: bytes, *, under: str | None = None) -> str:
        """Lay the bytes of guards into the store; their digest."""
        sha256 = under or hashlib.sha256(data).hexdigest()
        self.store.create(package_key(manifest, sha256), data)
        return sha256

    def promoted(self, manifest: str, guards: dict[str, Any] | None, **said: Any) -> None:
        """Let it through with these guards in its attestation."""
        self.home.decide(manifest, guards=guards, **said)
        promote(self.settings, "digits", manifest)

    def guarded(self, **changes: Any) -> str:
        """A model in production with STRIP; its manifest."""
        manifest = self.submit()
        sha256 = self.keep(manifest, to_bytes(Package(manifest, (self.fitted(),))))
        self.promoted(manifest, attested(sha256) | changes)
        return manifest


def attested(package: str, rate: float = RATE, **more: Any) -> dict[str, Any]:
    code = pins({NAME: {}})[NAME]["code"]
    chosen = [{"name": NAME, "rate": rate, "code": code}]
    return {
        "package": package,
        "chosen": chosen,
        "rate": RATE,
        "action": "reject",
        "vetter": "a",
        "settings": "b",
        **more,
    }


@pytest.fixture
def production(tmp_path: Path) -> Production:
    torch.manual_seed(1)
    return Production(home_in(tmp_path))


def test_the_model_answers_behind_the_attested_guards(production: Production) -> None:
    manifest = production.guarded()

    found = guarded_load(CHAMPION, production.settings)

    assert (found.coverage.manifest, found.submission.name) == (manifest, "digits")
    assert (found.classes, found.names, dict(found.rates)) == (CLASSES, tuple(NAMES), {NAME: RATE})
    assert found.guarded.action is Action.REJECT
    x = torch.rand(20, *SHAPE, generator=torch.Generator().manual_seed(3))
    answers = found.guarded.predict(x)
    fitted = production.fitted()
    scores = GUARDS[NAME].score(fitted, found.guarded.model, x)
    assert [a.scores[NAME] for a in answers] == scores.tolist()
    assert [a.outcome is Outcome.REJECT for a in answers] == [score > fitted.cut for score in scores.tolist()]
    own = production.model()(x).argmax(1).tolist()
    assert all(a.label in (None, k) for a, k in zip(answers, own, strict=True))


def test_who_serves_it_says_what_becomes_of_an_alarm_or_the_policy_of_its_vetting_did(production: Production) -> None:
    production.guarded(action="log-only")
    assert guarded_load(CHAMPION, production.settings).guarded.action is Action.LOG_ONLY
    assert guarded_load(CHAMPION, production.settings, action=Action.REJECT).guarded.action is Action.REJECT
    with pytest.raises(Denied, match=f"expected a guard that votes, got none.*names {NAME}"):
        guarded_load(CHAMPION, production.settings, action=Action.VOTE)


def test_classes_that_were_counted_are_named_by_their_numbers(production: Production) -> None:
    manifest = production.submit(classes=CLASSES)
    sha256 = production.keep(manifest, to_bytes(Package(manifest, (production.fitted(),))))
    production.promoted(manifest, attested(sha256))
    assert guarded_load(CHAMPION, production.settings).names == ("0", "1", "2")


def test_an_attestation_that_names_no_guards_says_what_to_do(production: Production) -> None:
    production.promoted(production.submit(), None)
    with pytest.raises(Denied, match=r"that names guards, got one without.*run `vetgate vet` on it"):
        guarded_load(CHAMPION, production.settings)


def test_altered_bytes_are_not_served(production: Production) -> None:
    manifest = production.guarded()
    (key,) = production.store.list(f"guards/{manifest}/")
    file = Path(production.settings.store, key)
    file.chmod(0o644)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(Altered, match="expected exactly the attested guards"):
        guarded_load(CHAMPION, production.settings)
    file.unlink()
    with pytest.raises(StoreError, match="got none"):
        guarded_load(CHAMPION, production.settings)


def test_guards_under_another_digest_than_the_attested_are_not_served(production: Production) -> None:
    production.guarded(package="0" * 64)
    with pytest.raises(StoreError, match=r"expected the guards of .* in guards/.*/0{64}"):
        guarded_load(CHAMPION, production.settings)


@pytest.mark.parametrize("claim", [{"package": "../x"}, {"chosen": None}, {"more": 1}, {"rate": "0.1"}])
def test_a_claim_of_another_shape_is_refused(production: Production, claim: dict[str, Any]) -> None:
    production.guarded(**claim)
    with pytest.raises(Denied, match="expected"):
        guarded_load(CHAMPION, production.settings)


def test_guards_of_another_model_or_of_another_rate_are_refused(production: Production) -> None:
    manifest = production.submit()
    others = production.keep(manifest, to_bytes(Package("0" * 64, (production.fitted(),))))
    looser = production.keep(manifest, to_bytes(Package(manifest, (production.fitted(0.5),))))
    junk = production.keep(manifest, b"junk")
    for sha256, got in ((others, "those of 0000"), (looser, r"got \[\('strip', 0.5\)\]"), (junk, "got another")):
        production.promoted(manifest, attested(sha256))
        with pytest.raises(Denied, match=got):
            guarded_load(CHAMPION, production.settings)


@pytest.mark.parametrize(
    "chosen", [{"name": NAME, "rate": RATE, "code": "0" * 64}, {"name": "gone", "rate": RATE, "code": "1"}]
)
def test_guards_that_other_code_fitted_are_stale(production: Production, chosen: dict[str, Any]) -> None:
    production.guarded(chosen=[chosen])
    with pytest.raises(Stale, match="run `vetgate vet` on it"):
        guarded_load(CHAMPION, production.settings)


def test_what_verified_load_refuses_is_refused(production: Production) -> None:
    manifest = production.guarded()
    with pytest.raises(BadSubmission):
        guarded_load("prod.digits", production.settings)
    production.home.decide(manifest, "FAIL", issued=utc_now() - timedelta(minutes=1))
    with pytest.raises(Denied, match="expected a PASS"):
        guarded_load(CHAMPION, production.settings)
