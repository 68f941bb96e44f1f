"""Stamp what git holds of the bank with the digests of today, where nothing that they stand for has changed.

`python -m flows.bank.restamp COMMIT` is for a change of how code is hashed. COMMIT is one whose own digests are those
in the files. They must be, and the code that methods reach must be the same there as it is now by today's digest; then
evidence, repairs, calibration and dvc.lock get today's digests, and nothing is trained or inspected anew.

`--again MEMBER ...` is for code that was changed and yet finds the same on every member of the bank, such as a bound
that none of them reaches. The members named are of every data set and architecture; on each, code of COMMIT and today's
must find the same, figure for figure. Parameters that are new get their default. It takes what training and inspecting
these members twice takes, in the home of VETGATE_HOME, where the data sets are registered.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Literal

import yaml

from flows.bank.networks import members
from tasks.program import ended
from vetgate.digest import code_digest
from vetgate.errors import BadPolicy
from vetgate.shape import Blob
from vetgate.shipped import BANK, CALIBRATION, need_checkout
from vetgate.shipped import PACKAGES as ROOT

LOCK = ROOT / "dvc.lock"
Kind = Literal["detect", "repair"]
Method = tuple[Kind, str]
AT_HAND = "infra/bank/at-hand"
# a file or a folder in dvc.lock, by its sum, and its size in bytes
SIZED = re.compile(r"(md5: (\S+)\n +size: )(\d+)")
# what inspecting a member takes of an earlier commit; digests take the first
OLD = ("vetgate", "tasks", "flows", "params.yaml", "infra/bank/members.yaml")
ASK = """
import json, sys
from vetgate.digest import code_digest
print(json.dumps([code_digest(*method) for method in json.loads(sys.argv[1])]))
"""
# what a detector or a repair gives on members, all by name, by the code of the folder that this is run in
FIND = """
import json, sys
from flows.bank.evidence import inspected, spread
from flows.bank.networks import members
from flows.bank.repair import Job, repaired
from flows.bank.stage import source_for, tasks_of
from flows.params import load_params
if __name__ == "__main__":
    kind, name, names = sys.argv[1], sys.argv[2], sys.argv[3:]
    detector = name if kind == "detect" else source_for(name)
    sets = sorted({members()[one].data for one in names})
    tasks = [task for data in sets for task in tasks_of(detector, data) if task.member.name in names]
    if kind == "detect":
        found = {task.member.name: seen for task, seen in spread(inspected, tasks, None)}
    else:
        jobs = [Job(task, name, load_params().repair[name]) for task in tasks if not task.member.clean]
        found = {job.task.member.name: done for job, done in spread(repaired, jobs, None)}
    for seen in found.values():
        seen.pop("seconds", None)
    print(json.dumps(found))
"""


def restamp(commit: str, again: Collection[str] = ()) -> dict[str, str]:
    """Old digests and the new ones that stand in their place; raises BadPolicy when the files cannot be restamped.

    Where the code of methods has changed, it must find on the members `again` what that of the commit finds.
    """
    need_checkout("restamping the bank")
    stamped = _stamped()
    methods = sorted(set(stamped.values()))
    with tempfile.TemporaryDirectory() as room:
        archive = subprocess.run(
            ["git", "archive", commit, *(OLD if again else OLD[:1])], cwd=ROOT, check=True, capture_output=True
        ).stdout
        subprocess.run(["tar", "-x", "-C", room], input=archive, check=True)
        asked = [sys.executable, "-c", ASK, json.dumps(methods)]
        before = subprocess.run(asked, cwd=room, check=True, capture_output=True, text=True).stdout
        theirs = dict(zip(json.loads(before), methods, strict=True))
        changed = [m for m in methods if code_digest(*m, package=Path(room, "vetgate")) != code_digest(*m)]
        if unknown := {code for code, method in stamped.items() if theirs.get(code) != method}:
            raise BadPolicy(
                f"expected the digests of {commit} in the bank's files, got {sorted(unknown)}; name another commit"
            )
        if changed and not again:
            names = ", ".join(name for _, name in changed)
            raise BadPolicy(
                f"expected the code of {commit}, got other code of {names}; run `dvc repro`, or see --again"
            )
        settled = _settled()
        _check_params(settled)
        if changed:
            _cover(again)
            if differing := sorted(_differing(changed, again, Path(room))):
                raise BadPolicy(f"expected what {commit} finds, got other of {', '.join(differing)}; run `dvc repro`")
    renewed = {code: code_digest(*method) for code, method in stamped.items()}
    _rewrite(renewed, settled)
    return renewed


def _cover(again: Collection[str]) -> None:
    """Raise BadPolicy where the members leave out an architecture of a data set, or its backdoored ones."""
    listed = [m for m in members().values() if m.attack != "adversarial_patch"]
    if unknown := sorted(set(again) - {m.name for m in listed}):
        raise BadPolicy(f"expected members that detectors run on, got {', '.join(unknown)}; see members.yaml")

    def kinds(names: Collection[str]) -> set[tuple[str, str]]:
        some = [m for m in listed if m.name in names]
        return {(m.data, m.architecture) for m in some} | {(m.data, "backdoored") for m in some if not m.clean}

    if missing := kinds([m.name for m in listed]) - kinds(again):
        left = ", ".join(" ".join(pair) for pair in sorted(missing))
        raise BadPolicy(f"expected members of every data set and architecture, got none of {left}; name some more")


def _differing(methods: Collection[Method], again: Collection[str], before: Path) -> Iterator[str]:
    """Method and member wherever today's code finds something else than that of the folder `before`."""
    from rich.progress import track

    for kind, name in track(sorted(methods), "found again"):
        old, new = (_found_in(tree, kind, name, again) for tree in (before, ROOT))
        yield from (f"{name} on {member}" for member in old.keys() | new.keys() if old.get(member) != new.get(member))


