from __future__ import annotations

import ast
from pathlib import Path

import pytest
import yaml

from flows.params import load_params, needs, uses
from vetgate.errors import BadPolicy

ROOT = Path(__file__).parent.parent.parent.parent


@pytest.mark.parametrize(
    "arguments",
    [
        ("vett", "."),
        ("vet",),
        ("vet", ".", "--jso"),
        ("promote",),
        ("verify", "."),
        ("data", "add", "x"),
        ("bench", "--second", "--sealed"),
        ("bench", "--rate", "0.7"),
    ],
)
def test_a_wrong_command_line_ends_with_4(vetgate, arguments):
    done = vetgate(*arguments)

    assert done.code == 4 and done.err.startswith("error: ") and not done.out


def test_with_json_a_wrong_command_line_is_still_one_object(vetgate):
    done = vetgate("promote", "--json")

    assert done.code == 4 and done.blob["exit_code"] == 4


def test_a_directory_that_is_not_there_is_a_usage_error(vetgate, tmp_path):
    assert vetgate("vet", tmp_path / "nothing").code == vetgate("submit", tmp_path / "nothing").code == 4


def test_a_wrong_setting_or_policy_is_a_usage_error(vetgate, honest, tmp_path):
    policy = tmp_path / "policy.yaml"
    policy.write_text("name: x\nrequired: [neural_cleanse]\nstrictness: 11\n")

    assert vetgate("status", VETGATE_STORE="ftp://somewhere").code == 4
    assert "strictness" in (refused := vetgate("vet", honest, "--json", VETGATE_POLICY=policy)).blob["error"]
    assert refused.code == 4


def test_what_was_submitted_is_listed_until_it_has_a_verdict(vetgate, honest, tmp_path):
    own = {"VETGATE_HOME": tmp_path / "home"}
    manifest = vetgate("submit", honest, "--json", **own).blob["manifest_sha256"]

    (row,) = vetgate("status", "--json", **own).blob["submissions"]

    assert (row["manifest_sha256"], row["verdict"]) == (manifest, None)
    assert vetgate("report", manifest[:12], **own).code == 4


def test_an_unexpected_error_is_short_and_its_traceback_is_kept(alone, honest, tmp_path):
    broken = "import tasks.vetting.intake; tasks.vetting.intake.take = lambda *a, **k: 1 / 0"

    done = alone("submit", honest, "--json", prelude=broken, VETGATE_HOME=tmp_path)

    assert done.code == 2 and "ZeroDivisionError" in done.blob["error"] and "Traceback" not in done.err
    (log,) = (tmp_path / "logs").iterdir()
    assert "Traceback" in log.read_text()


def test_data_sets_are_listed_with_their_digests(vetgate, tmp_path):
    assert vetgate("data", "list", "--json", VETGATE_HOME=tmp_path).blob == {"data": []}
    assert vetgate("data", "add", "faces", tmp_path / "none.npz", VETGATE_HOME=tmp_path).code in (2, 4)


def test_every_deployment_names_a_flow_that_exists():
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]

    assert {d["work_pool"]["name"] for d in deployments} == {"vet", "gate"}
    for deployment in deployments:
        file, _, name = deployment["entrypoint"].partition(":")
        flows = [n.name for n in ast.parse((ROOT / file).read_text()).body if isinstance(n, ast.FunctionDef)]
        assert name in flows and deployment["concurrency_limit"]["collision_strategy"] == "ENQUEUE"


def test_shipped_params_fit_the_signatures():
    params = load_params()

    assert list(params.detect) and "clean" in needs("detect", "neural_cleanse")
    assert uses("neural_cleanse_unlearning") == "triggers"


@pytest.mark.parametrize("text", ["neural_cleanse: {speed: 9}", "neural_cleanse: {starts: two}", "clense: {}", "a: 1"])
def test_params_that_no_method_has_are_refused(tmp_path, text):
    file = tmp_path / "params.yaml"
    file.write_text(text)

    with pytest.raises(BadPolicy):
        load_params(file)
