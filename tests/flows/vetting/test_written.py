"""What is vetted is a file that vetgate wrote: the one handed in is read, written anew, kept, and never served."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml

from flows.vetting.submit import queue
from tasks.records.ledger_state import ledger_state
from tasks.records.submitters import save_submitter, sign_submission, submitters_of
from tasks.store.open import open_store
from tasks.vetting.conversion import canonical_of, is_canonical
from tasks.vetting.intake import read_record, take
from tasks.vetting.queue import waiting
from vetgate.architectures import ARCHITECTURES
from vetgate.formats.manifest import hash_directory
from vetgate.formats.submission import read_submission
from vetgate.trust import attest
from vetgate.trust.keys import load_key, read_trust_root


@pytest.fixture(scope="module")
def exported(honest, tmp_path_factory):
    """The honest network as its supplier exports it: an ONNX file, with names and notes of his own."""
    described = read_submission(honest)
    network = ARCHITECTURES["small-cnn"](described.input_shape, described.n_classes).eval()
    network.load_state_dict(safetensors.torch.load_file(honest / described.model))
    directory = tmp_path_factory.mktemp("exported")
    image = torch.zeros(1, *described.input_shape)
    with torch.no_grad():
        torch.onnx.export(network, (image,), directory / "net.onnx", dynamo=False, opset_version=13)
    fields = yaml.safe_load((honest / "submission.yaml").read_text())
    del fields["architecture"]
    fields |= {"name": "exported", "model": "net.onnx", "format": "onnx"}
    (directory / "submission.yaml").write_text(yaml.safe_dump(fields))
    (directory / "README.md").write_text("What the supplier says of it.")
    return directory


@pytest.fixture(scope="module")
def vetted(vetgate, exported):
    return vetgate("vet", exported, "--json")


def test_the_verdict_is_on_what_vetgate_wrote_and_names_what_was_handed_in(vetted, exported, settings):
    handed_in = hash_directory(exported).sha256
    result, store = vetted.blob, open_store(settings)
    assert (vetted.code, result["verdict"]) == (0, "PASS"), vetted
    assert result["submitted_sha256"] == handed_in != result["manifest_sha256"]

    trust = read_trust_root(settings.trust_root)
    written = read_record(store, result["manifest_sha256"])
    assert is_canonical(store, trust, written) and not is_canonical(store, trust, read_record(store, handed_in))
    assert canonical_of(store, trust, handed_in) == written.id
    assert {entry.path for entry in written.manifest.files} == {"model.onnx", "submission.yaml", "README.md"}
    assert b"pytorch" not in store.read(f"quarantine/{written.id}/model.onnx") and written.submission.name == "exported"
    claims = attest.claims(json.loads(Path(result["attestation"]).read_text()))
    assert claims["submitted"] == handed_in and claims["verdict"] == "PASS"


def test_the_same_network_in_another_form_has_learned_the_same(vetted, vetgate, honest):
    assert vetgate("vet", honest, "--json").blob["weights_sha256"] == vetted.blob["weights_sha256"] is not None


def test_it_is_one_submission_to_whoever_asks(vetted, vetgate, exported, settings):
    rows = [row for row in queue(settings, print) if row["submission"] == "exported"]
    assert [(row["manifest_sha256"], row["verdict"]) for row in rows] == [(vetted.blob["manifest_sha256"], "PASS")]
    assert rows[0]["submitted"] == hash_directory(exported).sha256
    state = ledger_state(settings)
    left = [item.record.id for item in waiting(settings, lambda manifest: state.verdict(manifest) is not None)]
    assert not {hash_directory(exported).sha256, vetted.blob["manifest_sha256"]} & set(left)

    again = vetgate("vet", exported, "--json")
    assert {**again.blob, "seconds": None} == {**vetted.blob, "seconds": None}


def test_either_digest_names_it_where_it_is_promoted(vetted, vetgate, exported):
    handed_in = hash_directory(exported).sha256
    done = vetgate("promote", "exported", "--submission", handed_in[:12], "--json")
    assert done.code == 0 and done.blob["manifest_sha256"] == vetted.blob["manifest_sha256"], done
    shown = vetgate("report", handed_in[:12], "--json")
    assert shown.code == 0 and shown.blob["manifest_sha256"] == vetted.blob["manifest_sha256"], shown


def test_its_submitter_is_whoever_handed_it_in(vetted, exported, vetgate, settings, tmp_path):
    assert vetgate("keys", "new", tmp_path / "supplier.key", "--role", "submitter", "--days", "9").code == 0
    key, handed_in = load_key(tmp_path / "supplier.key"), hash_directory(exported).sha256
    assert submitters_of(ledger_state(settings), vetted.blob["manifest_sha256"]) == frozenset()
    save_submitter(open_store(settings), handed_in, sign_submission(handed_in, "exported", key))
    assert len(submitters_of(ledger_state(settings), vetted.blob["manifest_sha256"])) == 1


def test_a_supplier_cannot_say_that_vetgate_wrote_it(vetted, vetgate, exported, tmp_path):
    forged = tmp_path / "forged"
    forged.mkdir()
    (forged / "net.onnx").write_bytes((exported / "net.onnx").read_bytes())
    fields = yaml.safe_load((exported / "submission.yaml").read_text())
    fields["submitted"] = hash_directory(exported).sha256
    (forged / "submission.yaml").write_text(yaml.safe_dump(fields))
    done = vetgate("vet", forged, "--json")
    assert (done.code, done.blob["verdict"]) == (3, "INCONCLUSIVE"), done
    assert "take `submitted` out of submission.yaml" in done.blob["reasons"][0]


def test_a_conversion_that_no_vetter_signed_is_none(vetted, exported, settings, tmp_path):
    store, trust, handed_in = (
        open_store(settings),
        read_trust_root(settings.trust_root),
        hash_directory(exported).sha256,
    )
    other = tmp_path / "other"
    other.mkdir()
    for path in exported.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    (other / "README.md").write_text("Another text.")
    record = take(settings, other)
    (key,) = store.list(f"conversions/{handed_in}/")
    store.create(f"conversions/{record.id}/{Path(key).name}", store.read(key))
    assert list(store.list(f"conversions/{record.id}/"))
    assert canonical_of(store, trust, record.id) is None and not is_canonical(store, trust, record)
