"""The status as tables for people; what runs out soon or is not covered stands out."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.cli.show import COLOURS

ALARM, WARNING = "bold red", "yellow"


def show_status(console: Console, seen: dict[str, Any]) -> None:
    """Submissions, production, waivers and the last rescan; parts with nothing in them are left out."""
    if seen["submissions"] is not None:
        console.print(_submissions(seen["submissions"]))
    if seen["production"]:
        console.print(_production(seen["production"]))
    if seen["waivers"]:
        console.print(_waivers(seen["waivers"]))
    if seen["rescan"] is not None:
        console.print(_rescan(seen["rescan"]))
    for name in seen["strange"] or ():
        console.print(Text(f"strange in the store, and passed over: {name}", style=WARNING))
    for part, message in seen["errors"].items():
        console.print(Text(f"{part}: {'not known, ' * (part in seen['unknown'])}{message}", style=ALARM))


def _submissions(rows: list[dict[str, Any]]) -> Table:
    table = Table("submission", "supplier", "manifest", "submitted", "verdict", "parent", title="submissions")
    for row in rows:
        table.add_row(
            row["submission"],
            row["supplier"],
            row["manifest_sha256"][:16],
            row["submitted_at"],
            _verdict(row["verdict"]) if row["verdict"] else _waiting(row),
            (row["parent"] or "")[:16],
        )
    return table


def _waiting(row: dict[str, Any]) -> Text:
    holder, attempts = row["held_by"], row["attempts"] or 0
    if holder is not None:
        return Text(f"attempt {attempts} by {holder['host']}, process {holder['pid']}")
    return Text(
        "queued" if not attempts else f"queued, {attempts} attempts died", style="" if not attempts else WARNING
    )


def _production(rows: list[dict[str, Any]]) -> Table:
    table = Table("model", "alias", "version", "manifest", "verdict", "until", title="in production")
    for row in rows:
        until = Text(row["until"] or "", style=WARNING if row["soon"] else "")
        if row["grace"]:
            until.append(" (grace)", style=ALARM)
        table.add_row(
            row["model"],
            row["alias"] or f"stage {row['stage']}",
            row["version"],
            (row["manifest_sha256"] or "")[:16],
            _verdict(row["verdict"]) if row["covered"] else Text(_uncovered(row), style=ALARM),
            until if row["covered"] else Text(row["why"], style=ALARM),
        )
    return table


def _uncovered(row: dict[str, Any]) -> str:
    return "NOT KNOWN" if row["covered"] is None else "NOT COVERED"


def _waivers(rows: list[dict[str, Any]]) -> Table:
    table = Table("manifest", "finding", "expires", "state", "reason", title="waivers")
    for row in rows:
        state = "in force" if row["in_force"] else row["why"]
        table.add_row(
            row["manifest_sha256"][:16],
            row["finding"],
            Text(row["expires"] + (" soon" if row["soon"] else ""), style=WARNING if row["soon"] else ""),
            Text(state, style="" if row["in_force"] else "dim"),
            row["reason"],
        )
    return table


def _rescan(batch: dict[str, Any]) -> Text:
    counts = ", ".join(f"{batch[key]} {key}" for key in ("checked", "unchanged", "stale", "uncovered"))
    line = Text(f"last rescan {batch['batch']}: ") + _verdict(batch["verdict"]) + Text(f", {counts}")
    for key in ("taken_back", "errors"):
        if batch[key]:
            line.append(f", {len(batch[key])} {key.replace('_', ' ')}", style=ALARM)
    return line


def _verdict(verdict: str) -> Text:
    return Text(verdict, style=f"bold {COLOURS.get(verdict, '')}")
