from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import uuid
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from flows.production.promote import promote
from flows.production.reconcile import reconcile
from flows.production.verify import verify
from tasks.mlflow.client import registry
from tasks.mlflow.demote import settle, take_back
from tasks.mlflow.heads import published_head
from tasks.records.attestations import newest_attestation, save_attestation
from tasks.records.coverage import covered
from tasks.records.ledger_chain import entries, entry_key
from tasks.records.ledger_entries import catch_up, note
from tasks.records.ledger_state import ledger_state
from tasks.records.ledger_verify import verify_ledger
from tasks.settings import Settings
from tasks.store.open import open_store
from tasks.vetting import intake
from tests.databases import with_registry
from tests.production import NOW, signed_verdict, submission_at
from vetgate.digest import canonical_json
from vetgate.errors import BadSubmission, Denied, Removed, Stale, StoreError
from vetgate.formats.manifest import hash_directory
from vetgate.formats.plain_text import steering
from vetgate.trust import attest
from vetgate.trust.keys import load_or_create_key
from vetgate.verdict.policy import load_policy

FORK = multiprocessing.get_context("fork")


class Home:
    """One installation, with a supplier and a gate that gives whatever verdict a test needs."""

    def __init__(self, settings: Settings, room: Path) -> None:
        self.settings, self.room, self.store = settings, room, open_store(settings)

    def submit(self, weights: bytes, name: str = "digits", format: str = "onnx") -> str:
        """Take a model in for real; the SHA-256 of its manifest."""
        directory = submission_at(self.room / uuid.uuid4().hex, weights, name=name, format=format)
        return intake.take(self.settings, directory).id

    def decide(self, manifest: str, verdict: str = "PASS", key: Ed25519PrivateKey | None = None, **said: Any) -> str:
        """Sign a verdict on a submission, keep and enter it; the key of its attestation."""
        # for the name of the model that is promoted, whatever its bytes say
        envelope = signed_verdict(self.settings, manifest, verdict, key=key, **({"name": "digits"} | said))
        stored = save_attestation(self.store, manifest, envelope)
        if key is None:
            note(self.settings, stored)
        return stored

    def vetted(self, weights: bytes, verdict: str = "PASS", **said: Any) -> str:
        """Submit and decide; the SHA-256 of the manifest."""
        manifest = self.submit(weights)
        self.decide(manifest, verdict, **said)
        return manifest

    def stored(self, key: str) -> Path:
        """The file of an object, for tampering."""
        assert not self.settings.store.startswith("s3://")
        return Path(self.settings.store, key)

    def aliases(self) -> dict[str, str]:
        """Alias to manifest of prod.digits, each checked: its version's bytes are those."""
        with registry(self.settings) as client:
            if not client.search_registered_models("name = 'prod.digits'"):
                return {}
            found = client.get_registered_model("prod.digits").aliases
            return {alias: self.bytes_of(client, str(version)) for alias, version in found.items()}

    def bytes_of(self, client: Any, version: str) -> str:
        registered = client.get_model_version("prod.digits", version)
        assert registered.source == f"{client.get_run(registered.run_id).info.artifact_uri}/model"
        room = self.room / uuid.uuid4().hex
        room.mkdir()
        return hash_directory(Path(client.download_artifacts(registered.run_id, "model", str(room)))).sha256


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(Settings(home=with_registry(tmp_path / "home")), tmp_path)


def overwrite(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)


def refused(home: Home, reason: str, code: int = 1, submission: str | None = None, **asked: Any) -> None:
    """Promotion is refused for this reason with this exit code, and production is as it was."""
    before = home.aliases()
    with pytest.raises(Denied, match=reason) as caught:
        promote(home.settings, "digits", submission, **asked)
    assert caught.value.exit_code == code
    assert home.aliases() == before


