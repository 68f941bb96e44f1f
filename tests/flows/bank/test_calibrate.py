"""`vetgate calibrate`: references of one's own, kept as they come, in a calibration that verdicts are held against."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from flows.bank import calibrate
from flows.bank.files import pins
from flows.bank.networks import Recipe
from flows.bank.own import minutes
from flows.cli.commands import main
from flows.params import load_params
from tasks.data.digits import write_digits
from tasks.progress import listening
from tests.quick import clean
from vetgate.verdict.calibration import Bank, MethodPin, Reference, load_calibration

# nothing is judged by these: little training and a short search show as much
RECIPE = Recipe(images=900, epochs=4)
PARAMS = """
neural_cleanse: {starts: 1, sweeps: 4, again: 1, images: 96, named: 1}
data: {invert: 256, confirm: 128, repair: 512, validate: 256, test: 200}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibrate")
    (folder / "params.yaml").write_text(PARAMS)
    return folder


@pytest.fixture
def environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VETGATE_HOME", str(home / "home"))
    monkeypatch.setenv("VETGATE_PARAMS", str(home / "params.yaml"))
    return home


def test_the_command_makes_references_on_a_data_set_and_says_where_they_are(
    environment: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("flows.bank.own.recipe", lambda rows: RECIPE)
    out = environment / "own.json"
    assert main(["calibrate", "digits", "--count", "8", "--jobs", "1", "--out", str(out), "--json"]) == 0
    printed = capfd.readouterr()
    answer = json.loads(printed.out)
    assert "about" in printed.err and "minutes" in printed.err
    assert answer["references"] == 8 and answer["calibration"] == str(out) and answer["accuracy"][0] > 0.5
    made = load_calibration(out)
    assert made is not None and made.stale == ()
    assert {r.data_sha256 for r in made.bank.references} == {answer["data_sha256"]}


def test_what_is_finished_is_not_made_again(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.bank.own.recipe", lambda rows: RECIPE)
    monkeypatch.setattr("flows.bank.train.make", None)
    monkeypatch.setattr("flows.bank.evidence._inspect", None)
    out, again = environment / "own.json", environment / "again.json"
    assert main(["calibrate", "digits", "--count", "8", "--jobs", "1", "--out", str(again), "--json"]) == 0
    assert again.read_bytes() == out.read_bytes()


def test_what_only_compares_labels_has_no_references_where_they_are_few(
    environment: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("flows.bank.own.recipe", lambda rows: RECIPE)
    params, out = environment / "both.yaml", environment / "few.json"
    params.write_text(f"{PARAMS}neuron_inspect: {{images: 16}}\n")
    monkeypatch.setenv("VETGATE_PARAMS", str(params))
    write_digits(environment / "digits.npz")
    with np.load(environment / "digits.npz") as held:
        parity = {name: held[name] % 2 if name.startswith("y") else held[name] for name in held if "names" not in name}
    np.savez(environment / "parity.npz", **parity)
    assert main(["data", "add", "parity", str(environment / "parity.npz"), "--json"]) == 0
    assert main(["calibrate", "parity", "--count", "8", "--jobs", "1", "--out", str(out), "--json"]) == 0, capfd
    made = load_calibration(out)
    assert made is not None and made.stale == ()
    own = [r for r in made.bank.references if r.data == "parity"]
    assert [set(r.seen) for r in own] == [{"neural_cleanse"}] * 8 and {r.classes for r in own} == {2}


@pytest.mark.parametrize(("arguments", "code"), [(["no-such-set"], 2), (["digits", "--count", "3"], 4)])
def test_what_cannot_be_calibrated_is_refused(environment: Path, arguments: list[str], code: int) -> None:
    assert main(["calibrate", *arguments, "--json"]) == code


def test_references_on_other_data_stay_as_long_as_code_and_parameters_are_theirs(tmp_path: Path) -> None:
    def on(data: str, seed: int) -> Reference:
        return Reference(
            data=data, data_sha256=data, image=(1, 8, 8), architecture="x", classes=10, seed=seed, accuracy=1.0, seen={}
        )

    before = Bank(methods={}, references=(on("signs", 1), on("digits", 1)))
    calibrate.write(before, tmp_path / "c.json")
    fresh = Bank(methods={}, references=(on("digits", 2),))

    def other(r: Reference) -> bool:
        return r.data != "digits"

    merged = calibrate.joined(fresh, tmp_path / "c.json", other)
    assert [(r.data, r.seed) for r in merged.references] == [("digits", 2), ("signs", 1)]
    # nothing is taken from a file of another version's form
    (tmp_path / "c.json").write_text((tmp_path / "c.json").read_text().replace('"image"', '"picture"'))
    assert calibrate.joined(fresh, tmp_path / "c.json", other) == fresh


def test_references_stay_beside_those_of_more_methods_and_are_left_out_aloud_where_one_has_changed(
    tmp_path: Path,
) -> None:
    shipped = load_calibration(None)
    assert shipped is not None
    out, methods = tmp_path / "c.json", shipped.bank.methods
    calibrate.write(shipped.bank, out)
    more = MethodPin(code="0" * 64, params={})
    fresh = shipped.bank.references[0].model_copy(update={"data_sha256": "own", "data": "own"})

    joined = calibrate.joined(Bank(methods={**methods, "zeal": more}, references=(fresh,)), out, lambda r: True)
    assert len(joined.references) == len(shipped.bank.references) + 1 and joined.methods == {**methods, "zeal": more}
    assert joined.transfer == shipped.bank.transfer

    said: list[str] = []
    with listening(lambda what, share: None, said.append):
        joined = calibrate.joined(Bank(methods={**methods, "abs": more}, references=(fresh,)), out, lambda r: True)
    assert joined.references == (fresh,)
    (warning,) = said
    assert f"{len(shipped.bank.references)} references of {out}" in warning and "parameters of abs and are" in warning


def test_what_a_user_calibrates_stands_beside_the_shipped_references() -> None:
    shipped = load_calibration(None)
    assert shipped is not None
    now = pins(load_params())
    assert {name: now[name] for name in shipped.bank.methods} == shipped.bank.methods


def test_an_estimate_grows_with_networks_images_and_classes_and_shrinks_with_cores() -> None:
    torch.set_num_threads(1)
    wanted, recipe = clean(), Recipe(images=1000, epochs=10)
    one = minutes(wanted, recipe, (1, 8, 8), 10, 1)
    assert 0 < minutes(wanted[:1], recipe, (1, 8, 8), 10, 1) < one
    assert minutes(wanted, recipe, (1, 8, 8), 10, 4) < one
    assert minutes(wanted, Recipe(images=1000, epochs=1000), (1, 8, 8), 10, 1) > one
