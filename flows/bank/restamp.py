"""Stamp what git holds of the bank with the digests of today, where nothing that they stand for has changed.

`python -m flows.bank.restamp COMMIT` is for a change of how code is hashed. COMMIT is one whose own digests are those
in the files. They must be, and the code that methods reach must be the same there as it is now by today's digest; then
evidence, repairs, calibration and dvc.lock get today's digests, and nothing is trained or inspected anew.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Literal

import yaml

from vetgate.digest import code_digest
from vetgate.errors import BadPolicy
from vetgate.shipped import BANK, CALIBRATION, need_checkout
from vetgate.shipped import PACKAGES as ROOT

LOCK = ROOT / "dvc.lock"
Kind = Literal["detect", "repair"]
Method = tuple[Kind, str]
AT_HAND = "infra/bank/at-hand"
ASK = """
import json, sys
from vetgate.digest import code_digest
print(json.dumps([code_digest(*method) for method in json.loads(sys.argv[1])]))
"""


def restamp(commit: str) -> dict[str, str]:
    """Old digests and the new ones that stand in their place; raises BadPolicy when the files cannot be restamped."""
    need_checkout("restamping the bank")
    stamped = _stamped()
    methods = sorted(set(stamped.values()))
    with tempfile.TemporaryDirectory() as room:
        archive = subprocess.run(
            ["git", "archive", commit, "vetgate"], cwd=ROOT, check=True, capture_output=True
        ).stdout
        subprocess.run(["tar", "-x", "-C", room], input=archive, check=True)
        asked = [sys.executable, "-c", ASK, json.dumps(methods)]
        before = subprocess.run(asked, cwd=room, check=True, capture_output=True, text=True).stdout
        theirs = dict(zip(json.loads(before), methods, strict=True))
        same = {m: code_digest(*m, package=Path(room, "vetgate")) == code_digest(*m) for m in methods}
    if unknown := {code for code, method in stamped.items() if theirs.get(code) != method}:
        raise BadPolicy(
            f"expected the digests of {commit} in the bank's files, got {sorted(unknown)}; name another commit"
        )
    if changed := [name for (_, name), holds in same.items() if not holds]:
        raise BadPolicy(f"expected the code of {commit}, got other code of {', '.join(changed)}; run `dvc repro`")
    renewed = {code: code_digest(*method) for code, method in stamped.items()}
    _rewrite(renewed)
    return renewed


def _stamped() -> dict[str, Method]:
    """The digests in the bank's files and the calibration, with the method that each is of."""
    found: dict[str, Method] = {}
    folders: tuple[tuple[str, Kind, str], ...] = (("evidence", "detect", "method"), ("repairs", "repair", "repair"))
    for folder, kind, key in folders:
        for path in sorted((BANK / folder).glob("*.json")):
            blob = json.loads(path.read_text())
            if "absent" not in blob:
                found[blob["code"]] = (kind, blob[key])
    for name, pin in json.loads(CALIBRATION.read_text())["methods"].items():
        found[pin["code"]] = ("detect", name)
    return found


def _rewrite(renewed: dict[str, str]) -> None:
    """Put the new digests in place of the old, and into dvc.lock what DVC would then compute."""
    lock = LOCK.read_text()
    folders = {f"infra/bank/{name}": _folder(BANK / name) for name in ("evidence", "repairs")}
    folders[AT_HAND] = _listed(lock)
    sums = {}
    for path in [*BANK.glob("evidence/*.json"), *BANK.glob("repairs/*.json"), CALIBRATION]:
        text, before = path.read_text(), _md5(path.read_bytes())
        for old, new in renewed.items():
            text = text.replace(old, new)
        path.write_text(text)
        sums[before] = _md5(path.read_bytes())
    for old, new in renewed.items():
        # what `look` writes of a method
        sums |= {_md5(_look(old)): _md5(_look(new))}
    for members in folders.values():
        sums[_dir(members)] = _dir({name: sums.get(md5, md5) for name, md5 in members.items()})
    for before, after in sums.items():
        if before not in lock:
            raise BadPolicy(f"expected {before} in dvc.lock, which is not what git holds; run `dvc repro` first")
        lock = lock.replace(before, after)
    LOCK.write_text(lock)


def _look(code: str) -> bytes:
    return (json.dumps({"code": code}, indent=1) + "\n").encode()


def _listed(lock: str) -> dict[str, str]:
    """The files that `look` leaves, by the stages of dvc.lock that read them."""
    stages = yaml.safe_load(lock)["stages"].values()
    files = {dep["path"]: dep["md5"] for stage in stages for dep in stage.get("deps", ())}
    return {Path(path).name: md5 for path, md5 in files.items() if path.startswith(f"{AT_HAND}/")}


def _folder(place: Path) -> dict[str, str]:
    return {path.name: _md5(path.read_bytes()) for path in place.iterdir()}


def _dir(members: dict[str, str]) -> str:
    """DVC's sum of a folder."""
    listed = [{"md5": md5, "relpath": name} for name, md5 in sorted(members.items())]
    return _md5(json.dumps(listed, sort_keys=True).encode()) + ".dir"


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


if __name__ == "__main__":
    for old, new in restamp(sys.argv[1]).items():
        print(f"{old} -> {new}")
