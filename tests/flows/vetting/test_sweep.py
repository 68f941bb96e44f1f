"""What events and webhooks missed is found and started once; what dies again and again ends INCONCLUSIVE."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.cli.status import at_a_glance
from flows.vetting.give_up import give_up
from flows.vetting.local import sweep_locally
from flows.vetting.submit import submit
from flows.vetting.submitted import take_version
from flows.vetting.sweep import sweep
from flows.vetting.vet import last_result
from tasks.mlflow import submitted as registered
from tasks.mlflow.client import registry
from tasks.records.ledger_state import ledger_state
from tasks.settings import Settings, location
from tasks.store.lease import leased
from tasks.store.open import open_store
from tasks.vetting import intake, queue
from tests.databases import with_registry
from vetgate.errors import BadSubmission, StoreError
from vetgate.formats.manifest import hash_directory

YAML = """
name: {name}
supplier: {supplier}
task: image-classification
model: model.onnx
format: onnx
input_shape: [1, 8, 8]
classes: 10
"""


class Started(list[tuple[str, dict[str, Any], str]]):
    """What a sweep asked to be started."""

    def __call__(self, deployment: str, parameters: dict[str, Any], key: str) -> None:
        self.append((deployment, parameters, key))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=with_registry(tmp_path / "home"))


def submission(folder: Path, weights: bytes, name: str = "digits", supplier: str = "a test") -> Path:
    folder.mkdir(parents=True)
    (folder / "submission.yaml").write_text(YAML.format(name=name, supplier=supplier))
    (folder / "model.onnx").write_bytes(weights)
    return folder


def test_a_submission_without_a_result_is_started_once(settings: Settings, tmp_path: Path) -> None:
    record = intake.take(settings, submission(tmp_path / "one", b"one"))
    started, now = Started(), time.time()

    assert sweep(settings, started, now=now)["vetted"] == [record.id]
    sweep(settings, started, now=now)

    ((deployment, parameters, key), (_, _, again)) = started
    assert deployment == "vet/default" and key == again
    assert parameters == {"manifest_sha256": record.id, "unless_vetted": True}


def test_what_is_queued_at_work_or_finished_is_left_alone(settings: Settings, tmp_path: Path) -> None:
    queued, busy, done = (intake.take(settings, submission(tmp_path / name, name.encode())) for name in ("a", "b", "c"))
    canary = intake.take(settings, submission(tmp_path / "d", b"d", supplier=queue.CANARY_SUPPLIER))
    store, started = open_store(settings), Started()
    give_up(settings, done.id)
    store.create(f"canaries/{canary.id}.json", b"{}")
    with leased(settings, busy.id):
        found = sweep(settings, started, queued={queued.id})
    assert (found["queued"], found["at_work"], started) == (1, 1, [])


def test_a_sweep_reads_what_is_new_and_nothing_of_what_is_settled(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.store.directory import DirectoryStore

    store = open_store(settings)
    for number in range(20):
        done = intake.take(settings, submission(tmp_path / str(number), bytes([number])))
        store.create(f"results/{done.id}/20260101T000000Z-x.json", b"{}")
    read: list[str] = []
    really = DirectoryStore.read
    monkeypatch.setattr(DirectoryStore, "read", lambda self, key: (read.append(key), really(self, key))[1])
    assert [*queue.waiting(settings, lambda manifest: True)] == [] == read
    fresh = intake.take(settings, submission(tmp_path / "fresh", b"fresh"))
    read.clear()
    assert [item.record.id for item in queue.waiting(settings, lambda manifest: True)] == [fresh.id]
    assert len(read) <= 2
    # what is settled is forgotten where the file is, and found again
    for file in (settings.home / "sweep").iterdir():
        file.write_text("no manifest\n" + "f" * 63)
    assert [item.record.id for item in queue.waiting(settings, lambda manifest: True)] == [fresh.id]


PASSED = b'{"submission": "digits", "verdict": "PASS", "mlflow_run": null}'


@pytest.mark.parametrize("content", [b"{}", b"not JSON", PASSED])
def test_a_result_that_no_verdict_speaks_for_keeps_nothing_from_being_vetted_and_is_told_of(
    settings: Settings, tmp_path: Path, content: bytes
) -> None:
    record = intake.take(settings, submission(tmp_path / "one", b"one"))
    open_store(settings).create(f"results/{record.id}/20260101T000000Z-x.json", content)
    found = sweep(settings, Started())
    assert found["vetted"] == [record.id] and last_result(settings, record.id) is None
    (error,) = found["errors"]
    assert f"expected a verdict in the ledger beside results/{record.id}/" in error


@pytest.mark.parametrize("change", [{"verdict": "PASS"}, {"manifest_sha256": "0" * 64}, {"methods": "none"}])
def test_a_result_that_says_other_than_its_attestation_is_passed_over(
    settings: Settings, tmp_path: Path, change: dict[str, Any]
) -> None:
    store, record = open_store(settings), intake.take(settings, submission(tmp_path / "one", b"one"))
    published = give_up(settings, record.id)
    assert last_result(settings, record.id) == published
    (key,) = store.list(f"results/{record.id}/")
    store.create(f"results/{record.id}/99990101T000000Z-x.json", json.dumps(published | {"verdict": "PASS"}).encode())
    assert last_result(settings, record.id) == published
    file = Path(settings.store, key)
    file.chmod(0o644)
    file.write_text(json.dumps(published | change))
    assert last_result(settings, record.id) is None


@pytest.mark.parametrize("supplier", ["a test", "vetgate", "Vetgate canary"])
def test_a_canary_s_mark_on_another_model_keeps_nothing_from_being_vetted_and_is_told_of(
    settings: Settings, tmp_path: Path, supplier: str
) -> None:
    record = intake.take(settings, submission(tmp_path / "one", b"one", supplier=supplier))
    open_store(settings).create(f"canaries/{record.id}.json", b"{}")
    found = sweep(settings, Started())
    assert found["vetted"] == [record.id]
    (error,) = found["errors"]
    assert f"canaries/{record.id}.json about a canary, got one about a model of {supplier}" in error


@pytest.mark.parametrize("content", [b"{}", b"not JSON", b'{"submission": {}, "seed": 1}'])
def test_a_record_that_is_not_of_its_bytes_is_an_error_and_starts_nothing(
    settings: Settings, tmp_path: Path, content: bytes
) -> None:
    record = intake.take(settings, submission(tmp_path / "one", b"one"))
    open_store(settings).create(f"submissions/{'0' * 64}.json", content)
    started = Started()
    found = sweep(settings, started)
    (error,) = found["errors"]
    assert f"submissions/{'0' * 64}.json" in error and "remove it" in error
    assert found["vetted"] == [record.id] and len(started) == 1


def test_a_vetting_that_failed_is_tried_again_after_a_pause(settings: Settings, tmp_path: Path) -> None:
    record = intake.take(settings, submission(tmp_path / "one", b"one"))
    with pytest.raises(RuntimeError), leased(settings, record.id):
        raise RuntimeError
    started = Started()
    assert sweep(settings, started)["vetted"] == []
    assert sweep(settings, started, now=time.time() + 60)["vetted"] == [record.id]
    assert ":2:" in started[0][2]


def test_a_vetting_that_was_killed_is_tried_again_at_once(settings: Settings, tmp_path: Path) -> None:
    record = intake.take(settings, submission(tmp_path / "one", b"one"))
    if (child := os.fork()) == 0:
        with leased(settings, record.id):
            os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    assert sweep(settings, Started())["vetted"] == [record.id]


@pytest.mark.parametrize("said", [{"until": 4e9}, {"until": 4e9, "done": True}, {"until": "x"}, {"until": 1e300}, None])
def test_a_lease_that_is_none_is_named_and_stops_nothing(
    settings: Settings, tmp_path: Path, said: dict[str, Any] | None
) -> None:
    record, other = (intake.take(settings, submission(tmp_path / name, name.encode())) for name in ("a", "b"))
    fields = {"holder": "x", "host": "elsewhere", "pid": 1, "born": "1", "attempt": 1, "done": False}
    data = b"junk" if said is None else json.dumps({**fields, **said}).encode()
    open_store(settings).create(f"leases/{record.id}.json", data)
    found = sweep(settings, Started())
    (error,) = found["errors"]
    assert f"leases/{record.id}.json" in error and sorted(found["vetted"]) == sorted([record.id, other.id])
    seen = at_a_glance(settings)
    assert seen["queue"] == {"waiting": 2, "at work": 0} and record.id in seen["errors"]["submissions"]
    with leased(settings, record.id):
        assert sweep(settings, Started())["errors"] == []


@pytest.mark.parametrize("attempts", [2000, 10**6, 2**31])
def test_any_number_of_attempts_ends_in_words_that_are_true(settings: Settings, tmp_path: Path, attempts: int) -> None:
    record = intake.take(settings, submission(tmp_path / "one", b"one"))
    laid = {"holder": "x", "host": "elsewhere", "pid": 1, "born": "1", "attempt": attempts, "done": True, "until": 0}
    open_store(settings).create(f"leases/{record.id}.json", json.dumps(laid).encode())
    assert only_row(settings)["attempts"] == attempts
    found = sweep(settings, Started())
    assert (found["given_up"], found["errors"]) == ([record.id], [])
    assert only_row(settings)["verdict"] == "INCONCLUSIVE"


@pytest.mark.parametrize("attempts", [10, 50, 2**31])
def test_what_the_ledger_has_decided_is_not_given_up_whoever_took_its_result_away(
    settings: Settings, tmp_path: Path, attempts: int
) -> None:
    record = intake.take(settings, submission(tmp_path / "one", b"one"))
    give_up(settings, record.id)
    newest = ledger_state(settings).verdict(record.id)
    for key in list(open_store(settings).list(f"results/{record.id}/")):
        Path(settings.store, key).unlink()
    laid = {"holder": "x", "host": "elsewhere", "pid": 1, "born": "1", "attempt": attempts, "done": True, "until": 0}
    Path(settings.store, f"leases/{record.id}.json").write_text(json.dumps(laid))
    found = sweep(settings, Started())
    assert found["given_up"] == [] and ledger_state(settings).verdict(record.id) == newest is not None
    assert "expected a result beside its verdict" in "".join(found["errors"])


def only_row(settings: Settings) -> dict[str, Any]:
    (row,) = at_a_glance(settings)["submissions"]
    return dict(row)


def test_what_dies_again_and_again_ends_inconclusive_and_signed(settings: Settings, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("name: brief\nrequired: [neural_cleanse]\nmax_attempts: 2\n")
    settings = settings.model_copy(update={"policy": policy})
    record = intake.take(settings, submission(tmp_path / "one", b"one"))
    for _ in range(2):
        with pytest.raises(RuntimeError), leased(settings, record.id):
            raise RuntimeError
    found = sweep(settings, Started(), now=time.time() + 3600)
    assert (found["given_up"], found["vetted"], found["errors"]) == ([record.id], [], [])
    (key,) = open_store(settings).list(f"results/{record.id}/")
    result = json.loads(open_store(settings).read(key))
    assert result["verdict"] == "INCONCLUSIVE" and "2 or more vettings of it that began" in result["reasons"][0]
    assert len(list(open_store(settings).list(f"attestations/{record.id}/"))) == 1
    assert sweep(settings, Started(), now=time.time() + 7200)["given_up"] == []


def test_versions_in_mlflow_that_events_missed_are_taken_in(settings: Settings, tmp_path: Path) -> None:
    version = register(settings, submission(tmp_path / "one", b"one"), "thirdparty.digits")
    started = Started()
    assert sweep(settings, started)["taken"] == [f"thirdparty.digits/{version}"]
    assert started[0][:2] == ("take-registered/default", {"model": "thirdparty.digits", "version": version})

    taken = take_version(settings, "thirdparty.digits", version)

    assert taken == {"manifest_sha256": intake.take(settings, tmp_path / "one").id}
    after = sweep(settings, Started())
    assert after["taken"] == [] and after["vetted"] == [taken["manifest_sha256"]]


def test_what_is_noted_while_the_registry_answers_is_not_unknown(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    version = register(settings, submission(tmp_path / "one", b"one"), "thirdparty.digits")
    search = MlflowClient.search_model_versions

    def search_slowly(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = search(self, *args, **kwargs)
        registered.note(open_store(settings), "thirdparty.digits", version, {"manifest_sha256": "0" * 64})
        return found

    monkeypatch.setattr(MlflowClient, "search_model_versions", search_slowly)
    assert list(registered.unknown_versions(settings)) == []


@pytest.mark.parametrize("outside", ["/etc", "file:///etc", "s3://somebody/else", "elsewhere"])
def test_a_source_outside_the_run_s_artifacts_is_refused_once(settings: Settings, tmp_path: Path, outside: str) -> None:
    if outside == "elsewhere":
        outside = submission(tmp_path / "elsewhere", b"one").as_uri()
    with registry(settings) as client:
        run = client.create_run(client.create_experiment("suppliers")).info.run_id
        client.create_registered_model("thirdparty.digits")
        client.create_model_version("thirdparty.digits", outside, run_id=run)
    refused = take_version(settings, "thirdparty.digits", "1")
    assert "expected a source below" in refused["refused"]
    assert sweep(settings, Started())["taken"] == [] and not list(open_store(settings).list("submissions/"))
    with registry(settings) as client:
        assert client.get_model_version("thirdparty.digits", "1").tags["vet.verdict"] == "INCONCLUSIVE"


def test_a_run_whose_artifacts_lie_elsewhere_on_this_machine_is_refused(settings: Settings, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    with registry(settings) as client:
        run = client.create_run(client.create_experiment("suppliers", artifact_location=secret.as_uri()))
        given = submission(Path(run.info.artifact_uri.removeprefix("file://")) / "given", b"one")
        client.create_registered_model("thirdparty.digits")
        client.create_model_version("thirdparty.digits", given.as_uri(), run_id=run.info.run_id)
    assert "artifacts that the tracking server keeps" in take_version(settings, "thirdparty.digits", "1")["refused"]


def test_a_submission_of_another_name_is_refused(settings: Settings, tmp_path: Path) -> None:
    version = register(settings, submission(tmp_path / "one", b"one", name="other"), "thirdparty.digits")
    assert "got one of other" in take_version(settings, "thirdparty.digits", version)["refused"]
    assert not list(open_store(settings).list("submissions/"))


@pytest.mark.parametrize("other", ["thirdparty.Digits", "prod.DIGITS", "prod.ｄigits", "thirdparty.digits."])
def test_beside_a_model_that_reads_like_it_nothing_is_taken(settings: Settings, tmp_path: Path, other: str) -> None:
    given = submission(tmp_path / "one", b"one")
    version = register(settings, given, "thirdparty.digits")
    with registry(settings) as client:
        client.create_registered_model(other)
    assert "that no other reads like" in take_version(settings, "thirdparty.digits", version)["refused"]
    with pytest.raises(BadSubmission, match="beside"):
        submit(settings, given)
    assert not list(open_store(settings).list("submissions/")) and not list(open_store(settings).list("quarantine/"))
    assert submit(settings, submission(tmp_path / "two", b"two", name="signs")).submission.name == "signs"


def test_a_submission_is_queued_while_the_registry_is_away(settings: Settings, tmp_path: Path) -> None:
    away = settings.model_copy(update={"tracking_uri": "http://127.0.0.1:9"})
    assert submit(away, submission(tmp_path / "one", b"one")).submission.name == "digits"


@pytest.mark.parametrize("name", ["digits.", "prod.digits", "x.thirdparty.y"])
def test_a_version_under_a_name_of_none_is_not_taken(settings: Settings, tmp_path: Path, name: str) -> None:
    version = register(settings, submission(tmp_path / "one", b"one", name=name), f"thirdparty.{name}")
    assert list(registered.unknown_versions(settings)) == []
    assert "expected thirdparty.<name>" in take_version(settings, f"thirdparty.{name}", version)["refused"]


def test_a_part_that_fails_does_not_keep_the_others_from_being_done(settings: Settings, tmp_path: Path) -> None:
    record = intake.take(settings, submission(tmp_path / "one", b"one"))
    away = settings.model_copy(update={"tracking_uri": "http://127.0.0.1:9"})
    found = sweep(away, Started())
    assert found["vetted"] == [record.id] and "http://127.0.0.1:9" in found["errors"][0]


def register(settings: Settings, given: Path, model: str) -> str:
    """Register a directory as a supplier with access to MLflow would; the version."""
    with registry(settings) as client:
        place = f"{Path(settings.artifacts).as_uri()}/suppliers"
        home = client.create_experiment(f"suppliers of {model}", artifact_location=place)
        run = client.create_run(home)
        client.log_artifacts(run.info.run_id, str(given), "submission")
        client.create_registered_model(model)
        source = f"{run.info.artifact_uri}/submission"
        return str(client.create_model_version(model, source, run_id=run.info.run_id).version)


@pytest.mark.parametrize(
    "classes", ["0x" + "f" * 6000, "0o" + "7" * 5000, "!!int 10", "10 # ten\u2028parent: x", "&a [*a]"]
)
def test_a_description_that_is_not_understood_is_refused_once(settings: Settings, tmp_path: Path, classes: str) -> None:
    given = submission(tmp_path / "one", b"one")
    described = (given / "submission.yaml").read_text()
    (given / "submission.yaml").write_text(re.sub("(?m)^classes: .*$", f"classes: {classes}", described))
    version = register(settings, given, "thirdparty.digits")
    assert "submission.yaml: expected plain" in take_version(settings, "thirdparty.digits", version)["refused"]
    assert list(registered.unknown_versions(settings)) == []
    assert not list(open_store(settings).list("submissions/"))


def a_pipe(there: Path) -> None:
    os.mkfifo(there / "README")


def a_link(there: Path) -> None:
    (there / "README").symlink_to("/etc/hostname")


def a_folder(there: Path) -> None:
    (there / "README").mkdir()


def nothing(there: Path) -> None:
    shutil.rmtree(there)


def in_artifacts(settings: Settings, model: str, version: str) -> Path:
    with registry(settings) as client:
        return Path(location(client.get_model_version(model, version).source))


@pytest.mark.parametrize("spoil", [a_pipe, a_link, a_folder, nothing])
def test_a_supplied_version_that_cannot_be_taken_in_is_refused_once(
    settings: Settings, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    version = register(settings, submission(tmp_path / "one", b"one"), "thirdparty.digits")
    spoil(in_artifacts(settings, "thirdparty.digits", version))
    refused = take_version(settings, "thirdparty.digits", version)
    assert "expected" in refused["refused"] and take_version(settings, "thirdparty.digits", version) == refused
    assert sweep(settings, Started())["taken"] == []


def test_one_of_a_run_that_there_is_not_is_refused_once(settings: Settings) -> None:
    with registry(settings) as client:
        client.create_registered_model("thirdparty.digits")
        client.create_model_version("thirdparty.digits", f"{settings.artifacts}/1/x", run_id="0" * 32)
    assert "which is none" in take_version(settings, "thirdparty.digits", "1")["refused"]


def occupied(settings: Settings, given: Path) -> None:
    """What keeps the bytes of a submission from being stored, as a disk that fails would."""
    manifest = hash_directory(given).sha256
    Path(settings.store, "quarantine", manifest, "model.onnx").mkdir(parents=True)


def test_what_fails_again_and_again_is_tried_after_longer_and_longer_pauses_and_then_refused(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.vetting.submitted.MOST_TRIES", 3)
    given = submission(tmp_path / "one", b"one")
    version = register(settings, given, "thirdparty.digits")
    occupied(settings, given)
    for pause in (30, 60):
        with pytest.raises(StoreError, match="prefix of others"):
            take_version(settings, "thirdparty.digits", version)
        now = time.time()
        assert sweep(settings, Started(), now=now + pause - 10)["taken"] == []
        assert sweep(settings, Started(), now=now + pause + 1)["taken"] == [f"thirdparty.digits/{version}"]
    assert "3 failures, the last: " in take_version(settings, "thirdparty.digits", version)["refused"]
    assert sweep(settings, Started())["taken"] == []


def test_in_one_process_too_a_version_that_fails_keeps_no_other_out(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # neither a Prefect server nor a sandbox is needed for what is not vetted in the end
    monkeypatch.setattr("flows.vetting.local.start_all", lambda settings: lambda: None)
    names = ("first", "second", "third")
    for name in names:
        given = submission(tmp_path / name, name.encode(), name=name)
        version = register(settings, given, f"thirdparty.{name}")
        if name == "second":
            occupied(settings, given)
        else:
            a_pipe(in_artifacts(settings, f"thirdparty.{name}", version))
    done = sweep_locally(settings)
    (error,) = done["errors"]
    assert "thirdparty.second 1: " in error
    store = open_store(settings)
    assert [registered.is_noted(store, f"thirdparty.{name}", "1") for name in names] == [True, False, True]


def test_versions_of_other_models_are_no_submissions(settings: Settings, tmp_path: Path) -> None:
    register(settings, submission(tmp_path / "one", b"one"), "somebody.else")
    assert list(registered.unknown_versions(settings)) == []
