"""The command line `vetgate`: every command ends in one exit code and, with --json, one object on stdout."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli import bank, gate, serve, service, verify, watch
from flows.cli.console import AsJson, Outcome, carry_out, run
from flows.cli.preparing.data import data_app
from flows.cli.preparing.init import init
from flows.cli.scan.command import scan
from tasks.environment import speak_utf8

app = typer.Typer(
    name="vetgate",
    help="Vet third-party image classifiers for backdoors and keep what fails out of production.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
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
    init,
):
    app.command()(command)
app.add_typer(gate.ledger_app, name="ledger")
app.add_typer(gate.keys_app, name="keys")

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
        from flows.cli.show import show_pairs
        from flows.production.promote import promote as let_through
        from tasks.settings import load_settings

        granted: dict[str, Any] = let_through(
            load_settings(), name, submission=submission, alias=alias, hardened=hardened
        )
        return Outcome(0, granted, lambda console: show_pairs(console, granted))

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
