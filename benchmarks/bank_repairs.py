"""What the repair flow makes of the bank's open members: found and repaired, or not found and hardened blindly.

`VETGATE_HOME=HOME python -m benchmarks.bank_repairs FOLDER --data DIR --json FILE` takes the members that
`python -m flows.bank.stage fill` has trained under HOME, hands each in as a supplier would, the model alone, and vets
it by the shipped policy with `repair.blind` set, in an installation of its own under FOLDER. DIR holds mnist.npz and so
on; the digits come along. The model and what the flow hands back are then measured on the attacker's own stamped images
and on the member's test images, neither of which the flow ever sees. FILE gets a line a member; what is in it is not
vetted again. `--clean N` adds so many clean members of each data set: what blind repairs cost them. `--part 0/2` and
`--part 1/2` share the members between two processes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.rows import add_row, rows_in
from benchmarks.third_party import repairs_by_policy, vetgate
from benchmarks.trained import members_to_measure, trained
from flows.bank.data import read_samples
from flows.bank.networks import Member, key_of, plan
from flows.bank.repair import measured
from flows.bank.suppliers import write_submission
from flows.benchmark.tables import SOLVED
from tasks.data.reference import registered
from tasks.sandbox.prctl import PR_SET_CHILD_SUBREAPER, prctl
from tasks.settings import Settings, load_settings
from vetgate.formats.load import load_model
from vetgate.formats.submission import read_submission
from vetgate.verdict.metrics import defence_effectiveness


def asked(clean: int, part: tuple[int, int]) -> list[Member]:
    """Every open backdoored member, and so many open clean ones of each data set, dealt out in turn."""
    named = members_to_measure()
    honest: list[Member] = []
    for data in plan().sets:
        honest += [m for m in named if m.clean and m.data == data][:clean]
    turn, turns = part
    return [*(m for m in named if not m.clean), *honest][turn::turns]


def rows(settings: Settings, folder: Path, wanted: Sequence[Member], out: Path) -> Iterator[dict[str, Any]]:
    """One row a member that is trained: what was found, what was chosen, and what it does to the attacker's images."""
    done = {row["name"] for row in rows_in(out)}
    for member, given, network in trained(settings, [m for m in wanted if m.name not in done]):
        directory = write_submission(
            folder / "handed-in" / member.name,
            network.model,
            supplier="benchmarks",
            architecture=member.architecture,
            shape=given.shape,
            classes=given.classes,
            reference_data=member.data,
        )
        code, result, cost = vetgate(folder / "home", "vet", str(directory))
        test = read_samples(given.splits.test)
        before = measured(network.model, test, network.attacked)
        row = {
            "name": member.name,
            "data": member.data,
            "attack": member.attack,
            "key": key_of(member, plan().sets[member.data], given.ref.sha256),
        }
        row |= {"exit": code, **{key: result.get(key) for key in ("verdict", "p_value", "suspects", "error")}}
        row |= {"candidates": [short(one) for one in result.get("repairs") or ()], "before": before, "after": before}
        if repair := result.get("repair"):
            artifact = Path(repair["artifact"]).parent
            repaired = load_model(artifact, read_submission(artifact)).model
            row |= {"method": repair["method"], "verdict_after": repair["verdict"]}
            row["after"] = measured(repaired, test, network.attacked)
        row |= cost
        add_row(out, row)
        yield row


def short(candidate: dict[str, Any]) -> dict[str, Any]:
    """A candidate's name, what became of it and why, and its figures on the images for choosing."""
    figures = candidate.get("figures") or {}
    kept = ("clean_accuracy", "attack_success", "anew", "natural", "seconds")
    return {
        "method": candidate["method"],
        "standing": candidate["standing"],
        "reason": candidate["reason"],
        **{k: figures[k] for k in kept if k in figures},
    }


def tables(found: Sequence[dict[str, Any]]) -> Iterator[Table]:
    """By attack, what was found and then repaired, and what was not and was hardened; and what that cost clean ones."""
    attacked = [row for row in found if "attack_success" in row["before"]]
    kinds: list[tuple[str, Callable[[dict[str, Any]], bool]]] = [
        ("found (FAIL) and repaired", lambda row: row["verdict"] == "FAIL"),
        ("not found, hardened blindly", lambda row: row["verdict"] != "FAIL"),
    ]
    for title, belongs in kinds:
        mine = [row for row in attacked if belongs(row)]
        shown = Table("attack", "members", "CA", "ASR", "RA", "DER", "ASR <= 10 %", "nothing chosen", title=title)
        for attack in [*sorted({row["attack"] for row in mine}), "all"]:
            some = [row for row in mine if attack in (row["attack"], "all")]
            if some:
                shown.add_row(attack, *summary(some))
        yield shown
    honest = [row for row in found if "attack_success" not in row["before"]]
    clean = Table("data", "members", "FAIL", "CA", "lost at most", "CPU-s", title="clean members, hardened blindly")
    for data in [*sorted({row["data"] for row in honest}), "all"]:
        some = [row for row in honest if data in (row["data"], "all")]
        if some:
            lost = [row["before"]["accuracy"] - row["after"]["accuracy"] for row in some]
            failed = sum(row["verdict"] == "FAIL" for row in some)
            clean.add_row(
                data,
                str(len(some)),
                str(failed),
                change(some, "accuracy"),
                f"{max(lost):.1%}",
                f"{mean(row['cpu_seconds'] for row in some):.0f}",
            )
    yield clean


def summary(some: Sequence[dict[str, Any]]) -> list[str]:
    """The cells of one attack."""
    solved = sum(row["after"]["attack_success"] <= SOLVED for row in some)
    return [
        str(len(some)),
        *(change(some, what) for what in ("accuracy", "attack_success", "robust_accuracy")),
        f"{mean(map(rating, some)):.3f}",
        f"{solved} of {len(some)}",
        str(sum("method" not in row for row in some)),
    ]


def rating(row: dict[str, Any]) -> float:
    """The defence effectiveness rating of a row."""
    accuracy, success = ((row["before"][k], row["after"][k]) for k in ("accuracy", "attack_success"))
    return defence_effectiveness(accuracy, success)


def change(some: Sequence[dict[str, Any]], what: str) -> str:
    """The mean of a figure, before and after."""
    return " -> ".join(f"{mean(row[when][what] for row in some):.1%}" for when in ("before", "after"))


def main() -> None:
    """Vet what is not in the file yet, and print the tables of what is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--clean", type=int, default=0)
    parser.add_argument("--part", type=lambda text: tuple(int(one) for one in text.split("/")), default=(0, 1))
    given = parser.parse_args()
    # what a command leaves behind is ours to wait for, and so to count
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    folder, settings = given.folder.absolute(), load_settings()
    repairs_by_policy(folder / "home", blind=True)
    for ref in registered(settings):
        if (file := given.data / f"{ref.name}.npz").exists():
            vetgate(folder / "home", "data", "add", ref.name, str(file))
    for row in rows(settings, folder, asked(given.clean, given.part), given.json):
        Console(stderr=True).print(row["name"], row["verdict"], row.get("method"), row["before"], row["after"])
    found = rows_in(given.json)
    for table in tables(found):
        Console(width=150).print(table)


if __name__ == "__main__":
    main()
