"""The command `sweep`: whatever waits is started on the service, or vetted here where there is none."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from flows.cli.console import Outcome, carry_out

app = typer.Typer()


@app.command()
def sweep(json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False) -> int:
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
        return Outcome(2 if done["errors"] else 0, done, lambda console: console.print("\n".join(lines)))

    return carry_out(command, as_json=json)
