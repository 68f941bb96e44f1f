"""The stages of dvc.yaml that build the model bank: `python -m flows.bank.stage STAGE`.

A data set that this installation has not got is left out: its members and evidence stay as they are in git.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from flows.bank.networks import BANK, member_file, members, plan
from tasks.program import ended
from vetgate.shape import Blob
from vetgate.shipped import need_checkout

if TYPE_CHECKING:
    from flows.bank.data import Source
    from flows.bank.evidence import Task
    from tasks.settings import Settings

AT_HAND, WEIGHTS, CARDS, EVIDENCE, TRIGGERS, REPAIRS = (
    BANK / name for name in ("at-hand", "weights", "cards", "evidence", "triggers", "repairs")
)


def look() -> None:
    """Write down which data sets are here and what the code of attacks and the bank's methods is, one file each."""
    from tasks.data.reference import describe, resolve
    from tasks.settings import load_settings
    from vetgate.digest import attack_digest, code_digest

    settings = load_settings()
    at_hand = _at_hand(settings)
    listed = members().values()
    for name in sorted({m.data for m in listed}):
        found: Blob = {"absent": True}
        if name in at_hand:
            ref = resolve(settings, name)
            about = describe(settings, ref)
            found = {"sha256": ref.sha256, "image": about["image"], "classes": about["classes"]}
        _write(AT_HAND / f"data-{name}.json", found)
    for attack, architecture in sorted({(m.attack, m.architecture) for m in listed}):
        _write(AT_HAND / f"attack-{attack}-{architecture}.json", {"code": attack_digest(attack, architecture)})
    for method in plan().detectors:
        _write(AT_HAND / f"detect-{method}.json", {"code": code_digest("detect", method)})
    for method in plan().repairs:
        _write(AT_HAND / f"repair-{method}.json", {"code": code_digest("repair", method)})


def absent(data: str) -> bool:
    """Whether the last look did not find a data set."""
    return bool(json.loads((AT_HAND / f"data-{data}.json").read_text()).get("absent"))


def member(name: str) -> None:
    """Train a member and lay its weights and its card where DVC and git keep them."""
    wanted = members()[name]
    weights, card = WEIGHTS / wanted.data / f"{name}.safetensors", CARDS / f"{name}.json"
    weights.parent.mkdir(parents=True, exist_ok=True)
    card.parent.mkdir(parents=True, exist_ok=True)
    if absent(wanted.data):
        weights.write_bytes(b"")
        _leave(card, wanted.data)
        return
    from tasks.settings import load_settings

    place, recipe = load_settings().home / "bank", plan().sets[wanted.data]
    made = member_file(place, wanted, recipe, json.loads((AT_HAND / f"data-{wanted.data}.json").read_text())["sha256"])
    if not made.with_suffix(".json").exists():
        # torch takes seconds to import, and is not needed where the member is there already
        from flows.bank.train import Order, trained

        trained(Order(wanted, recipe, _source(wanted.data), place))
    shutil.copyfile(made, weights)
    shutil.copyfile(made.with_suffix(".json"), card)


def evidence(method: str, data: str) -> None:
    """Run a detector on every member of a data set and write down what it gave."""
    out, triggers = EVIDENCE / f"{method}-{data}.json", TRIGGERS / f"{method}-{data}"
    triggers.mkdir(parents=True, exist_ok=True)
    if absent(data):
        _leave(out, data)
        return
    from rich.progress import Progress

    from flows.bank.evidence import inspected, spread, triggers_of
    from vetgate.contract import DETECTORS
    from vetgate.digest import code_digest

    tasks = tasks_of(method, data)
    found: Blob = {}
    with Progress() as bar:
        shown = bar.add_task(f"{method} on {data}", total=len(tasks))
        for task, seen in spread(inspected, tasks, None):
            found[task.member.name] = seen
            bar.advance(shown)
    for task in tasks:
        card = json.loads((CARDS / f"{task.member.name}.json").read_text())
        if (stored := triggers_of(task, card["key"])).exists():
            shutil.copyfile(stored, triggers / f"{task.member.name}.safetensors")
    first = tasks[0]
    about = {
        "method": method,
        "data": data,
        "data_sha256": first.data.ref.sha256,
        "image": list(first.data.shape),
        "classes": first.data.classes,
        "code": code_digest("detect", method),
        "params": {**DETECTORS[method].defaults, **first.params},
        "members": found,
    }
    _write(out, about)


