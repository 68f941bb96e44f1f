"""The command `up`: the service on this machine, and whether it is healthy."""

from __future__ import annotations

import sys
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.console import AsJson, Outcome, carry_out, json_text
from flows.cli.console import run as command_line
from vetgate.errors import VetgateError
from vetgate.formats.plain_text import without_secrets

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer()


@app.callback()
def service() -> None:
    """Run the service."""


@app.command()
def up(
    check: Annotated[bool, typer.Option("--check", help="Say what is healthy, and start nothing.")] = False,
    json: AsJson = False,
) -> int:
    """Start the whole service and stay until Ctrl-C: Prefect, MLflow, workers, receiver, gate. Exits with 0, or 2."""
    if check:
        return carry_out(_health, as_json=json)
    from flows.service.up import up as run
    from tasks.settings import load_settings

    try:
        return run(load_settings(), lambda about: _announce(about, as_json=json))
    except VetgateError as error:
        wrong = error
    return carry_out(lambda: _raise(wrong), as_json=json)


def _health() -> Outcome:
    from flows.service.check import check
    from tasks.settings import load_settings

    found = list(check(load_settings()))
    healthy = all(part.healthy for part in found)

    def show(console: Console) -> None:
        for part in found:
            state = "ok" if part.healthy else "NOT OK"
            console.print(f"{part.part:<18} {state:<8} {part.detail}", soft_wrap=True)

    return Outcome(0 if healthy else 2, {"healthy": healthy, "parts": [part.to_json() for part in found]}, show)


def _announce(about: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json_text(about))
        return
    for name in ("prefect", "mlflow", "receiver", "gate", "store"):
        print(f"{name:<9} {without_secrets(about[name])}")
    print(f"up after {about['seconds']:.0f} s; commands use it with these variables:")
    for name in ("PREFECT_API_URL", "VETGATE_HOME", "VETGATE_TRACKING_URI", "VETGATE_GATE_URL"):
        print(f"export {name}={quote(without_secrets(about['environment'][name]))}")


def _raise(error: VetgateError) -> Outcome:
    raise error


if __name__ == "__main__":
    sys.exit(command_line(app, sys.argv[1:]))
