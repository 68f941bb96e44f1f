"""A vetting killed with SIGKILL at one step after another ends, once it is let, as if nothing had happened."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from tasks.mlflow.client import registry
from tasks.records.ledger_verify import verify_ledger
from tasks.settings import Settings
from tasks.store.base import Store
from tasks.store.open import open_store
from tests import killing
from tests.databases import with_fixed_seeds
from tests.killing import Turn

# one write of each step of the flow; benchmarks/kills.py goes through every write there is
STEPS = r"submissions|store create leases|invocations|evidence|guards|mlflow create_run|create_model_version"
STEPS += r"|reports|results"

ONCE = ("attestations", "evidence", "inspections", "reports", "results", "verdicts")


@pytest.fixture
def own(tmp_path: Path, environment: dict[str, str], installation: dict[str, str]) -> dict[str, str]:
    """The environment of an installation of its own, with the seeds of all tests."""
    return {**environment, **installation, "VETGATE_HOME": str(with_fixed_seeds(tmp_path / "home"))}


def test_killed_at_every_step_it_ends_as_if_undisturbed(own: dict[str, str], honest: Path, tmp_path: Path) -> None:
    killed: list[str] = []
    with killing.vettings(own) as vet:
        while (whole := vet(Turn(own["VETGATE_HOME"], str(honest), "killed", STEPS, killed))).point is not None:
            killed.append(whole.point)

    assert len(killed) == 11, killed
    assert whole.result is not None and whole.result["verdict"] == "PASS", whole
    settings = Settings(home=tmp_path / "home")
    store, manifest = open_store(settings), whole.result["manifest_sha256"]
    assert kinds(store, manifest) == {**dict.fromkeys(ONCE, 1), "guards": 2}, "of guards the file and its record"
    # killed once after it had begun, before it could save what it found; never again after that
    begun = Counter(key.split("/")[2] for key in store.list(f"invocations/{manifest}/"))
    assert begun == {"neural_cleanse": 2, "guard": 3}
    lease = json.loads(store.read(f"leases/{manifest}.json"))
    assert lease["done"] and lease["attempt"] == 0
    verify_ledger(settings)
    with registry(settings) as client:
        (run,) = client.search_runs([client.get_experiment_by_name("vetgate").experiment_id])
        (version,) = client.search_model_versions("name = 'thirdparty.digits-honest'")
    assert run.info.status == "FINISHED" and version.run_id == run.info.run_id == whole.result["mlflow_run"]


def kinds(store: Store, manifest: str) -> dict[str, int]:
    """How many objects of each kind there are about a submission, besides what came in and who was at work."""
    found = Counter(key.split("/")[0] for key in store.list("") if f"/{manifest}/" in key)
    return {kind: n for kind, n in found.items() if kind not in ("quarantine", "invocations")}
