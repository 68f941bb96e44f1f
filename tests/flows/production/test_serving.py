"""What is served is what was vetted: nothing else is ever loaded, whatever other processes write meanwhile."""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from flows.production.promote import promote
from flows.production.serving import Verified, deliver, read_uri, verified_load
from tasks.mlflow import delivery
from tasks.mlflow.client import registry
from tasks.records.attestations import newest_attestation, save_attestation
from tasks.records.ledger_chain import append
from tasks.records.ledger_entries import note
from tasks.records.ledger_state import ledger_state
from tasks.settings import Settings
from tasks.store.open import open_store
from tasks.vetting import intake
from tests.databases import with_registry
from tests.production import NOW, signed_verdict, submission_at
from vetgate.architectures import ARCHITECTURES
from vetgate.errors import BadSubmission, Denied, Stale, StoreError, WrongClock
from vetgate.trust import attest
from vetgate.trust.keys import utc_now

CHAMPION = "models:/prod.digits@champion"
SHAPE, CLASSES = (1, 8, 8), 10
SAFETENSORS = {"model": "model.safetensors", "format": "safetensors", "architecture": "small-cnn"}


class Production:
    """One installation whose gate lets any model through that a test hands it."""

    def __init__(self, settings: Settings, room: Path) -> None:
        self.settings, self.room, self.store = settings, room, open_store(settings)

    def submit(self, seed: int) -> str:
        """Take in a network of random weights; its manifest."""
        directory = submission_at(self.room / f"submission-{seed}", weights(seed), **SAFETENSORS)
        return intake.take(self.settings, directory).id

    def decide(self, manifest: str, verdict: str = "PASS", **said: Any) -> str:
        """Sign a verdict and enter it; the digest of its attestation."""
        envelope = signed_verdict(self.settings, manifest, verdict, **said)
        note(self.settings, save_attestation(self.store, manifest, envelope))
        return attest.digest(envelope)

    def promoted(self, seed: int, **said: Any) -> str:
        """Submit, decide and promote as champion; the manifest."""
        manifest = self.submit(seed)
        self.decide(manifest, **said)
        promote(self.settings, "digits", manifest)
        return manifest

    def copies(self, manifest: str) -> list[Path]:
        """Every file on disk that holds the model's bytes in production: the registry's copy, then the vetted one."""
        with registry(self.settings) as client:
            version = client.get_model_version_by_alias("prod.digits", "champion")
            run = Path(client.get_run(version.run_id).info.artifact_uri.removeprefix("file://"))
        vetted = Path(self.settings.store, "vetted", manifest)
        return [run / "model" / "model.safetensors", vetted / "model.safetensors"]


@pytest.fixture
def production(tmp_path: Path) -> Production:
    return Production(Settings(home=with_registry(tmp_path / "home")), tmp_path)


def weights(seed: int) -> bytes:
    torch.manual_seed(seed)
    network = ARCHITECTURES["small-cnn"](SHAPE, CLASSES)
    return save({k: v.contiguous() for k, v in network.state_dict().items()})


def overwrite(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)


def is_network(found: Verified, seed: int) -> bool:
    """Whether what was loaded are exactly the weights of this seed."""
    return save({k: v.contiguous() for k, v in found.model.state_dict().items()}) == weights(seed)


def refused(production: Production, reason: str, uri: str = CHAMPION, code: int = 1) -> None:
    with pytest.raises(Denied, match=reason) as caught:
        verified_load(uri, production.settings)
    assert caught.value.exit_code == code


def test_the_promoted_model_is_loaded_ready_to_answer(production: Production) -> None:
    manifest = production.promoted(1)

    found = verified_load(CHAMPION, production.settings)

    assert is_network(found, 1) and not found.model.training
    assert not any(p.requires_grad for p in found.model.parameters())
    assert found.model(torch.rand(2, *SHAPE)).shape == (2, CLASSES)
    assert found.submission.name == "digits"
    assert found.coverage.manifest == manifest
    assert found.coverage.until == NOW + timedelta(days=29)
    assert attest.digest(found.coverage.attestation.envelope) == found.coverage.promotion.attestation


def test_a_version_is_loaded_by_its_number_and_by_any_alias(production: Production) -> None:
    production.promoted(1, issued=NOW - timedelta(days=2))
    production.promoted(2)

    for uri, seed in (
        ("models:/prod.digits/1", 1),
        ("models:/prod.digits@previous", 1),
        ("models:/prod.digits/2", 2),
        (CHAMPION, 2),
    ):
        assert is_network(verified_load(uri, production.settings), seed)


def test_the_settings_are_the_environment_s_where_none_are_given(
    production: Production, monkeypatch: pytest.MonkeyPatch
) -> None:
    production.promoted(1)
    monkeypatch.setenv("VETGATE_HOME", str(production.settings.home))

    assert is_network(verified_load(CHAMPION), 1)


