"""What run-time guards see of known triggers: fitted on trusted images, measured on the attacker's own stamped ones.

`VETGATE_HOME=HOME python -m benchmarks.runtime --json FILE` takes the backdoored members that
`python -m flows.bank.stage fill` has trained under HOME, and the clean networks that an adversarial patch fools.
`--papers FOLDER --mnist NPZ --gtsrb NPZ --cifar10 NPZ` takes, in their place, the networks of
`benchmarks.mitigation` and two with a pattern of four lone pixels, trained in FOLDER. Each guard learns of the images
for repairs and has its cut set on those for validation, at 1 and at 5 % false rejections; detection is measured on
stamped test images of other classes that the network takes for the wanted label, and false rejections on test images.
With `--cost` it is processor time instead: of the network alone and behind each guard, for one image and for 64.
FILE gets a line a network and guard, and what is in it is not done again. `--members`, `--attacks` and `--guards` name
some. STRIP, SCALE-UP, IBD-PSC and input fuzzing were settled on members with odd numbers; those with even ones confirm.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

import vetgate.detect
import vetgate.guard  # noqa: F401 - registers the methods
from benchmarks.mitigation import CASES, EPOCHS, RATE, Data, infected
from benchmarks.rows import add_row, rows_in
from benchmarks.trained import trained
from flows.bank.data import read_samples
from flows.bank.networks import OPEN, Member, members, plan
from flows.params import load_params
from tasks.settings import load_settings
from vetgate.architectures import ARCHITECTURES, default_layer
from vetgate.attacks.badnets import poison
from vetgate.attacks.training import train
from vetgate.contract import DETECTORS, Evidence, Samples, Subject, Trigger, private_random
from vetgate.errors import DefenceError
from vetgate.guard.contract import GUARDS, Guard, voters
from vetgate.guard.measure import choose_guards
from vetgate.probe import accuracy, logits
from vetgate.role import source_of

RATES = (0.01, 0.05)
# images that set a cut, that are measured, and that triggers are reversed on, at most
IMAGES, SEARCHED = 1000, 1024
# the lone pixels, from the bottom right corner
PATTERN, PATTERN_TARGET, ARCHITECTURE = ((-2, -2), (-2, -4), (-4, -2), (-3, -3)), 7, "vgg-small"
# what a vote may take of the accuracy: colour images bear less noise
ALLOWED = {"mnist": 0.02, "cifar10": 0.15}


def to_measure() -> list[Member]:
    """The open members with a trigger, those of adversarial patches among them."""
    return [m for m in members().values() if plan().group(m.name) == OPEN and not m.clean]


def evidence_of(subject: Subject, file: Path) -> list[Evidence]:
    """What the detector that reverses triggers finds, run once and then read from its file."""
    method = source_of("triggers")
    assert method is not None
    if file.exists():
        return [Evidence.from_json(json.loads(file.read_text()))]
    found: Evidence = DETECTORS[method](subject, seed=0, **load_params().detect.get(method, {}))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found.to_json()))
    return [found]


@dataclass(frozen=True, eq=False)
class Attacked:
    """A network, trusted images by their purpose, and stamped test images that it takes for the wanted label."""

    name: str
    data: str
    attack: str
    architecture: str
    subject: Subject
    searched: Samples
    held: Samples
    test: Samples
    stamped: Tensor
    true: Tensor
    success: float
    params: Mapping[str, Mapping[str, float]]

    @classmethod
    def of(
        cls,
        names: tuple[str, str, str, str],
        model: nn.Module,
        classes: int,
        parts: Mapping[str, Samples],
        stamped: tuple[Tensor, Tensor, Tensor],
        params: Mapping[str, Mapping[str, float]] | None = None,
    ) -> Attacked:
        """From stamped images, their true labels and those wanted."""
        x, true, wanted = stamped
        works = logits(model, x).argmax(1) == wanted
        subject = Subject(model=model, layer=default_layer(model), classes=classes, clean=parts["repair"])
        held, test = (parts[name][:IMAGES] for name in ("validate", "test"))
        return cls(
            *names,
            subject=subject,
            searched=parts["invert"],
            held=held,
            test=test,
            stamped=x[works],
            true=true[works],
            success=float(works.float().mean()),
            params=params or {},
        )


def members_trained(wanted: Sequence[Member]) -> Iterator[Attacked]:
    """Members of the bank, one at a time."""
    for member, given, network in trained(load_settings(), wanted):
        assert network.attacked is not None
        parts = {name: read_samples(getattr(given.splits, name)) for name in ("invert", "repair", "validate", "test")}
        names = (member.name, member.data, member.attack, member.architecture)
        yield Attacked.of(names, network.model, given.classes, parts, network.attacked)


def papers(place: Path, files: Mapping[str, Path], wanted: Sequence[str] | None) -> Iterator[Attacked]:
    """The networks of other benchmarks with known triggers, and those with a pattern of lone pixels; all, or some."""
    for case in CASES:
        if case.data in files and case.backdoor != "transfer" and (wanted is None or case.name in wanted):
            data = Data.of(files[case.data])
            model, trigger = infected(case, data, place)
            yield _stamped((case.name, case.data, case.backdoor, case.architecture), model, data, trigger)
    for name, budget in ALLOWED.items():
        if name in files and (wanted is None or f"{name}-pattern" in wanted):
            data = Data.of(files[name])
            model, trigger = with_pattern(name, data, place)
            params = {voter: {"budget": budget} for voter in voters()}
            yield _stamped((f"{name}-pattern", name, "pattern", ARCHITECTURE), model, data, trigger, params)


def _stamped(
    names: tuple[str, str, str, str],
    model: nn.Module,
    data: Data,
    trigger: Trigger,
    params: Mapping[str, Mapping[str, float]] | None = None,
) -> Attacked:
    cut, others = len(data.ours) // 2, data.test[data.test.y != trigger.target][:IMAGES]
    parts = {"repair": data.ours[:cut], "validate": data.ours[cut:], "invert": data.ours[:cut], "test": data.test}
    wanted = torch.full_like(others.y, trigger.target)
    return Attacked.of(names, model, data.classes, parts, (trigger.stamp(others.x), others.y, wanted), params)


def with_pattern(name: str, data: Data, place: Path) -> tuple[nn.Module, Trigger]:
    """A network with a backdoor that a pattern of four lone pixels opens, as in BadNets, trained once."""
    mask = torch.zeros(1, *data.shape[1:])
    for row, column in PATTERN:
        mask[0, row, column] = 1
    trigger = Trigger(mask, torch.ones(data.shape), PATTERN_TARGET)
    with private_random(0, f"{name}-pattern"):
        model = ARCHITECTURES[ARCHITECTURE](data.shape, data.classes)
    file = place / f"{name}-pattern.safetensors"
    if file.exists():
        model.load_state_dict(load_file(file))
    else:
        rows = poison(data.given, trigger, rate=RATE, generator=torch.Generator().manual_seed(0)).samples
        train(model, rows, epochs=EPOCHS[name])
        place.mkdir(parents=True, exist_ok=True)
        save_file({key: value.contiguous() for key, value in model.state_dict().items()}, file)
    return model.eval().requires_grad_(False), trigger


Measure = Callable[[Guard, Attacked, Sequence[Evidence]], dict[str, Any]]


def figures(guard: Guard, given: Attacked, evidence: Sequence[Evidence]) -> dict[str, Any]:
    """AUROC, and at each rate the share of working triggered images and of clean ones that are rejected."""
    model, started = given.subject.model, time.process_time()
    fitted = guard.fit(given.subject, *evidence, **given.params.get(guard.name, {}))
    out: dict[str, Any] = {"fit_seconds": round(time.process_time() - started, 2), "rates": {}}
    started = time.process_time()
    clean = guard.score(fitted, model, given.test.x)
    out["ms"] = round(1000 * (time.process_time() - started) / len(given.test), 3)
    stamped = guard.score(fitted, model, given.stamped)
    truth = [0] * len(clean) + [1] * len(stamped)
    out["auroc"] = round(float(roc_auc_score(truth, torch.cat([clean, stamped]).nan_to_num(posinf=1e30).numpy())), 4)
    for rate in RATES:
        cut = guard.with_cut(fitted, model, given.held.x, rate=rate).cut
        assert cut is not None
        detected, rejected = (float((s > cut).float().mean()) for s in (stamped, clean))
        out["rates"][str(rate)] = {"detected": round(detected, 4), "rejected": round(rejected, 4)}
    if guard.voting is not None:
        bare, voted = accuracy(model, given.test.x, given.test.y), guard.vote(fitted, model, given.test.x).labels
        right = guard.vote(fitted, model, given.stamped).labels == given.true
        out["vote"] = {
            "settled": dict(fitted.numbers),
            "accuracy": [round(bare, 4), round(float((voted == given.test.y).float().mean()), 4)],
            "corrected": round(float(right.float().mean()), 4),
        }
    return out


def cost(guard: Guard, given: Attacked, evidence: Sequence[Evidence]) -> dict[str, Any]:
    """Milliseconds of processor time of the network alone and behind the guard, for one image and for 64."""
    found = choose_guards(
        given.subject,
        given.held,
        given.test,
        {guard.name: given.params.get(guard.name, {})},
        evidence,
        (),
        rate=max(RATES),
        max_slowdown=1.0,
        seed=0,
    )
    if found.unfitted:
        raise DefenceError(found.unfitted[0].reason)
    (measured,) = found.measured
    pairs = {"alone": measured.alone, "batch": measured.batch}
    return {name: {"bare": round(c.bare, 3), "guarded": round(c.guarded, 3)} for name, c in pairs.items()}


def rows(
    cases: Iterator[Attacked], guards: Sequence[str], out: Path, measure: Measure | None = None
) -> Iterator[dict[str, Any]]:
    """One row a network and a guard, of figures or what else is measured."""
    measure = measure or figures
    # figures and costs may stand in one file
    own = "alone" if measure is cost else "rates"
    done = {(row["name"], row["guard"]) for row in rows_in(out) if own in row or "failed" in row}
    place = out.with_suffix("").with_name(f"{out.stem}-evidence")
    for given in cases:
        for name in guards:
            if (given.name, name) in done:
                continue
            row: dict[str, Any] = {"name": given.name, "data": given.data, "attack": given.attack, "guard": name}
            row |= {"architecture": given.architecture, "success": round(given.success, 4)}
            row |= {"images": len(given.stamped)}
            evidence: list[Evidence] = []
            if GUARDS[name].role.uses is not None:
                searched = replace(given.subject, clean=given.searched[:SEARCHED])
                evidence = evidence_of(searched, place / f"{given.name}.json")
            try:
                row |= measure(GUARDS[name], given, evidence)
            except DefenceError as error:
                row["failed"] = str(error)
            add_row(out, row)
            yield row


def table(found: Sequence[Mapping[str, Any]]) -> Table:
    """A line an attack, a column a guard: AUROC and detection at the rates, means over the members."""
    guards = sorted({row["guard"] for row in found})
    shown = Table("attack", "members", *guards, title="AUROC, detected at 1 % / at 5 % false rejections")
    for attack in sorted({row["attack"] for row in found}):
        mine = [row for row in found if row["attack"] == attack]
        cells = []
        for guard in guards:
            measured = [row for row in mine if row["guard"] == guard and "failed" not in row]
            each = [mean(row["rates"][str(rate)]["detected"] for row in measured) for rate in RATES] if measured else []
            text = " / ".join(f"{share:.0%}" for share in each)
            cells.append(f"{mean(r['auroc'] for r in measured):.3f} {text} ({len(measured)})" if measured else "")
        shown.add_row(attack, str(len({row["name"] for row in mine})), *cells)
    clean = [[row["rates"][str(rate)]["rejected"] for rate in RATES] for row in found if "failed" not in row]
    means = [f"{mean(pair[at] for pair in clean):.2%} at {rate:.0%}" for at, rate in enumerate(RATES) if clean]
    shown.caption = f"false rejections on test images, mean: {' and '.join(means)}"
    return shown


def main() -> None:
    """Do what is not in the file yet, and print the table of what is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--members", nargs="+")
    parser.add_argument("--attacks", nargs="+", default=sorted({m.attack for m in to_measure()}))
    parser.add_argument("--guards", nargs="+", default=sorted(GUARDS), choices=sorted(GUARDS))
    parser.add_argument("--cost", action="store_true")
    parser.add_argument("--papers", type=Path)
    for name in EPOCHS:
        parser.add_argument(f"--{name}", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.papers is None:
        wanted = [m for m in to_measure() if given.members is None or m.name in given.members]
        cases = members_trained([m for m in wanted if m.attack in given.attacks])
    else:
        files = {name: getattr(given, name) for name in EPOCHS if getattr(given, name) is not None}
        cases = papers(given.papers, files, given.members)
    for row in rows(cases, given.guards, given.json, cost if given.cost else figures):
        Console(stderr=True).print(row)
    if not given.cost:
        Console(width=180).print(table([row for row in rows_in(given.json) if "alone" not in row]))


if __name__ == "__main__":
    main()
