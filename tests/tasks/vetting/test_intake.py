"""A submission's record proves itself; its seeds are what no supplier and no writer of the store can choose."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tasks.settings import Settings
from tasks.store.base import LARGEST_READ, Changed
from tasks.store.directory import DirectoryStore
from tasks.store.open import open_store
from tasks.vetting import intake
from tasks.vetting.intake import Record, Unproven, read_record, seed_of, seeds_of
from tasks.vetting.queue import waiting
from vetgate.digest import canonical_json, sha256_json
from vetgate.errors import BadSubmission, StoreError, VetgateError
from vetgate.formats.manifest import hash_directory

YAML = """
name: digits-cnn
supplier: Example Vision Ltd
task: image-classification
model: model.safetensors
format: safetensors
input_shape: [1, 8, 8]
classes: 10
architecture: small-cnn
"""
OTHER = YAML.replace("Example Vision Ltd", "a name that is trusted")


@pytest.fixture
def handed_in(tmp_path: Path) -> Path:
    return directory_at(tmp_path / "handed-in", YAML)


def directory_at(directory: Path, text: str) -> Path:
    directory.mkdir()
    (directory / "submission.yaml").write_text(text)
    (directory / "model.safetensors").write_bytes(b"weights")
    return directory


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


@pytest.fixture
def honest(tmp_path: Path, handed_in: Path) -> dict[str, Any]:
    """The record of the same bytes as another installation makes it."""
    return intake.take(Settings(home=tmp_path / "elsewhere"), handed_in).to_json()


def in_a_year() -> str:
    return (datetime.now(UTC) + timedelta(days=365)).isoformat(timespec="seconds")


# the submission's files with another description among them: a manifest that is sound, of other bytes
def other_manifest(blob: dict[str, Any]) -> dict[str, Any]:
    files = [dict(entry) for entry in blob["manifest"]["files"]]
    files[-1] |= {"size": len(OTHER), "sha256": hashlib.sha256(OTHER.encode()).hexdigest()}
    return {"files": files}


FORGED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another supplier": lambda blob: blob | {"description": OTHER},
    "another layer": lambda blob: blob | {"description": f"{YAML}layer: chosen\n"},
    "other reference data": lambda blob: blob | {"description": f"{YAML}reference_data: chosen\n"},
    "another manifest": lambda blob: blob | {"description": OTHER, "manifest": other_manifest(blob)},
    "the seed of before": lambda blob: blob | {"seed": 1},
    "an earlier version's": lambda blob: {
        "submission": {"name": "digits-cnn"},
        "manifest": blob["manifest"],
        "seed": 1,
    },
    "a time to come": lambda blob: blob | {"submitted_at": in_a_year()},
    "no time": lambda blob: blob | {"submitted_at": "soon"},
    "a time without a zone": lambda blob: blob | {"submitted_at": "2026-01-01T00:00:00"},
    "a time that sorts otherwise": lambda blob: blob | {"submitted_at": "20260101T000000+00:00"},
    "a time with a sign for the screen": lambda blob: blob | {"submitted_at": "2026-01-01\x1b00:00:00+00:00"},
    "a time before all time": lambda blob: blob | {"submitted_at": "0001-01-01T00:00:00+23:59"},
    "no text": lambda blob: blob | {"description": None},
    "half a character": lambda blob: blob | {"description": "\ud800"},
    "no object": lambda blob: [blob],
    "nothing": lambda blob: None,
}


def lay(settings: Settings, manifest: str, content: Any) -> None:
    """What a stranger writes first, where the record will be."""
    data = json.dumps(content).encode() if content is not None else b"{"
    assert open_store(settings).create(f"submissions/{manifest}.json", data)


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED.keys())
def test_a_record_that_does_not_follow_from_the_bytes_is_refused_and_replaced(
    settings: Settings, handed_in: Path, honest: dict[str, Any], forge: Callable[[dict[str, Any]], Any]
) -> None:
    manifest = sha256_json(honest["manifest"])
    lay(settings, manifest, forge(honest))
    with pytest.raises(Unproven, match=f"submissions/{manifest}.json .* remove it and submit the model again"):
        read_record(open_store(settings), manifest)

    record = intake.take(settings, handed_in)

    assert (record.id, record.submission.supplier, record.submission.layer) == (manifest, "Example Vision Ltd", None)
    assert read_record(open_store(settings), manifest) == record


@pytest.mark.parametrize("size", [LARGEST_READ + 1, 1 << 42])
def test_a_record_of_terabytes_is_replaced(
    settings: Settings, handed_in: Path, honest: dict[str, Any], size: int
) -> None:
    manifest = sha256_json(honest["manifest"])
    path = Path(settings.store, "submissions", f"{manifest}.json")
    path.parent.mkdir(parents=True)
    with path.open("wb") as sparse:
        sparse.truncate(size)
    with pytest.raises(Unproven):
        read_record(open_store(settings), manifest)
    record = intake.take(settings, handed_in)
    assert read_record(open_store(settings), manifest) == record


class TestFetch:
    """What a vetting gets are the submitted bytes, whatever was laid beside or in the place of them."""

    def test_what_lies_beside_them_stays_there(self, settings: Settings, handed_in: Path, tmp_path: Path) -> None:
        record = intake.take(settings, handed_in)
        with Path(settings.store, "quarantine", record.id, "extra.bin").open("wb") as sparse:
            sparse.truncate(1 << 42)
        intake.fetch(open_store(settings), record, tmp_path / "out")
        assert hash_directory(tmp_path / "out") == record.manifest

    @pytest.mark.parametrize("size", [0, 8, 1 << 42])
    def test_others_are_refused_without_being_copied(
        self, settings: Settings, handed_in: Path, tmp_path: Path, size: int
    ) -> None:
        record = intake.take(settings, handed_in)
        file = Path(settings.store, "quarantine", record.id, "model.safetensors")
        file.chmod(0o644)
        with file.open("wb") as sparse:
            sparse.truncate(size)
        with pytest.raises(StoreError, match=f"quarantine/{record.id}, got others .* tampered with"):
            intake.fetch(open_store(settings), record, tmp_path / "out")
        assert sum(path.stat().st_size for path in (tmp_path / "out").iterdir()) <= record.manifest.size


def test_a_store_that_lets_nothing_be_replaced_says_what_to_remove(
    settings: Settings, handed_in: Path, honest: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_given: Any, **_named: Any) -> str:
        raise StoreError("expected to write, got access denied by the bucket's policy")

    manifest = sha256_json(honest["manifest"])
    lay(settings, manifest, honest | {"description": OTHER})
    monkeypatch.setattr(DirectoryStore, "replace", refused)
    with pytest.raises(Unproven, match="remove it and submit the model again"):
        intake.take(settings, handed_in)
    Path(settings.store, "submissions", f"{manifest}.json").unlink()
    assert intake.take(settings, handed_in).submission.supplier == "Example Vision Ltd"


def test_of_two_that_replace_at_once_the_first_counts(
    settings: Settings, handed_in: Path, honest: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = honest | {"submitted_at": "2026-01-01T00:00:00+00:00"}

    def overtaken(store: DirectoryStore, key: str, data: bytes, *, if_match: str) -> str:
        Path(settings.store, key).unlink()
        store.create(key, canonical_json(earlier))
        raise Changed("expected another etag")

    lay(settings, sha256_json(honest["manifest"]), [])
    monkeypatch.setattr(DirectoryStore, "replace", overtaken)
    assert intake.take(settings, handed_in).submitted_at == earlier["submitted_at"]


def test_a_record_that_follows_from_the_bytes_stays_whoever_wrote_it(
    settings: Settings, handed_in: Path, honest: dict[str, Any]
) -> None:
    lay(settings, sha256_json(honest["manifest"]), honest)
    assert intake.take(settings, handed_in).to_json() == honest


def test_one_record_that_is_none_keeps_no_other_from_the_queue_and_is_told_of(
    settings: Settings, tmp_path: Path, handed_in: Path
) -> None:
    kept = intake.take(settings, handed_in)
    lay(settings, "0" * 64, kept.to_json())
    lay(settings, "1" * 64, None)
    wrong: list[str] = []
    assert [item.record for item in waiting(settings, lambda manifest: False, wrong=wrong.append)] == [kept]
    assert [said[:6] for said in wrong] == ["0" * 6, "1" * 6] and all("remove it" in said for said in wrong)


class TestSeeds:
    """What the detectors of a submission draw from."""

    def test_no_two_installations_have_the_same_for_the_same_bytes(self, tmp_path: Path, handed_in: Path) -> None:
        homes = [Settings(home=tmp_path / name) for name in ("one", "other")]
        (one, other), record = homes, intake.take(homes[0], handed_in)
        assert seed_of(one, record).number != seed_of(other, record).number
        assert seed_of(one, record) == seed_of(Settings(home=tmp_path / "one"), intake.take(one, handed_in))

    def test_each_run_and_each_submission_has_its_own(
        self, settings: Settings, tmp_path: Path, handed_in: Path
    ) -> None:
        first, second = (intake.take(settings, at) for at in (handed_in, directory_at(tmp_path / "second", OTHER)))
        drawn = [seed_of(settings, record, run) for record in (first, second) for run in ("", "second", "canary 1")]
        assert len({seed.number for seed in drawn}) == len({seed.commitment for seed in drawn}) == 6
        assert all(0 <= seed.number < 2**53 for seed in drawn)

    def test_those_of_a_demonstration_are_the_same_everywhere(self, tmp_path: Path, handed_in: Path) -> None:
        homes = [Settings(home=tmp_path / name) for name in ("one", "other")]
        records = [intake.take(home, handed_in, origin="demonstration 3") for home in homes]
        drawn = [seed_of(*both) for both in zip(homes, records, strict=True)]
        assert drawn[0].number == drawn[1].number == 3 and drawn[0].commitment != drawn[1].commitment
        repaired = seeds_of(homes[0]).seed("c" * 64, origin="demonstration 3/repaired").number
        assert (
            repaired == seeds_of(homes[1]).seed("d" * 64, origin="demonstration 3/repaired").number != drawn[0].number
        )

    @pytest.mark.parametrize("seal", ["", "0" * 64, "é", "of another submission", "of another installation"])
    def test_an_origin_that_the_installation_did_not_seal_is_none(
        self, settings: Settings, tmp_path: Path, handed_in: Path, honest: dict[str, Any], seal: str
    ) -> None:
        manifest, origin = sha256_json(honest["manifest"]), "demonstration 0"
        made = {
            "of another submission": seeds_of(settings).seal("a" * 64, origin),
            "of another installation": seeds_of(Settings(home=tmp_path / "elsewhere")).seal(manifest, origin),
        }
        lay(settings, manifest, honest | {"origin": origin, "seal": made.get(seal, seal)})
        record = intake.take(settings, handed_in)
        assert record.origin == origin
        assert seed_of(settings, record) == seed_of(settings, replace(record, origin="", seal=""))
        sealed = replace(record, seal=seeds_of(settings).seal(manifest, origin))
        assert seed_of(settings, sealed).number != seed_of(settings, record).number

    def test_nothing_that_is_stored_tells_it(self, settings: Settings, handed_in: Path) -> None:
        record = intake.take(settings, handed_in)
        seed, store = seed_of(settings, record), open_store(settings)
        stored = b"".join(store.read(key) for key in store.list(""))
        digests = {hashlib.sha256(text).hexdigest() for text in (str(seed.number).encode(), b"%x" % seed.number)}
        assert str(seed.number).encode() not in stored and seeds_of(settings).secret not in stored
        assert not digests & {seed.commitment, hashlib.sha256(seed.number.to_bytes(8, "big")).hexdigest()}

    def test_without_the_secret_of_a_gate_elsewhere_none_is_made_up(self, tmp_path: Path, handed_in: Path) -> None:
        remote = Settings(home=tmp_path / "worker", gate_url="http://gate:8481")
        record = intake.take(remote, handed_in)
        with pytest.raises(StoreError, match="VETGATE_SEED_SECRET"):
            seed_of(remote, record)
        assert not remote.seed_secret.exists()
        given = Settings(home=tmp_path / "gate")
        seeds_of(given)
        held = remote.model_copy(update={"seed_secret": given.seed_secret})
        assert seed_of(held, record) == seed_of(given, record)


def test_a_description_that_this_version_refuses_is_a_usage_error(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(BadSubmission, match="architecture"):
        intake.take(settings, directory_at(tmp_path / "odd", YAML.replace("small-cnn", "another")))
    text = YAML.replace("small-cnn", "another")
    files = [{"path": "submission.yaml", "size": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}]
    blob = {"description": text, "manifest": {"files": files}, "submitted_at": "2026-01-01T00:00:00+00:00"}
    record = Record.from_json(blob | {"origin": "", "seal": ""}, sha256_json({"files": files}))
    with pytest.raises(BadSubmission, match="architecture"):
        record.submission  # noqa: B018


@pytest.mark.parametrize("wrong", ["no description", "another encoding", "a link"])
def test_an_error_names_the_directory_that_was_handed_in_and_no_copy_of_it(tmp_path: Path, handed_in: Path, wrong: str):
    described = handed_in / "submission.yaml"
    described.unlink()
    if wrong == "another encoding":
        described.write_bytes(YAML.replace("Vision", "Visión").encode("latin-1"))
    if wrong == "a link":
        described.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(VetgateError) as caught:
        intake.take(Settings(home=tmp_path / "one"), handed_in)
    assert "work" not in str(caught.value) and "copy in" not in str(caught.value)
    if wrong == "no description":
        assert str(handed_in) in str(caught.value)
