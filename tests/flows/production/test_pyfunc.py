"""A guarded model as MLflow's pyfunc: data that our module loads, if the attestation in it covers all of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch

from flows.cli.commands import main
from flows.production.guarded import guarded_load
from flows.production.predictions import FIELDS, prediction
from flows.production.promote import promote
from flows.production.pyfunc import GuardedPyfunc, _load_pyfunc, load_pyfunc
from flows.production.pyfunc_files import ATTESTATION, DATA, FILE, GUARDS, META, MLMODEL, MODEL
from flows.production.reconcile import reconcile
from tasks.mlflow.client import ENVIRONMENT, registry
from tasks.records.attestations import newest_attestation
from tasks.records.ledger_state import ledger_state
from tests.flows.production.test_guarded import CHAMPION, NAMES, SHAPE, Production, attested
from tests.flows.production.test_promote import die_after
from tests.production import NOW, home_in
from vetgate.errors import Altered, Denied, NotPassed, OtherName, Revoked, Stale, VetgateError
from vetgate.guard.package import Package, to_bytes
from vetgate.trust import attest
from vetgate.trust.keys import TrustRoot, load_or_create_key, read_trust_root, utc_now

X = torch.rand(20, *SHAPE, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def production(tmp_path: Path) -> Production:
    torch.manual_seed(1)
    return Production(home_in(tmp_path))


@pytest.fixture
def guarded(production: Production) -> Path:
    """A copy of the directory that is registered as guarded.digits."""
    production.guarded()
    return shutil.copytree(registered(production), production.home.room / "guarded")


def registered(production: Production, alias: str = "champion") -> Path:
    """Where the registry has the version under an alias."""
    with registry(production.settings) as client:
        version = client.get_model_version_by_alias("guarded.digits", alias)
    return Path(str(version.source).removeprefix("file://"))


def aliases(production: Production, model: str = "guarded.digits") -> dict[str, str]:
    with registry(production.settings) as client:
        return {alias: str(number) for alias, number in client.get_registered_model(model).aliases.items()}


def trust(production: Production) -> TrustRoot:
    return read_trust_root(production.settings.trust_root)


def expected(production: Production) -> list[dict[str, Any]]:
    answers = guarded_load(CHAMPION, production.settings).guarded.predict(X)
    return [prediction(answer, NAMES) for answer in answers]


@pytest.fixture
def mlflow_here(production: Production, monkeypatch: pytest.MonkeyPatch) -> Any:
    """MLflow, set to this installation's registry, and the public keys named as serving hosts name them."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("VETGATE_TRUST_ROOT", str(production.settings.trust_root))
    import mlflow

    before = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    mlflow.set_tracking_uri(production.settings.tracking_uri)
    mlflow.set_registry_uri(production.settings.tracking_uri)
    yield mlflow
    mlflow.set_tracking_uri(before[0])
    mlflow.set_registry_uri(before[1])


def test_mlflow_loads_the_promoted_model_behind_its_guards(production: Production, mlflow_here: Any) -> None:
    production.guarded()
    found = mlflow_here.pyfunc.load_model("models:/guarded.digits@champion").predict(X.numpy())
    assert tuple(found.columns) == FIELDS and found.to_dict(orient="records") == expected(production)
    outcomes = set(found["outcome"])
    assert outcomes <= {"accept", "reject"} and "accept" in outcomes
    assert all(isinstance(label, int) or label is None for label in found["label"])


def test_the_directory_holds_data_and_no_code(production: Production, guarded: Path) -> None:
    files = {path.relative_to(guarded).as_posix() for path in guarded.rglob("*") if path.is_file()}
    vetted = {f"{DATA}/{MODEL}/submission.yaml", f"{DATA}/{MODEL}/model.safetensors"}
    assert files == {FILE, f"{DATA}/{ATTESTATION}", f"{DATA}/{GUARDS}", *vetted}
    assert (guarded / FILE).read_text() == MLMODEL and "loader_module: flows.production.pyfunc" in MLMODEL


SHAPES: dict[str, Callable[[], Any]] = {
    "an array": lambda: X.numpy(),
    "an array of float64": lambda: X.numpy().astype(np.float64),
    "lists": lambda: X.tolist(),
    "an array by name": lambda: {"image": X.numpy()},
    "a frame with a cell an image": lambda: pandas.DataFrame({"image": X.tolist()}),
    "a frame with arrays in its cells": lambda: pandas.DataFrame({"image": list(X.numpy())}),
    "a frame with a cell a pixel": lambda: pandas.DataFrame(X.flatten(1).numpy()),
}


@pytest.mark.parametrize("given", SHAPES.values(), ids=SHAPES)
def test_images_come_as_arrays_lists_or_frames(production: Production, guarded: Path, given: Callable[[], Any]) -> None:
    found = load_pyfunc(guarded, trust(production)).predict(given())
    assert found.to_dict(orient="records") == expected(production)