def test_what_is_not_in_production_is_refused(production: Production) -> None:
    refused(production, r"prod\.digits to have alias champion, got none")
    production.promoted(1)
    refused(production, "to have alias challenger, got none", "models:/prod.digits@challenger")
    refused(production, "to have version 2, got none", "models:/prod.digits/2")
    refused(production, r"prod\.other to have version 1, got none", "models:/prod.other/1")
    for uri in ("models:/thirdparty.digits@champion", "models:/digits/1", "models:/prod.@champion"):
        refused(production, "expected a model in production", uri)


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "prod.digits@champion",
        "runs:/x/model",
        "models:/prod.digits",
        "models:/prod.digits/",
        "models:/prod.digits@",
        "models:/prod.digits/latest",
        "models:/prod.digits/1@champion",
        "models:/prod.digits@a/b",
    ],
)
def test_what_names_no_version_is_a_usage_error(uri: str) -> None:
    with pytest.raises(BadSubmission, match="expected models:/"):
        read_uri(uri)


@pytest.mark.parametrize("copy", [0, 1], ids=["registry", "vetted"])
@pytest.mark.parametrize("harm", ["changed", "emptied", "removed", "accompanied", "linked", "renamed"])
def test_a_tampered_artifact_is_refused(production: Production, copy: int, harm: str) -> None:
    file = production.copies(production.promoted(1))[copy]
    match harm:
        case "changed":
            overwrite(file, weights(2))
        case "emptied":
            overwrite(file, b"")
        case "removed":
            file.unlink()
        case "accompanied":
            (file.parent / "extra").write_bytes(b"")
        case "linked":
            other = production.room / "evil"
            other.write_bytes(weights(2))
            file.unlink()
            file.symlink_to(other)
        case "renamed":
            file.rename(file.with_name("Model.safetensors"))
    refused(production, "expected exactly the attested files")


def test_a_description_that_was_changed_is_refused(production: Production) -> None:
    for file in production.copies(production.promoted(1)):
        described = file.with_name("submission.yaml")
        before = described.read_bytes()
        overwrite(described, before.replace(b"a test", b"a tesT"))
        refused(production, r"changed: submission\.yaml")
        overwrite(described, before)
    assert is_network(verified_load(CHAMPION, production.settings), 1)


@pytest.mark.parametrize("read", [1, 2], ids=["the vetted copy", "the registry's copy"])
def test_a_file_swapped_right_after_it_was_read_changes_nothing(
    production: Production, monkeypatch: pytest.MonkeyPatch, read: int
) -> None:
    copies = production.copies(production.promoted(1))
    seen: list[Path] = []
    real = delivery.read_bounded

    def read_and_swap(path: Path, limit: int) -> bytes:
        data = real(path, limit)
        seen.extend([path] if path.name == "model.safetensors" else [])
        if len(seen) == read:
            for copy in (path, *copies):
                overwrite(copy, weights(2))
        return data

    monkeypatch.setattr(delivery, "read_bounded", read_and_swap)
    if read == 1:
        # what is read after the swap is refused
        refused(production, r"changed: model\.safetensors")
    else:
        assert is_network(verified_load(CHAMPION, production.settings), 1)
    assert {*seen} <= {*copies} and all(copy.read_bytes() == weights(2) for copy in copies)


@pytest.mark.parametrize("torn", [False, True], ids=["whole files", "torn files"])
def test_a_racing_writer_gets_nothing_in(production: Production, torn: bool) -> None:
    registered, _ = production.copies(production.promoted(1))
    loaded = denied = 0
    with hammer(registered, weights(1), weights(2), torn):
        # until the race was won and lost; what comes through is always what was vetted
        while not (loaded and denied) and loaded + denied < 500:
            try:
                assert is_network(verified_load(CHAMPION, production.settings), 1)
                loaded += 1
            except Denied:
                denied += 1
    assert loaded and denied


@contextmanager
def hammer(path: Path, honest: bytes, evil: bytes, torn: bool) -> Iterator[None]:
    """Another thread that swaps the file's content back and forth for as long as the block lasts."""
    path.chmod(0o644)
    over = threading.Event()

    def swap() -> None:
        for turn in itertools.count():
            data = (honest, evil)[turn % 2]
            if torn:
                path.write_bytes(data)
            else:
                draft = path.parent.parent / "draft"
                draft.write_bytes(data)
                os.replace(draft, path)
            if over.wait(0.003):
                return

    writer = threading.Thread(target=swap)
    writer.start()
    try:
        yield
    finally:
        over.set()
        writer.join()


def test_a_file_beyond_the_limit_is_not_read(production: Production, monkeypatch: pytest.MonkeyPatch) -> None:
    production.promoted(1)
    monkeypatch.setattr(delivery, "MAX_BYTES", 1000)
    refused(production, r"got \d+ bytes in model\.safetensors")


