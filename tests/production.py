"""A home with models in production: verdicts signed by a real gate key, promoted by the real promotion."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from flows.production.promote import promote
from tasks.mlflow.aliases import aliases_of
from tasks.mlflow.client import registry
from tasks.records.attestations import save_attestation
from tasks.records.ledger_entries import note
from tasks.records.ledger_state import ledger_state
from tasks.settings import Settings
from tasks.store.open import open_store
from tasks.vetting import intake
from tests.databases import with_registry
from vetgate.trust import attest
from vetgate.trust.dsse import Envelope
from vetgate.trust.keys import load_or_create_key, utc_now
from vetgate.verdict.policy import load_policy

NOW = utc_now().replace(microsecond=0)
DESCRIBED = {
    "name": "digits",
    "supplier": "a test",
    "task": "image-classification",
    "model": "model.onnx",
    "format": "onnx",
    "input_shape": [1, 8, 8],
    "classes": 10,
}


def submission_at(directory: Path, weights: bytes, **fields: Any) -> Path:
    """A new directory with a model file and its description."""
    described = DESCRIBED | fields
    directory.mkdir()
    (directory / "submission.yaml").write_text(yaml.safe_dump(described))
    (directory / str(described["model"])).write_bytes(weights)
    return directory


def signed_verdict(
    settings: Settings, manifest: str, verdict: str = "PASS", *, key: Ed25519PrivateKey | None = None, **said: Any
) -> Envelope:
    """A verdict on a submission of a day ago, good for thirty, signed with the gate's key or another."""
    record, policy = intake.read_record(open_store(settings), manifest), load_policy(settings.policy)
    stated: dict[str, Any] = {
        "name": record.submission.name,
        "issued": NOW - timedelta(days=1),
        "valid": timedelta(days=30),
        "policy": {"name": policy.name, "sha256": policy.digest},
        "methods": [],
        "reference_data": None,
        "calibration": None,
        "sandbox_level": 1,
        "reasons": [f"because it is a {verdict}"],
    }
    trusted = load_or_create_key(settings.gate_key, settings.trust_root, now=NOW - timedelta(days=90))
    predicate = attest.verdict_predicate(verdict=verdict, **(stated | said))
    dated = {**predicate, "after": ledger_state(settings).last}
    return attest.sign(attest.statement(record.manifest.digests, manifest, dated), key or trusted)


def home_in(room: Path, **settled: Any) -> Home:
    """A home in `room` whose registry is empty."""
    return Home(Settings(home=with_registry(room / "home"), **settled), room)


class Home:
    """One installation whose gate gives whatever verdict a test needs."""

    def __init__(self, settings: Settings, room: Path) -> None:
        self.settings, self.room, self.store = settings, room, open_store(settings)

    def submit(self, weights: bytes, name: str = "digits") -> str:
        """Take a model in; the SHA-256 of its manifest."""
        return intake.take(self.settings, submission_at(self.room / uuid.uuid4().hex, weights, name=name)).id

    def decide(self, manifest: str, verdict: str = "PASS", **said: Any) -> str:
        """Sign a verdict and keep it, as the gate does; the digest of its attestation."""
        envelope = signed_verdict(self.settings, manifest, verdict, **said)
        note(self.settings, save_attestation(self.store, manifest, envelope))
        return attest.digest(envelope)

    def promoted(self, weights: bytes, name: str = "digits", alias: str = "champion", **said: Any) -> str:
        """Submit, let pass and promote; the version of prod.<name>."""
        return self.let_in(self.submit(weights, name), alias, **said)

    def let_in(self, manifest: str, alias: str = "champion", now: datetime | None = None, **said: Any) -> str:
        """Let a submission pass and promote it; the version."""
        self.decide(manifest, **said)
        name = intake.read_record(self.store, manifest).submission.name
        return str(promote(self.settings, name, manifest, alias, now=now)["version"])

    def registered(self, weights: bytes, name: str = "digits", **tags: str) -> str:
        """What a supplier with access to MLflow can do: a version of prod.<name> that no gate has seen; its number."""
        model = f"prod.{name}"
        with registry(self.settings) as client:
            run = client.create_run("0").info
            file = self.room / uuid.uuid4().hex / "model.onnx"
            file.parent.mkdir()
            file.write_bytes(weights)
            client.log_artifact(run.run_id, str(file), "model")
            if not client.search_registered_models(f"name = '{model}'"):
                client.create_registered_model(model)
            source = f"{run.artifact_uri}/model"
            return str(client.create_model_version(model, source, run.run_id, tags=tags).version)

    def point(self, alias: str, version: str, name: str = "digits") -> None:
        """Set an alias directly, behind the gate's back."""
        with registry(self.settings) as client:
            client.set_registered_model_alias(f"prod.{name}", alias, version)

    def aliases(self, name: str = "digits") -> dict[str, str]:
        """Alias to version of prod.<name>."""
        with registry(self.settings) as client:
            return aliases_of(client, name)