@pytest.mark.parametrize(
    "given",
    [X[0].numpy(), X.numpy() * 255, np.zeros((0, *SHAPE)), "x", None, {"a": 1, "b": 2}, [[1], [2, 3]], [["0.5"]]],
    ids=["one image", "bytes", "none", "a text", "null", "two names", "ragged", "texts"],
)
def test_what_is_no_images_is_an_error_that_mlflow_answers_with_400(
    production: Production, guarded: Path, given: Any
) -> None:
    from mlflow.exceptions import MlflowException

    model = load_pyfunc(guarded, trust(production))
    with pytest.raises(MlflowException, match=r"expected.*got.*;") as caught:
        model.predict(given)
    assert caught.value.get_http_status_code() == 400
    with pytest.raises(MlflowException, match="no parameters"):
        model.predict(X.numpy(), {"action": "log-only"})


def other_loader(text: str) -> str:
    return text.replace("flows.production.pyfunc", "mlflow.pyfunc.model")


HARMS: dict[str, Callable[[Path], object]] = {
    "another loader": lambda d: (d / FILE).write_text(other_loader(MLMODEL)),
    "code": lambda d: (d / FILE).write_text(MLMODEL + "    code: code\n"),
    "a python_model": lambda d: (d / FILE).write_text(MLMODEL + "    python_model: python_model.pkl\n"),
    "another flavour": lambda d: (d / FILE).write_text(MLMODEL + "  sklearn:\n    pickled_model: x\n"),
    "other data": lambda d: (d / FILE).write_text(MLMODEL.replace("data: data", "data: .")),
    "no MLmodel": lambda d: (d / FILE).unlink(),
    "a linked MLmodel": lambda d: ((d / FILE).rename(d.parent / "aside"), (d / FILE).symlink_to(d.parent / "aside")),
    "a folder of code": lambda d: (d / "code").mkdir(),
    "requirements": lambda d: (d / "requirements.txt").write_text("evil\n"),
    "a file beside the data": lambda d: (d / DATA / "x.pkl").write_bytes(b""),
    "a file beside the model": lambda d: (d / DATA / MODEL / "x.pkl").write_bytes(b""),
    "no attestation": lambda d: (d / DATA / ATTESTATION).unlink(),
    "other weights": lambda d: flip(d / DATA / MODEL / "model.safetensors"),
    "another description": lambda d: flip(d / DATA / MODEL / "submission.yaml"),
    "other guards": lambda d: flip(d / DATA / GUARDS),
    "no guards": lambda d: (d / DATA / GUARDS).unlink(),
    "another name": lambda d: (d / META).write_text("model_name: guarded.signs\nmodel_version: '1'\n"),
    "no name": lambda d: (d / META).write_text("[]"),
}


def flip(path: Path) -> None:
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
def test_whatever_is_not_what_was_written_is_refused(
    production: Production, guarded: Path, monkeypatch: pytest.MonkeyPatch, harm: Callable[[Path], object]
) -> None:
    monkeypatch.setenv("VETGATE_TRUST_ROOT", str(production.settings.trust_root))
    assert isinstance(_load_pyfunc(str(guarded / DATA)), GuardedPyfunc)
    harm(guarded)
    with pytest.raises(Denied, match=r"expected.*;"):
        _load_pyfunc(str(guarded / DATA))
    assert main(["verify", str(guarded), "--json"]) == (1 if (guarded / FILE).is_file() else 4)


def test_an_altered_attestation_is_refused(production: Production, guarded: Path) -> None:
    file = guarded / DATA / ATTESTATION
    envelope = json.loads(file.read_text())
    for field, value in (("payload", envelope["payload"][::-1]), ("signatures", [])):
        file.write_text(json.dumps({**envelope, field: value}))
        with pytest.raises(Denied):
            load_pyfunc(guarded, trust(production))


def test_the_public_keys_decide(production: Production, guarded: Path, tmp_path: Path) -> None:
    load_or_create_key(tmp_path / "other.key", tmp_path / "other.json", now=NOW)
    with pytest.raises(Denied):
        load_pyfunc(guarded, read_trust_root(tmp_path / "other.json"))
    envelope = attest.read_envelope((guarded / DATA / ATTESTATION).read_bytes())
    known = trust(production)
    with pytest.raises(Revoked):
        load_pyfunc(guarded, replace(known, revoked=frozenset({attest.digest(envelope)})))


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ({"verdict": "FAIL"}, NotPassed),
        ({"issued": NOW - timedelta(days=40)}, Stale),
        ({"guards": None}, Denied),
    ],
    ids=["FAIL", "expired", "without guards"],
)
def test_a_verdict_that_lets_nothing_through_is_refused(
    production: Production, guarded: Path, said: dict[str, Any], error: type[VetgateError]
) -> None:
    envelope = attest.read_envelope((guarded / DATA / ATTESTATION).read_bytes())
    manifest = attest.manifest_of(envelope)
    production.home.decide(manifest, **{"guards": attest.claims(envelope)["guards"], **said})
    newest = newest_attestation(ledger_state(production.settings), manifest)
    assert newest is not None
    (guarded / DATA / ATTESTATION).write_text(json.dumps(newest.envelope))
    with pytest.raises(error):
        load_pyfunc(guarded, trust(production))