def test_a_verdict_that_no_longer_holds_is_stale(production: Production) -> None:
    manifest = production.submit(1)
    digest = production.decide(manifest, issued=NOW - timedelta(days=40))
    promote(production.settings, "digits", manifest, now=NOW - timedelta(days=20))
    refused(production, "expired", code=5)
    with pytest.raises(Stale):
        deliver(CHAMPION, production.settings)

    renewed = production.decide(manifest)
    assert is_network(verified_load(CHAMPION, production.settings), 1)
    production.store.create(f"revocations/{renewed}.json", b"{}")
    refused(production, "revoked", code=5)
    assert digest != renewed


@pytest.mark.parametrize("behind", [timedelta(minutes=10), timedelta(hours=2), timedelta(days=400)])
def test_a_clock_that_the_ledger_proves_wrong_serves_nothing(production: Production, behind: timedelta) -> None:
    production.promoted(1)
    with pytest.raises(WrongClock, match="set it right") as caught:
        deliver(CHAMPION, production.settings, now=utc_now() - behind)
    assert caught.value.exit_code == 2


def test_on_a_clock_a_little_behind_it_is_as_late_as_the_ledger_says(
    production: Production, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = utc_now().replace(microsecond=0)
    then = now - timedelta(minutes=4)
    monkeypatch.setattr("tasks.records.ledger_chain.utc_now", lambda: then)
    manifest = production.submit(1)
    production.decide(manifest, issued=now - timedelta(days=1), valid=timedelta(days=1) - timedelta(minutes=2))
    promote(production.settings, "digits", manifest, now=then)
    assert deliver(CHAMPION, production.settings, now=then).version == "1"
    monkeypatch.undo()
    append(production.settings, "denial", {})
    with pytest.raises(Stale, match="expired"):
        deliver(CHAMPION, production.settings, now=then)


def test_a_later_fail_takes_the_model_out_of_service(production: Production) -> None:
    manifest = production.promoted(1)
    production.decide(manifest, "FAIL", issued=NOW)
    refused(production, "got FAIL")


def test_a_rescan_s_fail_serves_until_its_grace_ends(production: Production) -> None:
    manifest = production.promoted(1)
    grace = NOW + timedelta(hours=5)
    production.decide(manifest, "FAIL", issued=NOW, purpose="rescan", demote_after=grace)
    found = verified_load(CHAMPION, production.settings)
    assert found.coverage.grace and found.coverage.until == grace
    with pytest.raises(Stale):
        deliver(CHAMPION, production.settings, now=grace)


def test_an_alias_set_behind_the_gate_serves_nothing(production: Production) -> None:
    manifest = production.promoted(1)
    evil = production.room / "evil"
    shutil.copytree(production.copies(manifest)[0].parent, evil)
    overwrite(evil / "model.safetensors", weights(2))
    with registry(production.settings) as client:
        honest = client.get_model_version_by_alias("prod.digits", "champion")
        run = client.create_run(client.create_experiment("e", artifact_location=(production.room / "e").as_uri()))
        client.log_artifacts(run.info.run_id, str(evil), "model")
        # each with the tags of what passed, one even with its bytes
        for source, alias in ((f"{run.info.artifact_uri}/model", "champion"), (honest.source, "challenger")):
            made = client.create_model_version("prod.digits", source, run_id=run.info.run_id, tags=honest.tags)
            client.set_registered_model_alias("prod.digits", alias, made.version)
    refused(production, "never promoted")
    refused(production, "never promoted", "models:/prod.digits@challenger")


def test_without_the_public_keys_nothing_is_loaded(production: Production) -> None:
    production.promoted(1)
    production.settings.trust_root.unlink()
    refused(production, "expected a trust root")


def test_where_registry_or_store_cannot_be_reached_nothing_is_loaded(
    production: Production, monkeypatch: pytest.MonkeyPatch
) -> None:
    production.promoted(1)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{unused.getsockname()[1]}"
        for away in ({"tracking_uri": nowhere}, {"store": "s3://vetgate", "s3_endpoint": nowhere}):
            with pytest.raises(StoreError) as caught:
                verified_load(CHAMPION, production.settings.model_copy(update=away))
            assert caught.value.exit_code == 2


def test_the_newest_verdict_covers_a_version_that_an_older_one_let_through(production: Production) -> None:
    manifest = production.promoted(1, issued=NOW - timedelta(days=9))
    production.decide(manifest)
    newest = newest_attestation(ledger_state(production.settings), manifest)
    found = verified_load(CHAMPION, production.settings)
    assert newest is not None and found.coverage.attestation.key == newest.key
    assert found.coverage.until == NOW + timedelta(days=29)