def test_exactly_the_vetted_bytes_are_let_through(home: Home) -> None:
    manifest = home.vetted(b"honest")
    steps: list[str] = []
    granted = promote(home.settings, "digits", on_step=steps.append)
    assert granted["manifest_sha256"] == granted["submission"] == manifest
    assert granted["version"] == "1"
    assert home.aliases() == {"champion": manifest}
    assert home.store.read(f"vetted/{manifest}/model.onnx") == b"honest"
    # the alias comes after everything that can be refused
    assert steps[-3:] == ["promotion signed", "ledger entered", "alias set"]
    newest = newest_attestation(ledger_state(home.settings), manifest)
    assert newest is not None
    with registry(home.settings) as client:
        version = client.get_model_version_by_alias("prod.digits", "champion")
    assert version.tags == {
        "vet.manifest_sha256": manifest,
        "vet.verdict": "PASS",
        "vet.attestation": newest.key,
        "vet.attestation_sha256": attest.digest(newest.envelope),
        "vet.policy_sha256": load_policy().digest,
        "vet.issued": newest.claims["issued"],
        "vet.expires": newest.claims["expires"],
    }


def test_a_caller_can_verify_what_was_promoted_with_the_run_s_artifacts_and_the_public_key(home: Home) -> None:
    home.vetted(b"honest")
    granted = promote(home.settings, "digits")
    with registry(home.settings) as client:
        got = Path(client.download_artifacts(granted["mlflow_run"], "", str(home.room)))
    stated = verify(
        got / "model",
        attestation=got / "attestation" / "attestation.json",
        name="digits",
        trust_root=home.settings.trust_root,
    )
    assert stated["verdict"] == "PASS"


def test_promoting_again_changes_nothing(home: Home) -> None:
    home.vetted(b"honest")
    assert promote(home.settings, "digits") == promote(home.settings, "digits")
    with registry(home.settings) as client:
        assert len(client.search_model_versions("name = 'prod.digits'")) == 1


def test_the_old_champion_becomes_previous_and_can_come_back(home: Home) -> None:
    first, second = home.vetted(b"first", issued=NOW - timedelta(days=2)), home.vetted(b"second")
    promote(home.settings, "digits", first)
    assert promote(home.settings, "digits")["submission"] == second
    assert home.aliases() == {"champion": second, "previous": first}
    promote(home.settings, "digits", second)
    assert home.aliases() == {"champion": second, "previous": first}
    promote(home.settings, "digits", first)
    assert home.aliases() == {"champion": first, "previous": second}
    promote(home.settings, "digits", second[:12], alias="challenger")
    assert home.aliases() == {"champion": first, "previous": second, "challenger": second}


def test_the_newest_pass_is_taken_where_none_is_named(home: Home) -> None:
    home.vetted(b"older", issued=NOW - timedelta(days=3))
    newest = home.vetted(b"newer", issued=NOW - timedelta(days=2))
    home.vetted(b"newest of all, but bad", "FAIL")
    other = home.submit(b"other", name="other")
    home.decide(other, name="other")
    assert promote(home.settings, "digits")["submission"] == newest


@pytest.mark.parametrize("verdict", ["FAIL", "INCONCLUSIVE", "pass", "PASS "])
def test_what_did_not_pass_is_denied_with_the_reason(home: Home, verdict: str) -> None:
    manifest = home.vetted(b"weights", verdict)
    refused(home, f"got {verdict}: because it is a {verdict}", submission=manifest)
    refused(home, f"expected a PASS for digits, got {verdict}")


def test_no_verdict_is_denied(home: Home) -> None:
    manifest = home.submit(b"never vetted")
    refused(home, "got no verdict")
    refused(home, "expected a verdict on", submission=manifest)
    refused(home, "expected a verdict on", submission="0" * 64)
    refused(home, "never submitted", submission="0000")


def test_a_later_fail_takes_an_earlier_pass_away(home: Home) -> None:
    manifest = home.vetted(b"weights", issued=NOW - timedelta(days=2))
    home.decide(manifest, "FAIL")
    refused(home, "got FAIL", submission=manifest)
    refused(home, "got FAIL")


def test_of_two_verdicts_in_one_second_the_worse_counts(home: Home) -> None:
    manifest = home.vetted(b"weights")
    home.decide(manifest, "INCONCLUSIVE")
    refused(home, "got INCONCLUSIVE", submission=manifest)


