"""Files that a user names are read up to a bound, wherever they are read, and the error names them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from shlex import quote
from typing import Any

import pytest

from flows.params import load_params
from flows.production.verify import verify
from tasks.records.ledger_heads import head_at
from tasks.secret_file import secret_at
from tasks.settings import load_settings
from vetgate.errors import VetgateError
from vetgate.trust import named_file
from vetgate.trust.keys import load_key, read_public, read_trust_root
from vetgate.trust.named_file import MOST, read_named
from vetgate.trust.root import TrustRoot
from vetgate.verdict.calibration import load_calibration
from vetgate.verdict.policy import load_policy

ENDLESS = Path("/dev/zero")


@pytest.mark.parametrize("size", [0, 1, 100])
def test_a_file_within_the_bound_is_read_whole(size: int, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"a" * size)
    assert read_named(tmp_path / "file", 100) == b"a" * size


def test_a_larger_one_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"a" * 101)
    with pytest.raises(OSError, match="File too large, more than 100 bytes"):
        read_named(tmp_path / "file", 100)


def test_a_sparse_image_of_a_disk_takes_no_memory(tmp_path: Path) -> None:
    with (tmp_path / "image").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(OSError, match=f"more than {MOST} bytes"):
        read_named(tmp_path / "image")


class TestPipes:
    """A pipe is read like a file while something writes into it, and never waited for without end."""

    @pytest.mark.parametrize("parts", [[b""], [b"whole"], [b"in ", b"many ", b"parts" * 50_000]])
    def test_one_that_delivers_is_read_whole(self, parts: list[bytes], tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")

        def write() -> None:
            with (tmp_path / "pipe").open("wb") as pipe:
                for part in parts:
                    pipe.write(part)
                    pipe.flush()

        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(write)
            assert read_named(tmp_path / "pipe") == b"".join(parts)
            writing.result()

    def test_what_a_shell_substitutes_is_read(self) -> None:
        program = "import sys, pathlib, vetgate.trust.named_file as n; print(n.read_named(pathlib.Path(sys.argv[1])))"
        line = f"exec {quote(sys.executable)} -c {quote(program)} <(sleep 0.2; echo -n fetched)"
        assert subprocess.check_output(["bash", "-c", line], text=True) == "b'fetched'\n"

    def test_one_that_does_not_end_is_no_longer_read(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(self.write_for_ever, tmp_path / "pipe")
            with pytest.raises(OSError, match="more than 1000 bytes"):
                read_named(tmp_path / "pipe", 1000)
            writing.result()

    def write_for_ever(self, path: Path) -> None:
        with suppress(BrokenPipeError), path.open("wb", buffering=0) as pipe:
            while True:
                pipe.write(b"a" * 1000)


READERS: dict[str, Callable[[Path], Any]] = {
    "attestation": lambda path: verify(path.parent, attestation=path, name="digits", trust_root=TrustRoot(())),
    "trust root": read_trust_root,
    "public key": read_public,
    "private key": load_key,
    "policy": load_policy,
    "calibration": load_calibration,
    "params": load_params,
    "secret": secret_at,
}


@pytest.mark.parametrize("what", sorted(READERS))
@pytest.mark.parametrize("kind", ["endless", "large", "no text", "silent"])
def test_every_reader_ends_with_an_error_of_ours_that_names_the_file(
    what: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(named_file, "SECONDS", 0.1)
    path = tmp_path / "file"
    if kind == "endless":
        path = ENDLESS
    elif kind == "silent":
        os.mkfifo(path)
    elif kind == "large":
        with path.open("wb") as file:
            file.truncate(1 << 36)
    else:
        path.write_bytes(b"\xff\xfe" * 50)
    if kind != "endless":
        path.chmod(0o600)
    with pytest.raises(VetgateError) as error:
        READERS[what](path)
    named = what in ("attestation", "trust root") and kind == "no text"
    assert len(str(error.value)) < 500 and (named or str(path) in str(error.value))


@pytest.mark.parametrize("size", [1 << 36, MOST + 1])
def test_a_head_of_any_size_is_an_error(size: int, tmp_path: Path) -> None:
    with (tmp_path / "head.json").open("wb") as file:
        file.truncate(size)
    with pytest.raises(VetgateError, match="File too large"):
        head_at(load_settings(home=tmp_path), str(tmp_path / "head.json"))
