"""The commands `calibrate` and `bench`: references of one's own, and how often verdicts are right."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.console import AsJson, Outcome, carry_out
from vetgate.errors import BadSubmission


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

    def by_models(folder: Path) -> Outcome:
        from flows.params import load_params
        from flows.vetting.references import calibrated, submissions
        from tasks.data.reference import resolve
        from tasks.progress import progress_of
        from tasks.settings import load_settings

        settings = load_settings()
        ref, place = resolve(settings, name), out or settings.home / "calibration.json"
        given = submissions(folder, name)
        typer.echo(f"{len(given)} networks; what is finished is kept, run the same command to go on", err=True)
        _begin(settings.calibration, place)
        on_progress = progress_of(f"calibrate {name}")
        made, failing = calibrated(settings, load_params(settings.params), ref, given, place, on_progress)
        accuracy = [min(r.accuracy for r in made), max(r.accuracy for r in made)]
        blob = {
            "calibration": str(place),
            "data": name,
            "data_sha256": ref.sha256,
            "references": len(made),
            "accuracy": accuracy,
            "failing": failing,
        }
        low, high = (100 * v for v in accuracy)
        lines = [f"{len(made)} references of your own on {name}, accuracy {low:.1f} to {high:.1f} %"]
        if failing:
            lines.append(
                f"beside the others {', '.join(failing)} would FAIL, of clean ones about 1 in 20 does: look at "
                "them with `vetgate vet`, and leave out what you do not trust"
            )
        lines.append(f"export VETGATE_CALIBRATION={place}")
        return Outcome(0, blob, lambda console: console.print("\n".join(lines), soft_wrap=True))

    def command() -> Outcome:
        if models is not None:
            return by_models(models)
        from flows.bank import calibrate as calibration
        from flows.bank.data import source
        from flows.bank.own import minutes, recipe, references
        from flows.params import load_params
        from tasks.data.reference import describe, resolve
        from tasks.progress import progress_of
        from tasks.settings import load_settings

        settings = load_settings()
        params, ref = load_params(settings.params), resolve(settings, name)
        about: dict[str, Any] = describe(settings, ref)
        how = recipe(about["arrays"]["x_train"]["shape"][0])
        wanted = references(name, count, images=how.images)
        place = out or settings.home / "calibration.json"
        data = source(settings, name, params.data, how.images)
        estimate = minutes(wanted, how, data.shape, data.classes, jobs)
        typer.echo(
            f"{count} networks, {how.images} images and {how.epochs} epochs each: about {estimate:.0f} minutes on "
            f"{jobs} cores; what is finished is kept, run the same command to go on",
            err=True,
        )
        _begin(settings.calibration, place)
        on_progress = progress_of(f"calibrate {name}")
        bank = calibration.own(settings, params, wanted, how, place, jobs=jobs, on_progress=on_progress)
        own = [r for r in bank.references if r.data_sha256 == ref.sha256]
        accuracy = [min(r.accuracy for r in own), max(r.accuracy for r in own)]
        blob = {
            "calibration": str(place),
            "data": name,
            "data_sha256": ref.sha256,
            "references": len(own),
            "accuracy": accuracy,
            "estimated_minutes": round(estimate, 1),
        }
        low, high = (100 * v for v in accuracy)
        lines = [
            f"{len(own)} clean references on {name}, accuracy {low:.1f} to {high:.1f} %",
            f"export VETGATE_CALIBRATION={place}",
        ]
        return Outcome(0, blob, lambda console: console.print("\n".join(lines), soft_wrap=True))

    return carry_out(command, as_json=json)


def _begin(before: Path | None, place: Path) -> None:
    """Lay the calibration in force at a place where there is none, so that it is added to."""
    from flows.bank.calibrate import write
    from vetgate.verdict.calibration import load_calibration

    if not place.exists() and (shipped := load_calibration(before)) is not None:
        write(shipped.bank, place)


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
