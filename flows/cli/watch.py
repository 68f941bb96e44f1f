"""The commands that find what is due: sweep what events missed, rescan and reconcile production."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.console import AsJson, Outcome, carry_out
from vetgate.formats.plain_text import escaped

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer()


@app.command()
def sweep(json: AsJson = False) -> int:
    """Find what events and webhooks missed, and start it; without a service, vet it here. Exits with 0, or 2."""

    def command() -> Outcome:
        from tasks.settings import load_settings

        settings = load_settings()
        if "PREFECT_API_URL" in os.environ:
            from flows.vetting.sweep_flow import sweep_service

            done = sweep_service(settings)
        else:
            from flows.vetting.local import sweep_locally

            done = sweep_locally(settings)
        counts = [f"{len(done[key])} {key.replace('_', ' ')}" for key in ("vetted", "taken", "promoted", "given_up")]
        lines = [", ".join(counts), *done["errors"]]
        return Outcome(2 if done["errors"] else 0, done, lambda console: console.print("\n".join(map(escaped, lines))))

    return carry_out(command, as_json=json)


@app.command()
def rescan(
    name: Annotated[
        str | None,
        typer.Argument(help="Only prod.NAME, out of date or not; what is out of date if left out.", metavar="NAME"),
    ] = None,
    json: AsJson = False,
) -> int:
    """Vet again what is in production and out of date.

    Exits with 0, 1 when something was taken back, 2 on an error, 3 when a canary came out wrong.
    """

    def command() -> Outcome:
        from tasks.settings import load_settings

        settings = load_settings()
        if "PREFECT_API_URL" in os.environ:
            from flows.rescan.nightly_flow import rescan_service

            blob = rescan_service(settings, name)
        else:
            from flows.rescan.local import rescan_locally

            blob = rescan_locally(settings, name)
        from flows.rescan.nightly import exit_code

        return Outcome(exit_code(blob), blob, lambda console: _show_rescan(console, blob))

    return carry_out(command, as_json=json)


@app.command()
def reconcile(
    name: Annotated[str | None, typer.Argument(help="Only prod.NAME; everything if left out.", metavar="NAME")] = None,
    json: AsJson = False,
) -> int:
    """Take back every alias of production that no verdict covers, and have those of guarded models follow.

    Exits with 0, 1 when it took one back, 2 on an error, 5 where the ledger is broken.
    """

    def command() -> Outcome:
        from flows.production.reconcile import reconcile as hold_against
        from tasks.settings import load_settings

        blob = hold_against(load_settings(), name)
        found = blob["taken_back"] or any(item["bypass"] for item in blob["guarded"])
        return Outcome(1 if found else 0, blob, lambda console: _show_reconciled(console, blob))

    return carry_out(command, as_json=json)


def _show_rescan(console: Console, blob: dict[str, Any]) -> None:
    counts = [f"{blob[what]} {what}" for what in ("unchanged", "stale", "hashed")]
    lines = [f"batch {blob['batch']}: {', '.join(counts)}"]
    lines += [f"canary: {canary['wrong'] or canary['canary'] + ' is as it should be'}" for canary in blob["canaries"]]
    lines += [f"{item['decision']:<13} {item['name']} {item['manifest']}" for item in blob["vetted"]]
    lines += [*map(_line, blob["taken_back"]), *blob["errors"]]
    if blob["verdict"] == "INCONCLUSIVE":
        lines.append("INCONCLUSIVE: nothing was renewed and nothing taken back")
    console.print("\n".join(map(escaped, lines)), soft_wrap=True)


def _show_reconciled(console: Console, blob: dict[str, Any]) -> None:
    lines = [f"{blob['covered']} of {blob['checked']} versions in production are covered"]
    lines += [f"in its grace until {item['until']}: {item['name']} {item['version']}" for item in blob["grace"]]
    lines += [*map(_line, blob["taken_back"]), *map(_guarded_line, blob["guarded"])]
    console.print("\n".join(map(escaped, lines)), soft_wrap=True)


def _guarded_line(item: dict[str, Any]) -> str:
    to = f"put on version {item['to']}" if item["to"] else "deleted"
    why = "bypass, no form of what was promoted" if item["bypass"] else f"prod.{item['name']} is elsewhere"
    return f"guarded: {item['model']}@{item['alias']} was version {item['version']}, {to}: {why}"


def _line(item: dict[str, Any]) -> str:
    model, version = item["model"], item["version"]
    if item["tag"] is not None:
        said = f"{' version '.join(filter(None, (model, version)))}, tag {item['tag']} taken off"
    elif item["stage"] is not None:
        said = f"{model}, stage {item['stage']}, was version {version}, ended"
    elif item["alias"] is None:
        said = f"{model} version {version}, removed from the registry"
    else:
        to = f"put back to version {item['to']}" if item["to"] else "deleted"
        said = f"{model}@{item['alias']} was version {version}, {to}"
    return f"{item['kind']}: {said}: {item['reason']}"
