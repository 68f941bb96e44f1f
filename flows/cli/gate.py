"""Commands of the gate: waive, approve, revoke, the ledger, and keys."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.console import AsJson, Outcome, carry_out
from vetgate.formats.plain_text import escaped

app = typer.Typer(no_args_is_help=True)
ledger_app = typer.Typer(help="The ledger: every decision of the gate, signed and chained.", no_args_is_help=True)
keys_app = typer.Typer(help="Keys of people, and the public keys that are trusted.", no_args_is_help=True)
app.add_typer(ledger_app, name="ledger")
app.add_typer(keys_app, name="keys")

Key = Annotated[Path, typer.Option("--key", help="Your private key, a PEM file that only you can read.")]
Reason = Annotated[str, typer.Option(help="Why; it is kept with your signature.")]
Role = Annotated[str, typer.Option(help="approver, submitter, vetter or gate.")]
Days = Annotated[int, typer.Option(help="How many days the key counts from now.")]


@app.command()
def waive(
    submission: Annotated[str, typer.Argument(help="SHA-256 of the manifest, or its beginning.", metavar="ID")],
    reason: Reason,
    days: Annotated[int, typer.Option(help="For how many days; the policy sets the most.")],
    key: Key,
    finding: Annotated[str | None, typer.Option(help="Which finding; left out, they are listed.")] = None,
    json: AsJson = False,
) -> int:
    """Ask that a finding on these bytes be let pass. Exits with 1 where it may not, 4 for no such finding."""

    def command() -> Outcome:
        from flows.gate.waive import UnknownFinding
        from flows.gate.waive import waive as ask
        from tasks.settings import load_settings

        try:
            made: dict[str, Any] = ask(load_settings(), submission, finding, reason, days, key)
        except UnknownFinding as error:
            message, findings = str(error), list(error.findings)
            blob = {"error": message, "exit_code": 4, "findings": findings}
            return Outcome(4, blob, lambda console: _lines(console, [message, *findings]))
        return Outcome(0, made, lambda console: _pairs(console, made))

    return carry_out(command, as_json=json)


@app.command()
def approve(
    digest: Annotated[str, typer.Argument(help="Digest of a waiver or attestation, or its beginning.")],
    key: Key,
    json: AsJson = False,
) -> int:
    """Approve a waiver or a promotion. Exits with 1 where this key does not count, 5 for what ran out."""

    def command() -> Outcome:
        from flows.gate.waive import approve as consent
        from tasks.settings import load_settings

        made: dict[str, Any] = consent(load_settings(), digest, key)
        return Outcome(0, made, lambda console: _pairs(console, made))

    return carry_out(command, as_json=json)


@app.command()
def revoke(
    what: Annotated[str, typer.Argument(help="A submission, or the digest of a verdict, waiver or approval.")],
    reason: Reason,
    key: Annotated[Path | None, typer.Option(help="Your private key, so that the record tells by whom.")] = None,
    json: AsJson = False,
) -> int:
    """Take back a verdict, a waiver or an approval, for good."""

    def command() -> Outcome:
        from flows.gate.revoke import revoke as take_back
        from tasks.settings import load_settings

        made: dict[str, Any] = take_back(load_settings(), what, reason, key)
        return Outcome(0, made, lambda console: _pairs(console, made))

    return carry_out(command, as_json=json)


@ledger_app.command("verify")
def ledger_verify(
    head: Annotated[
        str | None,
        typer.Option(help="Hold its end against this published head: mlflow, a file, or where it was published."),
    ] = None,
    json: AsJson = False,
) -> int:
    """Prove the ledger whole, up to every published head that is found. Prints the first thing that is wrong.

    Exits with 1 where something is forged or was not entered, 5 where something is missing or was changed since, such
    as its end. Without a head and a memory of it in this home nobody can tell whether its end was cut off: `against` is
    then empty.
    """

    def command() -> Outcome:
        from tasks.mlflow.heads import heads_found
        from tasks.records.ledger_verify import verify_ledger
        from tasks.settings import load_settings

        settings = load_settings()
        heads, unread = heads_found(settings, head)
        proved = {**verify_ledger(settings, heads), "unread": unread}
        shown = {**proved, "against": ", ".join(proved["against"]) or "nothing: a missing end would not be noticed"}
        return Outcome(0, proved, lambda console: _pairs(console, shown))

    return carry_out(command, as_json=json)


@ledger_app.command("list")
def ledger_list(
    kind: Annotated[str | None, typer.Option(help="Only entries of this kind.")] = None, json: AsJson = False
) -> int:
    """List the entries as they stand; `ledger verify` proves them."""

    def command() -> Outcome:
        from dataclasses import asdict

        from tasks.records.ledger_chain import entries
        from tasks.settings import load_settings
        from tasks.store.open import open_store

        rows = [asdict(e) for e in entries(open_store(load_settings())) if kind in (None, e.kind)]
        return Outcome(0, {"entries": rows}, lambda console: _entries(console, rows))

    return carry_out(command, as_json=json)


@keys_app.command("new")
def keys_new(
    file: Annotated[Path, typer.Argument(help="A new file.", metavar="FILE")],
    role: Role,
    days: Days,
    json: AsJson = False,
) -> int:
    """Make a key, readable by you only, with its public half in FILE.pub, and have this installation trust it."""

    def command() -> Outcome:
        from flows.gate.keys import new
        from tasks.settings import load_settings

        made = new(load_settings(), file, role, days)
        return Outcome(0, made, lambda console: _pairs(console, made))

    return carry_out(command, as_json=json)


@keys_app.command("trust")
def keys_trust(
    file: Annotated[Path, typer.Argument(help="The public half of a key, as PEM.", metavar="PUBLIC")],
    role: Role,
    days: Days,
    json: AsJson = False,
) -> int:
    """Trust a public key in a role, or give it more days. A key keeps its role."""

    def command() -> Outcome:
        from flows.gate.keys import trust
        from tasks.settings import load_settings

        made = trust(load_settings(), file, role, days)
        return Outcome(0, made, lambda console: _pairs(console, made))

    return carry_out(command, as_json=json)


@keys_app.command("list")
def keys_list(json: AsJson = False) -> int:
    """List the trusted keys, their roles and until when they count."""

    def command() -> Outcome:
        from flows.gate.keys import listed
        from tasks.settings import load_settings

        rows = listed(load_settings())
        shown = [f"{k['keyid']}  {k['role']:<9}  {k['not_before']} - {k['not_after']}" for k in rows]
        return Outcome(0, {"keys": rows}, lambda console: _lines(console, shown))

    return carry_out(command, as_json=json)


def _entries(console: Any, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        subject = row["subject"]
        about = " ".join(
            str(subject[k]) for k in ("name", "version", "alias", "stage", "verdict", "manifest") if subject.get(k)
        )
        _lines(console, [f"{row['sequence']:>6}  {row['issued']}  {row['kind']:<10}  {about}"])


def _pairs(console: Any, blob: dict[str, Any]) -> None:
    _lines(console, [f"{k:<16} {v}" for k, v in blob.items() if v is not None and v != []])


def _lines(console: Any, lines: list[str]) -> None:
    for line in lines:
        console.print(escaped(line), soft_wrap=True)
