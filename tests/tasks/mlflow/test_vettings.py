from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tasks.mlflow import submitted as registered
from tasks.mlflow.client import prepare, registry
from tasks.mlflow.promoted import Promoted, register_promoted
from tasks.mlflow.submitted import noted
from tasks.mlflow.vettings import record_vetting
from tasks.settings import Settings
from tasks.store.open import open_store
from tasks.vetting.intake import Record
from tasks.vetting.results import Result
from tests.databases import with_registry
from tests.processes import in_processes
from vetgate.digest import canonical_json
from vetgate.errors import Denied, StoreError
from vetgate.formats.manifest import FileEntry, Manifest, hash_directory
from vetgate.formats.plain_text import escaped
from vetgate.formats.submission import Submission

DESCRIPTION = "name: digits-cnn"
FILES = {"model.onnx": b"weights", "submission.yaml": DESCRIPTION.encode()}
HANDED_IN = Manifest(tuple(FileEntry(name, len(data), sha256(data).hexdigest()) for name, data in FILES.items()))
MANIFEST = HANDED_IN.sha256
SUBMISSION = Submission(
    name="digits-cnn",
    supplier="Some & Co",
    task="image-classification",
    model="model.onnx",
    format="onnx",
    input_shape=(1, 8, 8),
    classes=[str(k) for k in range(10)],
)
FORK = multiprocessing.get_context("fork")


def result(**changes: Any) -> Result:
    method = {"name": "abs", "statistic": 2.5, "alarmed": True, "suspects": [3], "seconds": 1.5, "failure": None}
    failed = {"name": "strip", "statistic": None, "alarmed": False, "suspects": [], "seconds": None, "failure": "late"}
    repair = {
        "method": "unlearn",
        "artifact": "repaired/model.onnx",
        "submission": "b" * 64,
        "verdict": "PASS",
        "p_value": 0.4,
        "clean_accuracy": [0.98, 0.97],
        "attack_success": [1.0, 0.02],
        "robust_accuracy": [0.0, None],
    }
    made = {
        "submission": "digits-cnn",
        "manifest_sha256": MANIFEST,
        "verdict": "FAIL",
        "p_value": 0.01,
        "calibrated": True,
        "suspects": [3],
        "methods": [method, failed],
        "repair": repair,
        "report": "report.html",
        "attestation": "attestations/1.json",
        "mlflow_run": None,
        "sandbox_level": 2,
        "seconds": 12.5,
        "reasons": [],
        "reason_records": [],
    }
    return Result.from_json(made | changes)


@pytest.mark.parametrize("hostile", ["A\x1b[2J", "\u202eTSENOH", "a\x00b"])
def test_no_control_of_a_stranger_reaches_mlflow(settings: Settings, hostile: str) -> None:
    given = SUBMISSION.model_copy(update={"supplier": hostile})
    run_id = record_vetting(settings, given, MANIFEST, result(), {})
    registered.tag(settings, "thirdparty.digits-cnn", "1", {"vet.reason": f"got {hostile}"})
    with registry(settings) as client:
        assert client.get_run(run_id).data.params["supplier"] == escaped(hostile)
        assert client.get_model_version("thirdparty.digits-cnn", "1").tags["vet.reason"] == f"got {escaped(hostile)}"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    settings = Settings(home=with_registry(tmp_path / "home"))
    hand_in(settings)
    return settings


def hand_in(settings: Settings) -> None:
    store, record = open_store(settings), Record(DESCRIPTION, HANDED_IN, "2026-01-01T00:00:00+00:00")
    for name, data in FILES.items():
        store.create(f"quarantine/{MANIFEST}/{name}", data)
    store.create(f"submissions/{MANIFEST}.json", canonical_json(record.to_json()))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "x.html").write_text("<p>report")
    (tmp_path / "y.png").write_bytes(b"png")
    return {"report.html": tmp_path / "x.html", "triggers/abs-3.png": tmp_path / "y.png"}


