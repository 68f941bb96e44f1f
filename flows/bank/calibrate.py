"""The calibration: what detectors gave on clean reference models, pinned to their code and parameters.

`python -m flows.bank.calibrate` writes the shipped one from the bank's evidence, of which nothing that is held back
enters. A person's own data set is calibrated by `vetgate calibrate`: clean networks are trained on it, as the bank's
are, and inspected.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from flows.bank.evidence import Task, by_all, spread
from flows.bank.files import Files, pins, verdict
from flows.bank.networks import OPEN, Member, Recipe
from flows.bank.train import trained
from flows.params import Params
from tasks.progress import announce
from vetgate.role import by_itself, scores_labels
from vetgate.shape import Blob
from vetgate.shipped import need_checkout
from vetgate.verdict.calibration import SHIPPED, Bank, Calibration, Left, Reference, Seen
from vetgate.verdict.policy import load_policy

DIGITS = 4


def reference(card: Blob, image: Sequence[int], classes: int, evidence: Mapping[str, Blob]) -> Reference:
    """A clean member as a reference, from its card, the images (C, H, W) it takes, and what detectors gave on it."""
    channels, height, width = image
    return Reference(
        data=card["data"],
        data_sha256=card["data_sha256"],
        image=(channels, height, width),
        architecture=card["architecture"],
        classes=classes,
        seed=card["seed"],
        accuracy=card["accuracy"],
        seen={
            method: Seen(
                statistic=found["statistic"],
                # what is said of rows is of no use for another model
                scores=tuple(round(v, DIGITS) for v in found["scores"]) if scores_labels(method) else None,
            )
            for method, found in evidence.items()
            if "statistic" in found
        },
    )


def of_the_bank(files: Files) -> Bank:
    """The calibration that follows from the bank's evidence; nothing that is held back enters.

    A detector of params.yaml that does not run on the bank has no part in it.
    """
    ran = {method for seen in files.evidence.values() for method in seen}
    references = [
        reference(files.cards[name], *files.images[files.members[name].data], seen)
        for name, seen in files.evidence.items()
        if name in files.members and files.members[name].clean and files.group(name) == OPEN
    ]
    pinned = {name: pin for name, pin in files.pins.items() if name in ran}
    return Bank(methods=pinned, references=_ordered(references))


def transfer(bank: Bank, files: Files) -> Bank:
    """The bank with the alarms at the policy's rate of clean models whose kind is left out of the references."""
    return bank.model_copy(
        update={
            "transfer": {
                "data": _left_out(bank, files, lambda r: r.data),
                "architecture": _left_out(bank, files, lambda r: r.architecture),
            }
        }
    )


def _left_out(bank: Bank, files: Files, kind: Callable[[Reference], str]) -> dict[str, Left]:
    found = {}
    by_place = {(m.data, m.seed): name for name, m in files.members.items() if m.clean}
    policy = load_policy()
    for left in sorted({kind(r) for r in bank.references}):
        rest = tuple(r for r in bank.references if kind(r) != left)
        if not rest:
            continue
        calibration, alarms = Calibration(bank.model_copy(update={"references": rest}), "left out"), 0
        subjects = [by_place[r.data, r.seed] for r in bank.references if kind(r) == left]
        for name in subjects:
            ruled = verdict(files.seen(name, policy.required), calibration, policy, files.cards[name], files)
            # a verdict that could not be given is no sign of calm
            alarms += ruled.p_value is None or ruled.p_value <= policy.false_alarm_rate
        found[left] = Left(models=len(subjects), alarms=alarms)
    return found


def own(
    settings: Any,
    params: Params,
    wanted: Iterable[Member],
    recipe: Recipe,
    out: Path,
    *,
    jobs: int | None = None,
    on_progress: Callable[[float], None] = lambda share: None,
) -> Bank:
    """Train clean networks on a data set of one's own, inspect them, and add them to the calibration at `out`.

    `on_progress` is given the share of the networks that is finished. References on other data sets stay, as long as
    code and parameters are theirs. Whatever is finished is kept under <home>/bank.
    """
    from flows.bank.data import source

    listed, place = list(wanted), settings.home / "bank"
    data = source(settings, listed[0].data, params.data, recipe.images)
    # all detectors on a network in one worker, so that no two of them train it
    groups = [
        [Task(m, recipe, data, place, name, given) for name, given in params.detect.items() if not by_itself(name)]
        for m in listed
    ]
    fresh = []
    for group, seen in spread(by_all, groups, jobs):
        fresh.append(reference(trained(group[0])[1], data.shape, data.classes, seen))
        on_progress(len(fresh) / len(listed))
    made = {(r.data, r.image) for r in fresh}
    bank = joined(Bank(methods=pins(params), references=tuple(fresh)), out, lambda r: (r.data, r.image) not in made)
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


def joined(bank: Bank, out: Path, stays: Callable[[Reference], bool]) -> Bank:
    """A bank with those references at `out` that are to stay, as long as form, code and parameters are its own.

    Either may hold what methods found that the other knows nothing of. References that cannot stay are announced.
    """
    try:
        before = Bank.model_validate(json.loads(out.read_text())) if out.exists() else None
    except ValidationError:
        announce(f"warning: {out} was written by a version of another form: its references are left out")
        before = None
    alone = bank.model_copy(update={"references": _ordered(bank.references)})
    if before is None:
        return alone
    changed = [name for name, pin in before.methods.items() if bank.methods.get(name, pin) != pin]
    if changed:
        announce(
            f"warning: {len(before.references)} references of {out} were made with other code or parameters of "
            f"{', '.join(changed)} and are left out; restore params.yaml, or write another file with --out"
        )
        return alone
    every = _ordered([*filter(stays, before.references), *bank.references])
    methods = dict(sorted({**before.methods, **bank.methods}.items()))
    transfer = bank.transfer or before.transfer
    return bank.model_copy(update={"references": every, "methods": methods, "transfer": transfer})


def _ordered(references: Iterable[Reference]) -> tuple[Reference, ...]:
    return tuple(sorted(references, key=lambda r: (r.data, r.seed)))


def main() -> None:
    """Write the shipped calibration, with how far it carries over; what it holds of data without evidence stays."""
    need_checkout("the stage calibrate of dvc.yaml")
    files = Files()
    bank = transfer(of_the_bank(files), files)
    shown = {r.data for r in bank.references}
    write(joined(bank, SHIPPED, lambda r: r.data not in shown), SHIPPED)


if __name__ == "__main__":
    main()