def test_an_older_pass_filed_under_a_newer_name_is_denied(home: Home) -> None:
    manifest = home.submit(b"weights")
    old = home.decide(manifest, issued=NOW - timedelta(days=3))
    home.decide(manifest, "FAIL")
    later = old.rpartition("/")[0] + "/99991231T000000Z-" + old.rpartition("-")[2]
    home.store.create(later, home.store.read(old))
    # what lies there under a name of its own is none: the ledger says which is the newest
    refused(home, "got FAIL", submission=manifest)


def test_a_fail_that_was_altered_does_not_resurrect_the_pass_before_it(home: Home) -> None:
    manifest = home.vetted(b"weights", issued=NOW - timedelta(days=2))
    fail = home.decide(manifest, "FAIL")
    for garbage in (b"", b"{}", home.store.read(fail).replace(b'"payload":"ey', b'"payload":"eY')):
        overwrite(home.stored(fail), garbage)
        refused(home, f"expected {fail} as entry 2 tells of it", 5, manifest)
        refused(home, "expected a PASS for digits, got FAIL")


def test_tampered_bytes_in_quarantine_are_denied(home: Home) -> None:
    manifest = home.vetted(b"weights")
    model = home.stored(f"quarantine/{manifest}/model.onnx")
    overwrite(model, b"Weights")
    refused(home, r"changed: .*model.onnx", submission=manifest)
    with model.open("wb") as sparse:
        sparse.truncate(1 << 42)
    refused(home, f"got {1 << 42}; it is none of ours", submission=manifest)
    model.unlink()
    for _ in range(2):
        with pytest.raises(StoreError, match=r"to hold model\.onnx"):
            promote(home.settings, "digits", manifest)
        shutil.rmtree(model.parent, ignore_errors=True)
    assert home.aliases() == {}


@pytest.mark.parametrize("name", ["extra", "below/extra", "e\nxtra"])
def test_what_lies_beside_a_submission_in_quarantine_is_neither_copied_nor_promoted(home: Home, name: str) -> None:
    manifest = home.vetted(b"weights")
    beside = home.stored(f"quarantine/{manifest}") / name
    beside.parent.mkdir(exist_ok=True)
    with beside.open("wb") as sparse:
        sparse.truncate(1 << 42)
    promote(home.settings, "digits", manifest)
    assert sorted(os.listdir(home.stored(f"vetted/{manifest}"))) == ["model.onnx", "submission.yaml"]


def test_a_tampered_attestation_is_denied(home: Home) -> None:
    manifest = home.submit(b"weights")
    key = home.decide(manifest, "FAIL")
    envelope = json.loads(home.store.read(key))
    home.stored(key).unlink()
    statement = attest.claims(envelope) | {"verdict": "PASS"}
    digests = intake.read_record(home.store, manifest).manifest.digests
    forged = attest.sign(attest.statement(digests, manifest, statement), Ed25519PrivateKey.generate())
    for other in (envelope | {"payload": forged["payload"]}, forged):
        added = save_attestation(home.store, manifest, other)
        refused(home, f"expected {key}, which entry 1 tells of, got none", 5, manifest)
        home.stored(added).unlink()
    home.store.create(key, canonical_json(envelope))
    save_attestation(home.store, manifest, envelope | {"payload": forged["payload"]})
    refused(home, "got FAIL", submission=manifest)
    shutil.rmtree(home.stored(f"attestations/{manifest}"))
    home.store.create(key, canonical_json(envelope))
    save_attestation(home.store, manifest, forged)
    refused(home, "got FAIL", submission=manifest)


def test_an_attestation_of_other_bytes_is_denied(home: Home) -> None:
    passed, other = home.vetted(b"good"), home.submit(b"bad")
    attestation = newest_attestation(ledger_state(home.settings), passed)
    assert attestation is not None
    added = save_attestation(home.store, other, attestation.envelope)
    refused(home, "expected a verdict", submission=other)
    # nor does the gate enter it
    assert catch_up(home.settings) == [] and ledger_state(home.settings).entered(added) is None
    for name in ("model.onnx", "submission.yaml"):
        overwrite(home.stored(f"quarantine/{other}/{name}"), home.store.read(f"quarantine/{passed}/{name}"))
    refused(home, "expected a verdict", submission=other)


