"""The commands `calibrate` and `bench`: references of one's own, and how often verdicts are right."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.console import AsJson, Outcome, carry_out
from vetgate.errors import BadSubmission

if TYPE_CHECKING:
    from flows.params import Params
    from tasks.data.reference import DataRef
    from tasks.settings import Settings
    from vetgate.verdict.calibration import Reference


def calibrate(
    name: Annotated[str, typer.Argument(help="A registered data set: see `vetgate data list`.")],
    count: Annotated[
        int, typer.Option(min=8, help="Clean networks, at least 8; 19 stand for a rate of 5 %, 99 for 1 %.")
    ] = 20,
    out: Annotated[Path | None, typer.Option(help="The calibration to write; <home>/calibration.json without.")] = None,
    jobs: Annotated[
        int, typer.Option(min=1, help="Networks at once; each takes one core.", show_default="one for each core")
    ] = os.cpu_count() or 1,
    models: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Train none: take the clean networks in DIR, each a directory as one that is handed in."
        ),
    ] = None,
    json: AsJson = False,
) -> int:
    """Train clean networks on a data set and hold verdicts on it against them. Says first how long it takes.

    With --models, hold them against clean networks of your own; all that is in DIR is added to the calibration.
    """

    def command() -> Outcome:
        from flows.params import load_params
        from tasks.data.reference import resolve
        from tasks.settings import load_settings

        settings = load_settings()
        params, ref = load_params(settings.params), resolve(settings, name)
        place = out or settings.home / "calibration.json"
        if models is None:
            made = _trained(settings, params, ref, place, count, jobs)
        else:
            made = _taken(settings, params, ref, place, models)
        accuracy = [min(r.accuracy for r in made.own), max(r.accuracy for r in made.own)]
        blob = {
            "calibration": str(place),
            "data": name,
            "data_sha256": ref.sha256,
            "references": len(made.own),
            "accuracy": accuracy,
            **made.more,
        }
        low, high = (100 * v for v in accuracy)
        lines = [
            f"{len(made.own)} {made.kind} on {name}, accuracy {low:.1f} to {high:.1f} %",
            *made.warnings,
            f"export VETGATE_CALIBRATION={place}",
        ]
        return Outcome(0, blob, lambda console: console.print("\n".join(lines), soft_wrap=True))

    return carry_out(command, as_json=json)


@dataclass(frozen=True)
class _Made:
    """References that were made, what they are called, and what else is answered and said."""

    own: Sequence[Reference]
    kind: str
    more: dict[str, Any]
    warnings: Sequence[str] = ()


def _trained(settings: Settings, params: Params, ref: DataRef, place: Path, count: int, jobs: int) -> _Made:
    from flows.bank.calibrate import own
    from flows.bank.data import source
    from flows.bank.own import minutes, recipe, references
    from tasks.data.reference import describe

    about: dict[str, Any] = describe(settings, ref)
    how = recipe(about["arrays"]["x_train"]["shape"][0])
    wanted, data = references(ref.name, count, images=how.images), source(settings, ref.name, params.data, how.images)
    estimate = minutes(wanted, how, data.shape, data.classes, jobs)
    each = f"{how.images} images and {how.epochs} epochs each"
    work = f"{count} networks, {each}: about {estimate:.0f} minutes on {jobs} cores"
    on_progress = _begun(settings, ref, place, work)
    bank = own(settings, params, wanted, how, place, jobs=jobs, on_progress=on_progress)
    made = [r for r in bank.references if (r.data_sha256, r.image) == (ref.sha256, data.shape)]
    return _Made(made, "clean references", {"estimated_minutes": round(estimate, 1)})


def _taken(settings: Settings, params: Params, ref: DataRef, place: Path, folder: Path) -> _Made:
    from flows.vetting.references import calibrated, submissions

    given = submissions(folder, ref.name)
    on_progress = _begun(settings, ref, place, f"{len(given)} networks")
    made, failing = calibrated(settings, params, ref, given, place, on_progress)
    warnings = [
        f"beside the others {', '.join(failing)} would FAIL, of clean ones about 1 in 20 does: look at them with "
        "`vetgate vet`, and leave out what you do not trust"
    ]
    return _Made(made, "references of your own", {"failing": failing}, warnings if failing else ())


def _begun(settings: Settings, ref: DataRef, place: Path, work: str) -> Callable[[float], None]:
    """Say what is to do, lay the calibration in force at a place where there is none, and show how far it is."""
    from flows.bank.calibrate import write
    from tasks.progress import progress_of
    from vetgate.verdict.calibration import load_calibration

    typer.echo(f"{work}; what is finished is kept, run the same command to go on", err=True)
    if not place.exists() and (shipped := load_calibration(settings.calibration)) is not None:
        write(shipped.bank, place)
    return progress_of(f"calibrate {ref.name}")


def bench(
    second: Annotated[bool, typer.Option("--second", help="Score the second wave instead; not for tuning.")] = False,
    sealed: Annotated[bool, typer.Option("--sealed", help="Score the sealed members instead; not for tuning.")] = False,
    rate: Annotated[
        float | None,
        typer.Option(min=0.001, max=0.5, help="Another rate of false alarms; prints, writes nothing."),
    ] = None,
    json: AsJson = False,
) -> int:
    """Score the model bank: false alarms, detection, cost, repairs; each model by a calibration that did not see it."""

    def command() -> Outcome:
        from flows.bank.networks import OPEN, SEALED, SECOND
        from flows.benchmark.run import run, show

        if second and sealed:
            raise BadSubmission("expected one of --second and --sealed, got both; score one group at a time")
        found = run(SEALED if sealed else SECOND if second else OPEN, rate)
        return Outcome(0, found, lambda console: show(console, found, rate))

    return carry_out(command, as_json=json)
