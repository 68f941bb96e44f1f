"""Where reference data lie: directories of any name, and errors that point at what is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tasks.data import reference as data
from tasks.data.dvc_client import Remote
from tasks.data.own_git import git
from tasks.settings import load_settings
from vetgate.errors import BadSubmission, StoreError


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    y, random = np.arange(12) % 3, np.random.RandomState(0)
    arrays = {f"x_{part}": random.randint(0, 256, (12, 4, 4, 1)).astype(np.uint8) for part in ("train", "test")}
    path = tmp_path_factory.mktemp("given") / "faces.npz"
    np.savez(path, y_train=y, y_test=y, **arrays)
    return path


@pytest.mark.parametrize("name", ["Müller", "日本 語", "$name{x}", "%(here)s %41 ${HOME}", "a?b=c#d", "'\" , ; ~"])
def test_a_set_is_kept_and_read_in_a_directory_of_any_name(name: str, given: Path, tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path / name)
    ref = data.add(settings, "faces", given)
    assert data.read(settings, ref).read_bytes() == given.read_bytes()
    assert os.listdir(tmp_path) == [name]
    # what is committed is the same wherever it is
    for file in ("config", ".gitignore"):
        assert str(tmp_path) not in (settings.home / "data" / ".dvc" / file).read_text()


@pytest.mark.parametrize("name", ["line\nbreak", "tab\there", "bytes\udcff"])
def test_a_path_that_no_url_or_line_can_hold_is_refused(name: str, tmp_path: Path) -> None:
    for where in ({"home": tmp_path / name}, {"data_remote": str(tmp_path / name)}):
        with pytest.raises(BadSubmission, match=r"VETGATE_(HOME|DATA_REMOTE): .*UTF-8 text on one line"):
            load_settings(**{"home": tmp_path, **where})


def test_a_registry_of_before_that_holds_the_remote_of_its_day_goes_on(given: Path, tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path / "home")
    ref = data.add(settings, "faces", given)
    config = settings.home / "data" / ".dvc" / "config"
    config.write_text(
        "[core]\n    remote = store\n['remote \"store\"']\n    url = s3://gone/away\n    read_timeout = 1\n"
    )
    git(settings.home / "data", "commit", "--all", "--message", "as before")
    for cached in (settings.home / "data-cache").glob("*"):
        cached.unlink()
    assert data.read(settings, ref).read_bytes() == given.read_bytes()
    assert data.read(settings, data.add(settings, "more", given)).read_bytes() == given.read_bytes()


def test_a_registry_that_moved_keeps_nothing_of_where_it_was(given: Path, tmp_path: Path) -> None:
    before = load_settings(home=tmp_path / "before")
    ref = data.add(before, "faces", given)
    before.home.rename(tmp_path / "{after}")
    after = load_settings(home=tmp_path / "{after}")
    for cached in (after.home / "data-cache").glob("*"):
        cached.unlink()
    assert data.read(after, ref).read_bytes() == given.read_bytes()
    assert data.add(after, "more", given).sha256 == ref.sha256


class TestErrors:
    def test_of_a_directory_name_no_credentials_and_no_server(self, given: Path, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        for remote in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/no-such-place")):
            settings = load_settings(home=tmp_path / "home", data_remote=str(remote))
            with pytest.raises(StoreError, match=f"data remote {remote} cannot be used.*VETGATE_DATA_REMOTE") as error:
                data.add(settings, "faces", given)
            assert not {"credentials", "S3", "vetgate-dvc-"} & set(str(error.value).replace("_", " ").split())

    def test_a_directory_that_is_away_is_not_made_to_be_read_from(self, given: Path, tmp_path: Path) -> None:
        settings = load_settings(home=tmp_path / "home")
        ref = data.add(settings, "faces", given)
        away = Path(settings.data_remote).rename(tmp_path / "away")
        with pytest.raises(StoreError, match="No such file or directory"):
            data.read(settings, ref)
        assert not Path(settings.data_remote).exists()
        away.rename(settings.data_remote)
        assert data.read(settings, ref).read_bytes() == given.read_bytes()

    def test_what_dvc_says_is_about_the_directory_that_was_named(self, given: Path, tmp_path: Path) -> None:
        settings = load_settings(home=tmp_path / "home")
        ref = data.add(settings, "faces", given)
        for stored in Path(settings.data_remote).rglob("*"):
            if stored.is_file():
                stored.unlink()
        with pytest.raises(StoreError, match=r"cannot be used: .*that its disk has room") as error:
            data.read(settings, ref)
        assert "vetgate-dvc-" not in str(error.value) and "credentials" not in str(error.value)

    def test_of_a_bucket_name_credentials_and_endpoint(self) -> None:
        error = Remote("s3://bucket/prefix", "http://127.0.0.1:9", 1, 1).unusable("Forbidden")
        assert "credentials" in str(error) and "VETGATE_S3_ENDPOINT" in str(error)


# a host that is so busy that DVC takes minutes to be imported, and a disk on which a sync takes them
SLOW_START = "import sys, time\nif any('dvc_process' in part for part in sys.orig_argv): time.sleep(100)\n"
SLOW_DISK = "import os, time\nos.fsync = lambda handle: time.sleep(100)\n"


class TestLimits:
    def slow(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
        """Have every Python process that begins from now on run this first."""
        (tmp_path / "slow").mkdir()
        (tmp_path / "slow" / "sitecustomize.py").write_text(code)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "slow"))

    def test_a_slow_start_is_no_fault_of_the_remote(
        self, given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.slow(tmp_path, monkeypatch, SLOW_START)
        settings = load_settings(home=tmp_path / "home", start_seconds=1)
        with pytest.raises(StoreError, match=r"DVC to start within 1 s.*host is busy.*VETGATE_START_SEC") as error:
            data.add(settings, "faces", given)
        assert "remote" not in str(error.value) and "S3" not in str(error.value)

    def test_a_slow_disk_is_no_fault_of_a_server(
        self, given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ref = data.add(load_settings(home=tmp_path / "home"), "faces", given)
        self.slow(tmp_path, monkeypatch, SLOW_DISK)
        settings = load_settings(home=tmp_path / "home", remote_seconds=1)
        with pytest.raises(StoreError, match=r"no answer within 1 s; its disk .* busy.*VETGATE_REMOTE_SEC") as error:
            data.read(settings, ref)
        assert str(settings.data_remote) in str(error.value) and "S3" not in str(error.value)

    @pytest.mark.parametrize("name", ["VETGATE_START_SECONDS", "VETGATE_REMOTE_SECONDS"])
    def test_a_limit_is_set_by_the_variable_that_it_names(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(name, "7")
        assert getattr(load_settings(), name.removeprefix("VETGATE_").lower()) == 7
        monkeypatch.setenv(name, "0")
        with pytest.raises(BadSubmission, match=name):
            load_settings()


def test_a_user_number_without_a_name_is_no_fault_of_the_remote(given: Path, tmp_path: Path) -> None:
    unnamed = ["unshare", "--user", "--map-user=12345", "--map-group=12345"]
    if subprocess.run([*unnamed, "true"], capture_output=True).returncode:
        pytest.skip("needs user namespaces, which this host does not give")
    for given_name in ({}, {"USER": "ci"}, {"HOME": "/nowhere"}):
        home = tmp_path / f"home-{'-'.join(given_name) or 'none'}"
        line = [*unnamed, sys.executable, "-m", "flows", "data", "add", "faces", str(given)]
        done = subprocess.run(
            line, env={"PATH": "/usr/bin:/bin", "VETGATE_HOME": str(home), **given_name}, capture_output=True
        )
        assert done.returncode == 0, done.stderr