def repairs(repair: str, data: str) -> None:
    """Repair every attacked member of a data set by the evidence of a detector, and write down what that did."""
    out = REPAIRS / f"{repair}-{data}.json"
    if absent(data):
        _leave(out, data)
        return
    from rich.progress import Progress

    from flows.bank.evidence import spread
    from flows.bank.repair import Job, repaired
    from flows.params import load_params
    from vetgate.digest import code_digest

    params = load_params().repair[repair]
    jobs = [Job(t, repair, params) for t in tasks_of(source_for(repair), data) if not t.member.clean]
    found: Blob = {}
    with Progress() as bar:
        shown = bar.add_task(f"{repair} on {data}", total=len(jobs))
        for job, done in spread(repaired, jobs, None):
            found[job.task.member.name] = done
            bar.advance(shown)
    about = {"repair": repair, "data": data, "code": code_digest("repair", repair), "params": params, "members": found}
    _write(out, about)


def source_for(repair: str) -> str:
    """The detector by whose evidence a repair is measured."""
    from flows.params import load_params, uses
    from vetgate.errors import BadPolicy
    from vetgate.role import source_of

    detectors, wanted = load_params().detect, uses(repair)
    found = next(iter(detectors), None) if wanted is None else source_of(wanted, detectors)
    if found is None:
        raise BadPolicy(f"expected a detector in params.yaml that gives {wanted} to {repair}, got none; add one")
    return found


def tasks_of(method: str, data: str) -> list[Task]:
    """A detector on each member of a data set that is inspected: an adversarial patch is no matter of the model's."""
    from flows.bank.evidence import Task
    from flows.params import load_params
    from tasks.settings import load_settings

    source, recipe, place = _source(data), plan().sets[data], load_settings().home / "bank"
    params = load_params().detect[method]
    chosen = [m for m in members().values() if m.data == data and m.attack != "adversarial_patch"]
    return [Task(m, recipe, source, place, method, params) for m in chosen]


def fill(names: list[str], jobs: int) -> None:
    """Train members on all cores, all that are not there yet; `dvc repro` then takes them as they are."""
    from rich.progress import Progress

    from flows.bank.evidence import spread
    from flows.bank.train import Order, trained
    from tasks.settings import load_settings

    settings = load_settings()
    at_hand = _at_hand(settings)
    wanted = [m for m in members().values() if m.data in at_hand and (not names or m.name.startswith(tuple(names)))]
    sources = {name: _source(name) for name in {m.data for m in wanted}}
    recipes, place = plan().sets, settings.home / "bank"
    orders = [Order(m, recipes[m.data], sources[m.data], place) for m in wanted]
    with Progress() as bar:
        shown = bar.add_task("members", total=len(orders))
        for order, (_, card) in spread(trained, orders, jobs):
            success = "" if "attack_success" not in card else f", success {card['attack_success']:.3f}"
            bar.console.print(f"{order.member.name}: accuracy {card['accuracy']:.3f}{success}, {card['seconds']} s")
            bar.advance(shown)


def _at_hand(settings: Settings) -> set[str]:
    """The data sets that this installation has; the digits come along."""
    from tasks.data.reference import registered

    return {ref.name for ref in registered(settings)} | {"digits"}


def _source(data: str) -> Source:
    from flows.bank.data import source
    from flows.params import load_params
    from tasks.settings import load_settings

    return source(load_settings(), data, load_params().data, plan().sets[data].images)


def _leave(path: Path, data: str) -> None:
    """What git holds stays; where it holds nothing, say so, since a stage must leave a file."""
    if not path.exists():
        _write(path, {"absent": data})


def _write(path: Path, value: Blob) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n")


def main() -> None:
    """Run one stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    stages = parser.add_subparsers(dest="stage", required=True)
    stages.add_parser("look")
    stages.add_parser("member").add_argument("name")
    for stage, arguments in {"evidence": ("method", "data"), "repairs": ("repair", "data")}.items():
        parsed = stages.add_parser(stage)
        for argument in arguments:
            parsed.add_argument(argument)
    filling = stages.add_parser("fill")
    filling.add_argument("names", nargs="*", help="beginnings of the names of members; all without")
    filling.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    given = vars(parser.parse_args())
    need_checkout("a stage of dvc.yaml")
    run: dict[str, Callable[..., None]] = {
        "look": look,
        "member": member,
        "evidence": evidence,
        "repairs": repairs,
        "fill": fill,
    }
    run[given.pop("stage")](**given)


if __name__ == "__main__":
    sys.exit(ended(main))