def test_another_name_is_denied(home: Home) -> None:
    manifest = home.vetted(b"weights", name="other")
    refused(home, "for digits", submission=manifest)
    other = home.submit(b"named other in its bytes", name="other")
    home.decide(other)
    refused(home, "got one of other", submission=other)


def test_expired_revoked_and_outdated_verdicts_are_stale(home: Home, tmp_path: Path) -> None:
    manifest = home.vetted(b"weights")
    refused(home, "expired", 5, manifest, now=NOW + timedelta(days=29))
    refused(home, "expired", 5, now=NOW + timedelta(days=29))
    home.store.create(f"revocations/{digest_of(home, manifest)}.json", b"{}")
    refused(home, "revoked", 5, manifest)
    other = home.vetted(b"other weights")
    policy = tmp_path / "policy.yaml"
    policy.write_text("name: default\nrequired: [abs]\n")
    changed = Home(home.settings.model_copy(update={"policy": policy}), tmp_path)
    refused(changed, "under another", 5, other)


def digest_of(home: Home, manifest: str) -> str:
    found = newest_attestation(ledger_state(home.settings), manifest)
    assert found is not None
    return attest.digest(found.envelope)


def test_a_verdict_from_the_future_is_denied(home: Home) -> None:
    manifest = home.vetted(b"weights", issued=NOW + timedelta(hours=1))
    refused(home, "issued by now", 2, submission=manifest)


def test_a_format_that_the_policy_does_not_promote_is_denied(home: Home) -> None:
    manifest = home.submit(b"weights", format="torchscript")
    home.decide(manifest)
    refused(home, "got torchscript", submission=manifest)


def test_without_a_trust_root_nothing_is_promoted(home: Home) -> None:
    manifest = home.vetted(b"weights")
    home.settings.trust_root.unlink()
    refused(home, "expected a trust root", submission=manifest)


def test_a_vetted_copy_that_another_process_wrote_first_is_denied(home: Home) -> None:
    manifest = home.vetted(b"weights")
    home.store.create(f"vetted/{manifest}/model.onnx", b"other")
    refused(home, "expected vetted/", submission=manifest)


def test_a_version_that_only_claims_the_bytes_by_its_tag_is_passed_over(home: Home) -> None:
    manifest = home.vetted(b"weights")
    evil = home.room / "evil"
    evil.mkdir()
    (evil / "model.onnx").write_bytes(b"evil")
    with registry(home.settings) as client:
        run = client.create_run(client.create_experiment("elsewhere", artifact_location=(home.room / "e").as_uri()))
        client.log_artifacts(run.info.run_id, str(evil), "model")
        client.create_registered_model("prod.digits")
        for source in (f"{run.info.artifact_uri}/model", evil.as_uri()):
            tags = {"vet.manifest_sha256": manifest, "vet.verdict": "PASS"}
            client.create_model_version("prod.digits", source, run_id=run.info.run_id, tags=tags)
    assert promote(home.settings, "digits")["version"] == "3"
    assert home.aliases() == {"champion": manifest}


def test_a_promotion_run_that_holds_more_than_the_bytes_is_not_used(home: Home) -> None:
    manifest = home.vetted(b"weights")

    planted: list[Path] = []

    def plant(step: str) -> None:
        if step == "bytes logged" and not planted:
            (run,) = Path(home.settings.artifacts, "vetgate-promotions").iterdir()
            planted.append(run / "artifacts" / "model" / "extra")
            planted[0].write_bytes(b"")

    granted = promote(home.settings, "digits", on_step=plant)
    assert granted["mlflow_run"] not in str(planted[0])
    assert home.aliases() == {"champion": manifest}


@pytest.mark.parametrize(
    ("name", "asked"),
    [("../x", {}), ("Digits", {}), ("digits.", {}), ("prod.digits", {}), ("digits", {"alias": "latest"})],
)
def test_a_wrong_name_or_alias_is_a_usage_error(home: Home, name: str, asked: dict[str, str]) -> None:
    with pytest.raises(BadSubmission):
        promote(home.settings, name, **asked)
    with pytest.raises(BadSubmission):
        promote(home.settings, "digits", "not-hex")


