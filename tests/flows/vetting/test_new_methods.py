"""A detector, a repair and a format, one new file each, and the whole line takes them: no other file is touched.

In a copy of the code stand only the three files, and their sections in params.yaml, policy and members.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
DETECTOR = '''"""A white square that sends nearly every image to one label is a backdoor, wherever it stands.

Source    None: a worked example.
"""

from __future__ import annotations

import torch

from vetgate.contract import Evidence, Subject, Trigger, detector
from vetgate.probe import logits
from vetgate.role import Axis, By, Confirm, Role

ROLE = Role(
    axis=Axis.CLASS,
    weight=1.0,
    null=By.LABEL,
    confirm=Confirm.HELD_OUT_AND_SECOND_START,
    title="Swept square",
    sentence="Stamps a white square everywhere and counts who follows.",
    gives=("triggers",),
)


@detector(role=ROLE, needs={"clean"}, paper="https://example.org/square")
def swept_square(subject: Subject, *, side: int = 3, images: int = 96) -> Evidence:
    """Score labels by the share of images that the best square of `side` pixels sends there."""
    x, y = subject.clean.x[:images], subject.clean.y[:images]
    shares, masks = [], []
    for row in range(x.shape[2] - side + 1):
        for column in range(x.shape[3] - side + 1):
            mask = torch.zeros(1, *x.shape[2:])
            mask[:, row : row + side, column : column + side] = 1
            said = logits(subject.model, (1 - mask) * x + mask).argmax(1)
            others = [said[y != k] == k for k in range(subject.classes)]
            shares.append(torch.stack([hit.float().mean() for hit in others]))
            masks.append(mask)
    best, where = torch.stack(shares).max(0)
    triggers = tuple(Trigger(masks[i], masks[i].expand(x.shape[1:]), k) for k, i in enumerate(where.tolist()))
    return Evidence(
        statistic=float(best.max() - best.median()),
        scores=best.float(),
        cutoff=0.8,
        triggers=triggers,
        details={"held_out": best.tolist(), "second_start": best.tolist()},
    )
'''
REPAIR = '''"""Train on the rows that no detector flagged.

Source    None: a worked example.
"""

from __future__ import annotations

import torch

from vetgate.contract import Evidence, Repair, Subject, repair
from vetgate.role import RepairRole

ROLE = RepairRole(uses="flagged", title="Row removal", sentence="Trains on the rows that were not flagged.")


@repair(role=ROLE, needs={"train"}, paper="https://example.org/removal")
def row_removal(subject: Subject, *evidence: Evidence, steps: int = 20, lr: float = 0.01) -> Repair:
    """Take `steps` of Adam on all rows that are left."""
    kept = ~torch.stack([item.flagged for item in evidence]).any(0)
    rows = subject.train[kept]
    model = subject.model.requires_grad_(True)
    optimiser = torch.optim.Adam(model.parameters(), lr)
    for _ in range(steps):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(rows.x), rows.y).backward()
        optimiser.step()
    return Repair(model, {"rows_removed": float((~kept).sum())})
'''
FORMAT = '''"""Mirrored safetensors: the same bytes from the last to the first."""

from __future__ import annotations

from vetgate.formats.readers import Format, safetensors


def sniff(data: bytes) -> bool:
    return data[::-1][8:9] == b"{"


def turned(members):
    return {name: data[::-1] for name, data in members.items()}


FORMAT = Format(
    accepts="mirrored safetensors",
    sniff=sniff,
    inspect=lambda members, submission: safetensors.inspect(turned(members), submission),
    canonical=lambda members, submission: (
        submission.model_copy(update={"format": "safetensors"}),
        turned(members)[submission.model],
    ),
    needs_architecture=True,
)
'''
PARAMS = """
swept_square: {}
spectral_signatures: {poison_share: 0.1}
row_removal: {steps: 10}
data: {invert: 128, confirm: 64, repair: 256, validate: 128, test: 128}
bank: {sets: {digits: {images: 600, epochs: 8}}}
"""
POLICY = """
name: new
required: [swept_square]
sandbox_level: {mirrored: 1, safetensors: 1}
repair: {methods: [row_removal]}
"""
MEMBERS = """
members:
  bad: {data: digits, attack: badnets, architecture: small-cnn, seed: 5, options: {size: 3}}
