"""The command `rejected`: what guards of served models rejected, as a table and as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.console import Outcome, carry_out
from vetgate.formats.plain_text import escaped

if TYPE_CHECKING:
    from rich.console import Console

    from tasks.rejected import Kept

app = typer.Typer()
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]
Home = Annotated[Path | None, typer.Option(help="State of the installation; VETGATE_HOME if left out.")]
MOST_ROWS = 50


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