@pytest.mark.parametrize("other", ["prod.Digits", "thirdparty.DIGITS", "prod.di\u200bgits", "PROD.digits"])
def test_beside_a_model_that_reads_like_it_nothing_is_promoted(home: Home, other: str) -> None:
    manifest = home.vetted(b"one")
    with registry(home.settings) as client:
        client.create_registered_model(other)
    with pytest.raises(Denied, match="that no other reads like") as refused:
        promote(home.settings, "digits", manifest)
    assert refused.value.exit_code == 1 and steering(str(refused.value)) is None
    with registry(home.settings) as client:
        client.delete_registered_model(other)
    assert promote(home.settings, "digits", manifest)["version"] == "1"


def test_killed_after_any_step_production_is_whole_and_the_next_try_ends_the_same(home: Home) -> None:
    old = home.vetted(b"old", issued=NOW - timedelta(days=2))
    promote(home.settings, "digits", old)
    steps: list[str] = []
    reference = home.vetted(b"seen once")
    promote(home.settings, "digits", reference, on_step=steps.append)
    assert len(steps) == 12
    # another name of the same database: a child may not use a connection that its parent has opened
    uri = f"sqlite:///{home.settings.home}/./mlflow.db"
    child = home.settings.model_copy(update={"tracking_uri": uri})
    for i, step in enumerate(steps):
        before = home.aliases()
        manifest = home.vetted(b"%d" % i)
        die_after(step, lambda on_step, m=manifest: promote(child, "digits", m, on_step=on_step))
        left = home.aliases()
        assert left["champion"] == (manifest if step == "alias set" else before["champion"])
        promote(home.settings, "digits", manifest)
        assert home.aliases() == {"champion": manifest, "previous": before["champion"]}
        assert len(promotions(home, manifest)) == 1
        verify_ledger(home.settings)
        with registry(home.settings) as client:
            made = client.search_model_versions(f"name = 'prod.digits' and tags.`vet.manifest_sha256` = '{manifest}'")
            assert len(made) == 1


def promotions(home: Home, manifest: str) -> list[dict[str, Any]]:
    """What the ledger says of the promotions of these bytes."""
    found = (entry for entry in entries(home.store) if entry.kind == "promotion")
    return [dict(entry.subject) for entry in found if entry.subject["manifest"] == manifest]


@pytest.mark.parametrize("step", ["promotion signed", "ledger entered"])
def test_a_gate_that_starts_between_the_kill_and_the_next_try_enters_the_promotion_once(home: Home, step: str) -> None:
    manifest = home.vetted(b"weights")
    uri = f"sqlite:///{home.settings.home}/./mlflow.db"
    child = home.settings.model_copy(update={"tracking_uri": uri})
    die_after(step, lambda on_step: promote(child, "digits", manifest, on_step=on_step))
    catch_up(home.settings)
    verify_ledger(home.settings)
    promote(home.settings, "digits", manifest)
    (said,) = promotions(home, manifest)
    assert (said["alias"], said["version"], said["old"]) == ("champion", "1", None)


def test_each_move_of_an_alias_is_entered_and_no_move_is_not(home: Home) -> None:
    first, second = home.vetted(b"first"), home.vetted(b"second")
    for manifest in (first, second, first, second, second):
        promote(home.settings, "digits", manifest)
    promote(home.settings, "digits", second, alias="challenger")
    assert [(said["version"], said["old"]) for said in promotions(home, first)] == [("1", None), ("1", "2")]
    aliased = [(said["alias"], said["old"]) for said in promotions(home, second)]
    assert aliased == [("champion", "1"), ("champion", "1"), ("challenger", None)]
    assert verify_ledger(home.settings)["promotions"] == 2


def test_what_was_promoted_is_covered_and_says_by_what(home: Home) -> None:
    manifest = home.vetted(b"weights")
    granted = promote(home.settings, "digits")
    found = covered(home.settings, "digits", granted["version"], granted["source"])
    assert (found.manifest, found.grace, found.claims["verdict"]) == (manifest, False, "PASS")
    assert found.promotion.attestation == digest_of(home, manifest)


