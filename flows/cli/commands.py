"""The command line `vetgate`: every command ends in one exit code and, with --json, one object on stdout."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli import bank, gate, serve, service, verify, watch
from flows.cli.console import Outcome, carry_out, run
from flows.cli.scan.command import scan
from tasks.environment import speak_utf8

app = typer.Typer(
    name="vetgate",
    help="Vet third-party image classifiers for backdoors and keep what fails out of production.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Reference data: trusted images that models are vetted on.", no_args_is_help=True)
app.add_typer(data_app, name="data")
for command in (
    bank.bench,
    bank.calibrate,
    service.up,
    serve.serve,
    serve.rejected,
    watch.sweep,
    watch.rescan,
    watch.reconcile,
    gate.waive,
    gate.approve,
    gate.revoke,
    verify.status,
    verify.verify,
    scan,
):
    app.command()(command)
app.add_typer(gate.ledger_app, name="ledger")
app.add_typer(gate.keys_app, name="keys")

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]
Directory = Annotated[Path, typer.Argument(help="Directory with submission.yaml and the model.", metavar="DIR")]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; its exit code."""
    if arguments is None:
        speak_utf8()
    return run(app, sys.argv[1:] if arguments is None else arguments)


@app.command()
def submit(
    directory: Directory,
    key: Annotated[Path | None, typer.Option(help="The submitter's private key, to sign with.")] = None,
    json: AsJson = False,
) -> int:
    """Take a model in and queue it; the service vets it, or `vet` or `sweep` where there is none."""

    def command() -> Outcome:
        from flows.vetting.submit import submit as take
        from tasks.settings import load_settings

        record = take(load_settings(), directory, key)
        blob = {"submission": record.submission.name, "manifest_sha256": record.id, "submitted_at": record.submitted_at}
        return Outcome(0, blob, lambda c: c.print(f"submitted {record.submission.name}\n{record.id}"))

    return carry_out(command, as_json=json)


@app.command()
def vet(directory: Directory, json: AsJson = False) -> int:
    """Submit a model and vet it here and now. Exits with 0 pass, 1 FAIL, 2 error, 3 inconclusive."""

    def command() -> Outcome:
        from flows.cli.show import EXIT_CODES, show_result
        from flows.vetting.local import vet_locally

        result = vet_locally(directory)
        return Outcome(EXIT_CODES[result.verdict], result.to_json(), lambda console: show_result(console, result))

    return carry_out(command, as_json=json)


@app.command()
def report(
    submission: Annotated[str, typer.Argument(help="SHA-256 of the manifest, or its beginning.", metavar="ID")],
    json: AsJson = False,
) -> int:
    """Print the path of a vetting's HTML report; warns where it was made elsewhere, since nobody signed it."""

    def command() -> Outcome:
        from flows.vetting.submit import local_report
        from tasks.progress import announce
        from tasks.settings import load_settings

        found = local_report(load_settings(), submission)
        for warning in found.warnings:
            announce(f"warning: {warning}")
        blob = {
            "submission": found.record.submission.name,
            "manifest_sha256": found.record.id,
            "report": str(found.path),
            "warnings": list(found.warnings),
        }
        return Outcome(0, blob, lambda console: console.print(str(found.path), soft_wrap=True))

    return carry_out(command, as_json=json)


@app.command()
def promote(
    name: Annotated[str, typer.Argument(help="The model's name; it becomes prod.NAME.", metavar="NAME")],
    submission: Annotated[str | None, typer.Option(help="Manifest SHA-256; the newest PASS if left out.")] = None,
    alias: Annotated[str, typer.Option(help="champion or challenger.")] = "champion",
    hardened: Annotated[
        bool, typer.Option("--hardened", help="Its repaired copy that passed in its own right, not what was submitted.")
    ] = False,
    json: AsJson = False,
) -> int:
    """Let vetted bytes into production; refuses everything else with exit code 1 or 5."""

    def command() -> Outcome:
        from flows.production.promote import promote as let_through
        from tasks.settings import load_settings

        granted: dict[str, Any] = let_through(
            load_settings(), name, submission=submission, alias=alias, hardened=hardened
        )
        return Outcome(0, granted, lambda console: _show_pairs(console, granted))

    return carry_out(command, as_json=json)


@data_app.command("add")
def data_add(
    name: Annotated[str, typer.Argument(help="Name under which submissions refer to it.", metavar="NAME")],
    file: Annotated[Path, typer.Argument(help=".npz with x_train, y_train, x_test, y_test.", metavar="FILE")],
    training: Annotated[
        bool, typer.Option("--training", help="A supplier's training set: classes may be missing or rare.")
    ] = False,
    json: AsJson = False,
) -> int:
    """Register a reference data set under DVC."""

    def command() -> Outcome:
        from tasks.data.reference import add, describe, doubts
        from tasks.progress import announce, progress_of
        from tasks.settings import load_settings

        settings = load_settings()
        ref = add(settings, name, file, progress_of(f"reading {file.name}"), training=training)
        warnings = doubts(describe(settings, ref))
        for warning in warnings:
            announce(f"warning: {warning}")
        blob = {"name": ref.name, "rev": ref.rev, "path": ref.path, "sha256": ref.sha256, "warnings": warnings}
        return Outcome(0, blob, lambda console: _show_pairs(console, blob))

    return carry_out(command, as_json=json)


@data_app.command("list")
def data_list(json: AsJson = False) -> int:
    """List the registered reference data sets."""

    def command() -> Outcome:
        from flows.cli.show import show_data
        from tasks.data.reference import describe, registered
        from tasks.settings import load_settings

        settings = load_settings()
        rows = [
            {"name": ref.name, "rev": ref.rev, "sha256": ref.sha256, "classes": described["classes"]}
            for ref in registered(settings)
            for described in [describe(settings, ref)]
        ]
        return Outcome(0, {"data": rows}, lambda console: show_data(console, rows))

    return carry_out(command, as_json=json)


@app.command()
def demo(
    seed: Annotated[int, typer.Option(min=0, help="Train and vet other models; one clean model in twenty fails.")] = 0,
    json: AsJson = False,
) -> int:
    """Two suppliers, one of them dishonest: submit, vet, repair and promote on scikit-learn's digits."""

    def command() -> Outcome:
        from flows.cli.demo import run_demo

        return run_demo(seed)

    return carry_out(command, as_json=json)


def _show_pairs(console: Any, blob: dict[str, Any]) -> None:
    for key, value in blob.items():
        if value is not None and not isinstance(value, dict | list):
            console.print(f"{key:<16} {value}", soft_wrap=True)