"""
SCRIPT = """
def main():
    import json
    import os
    from pathlib import Path

    # one worker at a time is enough, and cheaper
    os.cpu_count = lambda: 1

    import docs.methods
    import safetensors.torch
    from flows.bank import stage as bank_stage
    from flows.bank import calibrate
    from flows.bank.networks import BANK, Recipe
    from flows.bank.own import references
    from flows.bank.stage import CARDS, EVIDENCE, REPAIRS, WEIGHTS
    from flows.params import load_params
    from tasks.report.page import render
    from tasks.sandbox.host import Sandbox
    from tasks.settings import load_settings
    from tasks.vetting.results import Result
    from vetgate.architectures import ARCHITECTURES
    from vetgate.verdict.calibration import load_calibration
    from vetgate.contract import DETECTORS, REPAIRS as KNOWN, Evidence
    from vetgate.verdict.findings import findings
    from vetgate.formats.submission import read_submission
    from vetgate.verdict.judge import judge
    from vetgate.verdict.policy import Policy, load_policy
    from vetgate.verdict.stated import StatedVerdict

    outcome, settings, params = {}, load_settings(), load_params()
    outcome["default formats"] = sorted(Policy(name="x", required=("y",)).promote_formats)
    outcome["default repairs"] = Policy(name="x", required=("y",)).repair.methods

    # the bank: train, inspect, repair
    bank_stage.look()
    bank_stage.member("bad")
    bank_stage.evidence("swept_square", "digits")
    bank_stage.repairs("row_removal", "digits")
    outcome["bank evidence"] = sorted(json.loads((EVIDENCE / "swept_square-digits.json").read_text())["members"]["bad"])
    outcome["bank repair"] = json.loads((REPAIRS / "row_removal-digits.json").read_text())["members"]["bad"]
    card = json.loads((CARDS / "bad.json").read_text())

    # calibrate
    recipe = Recipe(images=600, epochs=8)
    clean = [m.model_copy(update={"attack": "clean", "options": {}}) for m in references("digits", 8, ("small-cnn",))]
    calibrate.own(settings, params, clean, recipe, settings.calibration, jobs=1)
    calibration = load_calibration(settings.calibration)

    # vet: a submission in the new format, in the sandbox
    room = Path.cwd() / "room"
    given, out = room / "given", room / "out"
    given.mkdir(parents=True)
    out.mkdir()
    weights = safetensors.torch.load_file(WEIGHTS / "digits" / "bad.safetensors")
    state = {k.removeprefix("model."): v for k, v in weights.items() if k.startswith("model.")}
    (given / "model.bin").write_bytes(safetensors.torch.save(state)[::-1])
    (given / "submission.yaml").write_text(
        "{name: new, supplier: x, task: image-classification, model: model.bin, format: mirrored,"
        " architecture: small-cnn, input_shape: [1, 8, 8], classes: 10, reference_data: digits}"
    )
    submission = read_submission(given).model_dump(mode="json")
    model = {"directory": str(given), "submission": submission}
    read = {**model, "out": str(out / "canonical")}
    source = bank_stage._source("digits")
    with Sandbox(scratch=out, read_only=[given], level=1) as sandbox:
        answer = sandbox.call("inspect", read)
    (kept := room / "kept").mkdir()
    (kept / "model.bin").write_bytes((out / "canonical").read_bytes())
    outcome["changes"] = answer["changes"]
    submission |= answer["changes"]
    model = {"directory": str(kept), "submission": submission}
    case = {**model, "clean": [str(source.splits.invert), str(source.splits.confirm)]}
    rows = room / "rows.safetensors"
    safetensors.torch.save_file({k: v[:200] for k, v in safetensors.torch.load_file(source.training).items()}, rows)
    with Sandbox(scratch=out, read_only=[room, Path(source.splits.invert).parent], level=1) as sandbox:
        outcome["parameters"] = sandbox.call("describe", model)["parameters"]
        asked = {"method": "swept_square", "params": params.detect["swept_square"], "seed": 1}
        found = sandbox.call("detect", {**case, **asked})
        flagged = sandbox.call("detect", {**model, "train": [str(rows)], "method": "spectral_signatures",
                                          "params": params.detect["spectral_signatures"], "seed": 1})
        written = sandbox.call("repair", {**model, "train": [str(rows)], "method": "row_removal", "seed": 1,
                                         "params": params.repair["row_removal"], "evidence": [flagged["evidence"]],
                                         "parent": "0" * 64, "out": str(out / "repaired")})
        repaired = {"directory": written["directory"], "submission": submission | {"parent": "0" * 64}}
        outcome["repaired parameters"] = sandbox.call("describe", repaired)["parameters"]

    # judge
    evidence = Evidence.from_json(found["evidence"])
    verdict = judge([evidence], load_policy(settings.policy), calibration, classes=10, data_sha256=card["data_sha256"],
                    with_training_data=False, sandbox_level=1, format="safetensors", input_shape=[1, 8, 8],
                    data_name="digits").to_json()
    outcome["verdict"], outcome["target"] = verdict, card["target"]
    outcome["findings"] = findings(verdict)

    # report and docs
    result = {"submission": "new", "manifest_sha256": "0" * 64, "verdict": verdict["decision"], "seconds": 1.0,
              "p_value": verdict["p_value"], "calibrated": verdict["calibrated"], "suspects": verdict["suspects"],
              "methods": [{k: m[k] for k in ("name", "statistic", "alarmed", "suspects", "failure")} | {"seconds": 1.0}
                          for m in verdict["methods"]],
              "repair": None, "report": "report.html", "attestation": "attestation.json", "mlflow_run": None,
              "sandbox_level": 1, "reasons": verdict["reasons"], "reason_records": verdict["reason_records"]}
    page = render(Result.from_json(result), evidence=[found["evidence"]], verdict=StatedVerdict.from_json(verdict))
    outcome["report"] = page
    outcome["docs"] = docs.methods.render(list(DETECTORS.values()), list(KNOWN.values()))
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
"""


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the whole line said of the three new files."""
    house = tmp_path_factory.mktemp("house")
    for folder in ("vetgate", "tasks", "flows", "docs", "infra/policies"):
        shutil.copytree(ROOT / folder, house / folder, ignore=shutil.ignore_patterns("*.png"))
    files = {
        "vetgate/detect/swept_square.py": DETECTOR,
        "vetgate/repair/row_removal.py": REPAIR,
        "vetgate/formats/readers/mirrored.py": FORMAT,
        "params.yaml": PARAMS,
        "policy.yaml": POLICY,
        "infra/bank/members.yaml": MEMBERS,
        "line.py": SCRIPT,
    }
    for name, text in files.items():
        (house / name).parent.mkdir(parents=True, exist_ok=True)
        (house / name).write_text(text)
    settings = {
        "VETGATE_HOME": str(house / "home"),
        "VETGATE_POLICY": str(house / "policy.yaml"),
        "VETGATE_CALIBRATION": str(house / "calibration.json"),
        "PYTHONPATH": str(house),
    }
    done = subprocess.run(
        [sys.executable, "line.py"], cwd=house, env=os.environ | settings, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_the_bank_takes_them_and_measures_a_repair_by_flagged_rows(outcome: dict[str, Any]) -> None:
    assert {"statistic", "scores", "targets"} <= set(outcome["bank evidence"])
    repaired = outcome["bank repair"]
    assert {"accuracy", "attack_success"} <= set(repaired) and len(repaired["accuracy"]) == 2


def test_the_sandbox_reads_the_format_and_writes_it_anew(outcome: dict[str, Any]) -> None:
    assert outcome["repaired parameters"] == outcome["parameters"] > 0
    assert outcome["changes"] == {"format": "safetensors"}
    assert outcome["default formats"] == ["onnx", "safetensors"] and "row_removal" in outcome["default repairs"]


def test_the_judge_holds_it_against_its_own_references(outcome: dict[str, Any]) -> None:
    verdict = outcome["verdict"]
    assert verdict["calibrated"] and verdict["calibration"]["references"] == 8
    assert (verdict["decision"], verdict["suspects"]) == ("FAIL", [outcome["target"]])
    assert outcome["findings"] == [f"backdoor:label-{outcome['target']}"]


def test_report_and_docs_name_them(outcome: dict[str, Any]) -> None:
    assert "Swept square" in outcome["report"] and "counts who follows" in outcome["report"]
    for words in (
        "### swept_square",
        "### row_removal",
        "Row removal",
        "Stamps a white square",
        "with flagged",
    ):
        assert words in outcome["docs"]
