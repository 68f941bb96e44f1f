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
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.third_party import vetgate
from flows.bank.data import read_samples, source
from flows.bank.networks import OPEN, Member, key_of, member_file, members, plan
from flows.bank.train import Network, load
from flows.params import load_params
from tasks.data.reference import registered
from tasks.sandbox.fork import PR_SET_CHILD_SUBREAPER, prctl
from tasks.settings import Settings, load_settings
from vetgate.contract import Samples
from vetgate.formats.load import load_model
from vetgate.formats.submission import read_submission
from vetgate.probe import accuracy, logits
from vetgate.shipped import POLICY

# what stays of a backdoor may work on this share of the images
SOLVED = 0.1


def asked(clean: int, part: tuple[int, int]) -> list[Member]:
    """Every open backdoored member, and so many open clean ones of each data set, dealt out in turn."""
    named = [m for m in members().values() if plan().group(m.name) == OPEN and m.attack != "adversarial_patch"]
    honest: list[Member] = []
    for data in plan().sets:
        honest += [m for m in named if m.clean and m.data == data][:clean]
    turn, turns = part
    return [*(m for m in named if not m.clean), *honest][turn::turns]


def hand_in(member: Member, network: Network, shape: Sequence[int], classes: int, folder: Path) -> Path:
    """Write a member as its supplier would hand it in, without the training set."""
    directory = folder / member.name
    directory.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in network.model.state_dict().items()}, directory / "model.safetensors")
    about = {
        "name": member.name,
        "supplier": "benchmarks",
        "task": "image-classification",
        "model": "model.safetensors",
        "format": "safetensors",
        "architecture": member.architecture,
        "input_shape": list(shape),
        "classes": classes,
        "reference_data": member.data,
    }
    (directory / "submission.yaml").write_text(yaml.safe_dump(about, sort_keys=False))
    return directory


def measured(model: nn.Module, test: Samples, attacked: tuple[Tensor, Tensor, Tensor] | None) -> dict[str, float]:
    """Accuracy on test images; on stamped ones, how many do as the attacker wants and how many get their true label."""
    found = {"accuracy": round(accuracy(model, test.x, test.y), 4)}
    if attacked is not None:
        stamped, true, wanted = attacked
        said = logits(model, stamped).argmax(1)
        found["attack_success"] = round(float((said == wanted).float().mean()), 4)
        found["robust_accuracy"] = round(float((said == true).float().mean()), 4)
    return found


def rating(before: dict[str, float], after: dict[str, float]) -> float:
    """The defence effectiveness rating: 1 where the attack is gone at no cost, 0.5 where nothing changed."""
    gone = max(0.0, before["attack_success"] - after["attack_success"])
    return (gone - max(0.0, before["accuracy"] - after["accuracy"]) + 1) / 2


def rows(settings: Settings, folder: Path, wanted: Sequence[Member], out: Path) -> Iterator[dict[str, Any]]:
    """One row a member that is trained: what was found, what was chosen, and what it does to the attacker's images."""
    done = {json.loads(line)["name"] for line in out.read_text().splitlines()} if out.exists() else set()
    params, sources = load_params(), {}
    for member in wanted:
        recipe = plan().sets[member.data]
        if member.data not in sources:
            sources[member.data] = source(settings, member.data, params.data, recipe.images)
        given = sources[member.data]
        weights = member_file(settings.home / "bank", member, recipe, given.ref.sha256)
        if member.name in done or not weights.with_suffix(".json").exists():
            continue
        network = load(weights, member, given.shape, given.classes)
        directory = hand_in(member, network, given.shape, given.classes, folder / "handed-in")
        code, result, cost = vetgate(folder / "home", "vet", str(directory))
        test = read_samples(given.splits.test)
        before = measured(network.model, test, network.attacked)
        row = {
            "name": member.name,
            "data": member.data,
            "attack": member.attack,
            "key": key_of(member, recipe, given.ref.sha256),
        }
        row |= {"exit": code, **{key: result.get(key) for key in ("verdict", "p_value", "suspects", "error")}}
        row |= {"candidates": [short(one) for one in result.get("repairs") or ()], "before": before, "after": before}
        if repair := result.get("repair"):
            artifact = Path(repair["artifact"]).parent
            repaired = load_model(artifact, read_submission(artifact)).model
            row |= {"method": repair["method"], "verdict_after": repair["verdict"]}
            row["after"] = measured(repaired, test, network.attacked)
        row |= cost
        with out.open("a") as lines:
            lines.write(json.dumps(row) + "\n")
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
        f"{mean(rating(row['before'], row['after']) for row in some):.3f}",
        f"{solved} of {len(some)}",
        str(sum("method" not in row for row in some)),
    ]


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
    policy = yaml.safe_load(POLICY.read_text())
    policy["repair"]["blind"] = True
    (folder / "home").mkdir(parents=True, exist_ok=True)
    (folder / "home" / "policy.yaml").write_text(yaml.safe_dump(policy))
    os.environ["VETGATE_POLICY"] = str(folder / "home" / "policy.yaml")
    for ref in registered(settings):
        if (file := given.data / f"{ref.name}.npz").exists():
            vetgate(folder / "home", "data", "add", ref.name, str(file))
    for row in rows(settings, folder, asked(given.clean, given.part), given.json):
        Console(stderr=True).print(row["name"], row["verdict"], row.get("method"), row["before"], row["after"])
    found = [json.loads(line) for line in given.json.read_text().splitlines()]
    for table in tables(found):
        Console(width=150).print(table)


if __name__ == "__main__":
    main()