def _found_in(tree: Path, kind: Kind, name: str, again: Collection[str]) -> dict[str, Blob]:
    # processes that are spawned import the file that they are started for, so that it must be one
    script = tree / "found_again.py"
    script.write_text(FIND)
    try:
        line = [sys.executable, str(script), kind, name, *sorted(again)]
        said = subprocess.run(line, cwd=tree, check=True, stdout=subprocess.PIPE, text=True).stdout
    finally:
        script.unlink()
    found: dict[str, Blob] = json.loads(said)
    return found


def _settled() -> dict[str, Blob]:
    """The parameters of every detector, by name, as params.yaml and its signature have them."""
    import vetgate.detect  # noqa: F401 - registers the detectors
    from flows.params import load_params
    from vetgate.contract import DETECTORS

    return {name: {**DETECTORS[name].defaults, **params} for name, params in load_params().detect.items()}


def _check_params(settled: Mapping[str, Blob]) -> None:
    """Raise BadPolicy where a parameter that evidence was found with has another value now."""
    for path in sorted((BANK / "evidence").glob("*.json")):
        blob = json.loads(path.read_text())
        now = settled.get(blob.get("method"), blob.get("params"))
        if other := sorted(key for key, value in blob.get("params", {}).items() if now.get(key, ...) != value):
            raise BadPolicy(f"expected {path.stem} found with these parameters, got others of {other}; run `dvc repro`")


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


def _rewrite(renewed: dict[str, str], settled: Mapping[str, Blob]) -> None:
    """Put new digests in place of the old, add new parameters, and put into dvc.lock what DVC would then compute."""
    lock = LOCK.read_text()
    folders = {f"infra/bank/{name}": _folder(BANK / name) for name in ("evidence", "repairs")}
    folders[AT_HAND] = _listed(lock)
    sums: dict[str, str] = {}
    sizes: dict[str, int] = {}
    for path in [*BANK.glob("evidence/*.json"), *BANK.glob("repairs/*.json"), CALIBRATION]:
        blob, before = json.loads(path.read_text()), _md5(path.read_bytes())
        for name, about in blob["methods"].items() if path == CALIBRATION else [(blob.get("method"), blob)]:
            if "code" in about:
                about["code"] = renewed[about["code"]]
                about["params"] = settled.get(name, about["params"])
        path.write_text(json.dumps(blob, indent=1) + "\n")
        sums[before] = _md5(path.read_bytes())
        sizes[sums[before]] = path.stat().st_size
    for old, new in renewed.items():
        # what `look` writes of a method
        sums |= {_md5(_look(old)): _md5(_look(new))}
    for held in folders.values():
        sums[_dir(held)] = _dir({name: sums.get(md5, md5) for name, md5 in held.items()})
    for before, after in sums.items():
        if before not in lock:
            raise BadPolicy(f"expected {before} in dvc.lock, which is not what git holds; run `dvc repro` first")
        lock = lock.replace(before, after)
    for folder in ("evidence", "repairs"):
        held = _folder(BANK / folder)
        sizes[_dir(held)] = sum((BANK / folder / name).stat().st_size for name in held)
    LOCK.write_text(SIZED.sub(lambda found: f"{found[1]}{sizes.get(found[2], found[3])}", lock))


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


def main() -> None:
    """The command: what was restamped, a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit")
    parser.add_argument("--again", nargs="+", default=(), metavar="MEMBER")
    given = parser.parse_args()
    for old, new in restamp(given.commit, given.again).items():
        print(f"{old} -> {new}")


if __name__ == "__main__":
    sys.exit(ended(main))