def test_a_vetting_is_one_run_with_its_numbers_and_artifacts(
    settings: Settings, files: dict[str, Path], tmp_path: Path
) -> None:
    run_id = record_vetting(settings, SUBMISSION, MANIFEST, result(), files)
    with registry(settings) as client:
        run = client.get_run(run_id)
        out = Path(client.download_artifacts(run_id, "", str(tmp_path)))
    assert run.info.status == "FINISHED"
    assert run.data.params["supplier"] == "Some & Co"
    assert run.data.params["classes"] == "10" and run.data.params["suspects"] == "[3]"
    assert run.data.metrics == {
        "p_value": 0.01,
        "seconds": 12.5,
        "abs.statistic": 2.5,
        "abs.alarmed": 1.0,
        "abs.seconds": 1.5,
        "strip.alarmed": 0.0,
        "repair.clean_accuracy.before": 0.98,
        "repair.clean_accuracy.after": 0.97,
        "repair.attack_success.before": 1.0,
        "repair.attack_success.after": 0.02,
        "repair.robust_accuracy.before": 0.0,
    }
    assert run.data.tags["vet.verdict"] == "FAIL"
    assert (out / "report.html").read_text() == "<p>report"
    assert (out / "triggers" / "abs-3.png").read_bytes() == b"png"
    assert (out / "submission" / "model.onnx").read_bytes() == b"weights"


def test_what_guards_reject_and_cost_are_metrics(settings: Settings, files: dict[str, Path]) -> None:
    cost = {"bare": 0.5, "guarded": 40.0, "slowdown": 80.0}
    made = {"rate": 0.05, "false_rejections": 0.03, "detection": 0.95, "alone": cost, "batch": cost}
    one = {"name": "strip", "chosen": True, "reason": None, **made}
    lost = {"name": "lost", "chosen": False, "reason": "broken"}
    guards = {"package": None, "action": "reject", "rate": 0.05, "false_rejections": 0.03, "seconds": 1.5}
    run_id = record_vetting(settings, SUBMISSION, MANIFEST, result(guards=guards | {"guards": [one, lost]}), files)
    with registry(settings) as client:
        metrics = client.get_run(run_id).data.metrics
    assert {key: value for key, value in metrics.items() if key.startswith("guard.")} == {
        "guard.strip.false_rejections": 0.03,
        "guard.strip.detection": 0.95,
        "guard.strip.chosen": 1.0,
        "guard.strip.alone.slowdown": 80.0,
        "guard.strip.batch.slowdown": 80.0,
        "guard.lost.chosen": 0.0,
    }


def test_the_same_vetting_again_is_the_same_run_and_version(settings: Settings, files: dict[str, Path]) -> None:
    first = record_vetting(settings, SUBMISSION, MANIFEST, result(), files)
    assert record_vetting(settings, SUBMISSION, MANIFEST, result(), files) == first
    second = record_vetting(settings, SUBMISSION, MANIFEST, result(verdict="PASS", repair=None), files, vetting="2")
    assert second != first
    with registry(settings) as client:
        (version,) = client.search_model_versions("name = 'thirdparty.digits-cnn'")
        assert version.run_id == first
        assert version.source == f"{client.get_run(first).info.artifact_uri}/submission"
        assert version.tags == {"vet.manifest_sha256": MANIFEST, "vet.verdict": "PASS", "vet.run_id": second}


def test_a_vetting_whose_recording_was_killed_is_taken_up_again(settings: Settings, files: dict[str, Path]) -> None:
    class Deadly(dict[str, Path]):
        def items(self) -> Any:
            yield from super().items()
            os.kill(os.getpid(), signal.SIGKILL)

    child = FORK.Process(target=record_vetting, args=(settings, SUBMISSION, MANIFEST, result(), Deadly(files)))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    run_id = record_vetting(settings, SUBMISSION, MANIFEST, result(), files)
    with registry(settings) as client:
        experiment = client.get_experiment_by_name("vetgate")
        (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_id, run.info.status) == (run_id, "FINISHED")


