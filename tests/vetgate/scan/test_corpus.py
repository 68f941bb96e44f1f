"""Every file that attacks its reader is found, by its bytes alone; ordinary ones are not called malicious."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.vetgate.scan.benign import clean, harmless
from tests.vetgate.scan.malicious import Made, malicious
from vetgate.scan.recognise import inspect
from vetgate.scan.rules import RULES, UNFINISHED
from vetgate.scan.scanned import Outcome, outcome_of
from vetgate.scan.source import InMemory
from vetgate.shipped import ROOT


def found_in(name: str, made: Made) -> dict[str, tuple[str, ...]]:
    """The names of the rules that files break, each with what it was said of."""
    files = {name: made} if isinstance(made, bytes) else {f"{name}/{inner}": data for inner, data in made.items()}
    findings = [finding for path, data in files.items() for finding in inspect(path, InMemory(data)).findings]
    assert UNFINISHED.id not in {finding.rule for finding in findings}, findings
    outcome = outcome_of(findings)
    return {outcome.value: tuple(f"{RULES[f.rule].name} {f.member} {f.evidence}" for f in findings)}


def others(corpus: Mapping[str, Made], wanted: Outcome) -> dict[str, dict[str, tuple[str, ...]]]:
    """What came out otherwise."""
    results = {name: found_in(name, made) for name, made in corpus.items()}
    return {name: result for name, result in results.items() if set(result) != {wanted.value}}


@pytest.fixture(scope="module")
def marker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a payload would touch."""
    return tmp_path_factory.mktemp("corpus") / "ran"


@pytest.fixture(scope="module")
def attacks(marker: Path) -> dict[str, Made]:
    """The malicious files."""
    return malicious(marker)


def test_what_attacks_its_reader_is_malicious_and_nothing_of_it_runs(attacks: dict[str, Made], marker: Path) -> None:
    assert len(attacks) >= 200
    assert others(attacks, Outcome.MALICIOUS) == {}
    assert not marker.exists()


def test_what_the_payload_would_do_is_seen_where_it_is_run(tmp_path: Path) -> None:
    """The marker of the corpus would be touched: shown by running its command, not by loading a file."""
    command = malicious(tmp_path / "ran")["protocol-0.pkl"]
    assert isinstance(command, bytes)
    subprocess.run(command.split(b"V")[1].split(b"\n")[0].decode(), shell=True, check=True)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("protocol-2.pkl", "PickleCall"),
        ("gadget-somewhere-anything.pkl", "PickleGlobal"),
        ("stack-global-computed.pkl", "PickleUnresolved"),
        ("rebuild-with-a-call.pkl", "PickleMisuse"),
        ("whole-module.pt", "PickledModule"),
        ("no-stop.pkl", "PickleBroken"),
        ("object.npy", "PickleObjects"),
        ("out-of-bounds.pt", "TensorBounds"),
        ("short-storage.pt", "TensorBounds"),
        ("hidden-pickle.pt", "Unreferenced"),
        ("storage-is-a-pickle.pt", "Polyglot"),
        ("after.zip", "HiddenBytes"),
        ("comment.zip", "HiddenBytes"),
        ("before.zip", "Polyglot"),
        ("hidden-member.zip", "HiddenMember"),
        ("name-differs.zip", "Disagreement"),
        ("crc-differs.zip", "Disagreement"),
        ("wrong-crc.zip", "Corrupt"),
        ("encrypted-flag.zip", "Encrypted"),
        ("up.zip", "UnsafePath"),
        ("tar-link-up.tar", "Link"),
        ("constants.pt2", "ExportedProgram"),
        ("script-constants.pt", "TorchScript"),
        ("safetensors-and-pickle.safetensors", "Polyglot"),
        ("lambda.keras", "KerasCode"),
        ("tag-escaped.yaml", "ConfigCall"),
        ("escaped-key.json", "RemoteCode"),
        ("template.json", "Template"),
        ("program", "Program"),
        ("external-up.onnx", "UnsafePath"),
    ],
)
def test_each_is_found_for_what_it_is(name: str, rule: str, attacks: dict[str, Made]) -> None:
    assert any(said.startswith(f"{rule} ") for said in found_in(name, attacks[name])["malicious"])


def test_ordinary_files_are_clean() -> None:
    corpus = clean()
    assert len(corpus) >= 60
    assert others(corpus, Outcome.CLEAN) == {}


def test_what_is_not_understood_or_not_judged_is_inconclusive() -> None:
    assert others(harmless(), Outcome.INCONCLUSIVE) == {}


@pytest.mark.parametrize("name", ["state.bin", "legacy-state.bin", "values-4.pkl", "model.onnx", "model.safetensors"])
def test_a_file_that_ends_early_or_goes_on_is_not_clean(name: str) -> None:
    whole = clean()[name]
    assert isinstance(whole, bytes)
    cuts = {*range(16, min(len(whole), 80)), len(whole) // 2, len(whole) - 1}
    wrong = [cut for cut in cuts if set(found_in(name, whole[:cut])) == {"clean"}]
    # a pickle may be followed by another one
    after = (b"\x00", b"x", b"\n", b"" if name.endswith(".pkl") else whole)
    wrong += [more[:1] for more in after if more and set(found_in(name, whole + more)) == {"clean"}]
    assert wrong == []


def test_a_name_does_not_hide_what_a_file_is() -> None:
    state = clean()["state.bin"]
    assert isinstance(state, bytes)
    assert "Masquerade" in found_in("weights.safetensors", state)["inconclusive"][0]


def test_the_corpus_is_seen_without_torch_numpy_and_onnx() -> None:
    imported = (
        "import sys, vetgate.scan.recognise; sys.exit(bool({'torch', 'numpy', 'onnx', 'yaml'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", imported], cwd=ROOT, timeout=60).returncode == 0


def test_the_zip_files_of_the_corpus_are_what_others_read_too(tmp_path: Path) -> None:
    """What is called a trick must be one: common readers open these files or the members that they hide."""
    for name in ("hidden-member.zip", "comment.zip", "before.zip", "two-ends.zip"):
        data = malicious(tmp_path / "ran")[name]
        assert isinstance(data, bytes)
        (tmp_path / name).write_bytes(data)
        assert zipfile.is_zipfile(tmp_path / name), name
