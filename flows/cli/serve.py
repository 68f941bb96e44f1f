"""The commands around a model that is served behind its guards: `serve`, and `rejected`, what the guards rejected."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.console import AsJson, Outcome, carry_out, json_text
from vetgate.errors import BadSubmission, VetgateError
from vetgate.formats.plain_text import escaped

if TYPE_CHECKING:
    from rich.console import Console

    from tasks.rejected import Kept

app = typer.Typer()
Home = Annotated[Path | None, typer.Option(help="State of the installation; VETGATE_HOME if left out.")]
MOST_ROWS = 50


@app.command()
def serve(
    uri: Annotated[str, typer.Argument(help="models:/prod.NAME@ALIAS or /VERSION.", metavar="MODEL")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8482,
    action: Annotated[
        str | None, typer.Option(help="reject, log-only or vote; what the policy said at vetting if left out.")
    ] = None,
    every: Annotated[
        int, typer.Option(min=1, max=3600, help="Seconds until it is asked again whether the model is covered.")
    ] = 60,
    home: Home = None,
    json: AsJson = False,
) -> int:
    """Serve a model of production behind its guards, by MLflow's scoring protocol, until a signal ends it.

    It is verified before it listens: the exit codes are those of `verify`. While it serves, a moved alias is followed,
    and what is revoked or out of date is served no more (503).
    """
    try:
        from flows.service.scoring.serve import serve_model
        from vetgate.guard.guarded import Action

        if action is not None and action not in {known.value for known in Action}:
            raise BadSubmission(f"expected as action one of {', '.join(Action)}, got {action!r:.80}")
        chosen = None if action is None else Action(action)
        told: dict[str, Any] = {"host": host, "port": port, "action": chosen, "every": every}
        serve_model(uri, _settings(home), lambda about: _announce(about, as_json=json), **told)
        return 0
    except VetgateError as error:
        wrong = error
    return carry_out(lambda: _raise(wrong), as_json=json)


@app.command()
def rejected(
    name: Annotated[str | None, typer.Argument(help="The model's name; all if left out.", metavar="NAME")] = None,
    home: Home = None,
    json: AsJson = False,
) -> int:
    """List the inputs that guards of served models rejected, newest first, and write a page of their pictures."""

    def command() -> Outcome:
        from tasks.rejected import kept
        from tasks.report.rejected_page import write_rejected

        where = _settings(home).home
        found = kept(where, name)
        page = write_rejected(where, name, found) if found else None
        rows = [{**item.rejection.to_json(), "image": str(item.image)} for item in found]
        blob = {"rejected": rows, "page": None if page is None else str(page)}
        return Outcome(0, blob, lambda console: _show(console, found, page))

    return carry_out(command, as_json=json)


def _settings(home: Path | None) -> Any:
    from tasks.settings import load_settings

    return load_settings(**({} if home is None else {"home": home}))


def _show(console: Console, found: list[Kept], page: Path | None) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("time", "model", "outcome", "taken for", "alarmed", "scores")
    for item in found[:MOST_ROWS]:
        said = item.rejection
        scores = ", ".join(f"{name} {'–' if score is None else f'{score:.3g}'}" for name, score in said.scores.items())
        model, label = f"prod.{said.name} {said.version}", "–" if said.said is None else str(said.said_class)
        row = (said.time[:19], model, said.outcome, label, ", ".join(said.alarms), scores)
        table.add_row(*(Text(escaped(cell)) for cell in row))
    console.print(table)
    if len(found) > MOST_ROWS:
        console.print(f"and {len(found) - MOST_ROWS} more; --json lists all of them")
    console.print("nothing was rejected" if page is None else f"pictures  {page}", soft_wrap=True)


def _announce(about: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json_text(about), flush=True)
        return
    guards = ", ".join(about["guards"])
    print(f"{about['model']} version {about['version']} behind {guards} ({about['action']}), until {about['until']}")
    print(f"POST {about['url']}/invocations", flush=True)


def _raise(error: VetgateError) -> Outcome:
    raise error