def test_it_answers_no_longer_than_its_verdict_lasts(production: Production, guarded: Path) -> None:
    from mlflow.exceptions import MlflowException

    model = load_pyfunc(guarded, trust(production))
    assert model.until == NOW + timedelta(days=29)
    model.until = utc_now()
    with pytest.raises(MlflowException, match="vet the model again") as caught:
        model.predict(X.numpy())
    assert caught.value.get_http_status_code() == 503


def test_it_is_verified_by_hand_before_mlflow_reads_it(
    production: Production, guarded: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(guarded), "--trust-root", str(production.settings.trust_root), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["name"] == "digits"


def promote_again(production: Production) -> dict[str, Any]:
    return promote(production.settings, "digits")


def test_the_same_promotion_again_makes_nothing_new(production: Production) -> None:
    production.guarded()
    before = registered(production)
    (before / META).write_text("model_name: guarded.digits\nmodel_version: '1'\n")
    granted = promote_again(production)
    assert granted["guarded"] == {"model": "guarded.digits", "version": "1"} and granted["guarded_error"] is None
    assert registered(production) == before and aliases(production) == {"champion": "1"}


def test_a_model_without_guards_is_promoted_as_before(production: Production) -> None:
    manifest = production.submit()
    production.home.decide(manifest)
    granted = promote(production.settings, "digits", manifest)
    assert granted["guarded"] is None and granted["guarded_error"] is None


def test_guards_that_are_gone_keep_no_promotion_back(production: Production) -> None:
    manifest = production.submit()
    production.home.decide(manifest, guards=attested("0" * 64))
    granted = promote(production.settings, "digits", manifest)
    assert granted["guarded"] is None and "expected the guards of" in granted["guarded_error"]
    assert production.home.aliases() == {"champion": granted["version"]}


def next_version(production: Production) -> str:
    """Another network behind its guards, let pass and not promoted yet; its manifest."""
    production.weights = {key: value + 0.01 for key, value in production.weights.items()}
    manifest = production.submit(supplier="another")
    sha256 = production.keep(manifest, to_bytes(Package(manifest, (production.fitted(),))))
    production.home.decide(manifest, guards=attested(sha256))
    return manifest


def test_aliases_follow_those_of_production_and_go_with_them(production: Production) -> None:
    production.guarded()
    second = next_version(production)
    promote(production.settings, "digits", second)
    assert aliases(production) == aliases(production, "prod.digits") == {"champion": "2", "previous": "1"}
    production.home.decide(second, "FAIL", issued=utc_now() - timedelta(minutes=1))
    assert reconcile(production.settings)["taken_back"]
    assert aliases(production)["champion"] == aliases(production, "prod.digits")["champion"] == "1"


def test_killed_after_any_step_the_next_try_ends_the_same(production: Production) -> None:
    production.guarded()
    second, steps = next_version(production), ["guarded files logged", "guarded version registered"]
    # another name of the same database: a child may not use a connection that its parent has opened
    uri = f"sqlite:///{production.settings.home}/./mlflow.db"
    child = production.settings.model_copy(update={"tracking_uri": uri})
    for step in [*steps, "guarded aliases set"]:
        die_after(step, lambda on_step: promote(child, "digits", second, on_step=on_step))
        # production itself is whole, and whatever is registered is the old or the new one
        assert aliases(production, "prod.digits")["champion"] == "2"
        assert isinstance(load_pyfunc(registered(production), trust(production)), GuardedPyfunc)
    granted = promote(production.settings, "digits", second)
    assert granted["guarded"]["version"] == "2" and aliases(production)["champion"] == "2"


def test_a_version_that_somebody_else_registered_is_loaded_only_as_what_it_is(
    production: Production, mlflow_here: Any
) -> None:
    production.guarded()
    evil = shutil.copytree(registered(production), production.home.room / "evil")
    flip(evil / DATA / MODEL / "model.safetensors")
    with registry(production.settings) as client:
        run = client.create_run(client.create_experiment("e", artifact_location=(production.home.room / "e").as_uri()))
        client.log_artifacts(run.info.run_id, str(evil), "model")
        source = f"{run.info.artifact_uri}/model"
        version = client.create_model_version("guarded.digits", source, run_id=run.info.run_id)
        client.set_registered_model_alias("guarded.digits", "champion", version.version)
    assert registered(production).as_uri() == source
    with pytest.raises(Altered):
        mlflow_here.pyfunc.load_model("models:/guarded.digits@champion")


def test_another_model_s_version_under_this_name_is_refused(production: Production, mlflow_here: Any) -> None:
    production.guarded()
    with registry(production.settings) as client:
        honest = client.get_model_version_by_alias("guarded.digits", "champion")
        client.create_registered_model("guarded.signs")
        client.create_model_version("guarded.signs", honest.source, run_id=honest.run_id)
    with pytest.raises(OtherName, match=r"guarded\.signs"):
        mlflow_here.pyfunc.load_model("models:/guarded.signs/1")
