"""Reference data under DVC: a git repository of pointers at <home>/data, the bytes on a directory or S3 remote.

A set is NAME.npz.dvc (DVC's pointer) and NAME.json (SHA-256, shapes, classes) in one commit. A reader names a
commit; the bytes come from the remote through DVC and count only if their SHA-256 is the committed one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.data import npz
from tasks.data.digits import write_digits
from tasks.data.dvc_client import Remote, ask
from tasks.data.own_git import git
from tasks.data.usable import check_usable
from tasks.file_lock import locked_within
from tasks.settings import Settings
from vetgate.errors import BadSubmission, NotUnderstood, StoreError

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
EMBEDDED = "digits"
COMMON = (".gitignore", ".dvcignore", ".dvc/.gitignore", ".dvc/config")
LOCK_SECONDS = 600
BLOCK = 1 << 20


@dataclass(frozen=True)
class DataRef:
    """One data set at one commit of the registry: `path` there, and the SHA-256 that its bytes must have."""

    name: str
    rev: str
    path: str
    sha256: str


def add(
    settings: Settings, name: str, file: Path, progress: npz.Progress | None = None, *, training: bool = False
) -> DataRef:
    """Check a .npz file, put it under DVC as data set `name` and commit; the same bytes give the same commit.

    What a supplier's `training` set lacks is the supplier's affair; anything else must be good to vet on.

    Raises BadSubmission on a wrong name, NotUnderstood on a file that is no data set, StoreError on the rest.
    """
    if not NAME.fullmatch(name):
        raise BadSubmission(f"expected a data set name like gtsrb ({NAME.pattern}), got {name!r}")
    with _locked(settings.home), _staging(settings.home) as staging:
        copy = staging / Path(file).name
        sha256, size = _copy(Path(file), copy)
        contents = npz.contents(copy, progress)
        if not training:
            _check_usable(copy, contents)
        root = _root(settings)
        begins = not root.exists()
        # a registry appears whole or not at all: the first set is added before it gets its name
        tree = _new_repository(staging / "new") if begins else _unlocked(root)
        ask("add", Remote.of(settings), root=str(tree), file=str(copy), out=f"{name}.npz")
        sidecar = {"name": name, "sha256": sha256, "size": size, "usable": not training, **contents}
        (tree / f"{name}.json").write_text(json.dumps(sidecar, indent=2, sort_keys=True) + "\n")
        _commit(tree, f"Add {name}", f"{name}.npz.dvc", f"{name}.json", *COMMON)
        if begins:
            os.rename(tree, root)
    return resolve(settings, name)


def resolve(settings: Settings, name: str) -> DataRef:
    """The data set `name` as it is now; scikit-learn's digits are registered when first asked for."""
    root = _root(settings)
    rev = _last_change(root, name)
    if rev is None and name == EMBEDDED:
        with tempfile.TemporaryDirectory() as made:
            file = Path(made, f"{EMBEDDED}.npz")
            write_digits(file)
            return add(settings, EMBEDDED, file)
    if rev is None:
        known = ", ".join(sorted({EMBEDDED, *(_names(root))}))
        raise StoreError(
            f"expected a registered data set ({known}), got {name!r}; register it: `vetgate data add {name} FILE.npz`"
        )
    return DataRef(name, rev, f"{name}.npz", _sidecar(root, rev, name)["sha256"])


def registered(settings: Settings) -> list[DataRef]:
    """Every data set that was added, as it is now."""
    return [resolve(settings, name) for name in _names(_root(settings))]


def describe(settings: Settings, ref: DataRef) -> dict[str, Any]:
    """What the set holds: name, sha256, size, arrays, image (H, W, C), classes, class_names, brightest pixel, usable.

    Sets that were added before such checks lack the last two.
    """
    return _sidecar(_root(settings), ref.rev, ref.name)


def require_usable(settings: Settings, ref: DataRef, progress: npz.Progress | None = None) -> None:
    """Raise StoreError unless a model can be vetted on the set; one added without that check is read for it."""
    contents = describe(settings, ref)
    if contents.get("usable"):
        return
    try:
        _check_usable(read(settings, ref, progress), contents)
    except NotUnderstood as error:
        wrong = str(error).partition(": ")[2]
        raise StoreError(
            f"the reference data {ref.name} cannot be vetted on: {wrong}; then add it again with "
            f"`vetgate data add {ref.name} FILE.npz`, or name other reference_data in submission.yaml"
        ) from error


