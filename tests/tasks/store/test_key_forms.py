"""What others laid into the store under names that are none of ours: passed over by who lists, and told of."""

from __future__ import annotations

from pathlib import Path

import boto3
import pytest

from tasks.store.base import Store, check_files
from tasks.store.directory import DirectoryStore
from tasks.store.key_forms import FORMS, strange_objects, well_formed
from tasks.store.s3 import S3Store
from vetgate.errors import Altered

M, D = "a" * 64, "b" * 64
KEYS = {
    "approvals": f"{M}/{D}.json",
    "attestations": f"{M}/20261129T120000Z-{D}.json",
    "canaries": f"{M}.json",
    "ledger": "000000000001.json",
    "promotions": "digits-2.x/12.json",
    "registered": "thirdparty.digits/3.json",
    "reports": f"{M}/20261129T120000Z-{D}.html",
    "rescans": "2026-11-29-10.json",
    "results": f"{M}/20261129T120000Z-{D}.json",
    "revocations": f"{D}.json",
    "submissions": f"{M}.json",
    "submitters": f"{M}/{M}.json",
    "tampered": "digits/12.json",
    "waivers": f"{M}/{D}.json",
}


def lay(store: Store, name: str) -> None:
    """An object under a name that `create` would refuse, as another writer can."""
    if isinstance(store, S3Store):
        store._s3.put_object(Bucket=store.bucket, Key=store.prefix + name, Body=b"junk")
        return
    assert isinstance(store, DirectoryStore)
    path = store.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"junk")


def test_every_folder_with_a_form_has_an_example_here() -> None:
    assert KEYS.keys() == FORMS.keys()


@pytest.mark.parametrize("folder", KEYS)
def test_a_key_has_the_form_of_its_folder_and_a_neighbour_of_it_has_not(folder: str) -> None:
    key = f"{folder}/{KEYS[folder]}"
    assert well_formed(key)
    stem, dot, suffix = key.rpartition(".")
    wrong = [f"{key}\n", f"{stem}{dot}txt", f"{key}/x", f"{folder}/x/{KEYS[folder]}", f"{folder}/", f"{folder}//x.json"]
    wrong += [f"{stem}\\{dot}{suffix}", f"{folder}/../{key}", key.replace("/", "/./", 1), f"{folder}/x.json", stem]
    assert [name for name in wrong if well_formed(name)] == []


@pytest.mark.parametrize("name", ["a\x7fb.json", "a\\b.json", "x/y/z/w.json", "hello.json", f"{M[:-1]}A.json"])
@pytest.mark.parametrize("folder", ["revocations", "submissions", "promotions", "attestations"])
def test_a_listing_gives_the_keys_only_and_tells_of_the_rest(store: Store, folder: str, name: str) -> None:
    key = f"{folder}/{KEYS[folder]}"
    store.create(key, b"ours")
    lay(store, f"{folder}/{name}")
    told: list[str] = []
    assert list(store.list(f"{folder}/")) == list(store.list(f"{folder}/", told.append)) == [key]
    assert told == [f"{folder}/{name}"]
    assert strange_objects(store) == [repr(f"{folder}/{name}")]


@pytest.mark.parametrize("name", ["evidence/m/", "evidence//m.json", "evidence/../m.json"])
def test_what_only_s3_can_hold_is_passed_over_too(name: str, s3_endpoint: str) -> None:
    bucket = f"strange-{abs(hash(name))}"
    boto3.client("s3", endpoint_url=s3_endpoint, region_name="us-east-1").create_bucket(Bucket=bucket)
    store = S3Store(bucket, endpoint_url=s3_endpoint)
    store.create("evidence/m/1.json", b"ours")
    lay(store, name)
    told: list[str] = []
    assert [store.read(key) for key in store.list("evidence/", told.append)] == [b"ours"]
    assert told == [name]


def test_of_very_many_some_are_named(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    for number in range(33):
        lay(store, f"waivers/{number}.json")
    assert len(strange_objects(store)) == 21 and strange_objects(store)[-1] == "and 13 more"


@pytest.mark.parametrize("name", ["weights\n.onnx", "we\\ights.onnx", "deep/we\tights.onnx"])
def test_a_strange_file_beside_vetted_ones_is_not_left_unsaid(tmp_path: Path, name: str) -> None:
    store = DirectoryStore(tmp_path / "store")
    store.create("quarantine/m/model.onnx", b"model")
    lay(store, f"quarantine/m/{name}")
    with pytest.raises(Altered, match="expected exactly the promoted files in quarantine/m"):
        check_files(store, "quarantine/m", ["model.onnx"])
