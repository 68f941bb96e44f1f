"""The main job end to end on scikit-learn's digits: an honest and a trojaned model, vetted, repaired, promoted."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from flows.production.guarded import guarded_load
from tasks.store.open import open_store
from tasks.vetting.intake import read_record, seed_of
from vetgate import shipped
from vetgate.guard.guarded import Outcome
from vetgate.trust import attest
from vetgate.verdict.policy import load_policy

RESULT = ["submission", "manifest_sha256", "verdict", "p_value", "calibrated", "suspects", "methods", "repair"]
RESULT += [
    "report",
    "attestation",
    "mlflow_run",
    "sandbox_level",
    "seconds",
    "reasons",
    "reason_records",
    "repairs",
    "guards",
    "submitted_sha256",
    "first_look",
    "weights_sha256",
    "match_weights_by",
]
METHOD = ["name", "statistic", "alarmed", "suspects", "failure", "seconds", "counted"]
REPAIR = ["method", "artifact", "submission", "verdict", "p_value", "clean_accuracy", "attack_success"]
REPAIR += ["robust_accuracy"]


@pytest.fixture(scope="module")
def passed(vetgate, honest):
    return vetgate("vet", honest, "--json")


@pytest.fixture(scope="module")
def failed(vetgate, trojaned):
    return vetgate("vet", trojaned, "--json")


def test_an_honest_model_passes(passed):
    result = passed.blob

    assert (passed.code, result["verdict"], result["suspects"]) == (0, "PASS", []), passed
    assert list(result) == RESULT and [list(method) for method in result["methods"]] == [METHOD] * 6
    assert result["p_value"] > 0.05 and result["calibrated"] and result["repair"] is None
    assert "no script" not in Path(result["report"]).read_text() and result["mlflow_run"]


def test_it_says_first_how_long_the_detectors_will_take(passed):
    assert re.search(r"\d detectors on 10 labels, about \d+ (s|min)", passed.err), passed.err


def test_vetting_the_same_once_more_opens_no_model_and_asks_mlflow_nothing(passed, alone, honest, home):
    before = (home / "mlflow.db").read_bytes()
    # a sandbox that started would fail, and so would MLflow
    prelude = "import sys, tasks.sandbox.host\nsys.modules['mlflow'] = None\ndel tasks.sandbox.host.Sandbox._attend"

    again = alone("vet", honest, "--json", prelude=prelude)

    assert again.code == 0, again.err
    assert {**again.blob, "seconds": None} == {**passed.blob, "seconds": None}
    assert (home / "mlflow.db").read_bytes() == before


def test_a_result_of_an_earlier_version_is_read_and_not_published_again(passed, alone, honest, settings):
    (key,) = open_store(settings).list(f"results/{passed.blob['manifest_sha256']}/")
    file = Path(settings.store, key)
    said = file.read_bytes()
    file.chmod(0o644)
    prelude = "import sys\nsys.modules['mlflow'] = None"
    try:
        file.write_text(json.dumps({name: value for name, value in json.loads(said).items() if name != "repairs"}))
        again = alone("vet", honest, "--json", prelude=prelude)
    finally:
        file.write_bytes(said)

    assert again.code == 0, again.err
    assert again.blob["repairs"] == [] and again.blob["mlflow_run"] == passed.blob["mlflow_run"]


def test_an_inspection_that_was_altered_is_not_believed_and_made_anew(vetgate, passed, honest, settings):
    keys = list(open_store(settings).list(f"inspections/{passed.blob['manifest_sha256']}/"))
    (key,) = (key for key in keys if b'"described"' in open_store(settings).read(key))
    file = Path(settings.store, key)
    said = file.read_bytes()
    file.chmod(0o644)
    try:
        file.write_bytes(said.replace(b'"found":{', b'"found":{"more":1,'))
        assert file.read_bytes() != said
        done = vetgate("vet", honest, "--json")
    finally:
        file.write_bytes(said)

    assert done.code == 0 and done.blob["verdict"] == "PASS"
    assert len(list(open_store(settings).list(f"inspections/{passed.blob['manifest_sha256']}/"))) == len(keys) + 1


def test_no_file_of_the_installation_tells_a_seed(passed, failed, home, settings):
    manifests = [passed.blob["manifest_sha256"], failed.blob["manifest_sha256"], failed.blob["repair"]["submission"]]
    records = [read_record(open_store(settings), manifest) for manifest in manifests]
    numbers = [str(seed_of(settings, record).number).encode() for record in records]
    files = [path for path in Path(home).rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"mlflow.db", "prefect.db", "report.html", "attestation.json"} <= names and len(files) > 50
    assert [path for path in files if any(number in path.read_bytes() for number in numbers)] == []


def test_a_trojaned_model_fails_and_names_its_label(failed):
    result = failed.blob

    assert (failed.code, result["verdict"], result["suspects"]) == (1, "FAIL", [3]), failed
    assert result["p_value"] <= 0.05


def test_the_repaired_model_is_a_submission_of_its_own_that_passes(failed, home, settings):
    repair = failed.blob["repair"]

    assert list(repair) == REPAIR and repair["verdict"] == "PASS"
    assert repair["attack_success"][0] > 0.7 and repair["attack_success"][1] < 0.2
    assert repair["robust_accuracy"][0] < 0.3 and repair["robust_accuracy"][1] > 0.6
    assert repair["clean_accuracy"][0] - repair["clean_accuracy"][1] <= 0.05
    assert Path(repair["artifact"]).is_file()
    record = read_record(open_store(settings), repair["submission"])
    assert record.submission.parent == failed.blob["manifest_sha256"]


def test_every_repair_of_the_policy_is_shown_with_its_figures(failed):
    repairs = {one["method"]: one for one in failed.blob["repairs"]}
    assert tuple(repairs) == load_policy().repair.methods
    candidate = repairs[failed.blob["repair"]["method"]]
    assert all(one["figures"] or one["reason"] for one in repairs.values())

    assert candidate["standing"] == "chosen" and candidate["reason"] is None
    figures = candidate["figures"]
    assert figures["lost"]["images"] > 0 and figures["lost"]["error"] >= 0
    loss = figures["clean_accuracy"][0] - figures["clean_accuracy"][1]
    assert figures["lost"]["loss"] == pytest.approx(loss, abs=1e-6)
    assert figures["attack_success"][0] > 0.7 and figures["anew"] < 0.3
    (size,) = figures["trigger_sizes"]
    assert size["label"] == 3 and 0 < size["before"] < size["after"]
    page = Path(failed.blob["report"]).read_text()
    assert "Repairs tried" in page and "Submitted model" in page and "reversed anew" in page


def test_promotion_lets_the_honest_and_the_repaired_through_and_refuses_the_trojaned(vetgate, passed, failed):
    bad, good = failed.blob["manifest_sha256"], failed.blob["repair"]["submission"]

    assert vetgate("promote", "digits-honest", "--json").blob["manifest_sha256"] == passed.blob["manifest_sha256"]
    refused = vetgate("promote", "digits-trojaned", "--submission", bad, "--json")
    assert refused.code == 1 and "FAIL" in refused.blob["error"]
    assert vetgate("promote", "digits-trojaned", "--json").blob["manifest_sha256"] == good


def test_a_vetting_leaves_behind_what_guards_the_model_whatever_the_verdict(passed, failed):
    for done in (passed, failed):
        guards = done.blob["guards"]
        assert guards["action"] == "reject" and len(guards["guards"]) == len(load_policy().guard.methods)
        for one in guards["guards"]:
            assert one["chosen"] and one["reason"] is None and one["rate"] > 0 and one["batch"]["slowdown"] > 1
            assert 0 <= one["detection"] <= 1 and one["false_rejections"] <= 3 * one["rate"]
        assert guards["false_rejections"] <= 3 * guards["rate"] == pytest.approx(0.15)
        stated = attest.claims(attest.read_envelope(Path(done.blob["attestation"]).read_bytes()))["guards"]
        assert stated["package"] == guards["package"] and stated["action"] == "reject"
        assert [one["name"] for one in stated["chosen"]] == [one["name"] for one in guards["guards"]]


def test_what_was_promoted_is_served_behind_its_guards(vetgate, passed, settings, digits):
    vetgate("promote", "digits-honest", "--json")
    found = guarded_load("models:/prod.digits-honest@champion", settings)

    assert found.coverage.manifest == passed.blob["manifest_sha256"]
    answers = found.guarded.predict(digits.x[:200])
    assert sum(a.outcome is Outcome.ACCEPT for a in answers) >= 160
    assert sum(a.label == int(y) for a, y in zip(answers, digits.y[:200], strict=True)) >= 150


def test_verify_accepts_the_vetted_bytes_only(vetgate, passed, honest, tmp_path):
    named = ("--attestation", passed.blob["attestation"], "--name", "digits-honest")
    altered = tmp_path / "altered"
    shutil.copytree(honest, altered)
    with (altered / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))

    assert vetgate("verify", honest, *named).code == 0
    assert vetgate("verify", altered, *named).code == 1
    assert vetgate("verify", honest, "--attestation", passed.blob["attestation"], "--name", "other").code == 1


def test_the_host_of_a_vetting_never_imports_torch(passed):
    assert "prefect" in passed.modules and "torch" not in passed.modules


def test_vetting_again_redoes_no_method(vetgate, passed, honest, settings):
    log = f"invocations/{passed.blob['manifest_sha256']}/"
    before = list(open_store(settings).list(log))

    again = vetgate("vet", honest, "--json")

    assert again.code == 0 and list(open_store(settings).list(log)) == before
    assert again.blob["p_value"] == passed.blob["p_value"]


def test_the_same_bytes_are_the_same_submission(vetgate, passed, honest, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(honest, elsewhere)

    first, second = vetgate("submit", honest, "--json"), vetgate("submit", elsewhere, "--json")

    assert first.code == 0 and first.blob == second.blob
    assert first.blob["manifest_sha256"] == passed.blob["manifest_sha256"]


def test_a_policy_that_demands_more_than_the_host_gives_is_inconclusive(vetgate, honest, tmp_path):
    policy = tmp_path / "policy.yaml"
    policy.write_text("name: strict\nrequired: [neural_cleanse]\nsandbox_level: {safetensors: 4}\n")

    done = vetgate("vet", honest, "--json", VETGATE_POLICY=policy)

    assert done.code == 3 and done.blob["verdict"] == "INCONCLUSIVE"
    assert "sandbox level 4" in done.blob["reasons"][0]


def test_a_method_that_runs_out_of_time_fails_closed_and_is_tried_again(vetgate, honest, quick, tmp_path, settings):
    policy = tmp_path / "policy.yaml"
    policy.write_text("name: hasty\nrequired: [neural_cleanse]\ntimeout_seconds: 3\nguard: {enabled: false}\n")
    params = tmp_path / "params.yaml"
    params.write_text("neural_cleanse: {starts: 3, sweeps: 5000, batch: 32, lr: 0.1, first: 0.001, patience: 5000}\n")
    own = {"VETGATE_POLICY": policy, "VETGATE_PARAMS": params}
    tried = []

    for _ in range(2):
        done = vetgate("vet", honest, "--json", **own)
        failure = done.blob["methods"][0]["failure"]
        assert done.code == 3 and "3 s" in failure and "timeout_seconds in the policy" in failure
        tried.append(len(list(open_store(settings).list(f"invocations/{done.blob['manifest_sha256']}/"))))

    assert tried[1] == tried[0] + 1


def test_evidence_that_cannot_be_saved_makes_the_run_fail(vetgate, honest, quick, home, tmp_path):
    store = tmp_path / "store"
    manifest = vetgate("submit", honest, "--json", VETGATE_STORE=store).blob["manifest_sha256"]
    (store / "evidence").mkdir()
    (store / "evidence" / manifest).write_text("where a directory should be")

    done = vetgate("vet", honest, "--json", VETGATE_STORE=store, **quick)

    assert done.code == 2 and "evidence" in done.blob["error"] and "Traceback" not in done.err
    assert last_state(home) == "FAILED"
    assert not list(open_store(str(store)).list("verdicts/"))


def test_a_blind_repair_hardens_a_copy_that_is_vetted_itself_and_without_a_basis_it_is_skipped(
    vetgate, passed, honest, tmp_path
):
    policy = tmp_path / "policy.yaml"
    policy.write_text(shipped.POLICY.read_text().replace("blind: false", "blind: true "))

    done = vetgate("vet", honest, "--json", VETGATE_POLICY=policy)

    assert (done.code, done.blob["verdict"]) == (0, "PASS"), done
    hardened, found = done.blob["repair"], {one["method"]: one for one in done.blob["repairs"]}
    assert hardened["verdict"] == "PASS" and hardened["submission"] != passed.blob["manifest_sha256"]
    # no trigger, nothing to measure: not a proof that none is left
    assert hardened["attack_success"] == [None, None]
    assert {name: one["standing"] for name, one in found.items()} == {
        "neural_cleanse_unlearning": "skipped",
        "sharpened_unlearning": "skipped",
        hardened["method"]: "chosen",
        "remove_and_retrain": "skipped",
    }
    assert "a trigger that leads to a suspected label" in found["sharpened_unlearning"]["reason"]
    assert "training rows that a detector flags" in found["remove_and_retrain"]["reason"]
    assert "skipped" in Path(done.blob["report"]).read_text()

    promoted = {
        asked: vetgate("promote", "digits-honest", *asked, "--alias", "challenger", "--json", VETGATE_POLICY=policy)
        for asked in ((), ("--hardened",))
    }
    assert promoted[()].blob["manifest_sha256"] == done.blob["manifest_sha256"]
    granted = promoted["--hardened",].blob
    assert (granted["manifest_sha256"], granted["hardens"]) == (hardened["submission"], done.blob["manifest_sha256"])
    none = vetgate("promote", "digits-bargain", "--hardened", "--json", VETGATE_POLICY=policy)
    assert none.code == 1 and "repair.blind" in none.blob["error"]


def last_state(home: Path) -> str:
    """How the newest flow run ended, as Prefect has it."""
    with closing(sqlite3.connect(home / "prefect" / "prefect.db")) as database:
        return database.execute("select state_type from flow_run order by created desc limit 1").fetchone()[0]