def read(settings: Settings, ref: DataRef, progress: npz.Progress | None = None) -> Path:
    """A local file with exactly the bytes of `ref`, read from the remote at its commit unless one is there."""
    cached = settings.home / "data-cache" / f"{ref.sha256}.npz"
    if cached.is_file() and _sha256(cached) == ref.sha256:
        return cached
    root = _root(settings)
    size = _sidecar(root, ref.rev, ref.name)["size"]
    remote = Remote.of(settings)
    with _staging(settings.home) as staging:
        copy = staging / "data.npz"
        got = ask(
            "read",
            remote,
            on_bytes=None if progress is None else lambda done: progress(done / max(1, size)),
            root=str(root),
            rev=ref.rev,
            path=ref.path,
            to=str(copy),
        )
        if got["sha256"] != ref.sha256:
            raise StoreError(
                f"expected {ref.path} at {ref.rev[:12]} with SHA-256 {ref.sha256}, got {got['sha256']} from "
                f"{remote.url}: it is corrupt; add the file again with `vetgate data add {ref.name} FILE.npz`"
            )
        copy.chmod(0o444)
        cached.parent.mkdir(parents=True, exist_ok=True)
        os.replace(copy, cached)
    return cached


def _check_usable(file: Path, contents: dict[str, Any]) -> None:
    y_train, y_test = (npz.read_array(file, f"y_{part}") for part in ("train", "test"))
    track = npz.read_array(file, "track_train") if "track_train" in contents["arrays"] else None
    check_usable(file.name, y_train, y_test, contents["class_names"], track)


def _root(settings: Settings) -> Path:
    return settings.home / "data"


@contextmanager
def _locked(home: Path) -> Iterator[None]:
    try:
        home.mkdir(parents=True, exist_ok=True)
        with open(home / "data.lock", "a") as lock:
            if not locked_within(lock, LOCK_SECONDS):
                raise StoreError(
                    f"expected the data registry under {home} to be free within {LOCK_SECONDS} s, got another process "
                    "at work on it; wait until it ends"
                )
            yield
    except OSError as error:
        raise StoreError(
            f"the data registry under {home} cannot be written: {error}; free or mount the disk"
        ) from error


@contextmanager
def _staging(home: Path) -> Iterator[Path]:
    """A private directory on the disk of the registry, gone afterwards."""
    try:
        with tempfile.TemporaryDirectory(prefix=".data-", dir=home) as made:
            yield Path(made)
    except OSError as error:
        raise StoreError(f"data cannot be written under {home}: {error}; free or mount the disk") from error


def _new_repository(root: Path) -> Path:
    root.mkdir()
    git(root, "init", "--quiet", "--initial-branch=main")
    (root / ".gitignore").write_text("/*.npz\n")
    return root


def _unlocked(root: Path) -> Path:
    # only a run that was killed while it held our lock can have left this
    (root / ".git" / "index.lock").unlink(missing_ok=True)
    return root


def _commit(root: Path, message: str, *paths: str) -> None:
    git(root, "add", "--force", "--", *paths)
    if git(root, "status", "--porcelain", "--untracked-files=no", "--", *paths):
        git(root, "commit", "--quiet", "--no-verify", "--message", message, "--", *paths)


def _last_change(root: Path, name: str) -> str | None:
    if not NAME.fullmatch(name) or name not in _names(root):
        return None
    return git(root, "log", "-1", "--format=%H", "--", f"{name}.json", f"{name}.npz.dvc")


def _names(root: Path) -> list[str]:
    if not (root / ".git").exists():
        return []
    files = git(root, "ls-tree", "--name-only", "HEAD").splitlines()
    return [f.removesuffix(".npz.dvc") for f in files if f.endswith(".npz.dvc")]


def _sidecar(root: Path, rev: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(git(root, "show", f"{rev}:{name}.json"))
    return found


def _copy(source: Path, target: Path) -> tuple[str, int]:
    if not source.is_file() or not os.access(source, os.R_OK):
        raise BadSubmission(f"expected a .npz file, got {source}, which is no readable file; give the path of one")
    digest, size = hashlib.sha256(), 0
    with open(source, "rb") as opened, open(target, "xb") as copy:
        while block := opened.read(BLOCK):
            digest.update(block)
            copy.write(block)
            size += len(block)
    return digest.hexdigest(), size


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