def test_a_version_that_was_made_just_before_a_crash_is_noted_by_the_next_try(
    settings: Settings, files: dict[str, Path]
) -> None:
    first = record_vetting(settings, SUBMISSION, MANIFEST, result(), files)
    Path(settings.store, "registered", "thirdparty.digits-cnn", "1.json").unlink()
    assert record_vetting(settings, SUBMISSION, MANIFEST, result(), files) == first
    assert noted(open_store(settings), "thirdparty.digits-cnn", "1") == {"manifest_sha256": MANIFEST}


def test_with_an_s3_store_the_version_points_at_the_quarantine(
    settings: Settings, files: dict[str, Path], s3_endpoint: str
) -> None:
    remote = settings.model_copy(update={"store": "s3://vetgate/registry", "s3_endpoint": s3_endpoint})
    record_vetting(remote, SUBMISSION, MANIFEST, result(), files)
    with registry(remote) as client:
        (version,) = client.search_model_versions("name = 'thirdparty.digits-cnn'")
    assert version.source == f"s3://vetgate/registry/quarantine/{MANIFEST}"


def test_with_an_s3_store_prod_points_at_the_vetted_copy_and_no_version_elsewhere_is_believed(
    settings: Settings, tmp_path: Path, s3_endpoint: str
) -> None:
    remote = settings.model_copy(update={"store": "s3://vetgate/registry", "s3_endpoint": s3_endpoint})
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.onnx").write_bytes(b"weights")
    manifest = hash_directory(tmp_path / "model")
    with registry(remote) as client:
        client.create_registered_model("prod.digits")
        claimed = {"vet.manifest_sha256": manifest.sha256, "vet.verdict": "PASS"}
        client.create_model_version("prod.digits", f"s3://elsewhere/vetted/{manifest.sha256}", tags=claimed)

    recorded: list[tuple[str, str | None]] = []

    def record(made: Promoted, before: str | None) -> Callable[[], None]:
        recorded.append((made.version, before))
        return lambda: None

    def promoted() -> Promoted:
        where = tmp_path / "model"
        return register_promoted(
            remote,
            "digits",
            manifest,
            where,
            alias="champion",
            tags={},
            documents={},
            record=record,
            on_step=lambda _: None,
        )

    assert promoted().source == f"s3://vetgate/registry/vetted/{manifest.sha256}"
    assert promoted().version == "2"
    assert recorded == [("2", None), ("2", "2")]
    with registry(remote) as client:
        assert client.get_registered_model("prod.digits").aliases.keys() == {"champion"}
        assert str(client.get_model_version_by_alias("prod.digits", "champion").version) == "2"
        assert client.get_model_version("prod.digits", "2").tags == {"vet.manifest_sha256": manifest.sha256}


def test_a_killed_first_use_leaves_no_half_database_and_four_processes_then_make_one(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home")
    hand_in(settings)

    def die_before_it_is_there() -> None:
        os.link = lambda draft, path: os.kill(os.getpid(), signal.SIGKILL)
        prepare(settings)

    child = FORK.Process(target=die_before_it_is_there)
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL and not (settings.home / "mlflow.db").exists()

    def record(i: int) -> str:
        vetting = result(verdict="PASS", repair=None)
        return record_vetting(settings, SUBMISSION, MANIFEST, vetting, {}, vetting=str(i % 2))

    assert len(set(in_processes(4, record))) == 2
    with registry(settings) as client:
        assert len(client.search_model_versions("name = 'thirdparty.digits-cnn'")) == 1


def test_a_registry_that_does_not_answer_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no database")
    for uri in (f"sqlite:///{tmp_path}/file", "sqlite:////proc/none/mlflow.db", f"sqlite:///{tmp_path}/file/below.db"):
        with pytest.raises(StoreError, match="expected the registry at sqlite"):
            record_vetting(Settings(home=tmp_path, tracking_uri=uri), SUBMISSION, MANIFEST, result(), {})


def test_an_error_of_ours_passes_through_unchanged(settings: Settings) -> None:
    with pytest.raises(Denied, match="ours"), registry(settings):
        raise Denied("ours")
