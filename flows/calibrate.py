"""The calibration: what detectors gave on clean reference models, pinned to their code and parameters.

`python -m flows.calibrate` writes the shipped one from the bank's evidence, of which nothing sealed enters. A person's
own data set is calibrated by `vetgate calibrate`: clean networks are trained on it, as the bank's are, and inspected.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import vetgate.detect  # noqa: F401 - registers the detectors
from flows.bank import BANK, Member, Recipe, members, plan, read_all
from flows.bank_evidence import Task, everywhere
from flows.bank_train import trained
from flows.params import Params, load_params
from vetgate.calibration import SHIPPED, Bank, MethodPin, Reference, Seen
from vetgate.contract import DETECTORS
from vetgate.digest import code_digest

Blob = dict[str, Any]
DIGITS = 4


def pins(params: Params) -> dict[str, MethodPin]:
    """The detectors that have a section in params.yaml, as they are now."""
    return {
        name: MethodPin(code=code_digest("detect", name), params={**DETECTORS[name].defaults, **section})
        for name, section in sorted(params.detect.items())
    }


def reference(card: Blob, classes: int, evidence: Mapping[str, Blob]) -> Reference:
    """A clean member as a reference, from its card and what each detector gave on it."""
    return Reference(
        data=card["data"],
        data_sha256=card["data_sha256"],
        architecture=card["architecture"],
        classes=classes,
        seed=card["seed"],
        accuracy=card["accuracy"],
        seen={
            method: Seen(
                statistic=found["statistic"],
                # only label norms are compared within a model; the other detectors' statistics stand for themselves
                scores=tuple(round(v, DIGITS) for v in found["scores"]) if method == "neural_cleanse" else None,
            )
            for method, found in evidence.items()
            if "statistic" in found
        },
    )


def of_the_bank(params: Params, bank: Path = BANK) -> Bank:
    """The calibration that follows from the bank's committed evidence of this code and these parameters."""
    wanted, listed, sealed = pins(params), members(bank / "members.yaml"), plan().sealed
    evidence: dict[str, dict[str, Blob]] = {}
    classes: dict[str, int] = {}
    for file, found in read_all(bank / "evidence").items():
        pin = wanted.get(found["method"])
        if pin is None or (found["code"], found["params"]) != (pin.code, dict(pin.params)):
            print(f"{file} was made with other code or parameters and is left out", file=sys.stderr)
            continue
        for name, seen in found["members"].items():
            evidence.setdefault(name, {})[found["method"]] = seen
            classes[name] = found["classes"]
    cards = read_all(bank / "cards")
    references = [
        reference(cards[name], classes[name], seen)
        for name, seen in evidence.items()
        if name in listed and listed[name].clean and name not in sealed
    ]
    return Bank(methods=wanted, references=_ordered(references))


def own(
    settings: Any,
    params: Params,
    wanted: Iterable[Member],
    recipe: Recipe,
    out: Path,
    *,
    jobs: int | None = None,
    tell: Callable[[int, int, Blob], None] = lambda done, total, card: None,
) -> Bank:
    """Train clean networks on a data set of one's own, inspect them, and add them to the calibration at `out`.

    `tell` hears of each member that is finished. References on other data sets stay, as long as code and parameters
    are theirs. Whatever is finished is kept under <home>/bank.
    """
    from flows.bank_data import source

    listed, place = list(wanted), settings.home / "bank"
    data = source(settings, listed[0].data, params.data, recipe.images)
    found: dict[str, dict[str, Blob]] = {m.name: {} for m in listed}
    tasks = [Task(m, recipe, data, method, section, place) for m in listed for method, section in params.detect.items()]
    cards: dict[str, Blob] = {}
    for task, seen in everywhere(tasks, jobs):
        found[task.member.name][task.method] = seen
        if len(found[task.member.name]) == len(params.detect):
            cards[task.member.name] = trained(place, task.member, recipe, data)[1]
            tell(len(cards), len(listed), cards[task.member.name])
    fresh = [reference(cards[m.name], data.classes, found[m.name]) for m in listed]
    before = _read(out)
    made = Bank(methods=pins(params), references=_ordered(fresh), transfer=before.transfer if before else {})
    bank = made.model_copy(update={"references": _with_kept(made, out)})
    write(bank, out)
    return bank


def write(bank: Bank, out: Path) -> None:
    """The calibration as a file, whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=out.parent, delete=False) as file:
        blob = {"bank": bank.digest(), **bank.model_dump(mode="json", exclude={"bank"})}
        file.write(json.dumps(blob, indent=1) + "\n")
    Path(file.name).chmod(0o644)
    Path(file.name).replace(out)


def _with_kept(bank: Bank, out: Path) -> tuple[Reference, ...]:
    """A bank's references, and those at `out` on other data sets, as long as code and parameters are theirs."""
    before, own = _read(out), {r.data for r in bank.references}
    kept = [r for r in before.references if r.data not in own] if before and before.methods == bank.methods else []
    return _ordered([*kept, *bank.references])


def _read(path: Path) -> Bank | None:
    return Bank.model_validate_json(path.read_text()) if path.exists() else None


def _ordered(references: Iterable[Reference]) -> tuple[Reference, ...]:
    return tuple(sorted(references, key=lambda r: (r.data, r.seed)))


def main() -> None:
    """Write the shipped calibration, with how far it carries over; what it holds of data without evidence stays."""
    from flows.bench import Files
    from flows.transfer import transfer

    bank = of_the_bank(load_params())
    write(transfer(bank, Files()).model_copy(update={"references": _with_kept(bank, SHIPPED)}), SHIPPED)


if __name__ == "__main__":
    main()
