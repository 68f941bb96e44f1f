"""Evidence keeps its worth when only the way of hashing code has changed, and loses it when the code has."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flows.bank import restamp as bank_restamp
from vetgate.errors import BadPolicy

ROOT = Path(__file__).parents[3]


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """What git holds of the bank, and a vetgate whose digests are others, in a repository of one commit."""
    shutil.copytree(ROOT / "vetgate", tmp_path / "vetgate", ignore=shutil.ignore_patterns("__pycache__"))
    for folder in ("bank/evidence", "bank/repairs", "calibration"):
        shutil.copytree(ROOT / "infra" / folder, tmp_path / "infra" / folder)
    shutil.copyfile(ROOT / "dvc.lock", tmp_path / "dvc.lock")
    digest = tmp_path / "vetgate" / "digest.py"
    digest.write_text(digest.read_text().replace("[hashed, release]", '[hashed, release, "otherwise"]'))
    monkeypatch.setattr(bank_restamp, "ROOT", tmp_path)
    monkeypatch.setattr(bank_restamp, "BANK", tmp_path / "infra" / "bank")
    monkeypatch.setattr(bank_restamp, "CALIBRATION", tmp_path / "infra" / "calibration" / "default.json")
    monkeypatch.setattr(bank_restamp, "LOCK", tmp_path / "dvc.lock")
    return tmp_path


def lay_out(place: Path, *names: str) -> None:
    for name in names:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        put = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        put(ROOT / name, place / name)


def commit(place: Path, *more: str) -> None:
    settings = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for line in (["init", "-q"], ["add", "vetgate", *more], [*settings, "commit", "-q", "-m", "as it was"]):
        subprocess.run(["git", *line], cwd=place, check=True)


def texts(place: Path) -> dict[str, str]:
    every = [*place.glob("infra/**/*.json"), place / "dvc.lock"]
    return {str(path.relative_to(place)): path.read_text() for path in every}


def stamp_otherwise(place: Path) -> None:
    """Put the digests of the other vetgate into the files."""
    stamped = bank_restamp._stamped()
    asked = [sys.executable, "-c", bank_restamp.ASK, json.dumps(list(stamped.values()))]
    answer = subprocess.run(asked, cwd=place, check=True, capture_output=True, text=True).stdout
    bank_restamp._rewrite(dict(zip(stamped, json.loads(answer), strict=True)), bank_restamp._settled())


def test_another_way_of_hashing_costs_a_restamp(checkout):
    before = texts(checkout)
    stamp_otherwise(checkout)
    assert all(other != before[name] for name, other in texts(checkout).items() if "tables" not in name)
    commit(checkout)
    bank_restamp.restamp("HEAD")
    assert texts(checkout) == before


def test_changed_code_is_not_restamped(checkout):
    probe = checkout / "vetgate" / "probe.py"
    probe.write_text(probe.read_text().replace("MAD_TO_SIGMA = 1.4826", "MAD_TO_SIGMA = 1.5"))
    stamp_otherwise(checkout)
    before = texts(checkout)
    commit(checkout)
    with pytest.raises(BadPolicy, match=r"other code of .*neural_cleanse"):
        bank_restamp.restamp("HEAD")
    assert texts(checkout) == before


def test_a_commit_whose_digests_are_not_in_the_files_is_refused(checkout):
    commit(checkout)
    with pytest.raises(BadPolicy, match="name another commit"):
        bank_restamp.restamp("HEAD")


@pytest.mark.parametrize(
    ("again", "said"),
    [(["digits-clean-00"], "got none of cifar10 backdoored"), (["digits-clean-99"], "got digits-clean-99")],
    ids=["one alone", "an unknown one"],
)
def test_changed_code_is_tried_on_members_of_every_kind_or_not_at_all(checkout, again, said):
    probe = checkout / "vetgate" / "probe.py"
    probe.write_text(probe.read_text().replace("MAD_TO_SIGMA = 1.4826", "MAD_TO_SIGMA = 1.5"))
    stamp_otherwise(checkout)
    before = texts(checkout)
    lay_out(checkout, *bank_restamp.OLD[1:])
    commit(checkout, *bank_restamp.OLD[1:])
    with pytest.raises(BadPolicy, match=said):
        bank_restamp.restamp("HEAD", again)
    assert texts(checkout) == before


@pytest.mark.long
def test_code_that_finds_something_else_on_a_member_is_told_from_code_that_does_not(tmp_path, monkeypatch):
    monkeypatch.setenv("VETGATE_HOME", str(tmp_path / "home"))
    lay_out(tmp_path / "tree", *bank_restamp.OLD)
    method, member = ("detect", "output_share"), "digits-label-consistent-01"
    assert list(bank_restamp._differing([method], [member], tmp_path / "tree")) == []
    share = tmp_path / "tree" / "vetgate" / "detect" / "output_share.py"
    share.write_text(share.read_text().replace("0.5 + 0.25 *", "0.5 + 0.30 *"))
    assert list(bank_restamp._differing([method], [member], tmp_path / "tree")) == [f"output_share on {member}"]


def test_a_parameter_that_is_new_gets_its_default_and_one_that_changed_is_refused():
    settled = bank_restamp._settled()
    bank_restamp._check_params({**settled, "output_share": {**settled["output_share"], "kinds": 8}})
    with pytest.raises(BadPolicy, match=r"others of \['images'\]"):
        bank_restamp._check_params({**settled, "output_share": {"images": 511}})