def test_a_verdict_that_is_superseded_while_it_is_promoted_sets_no_alias(home: Home) -> None:
    manifest = home.vetted(b"weights", issued=NOW - timedelta(days=2))

    def supersede(step: str) -> None:
        if step == "version registered":
            home.decide(manifest, "FAIL")

    refused(home, "got another meanwhile", 5, manifest, on_step=supersede)
    assert home.aliases() == {}


def test_a_registry_that_was_made_anew_gets_numbers_that_were_never_promoted(home: Home) -> None:
    first, second = home.vetted(b"first"), home.vetted(b"second")
    for manifest in (first, second):
        promote(home.settings, "digits", manifest)
    with registry(home.settings) as client:
        client.delete_registered_model("prod.digits")
    third = home.vetted(b"third")
    assert promote(home.settings, "digits", third)["version"] == "3"
    assert home.aliases() == {"champion": third}
    verify_ledger(home.settings)


def test_every_refusal_is_in_the_ledger(home: Home) -> None:
    manifest = home.vetted(b"weights", "FAIL")
    refused(home, "got FAIL", submission=manifest)
    (denial,) = [entry for entry in entries(home.store) if entry.kind == "denial"]
    assert denial.subject["submission"] == manifest
    assert "got FAIL" in denial.subject["reason"]
    assert denial.subject["exit_code"] == 1


def test_the_same_refusal_is_in_the_ledger_once_a_day_and_another_beside_it(home: Home) -> None:
    manifest = home.vetted(b"weights", "FAIL")
    for _ in range(3):
        refused(home, "got FAIL", submission=manifest)
    refused(home, "got FAIL", submission=manifest, alias="challenger")
    said = [entry.subject["alias"] for entry in entries(home.store) if entry.kind == "denial"]
    assert said == ["champion", "challenger"]


def test_nothing_is_entered_at_the_end_of_a_ledger_that_was_cut_off(home: Home) -> None:
    """By a home that did not see the end: a refusal would take the place of what was cut off, and be published."""
    manifest = home.vetted(b"weights")
    promote(home.settings, "digits", manifest)
    late = ledger_state(home.settings).end
    other = home.settings.model_copy(update={"home": home.room / "other"})
    before = published_head(home.settings)
    Path(home.settings.store, entry_key(late)).unlink()
    for _ in range(2):
        with pytest.raises(Removed, match="its end was cut off"):
            promote(other, "digits", manifest)
    assert len(list(home.store.list("ledger/"))) == late - 1 and published_head(home.settings) == before


def test_what_a_killed_run_took_back_before_a_promotion_does_not_undo_it(home: Home) -> None:
    """Its note is entered late: the newest move of the alias stays the promotion's."""
    first, second = home.vetted(b"first"), home.vetted(b"second")
    promote(home.settings, "digits", first)
    with registry(home.settings) as client:
        client.create_model_version("prod.digits", source="file:///nowhere")
        client.set_registered_model_alias("prod.digits", "champion", "2")
    done = take_back(home.settings, "digits", "2", kind="bypass", reason="a test", alias="champion", to="1")
    assert done is not None
    version = promote(home.settings, "digits", second)["version"]
    assert [e.kind for e in entries(home.store)][-2:] == ["bypass", "promotion"], "promoting settles first"
    (home.settings.home / "demotions" / f"{done.id}.json").write_bytes(
        canonical_json(asdict(replace(done, id="f" * 32)))
    )
    (entered,) = settle(home.settings)
    assert entered.since == done.since
    move = ledger_state(home.settings).move("digits", "champion")
    assert move is not None and (move.version, move.kind) == (version, "promotion")
    assert reconcile(home.settings)["taken_back"] == [] and home.aliases()["champion"] == second


@pytest.mark.parametrize("laid", [b"{}", b"no json", b'{"id": "x", "kind": "bypass"}'])
def test_a_note_of_what_was_taken_back_in_another_form_is_set_aside(home: Home, laid: bytes) -> None:
    (home.settings.home / "demotions").mkdir(parents=True)
    (home.settings.home / "demotions" / "0.json").write_bytes(laid)
    assert settle(home.settings) == [] and settle(home.settings) == []
    assert (home.settings.home / "demotions" / "0.unread").read_bytes() == laid


def test_a_trust_root_that_was_taken_away_is_not_made_anew_by_a_refusal(home: Home) -> None:
    manifest = home.vetted(b"weights")
    home.settings.trust_root.unlink()
    refused(home, "expected a trust root", submission=manifest)
    assert not home.settings.trust_root.exists()


def die_after(step: str, work: Callable[[Callable[[str], None]], object]) -> None:
    def on_step(done: str) -> None:
        if done == step:
            os.kill(os.getpid(), signal.SIGKILL)

    child = FORK.Process(target=work, args=(on_step,))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL


def test_four_promotions_at_once_make_one_version(home: Home) -> None:
    manifest = home.vetted(b"weights")
    processes = [FORK.Process(target=promote, args=(home.settings, "digits")) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert home.aliases() == {"champion": manifest}
    with registry(home.settings) as client:
        assert len(client.search_model_versions("name = 'prod.digits'")) == 1


class TestVerify:
    """`vetgate verify`, which needs the files, the attestation and the public keys only."""

    @pytest.fixture
    def files(self, home: Home) -> Path:
        manifest = home.vetted(b"weights")
        directory = home.room / "delivered"
        directory.mkdir()
        for key in home.store.list(f"quarantine/{manifest}/"):
            (directory / key.rpartition("/")[2]).write_bytes(home.store.read(key))
        found = newest_attestation(ledger_state(home.settings), manifest)
        assert found is not None
        (home.room / "attestation.json").write_bytes(home.store.read(found.key))
        return directory

    def check(self, home: Home, directory: Path, name: str = "digits", **changes: Any) -> dict[str, Any]:
        asked = {"attestation": home.room / "attestation.json", "trust_root": home.settings.trust_root} | changes
        return verify(directory, name=name, **asked)

    def test_it_accepts_what_the_gate_let_through(self, home: Home, files: Path) -> None:
        assert self.check(home, files)["name"] == "digits"

    def test_it_denies_other_bytes_names_and_keys(self, home: Home, files: Path, tmp_path: Path) -> None:
        with pytest.raises(Denied, match="for other, got one for digits"):
            self.check(home, files, name="other")
        load_or_create_key(tmp_path / "k" / "key", tmp_path / "k" / "trust", now=NOW)
        with pytest.raises(Denied, match="key of the trust root"):
            self.check(home, files, trust_root=tmp_path / "k" / "trust")
        for name in ("extra", ".hidden", "a b"):
            (files / name).write_bytes(b"")
            with pytest.raises(Denied):
                self.check(home, files)
            (files / name).unlink()
        (files / "model.onnx").write_bytes(b"Weights")
        with pytest.raises(Denied, match="changed"):
            self.check(home, files)
        (files / "model.onnx").unlink()
        with pytest.raises(Denied, match=r"missing: model\.onnx"):
            self.check(home, files)

    def test_it_denies_a_signed_fail_and_what_expired(self, home: Home, files: Path) -> None:
        with pytest.raises(Stale):
            self.check(home, files, now=NOW + timedelta(days=40))
        fail = home.decide(hash_directory(files).sha256, "FAIL")
        with pytest.raises(Denied, match="signed FAIL"):
            self.check(home, files, attestation=attest.read_envelope(home.store.read(fail)))

    def test_a_missing_file_is_a_usage_error(self, home: Home, files: Path, tmp_path: Path) -> None:
        for changes in ({"attestation": tmp_path / "none"}, {"directory": tmp_path / "none"}):
            with pytest.raises(BadSubmission):
                self.check(home, **({"directory": files} | changes))


def test_now_is_the_clock_s(home: Home) -> None:
    home.vetted(b"weights", issued=datetime.now(tz=NOW.tzinfo) - timedelta(days=31))
    refused(home, "expired", 5)
